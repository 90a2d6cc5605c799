"""The C simulation of an HLS project on the CPU: computes what the FPGA computes, bit by bit.

It runs `simulation.so`, which the step `hls` compiled, through ctypes: nothing of hls4ml is needed.
What the hardware leaves to its host, such as a softmax at the end, is computed here in float.

Source: hls4ml 1.3.0, which wrote what the library was compiled from.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .signature import Signature, artifact_file, check_feeds, read_signature
from .threads import thread_count

REQUIREMENTS = ("numpy>=1.26,<3",)

EMULATED = True
"""What runs here is the arithmetic of another machine."""

LIBRARY = "simulation.so"
FILE = "hls.json"


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of the source model, and what is left to do in float."""

    name: str
    shape: tuple[int, ...]
    """Of one sample."""
    door: str = "none"


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine reads of `hls.json`."""

    machine: str
    """The processor architecture that the library is for, as `uname -m` says it."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def load(artifact: Path, *, threads: int | None = None) -> Simulation:
    """Load the artifact in that folder; it runs in one thread, whatever `threads` is.

    Raises Tf2aifError where a file is missing or broken, and where the library is for another
    processor architecture than this machine's.
    """
    thread_count(threads)
    signature = read_signature(artifact)
    made = _read(artifact)
    path = artifact_file(artifact, LIBRARY)
    if made.machine != os.uname().machine:
        raise Tf2aifError(
            f"the C simulation was compiled for {made.machine}; this machine is "
            f"{os.uname().machine}",
            at=str(path),
            hint="build the variant on a machine like this one",
        )
    _match(signature, made, path)
    return Simulation(signature, made, Library(path))


class Library:
    """A copy of a shared library, loaded: with static buffers of its own.

    The loader of the C library knows libraries by their names: the same path again is the same
    library again, with the same buffers, even where the file is another one by now. So it is given
    a file in memory, whose name is nobody else's for as long as it is open.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.memfd_create(path.name)
        try:
            with open(self._file, "wb", closefd=False) as copy:
                copy.write(path.read_bytes())
            name = f"/proc/self/fd/{self._file}"
            self._library = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_LOCAL)
            self.run = self._library.tf2aif_run
        except (OSError, AttributeError) as error:
            os.close(self._file)
            raise Tf2aifError(
                f"the C simulation cannot be loaded: {error}", at=str(path)
            ) from error
        self.run.argtypes = [ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
        self.run.restype = None

    def close(self) -> None:
        """Unload it; nothing of it may run."""
        import _ctypes

        _ctypes.dlclose(self._library._handle)
        os.close(self._file)


class Simulation:
    """A loaded `simulation.so`. Its buffers are static, so one thread at a time runs in it."""

    def __init__(self, signature: Signature, made: Made, library: Library) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._made = made
        self._library: Library | None = library
        self._lock = threading.Lock()

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch; the outputs are arrays of the caller's own."""
        import numpy as np

        arrays = check_feeds(feeds, self.inputs)
        raw = self.simulate({name: np.asarray(a, np.float64) for name, a in arrays.items()})
        made = {}
        for spec, port in zip(self.outputs, self._made.outputs, strict=True):
            made[spec.name] = DOORS[port.door](raw[spec.name]).astype(spec.dtype)
        return made

    def simulate(self, feeds: Tensors) -> dict[str, Array]:
        """The hardware's outputs as they are, before the door, by name; float64."""
        import numpy as np

        rows = len(next(iter(feeds.values())))
        given = [
            np.ascontiguousarray(feeds[port.name], np.float64).reshape(rows, *port.shape)
            for port in self._made.inputs
        ]
        made = [np.empty((rows, *port.shape), np.float64) for port in self._made.outputs]
        with self._lock:  # the call itself is outside of Python's own lock
            if self._library is None:
                raise Tf2aifError("the engine is closed")
            self._library.run(rows, _pointers(given), _pointers(made))
        return {port.name: a for port, a in zip(self._made.outputs, made, strict=True)}

    def close(self) -> None:
        """Let the library go."""
        with self._lock:
            library, self._library = self._library, None
        if library is not None:
            library.close()


def _pointers(arrays: list[Array]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _softmax(values: Array) -> Array:
    import numpy as np

    grown = np.exp(values - values.max(axis=-1, keepdims=True))
    made: Array = grown / grown.sum(axis=-1, keepdims=True)
    return made


def _sigmoid(values: Array) -> Array:
    import numpy as np

    # The form that cannot overflow: 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2.
    made: Array = 0.5 * (1.0 + np.tanh(0.5 * values))
    return made


def _tanh(values: Array) -> Array:
    import numpy as np

    made: Array = np.tanh(values)
    return made


def _as_is(values: Array) -> Array:
    return values


DOORS: dict[str, Callable[[Array], Array]] = {
    "none": _as_is,
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
}
"""What is left to do in float, by the name that `hls.json` has; samples are along axis 0."""


def _read(artifact: Path) -> Made:
    path = artifact_file(artifact, FILE)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Made)
    except msgspec.MsgspecError as error:
        raise Tf2aifError(f"not the description of a simulation: {error}", at=str(path)) from error


def _match(signature: Signature, made: Made, path: Path) -> None:
    told = [[spec.name for spec in side] for side in (signature.inputs, signature.outputs)]
    if told != [[port.name for port in side] for side in (made.inputs, made.outputs)]:
        raise Tf2aifError(
            "its inputs and outputs are not those of signature.json",
            at=str(path),
            hint="build the variant again; both files come from one step",
        )
    unknown = {port.door for port in made.outputs} - set(DOORS)
    if unknown:
        raise Tf2aifError(f"'{unknown.pop()}' is computed by a newer tf2aif", at=str(path))
