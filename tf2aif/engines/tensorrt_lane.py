"""One optimisation profile of a TensorRT engine, with all that a run through it needs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import Tf2aifError
from . import Array, TensorSpec
from .cuda import Buffer, Cuda, Graph, Stream
from .signature import Signature

Shape = tuple[int, ...]


class Lane:
    """An execution context, its memory and, where all shapes are fixed, its CUDA graph.

    `fewest_rows`, `best_rows` and `most_rows` are axis 0 of the profile's smallest, best and
    largest shapes; an engine without a batch axis has one lane and no use for them.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Stream,
        engine: Any,
        signature: Signature,
        profile: int,
        *,
        cuda_graph: bool,
    ) -> None:
        self._stream = stream
        self._signature = signature
        self._context = engine.create_execution_context()
        if self._context is None:
            raise Tf2aifError("TensorRT gives no execution context: not enough device memory?")
        if engine.num_optimization_profiles > 1 and not (
            self._context.set_optimization_profile_async(profile, stream.handle)
        ):
            raise Tf2aifError(f"TensorRT refuses optimisation profile {profile}")
        stream.wait()
        self._ranges = _ranges(engine, signature, profile)
        first = next(iter(self._ranges.values()))
        self.fewest_rows, self.best_rows, self.most_rows = (
            shape[0] if shape else 1 for shape in first
        )
        self._shapes: dict[str, Shape] = {}
        self._given: dict[str, Shape] = {}
        self._buffers: dict[str, Buffer] = {}
        self._graph: Graph | None = None
        fixed = all(low == high for low, _, high in self._ranges.values())
        self._wants_graph = cuda_graph and fixed
        try:
            self._allocate(cuda)
        except Tf2aifError:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Device memory of inputs and outputs."""
        return sum(buffer.size_bytes for buffer in self._buffers.values())

    @property
    def words(self) -> str:
        """The profile as people read it."""
        return f"{self.fewest_rows}-{self.most_rows} (tuned for {self.best_rows})"

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Copy in, run, copy out. Raises Tf2aifError for a shape outside the profile."""
        self._set_shapes({name: array.shape for name, array in arrays.items()})
        for spec in self._signature.inputs:
            self._host(spec)[...] = arrays[spec.name]
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()
        self._stream.wait()
        found = {spec.name: self._host(spec).copy() for spec in self._signature.outputs}
        if self._wants_graph:
            self._capture()
        return found

    def close(self) -> None:
        """Give everything back. Calling it twice is harmless."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._context = None
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()

    def _allocate(self, cuda: Cuda) -> None:
        """Memory for the largest shapes of the profile; the addresses never change."""
        self._set_shapes({name: high for name, (_, _, high) in self._ranges.items()})
        for spec in (*self._signature.inputs, *self._signature.outputs):
            buffer = Buffer(cuda, _size(self._shapes[spec.name], spec.dtype))
            self._buffers[spec.name] = buffer
            if not self._context.set_tensor_address(spec.name, buffer.address):
                raise Tf2aifError(f"TensorRT takes no memory for '{spec.name}'")

    def _set_shapes(self, given: dict[str, Shape]) -> None:
        if given == self._given:
            return
        for name, shape in given.items():
            low, _, high = self._ranges[name]
            inside = len(shape) == len(low) and all(
                a <= b <= c for a, b, c in zip(low, shape, high, strict=True)
            )
            if not inside or not self._context.set_input_shape(name, shape):
                raise Tf2aifError(
                    f"TensorRT cannot run it: input '{name}' of shape {shape} is outside the "
                    f"engine's profile, {low} to {high}",
                    hint="build the variant with a profile that has this shape",
                )
        self._shapes = dict(given)
        for spec in self._signature.outputs:
            shape = tuple(int(each) for each in self._context.get_tensor_shape(spec.name))
            if -1 in shape:
                raise Tf2aifError(f"the shape of output '{spec.name}' hangs on the data: {shape}")
            self._shapes[spec.name] = shape
        self._given = dict(given)

    def _host(self, spec: TensorSpec) -> Array:
        return self._buffers[spec.name].host(self._shapes[spec.name], spec.dtype)

    def _enqueue(self) -> None:
        """Put copies and run into the stream."""
        for spec in self._signature.inputs:
            size = _size(self._shapes[spec.name], spec.dtype)
            self._buffers[spec.name].upload(size, self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise Tf2aifError("TensorRT cannot run it")
        for spec in self._signature.outputs:
            size = _size(self._shapes[spec.name], spec.dtype)
            self._buffers[spec.name].download(size, self._stream)

    def _capture(self) -> None:
        """Keep a run as a graph, once: the first run has made all that a capture may not make.

        An engine with a loop or a condition that is decided on the host cannot be captured; it
        runs on without.
        """
        self._wants_graph = False
        self._stream.begin_capture()
        captured = False
        try:
            with suppress(Tf2aifError):
                self._enqueue()
                captured = True
        finally:
            with suppress(Tf2aifError):
                graph = self._stream.end_capture()
                if captured:
                    self._graph = graph
                else:
                    graph.close()


def _ranges(engine: Any, signature: Signature, profile: int) -> dict[str, tuple[Shape, ...]]:
    """Smallest, best and largest shape of each input in that profile."""
    found = {}
    for spec in signature.inputs:
        shapes = engine.get_tensor_profile_shape(spec.name, profile)
        found[spec.name] = tuple(tuple(int(n) for n in shape) for shape in shapes)
    return found


def _size(shape: Shape, dtype: str) -> int:
    import numpy as np

    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
