"""Engines: what loads an artifact and runs inference. They ship inside the image.

An engine is a module in the table below. Nothing here imports what builds an artifact, and no
vendor library is imported before `load` is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..errors import Tf2aifError

if TYPE_CHECKING:  # planning imports this table, and numpy costs more than all of a plan
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Tensors = Mapping[str, Array]
else:
    Array = Tensors = Any


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """Affine quantisation: real = scale * (stored - zero_point)."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None  # None: per tensor; else the axis of per-channel parameters


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of a model: name, dtype as numpy names it, shape (None: free)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    quantization: Quantization | None = None


class Engine(Protocol):
    """A loaded artifact. `inputs` and `outputs` are what `run` takes and gives, by name."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch. Arrays have the shapes and dtypes of `inputs` and `outputs`.

        Where an artifact is quantised at the door, `inputs` keep the stored dtype (int8): see
        `quantize` and `dequantize`.
        """

    def close(self) -> None:
        """Give the memory back. Calling it twice is harmless."""


class EngineModule(Protocol):
    """What a module in the table offers."""

    REQUIREMENTS: tuple[str, ...]
    """The distributions it needs at run time, as pip requirement strings."""

    def load(self, artifact: Path, *, threads: int | None = None, **options: Any) -> Engine:
        """Load the artifact in that folder. Raises Tf2aifError where it cannot."""


ENGINES: dict[str, str] = {
    "litert": "tf2aif.engines.litert",
    "tensorflow": "tf2aif.engines.tensorflow",
    "openvino": "tf2aif.engines.openvino",
    "onnxruntime": "tf2aif.engines.onnxruntime",
    "onnxruntime-gpu": "tf2aif.engines.onnxruntime_gpu",
    "tensorrt": "tf2aif.engines.tensorrt",
    "tensorrt-system": "tf2aif.engines.tensorrt_system",
    "tensorflow-gpu": "tf2aif.engines.tensorflow_gpu",
    "tensorflow-system": "tf2aif.engines.tensorflow_system",
    "tensorrt-rtx": "tf2aif.engines.tensorrt_rtx",
    "pof2": "tf2aif.engines.pof2",
    "hls": "tf2aif.engines.hls",
    "vart": "tf2aif.engines.vart",
}


def engine_module(name: str) -> Any:
    """The module of an engine, by its name in the table."""
    if name not in ENGINES:
        raise Tf2aifError(f"unknown engine '{name}'", hint=f"there are: {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[name])


def quantize(real: Array, dtype: str, how: Quantization) -> Array:
    """Real values as stored integers: rounded half away from zero, then saturated."""
    import numpy as np

    info = np.iinfo(dtype)
    scaled = np.asarray(real, np.float64) / _along(how.scale, how.axis, real.ndim)
    rounded = np.trunc(scaled + np.copysign(0.5, scaled))
    shifted = rounded + _along(how.zero_point, how.axis, real.ndim)
    stored: Array = np.clip(shifted, info.min, info.max).astype(dtype)
    return stored


def dequantize(stored: Array, how: Quantization) -> Array:
    """Stored integers as real values, float32."""
    import numpy as np

    centred = stored.astype(np.float64) - _along(how.zero_point, how.axis, stored.ndim)
    return (centred * _along(how.scale, how.axis, stored.ndim)).astype(np.float32)


def _along(values: tuple[float, ...] | tuple[int, ...], axis: int | None, ndim: int) -> Array:
    import numpy as np

    array = np.asarray(values, np.float64)
    if axis is None or array.size == 1:
        return array.reshape(())
    shape = [1] * ndim
    shape[axis] = array.size
    return array.reshape(shape)
