"""AMD's runtime VART: runs `model.xmodel` on a DPU, and what is between its parts on the CPU.

A compiled model is a graph of subgraphs. All those on the DPU run in topological order, each with
int8 buffers scaled by `2**fix_point` of its tensor, rounded half up and saturated; those on the CPU
between them run here, in float32.

Source: AMD, "Vitis AI User Guide" (UG1414), VART and XIR programming interfaces.
"""

from __future__ import annotations

import json
import math
import queue
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .dpu import Compiled, Port, parse_fingerprint, read_compiled
from .integer import Value, quantise_half_up, real_of, rescale
from .operators import softmax
from .signature import Signature, artifact_file, check_feeds, read_signature
from .threads import thread_count

REQUIREMENTS = ("numpy>=1.26,<3",)
"""xir and vart come with the board's image, not from a package index."""

FILE = "model.xmodel"
QUERY = ("xdputil", "query")
QUERY_TIMEOUT_S = 30
MOST_RUNNERS = 4

# What only changes the form of a tensor: in floating point there is nothing to do.
_PASSED = ("fix", "fix2float", "float2fix", "download", "upload", "identity", "data-fix")
_SHAPED = ("reshape", "reshape-fix", "flatten", "squeeze", "stack")


def load(
    artifact: Path,
    *,
    threads: int | None = None,
    runners: int | None = None,
    fingerprint: str | None = None,
) -> Vart:
    """Load the artifact in that folder onto the board's DPU.

    `runners` is how many batches are on their way at once, by default one for each CPU up to 4;
    `fingerprint` is the board's where `xdputil` cannot tell it. Raises Tf2aifError where a file is
    missing or broken, xir or vart are not here, or the model is for another DPU than the board's.
    """
    signature, compiled = read_signature(artifact), read_compiled(artifact)
    path = artifact_file(artifact, FILE)
    count = runners or min(thread_count(threads), MOST_RUNNERS)
    xir, vart = _import("xir"), _import("vart")
    try:
        graph = xir.Graph.deserialize(str(path))
        parts = list(graph.get_root_subgraph().toposort_child_subgraph())
    except (RuntimeError, ValueError, OSError) as error:
        raise Tf2aifError(f"xir cannot read it: {error}", at=str(path)) from error
    dpus = [part for part in parts if _device(part) == "DPU"]
    if not dpus:
        raise Tf2aifError("no part of it runs on a DPU", at=str(path))
    _check_board(path, compiled, dpus, fingerprint)
    try:
        crews = [_Crew(vart, parts) for _ in range(count)]
    except RuntimeError as error:
        raise Tf2aifError(
            f"VART cannot start it: {error}",
            at=str(path),
            hint="is the board's overlay loaded, and free?",
        ) from error
    return Vart(signature, compiled, graph, crews)


class Vart:
    """A compiled model on a DPU; several batches run at once, each with runners of its own."""

    def __init__(
        self, signature: Signature, compiled: Compiled, graph: Any, crews: list[_Crew]
    ) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._compiled = compiled
        self._graph = graph  # the subgraphs belong to it
        self._crews: queue.SimpleQueue[_Crew] | None = queue.SimpleQueue()
        for crew in crews:
            self._crews.put(crew)
        self._size = crews[0].batch
        self._pool = ThreadPoolExecutor(len(crews), thread_name_prefix="vart")

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch of real numbers, cut into the batches of the DPU."""
        if self._crews is None:
            raise Tf2aifError("the engine is closed")
        arrays = check_feeds(feeds, self.inputs)
        counts = {len(array) for array in arrays.values()}
        if len(counts) > 1:
            raise Tf2aifError("VART cannot run it: the inputs differ in their batch")
        starts = range(0, counts.pop(), self._size)
        parts = list(self._pool.map(lambda start: self._run_part(arrays, start), starts))
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts]).astype(
                spec.dtype, copy=False
            )
            for spec in self.outputs
        }

    def _run_part(self, arrays: Mapping[str, Array], start: int) -> dict[str, Array]:
        crews = self._crews
        if crews is None:
            raise Tf2aifError("the engine is closed")
        part = {name: array[start : start + self._size] for name, array in arrays.items()}
        crew = crews.get()
        try:
            values = crew.run(part, self._compiled)
        finally:
            crews.put(crew)
        count = len(next(iter(part.values())))
        ends = {port.name: port for port in self._compiled.outputs}
        return {
            spec.name: _ending(values, ends[spec.name], spec, self._compiled)[:count]
            for spec in self.outputs
        }

    def close(self) -> None:
        """Give runners and memory back."""
        self._crews = None
        self._pool.shutdown()
        self._graph = None


class _Crew:
    """One runner for each subgraph on the DPU."""

    def __init__(self, vart: Any, parts: list[Any]) -> None:
        self._parts = parts
        self._runners = [
            vart.Runner.create_runner(part, "run") if _device(part) == "DPU" else None
            for part in parts
        ]
        first = next(runner for runner in self._runners if runner is not None)
        self.batch = int(first.get_input_tensors()[0].dims[0])

    def run(self, feeds: Mapping[str, Array], compiled: Compiled) -> dict[str, Value]:
        """All subgraphs in order; every tensor between them, by its name."""
        values: dict[str, Value] = {}
        for part, runner in zip(self._parts, self._runners, strict=True):
            device = _device(part)
            if runner is not None:
                self._run_dpu(runner, values)
            elif device == "CPU":
                _run_cpu(part, values)
            else:
                values |= _beginnings(part, feeds, compiled, self.batch)
        return values

    def _run_dpu(self, runner: Any, values: dict[str, Value]) -> None:
        """One subgraph on the DPU: int8 buffers in and out, at the positions of their tensors."""
        inputs, outputs = runner.get_input_tensors(), runner.get_output_tensors()
        given = [
            _stored(_find(values, tensor.name), _fix(tensor)).reshape(tuple(tensor.dims))
            for tensor in inputs
        ]
        made = [np.empty(tuple(tensor.dims), np.int8, order="C") for tensor in outputs]
        job = runner.execute_async([np.ascontiguousarray(array) for array in given], made)
        runner.wait(job)
        for tensor, array in zip(outputs, made, strict=True):
            values[tensor.name] = Value(array, _fix(tensor))


def _check_board(path: Path, compiled: Compiled, dpus: Iterable[Any], declared: str | None) -> None:
    """Raises Tf2aifError where model, `dpu.json` and board do not have one fingerprint."""
    wanted = parse_fingerprint(compiled.fingerprint)
    told = [each.get_attr("dpu_fingerprint") for each in dpus if each.has_attr("dpu_fingerprint")]
    for number in told:
        if int(number) != wanted:
            raise Tf2aifError(
                f"the model is for the fingerprint {int(number):#x}; the target has {wanted:#x}",
                at=str(path),
                hint="build the variant for this board again",
            )
    boards = _board_fingerprints() or ([parse_fingerprint(declared)] if declared else [])
    if boards and wanted not in boards:
        raise Tf2aifError(
            f"the board's DPU has the fingerprint {boards[0]:#x}; the model is for {wanted:#x}",
            at=str(path),
            hint="load the overlay that the target names, or build for this board",
        )


def _board_fingerprints() -> list[int]:
    """Those of the DPUs on this board, as `xdputil query` tells; none where it is not here."""
    if shutil.which(QUERY[0]) is None:
        return []
    try:
        done = subprocess.run(QUERY, capture_output=True, timeout=QUERY_TIMEOUT_S, check=True)
        return list(_fingerprints_in(json.loads(done.stdout)))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Tf2aifError(
            f"xdputil cannot tell the board's fingerprint: {error}",
            hint="run 'xdputil query' by hand: is the overlay loaded?",
        ) from error


def _fingerprints_in(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "fingerprint" and isinstance(each, str):
                yield parse_fingerprint(each)
            else:
                yield from _fingerprints_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _fingerprints_in(each)


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Tf2aifError(
            f"AMD's {name} is not here: {error}",
            hint="it comes with the board's Vitis AI image; elsewhere serve the emulation, 'pof2'",
        ) from error


def _device(part: Any) -> str:
    return str(part.get_attr("device")).upper() if part.has_attr("device") else "USER"


def _fix(tensor: Any) -> int:
    if not tensor.has_attr("fix_point"):
        raise Tf2aifError(f"tensor '{tensor.name}' of the DPU has no fix_point", hint=_AGAIN)
    return int(tensor.get_attr("fix_point"))


_AGAIN = "compile the model again; a quantised model has one for each tensor"


def _find(values: Mapping[str, Value], name: str) -> Value:
    if name not in values:
        raise Tf2aifError(f"no part of the model made the tensor '{name}' that the DPU reads")
    return values[name]


def _stored(value: Value, fix: int) -> Array:
    if value.fix is None:
        return quantise_half_up(value.array, fix)
    return value.array if value.fix == fix else rescale(value.array, value.fix, fix)


def _real(value: Value) -> Array:
    return value.array if value.fix is None else real_of(value.array, value.fix)


def _beginnings(
    part: Any, feeds: Mapping[str, Array], compiled: Compiled, batch: int
) -> dict[str, Value]:
    """The inputs as the tensors of the graph: filled up to the DPU's batch."""
    found: dict[str, Value] = {}
    for tensor in part.get_output_tensors():
        alone = len(compiled.inputs) == 1
        names = [
            p.name for p in compiled.inputs if alone or bears(tensor.name, p.layer, compiled.layers)
        ]
        if len(names) != 1:
            raise Tf2aifError(f"no input of the signature is the tensor '{tensor.name}'")
        array = feeds[names[0]]
        missing = batch - len(array)
        if missing:
            array = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        found[tensor.name] = Value(np.asarray(array, np.float32), None)
    return found


def _ending(values: Mapping[str, Value], port: Port, spec: TensorSpec, compiled: Compiled) -> Array:
    """An output of the signature among all tensors: the last one that bears its layer's name."""
    found = [name for name in values if bears(name, port.layer, compiled.layers)]
    if not found and len(compiled.outputs) == 1:
        found = list(values)
    if not found:
        raise Tf2aifError(f"no tensor of the model is output '{port.name}' ({port.layer})")
    array = _real(values[found[-1]])
    shape = tuple(int(length or 0) for length in spec.shape[1:])
    if array[0].size != math.prod(shape):
        raise Tf2aifError(f"output '{port.name}' has shape {array.shape[1:]}, not {shape}")
    return array.reshape(-1, *shape)


def bears(tensor: str, layer: str, layers: Iterable[str]) -> bool:
    """Whether a tensor is a layer's, by its name: the longest of `layers` that is in it.

    >>> bears("quant_dense_1_fix", "dense_1", ["dense_1", "dense_10"])
    True
    >>> bears("quant_dense_10_fix", "dense_1", ["dense_1", "dense_10"])
    False
    """
    found = [each for each in layers if re.search(_PART.format(re.escape(each)), tensor)]
    return max(found, key=len, default="") == layer


# A layer's name with what the vendor's tools put around it: quant_NAME_fix, NAME/add.
_PART = r"(?:^|[^A-Za-z0-9]){}(?![A-Za-z0-9]|_[0-9])"


def _run_cpu(part: Any, values: dict[str, Value]) -> None:
    """One subgraph on the CPU: what its results need, each operator once."""
    operators = {op.get_output_tensor().name: op for op in part.get_ops()}

    def value(name: str) -> Value:
        if name not in values:
            if name not in operators:
                raise Tf2aifError(f"no part of the model made the tensor '{name}'")
            op = operators[name]
            sources = [each for group in op.get_input_ops().values() for each in group]
            given = [value(each.get_output_tensor().name) for each in sources]
            values[name] = Value(_apply(op, [_real(each) for each in given]), None)
        return values[name]

    for tensor in part.get_output_tensors():
        value(tensor.name)


def _apply(op: Any, given: list[Array]) -> Array:
    kind = str(op.get_type())
    if kind in _PASSED:
        return given[0]
    if kind in _SHAPED:
        return given[0].reshape(len(given[0]), *op.get_output_tensor().dims[1:])
    if kind not in _ON_CPU:
        raise Tf2aifError(
            f"operator {kind} ('{op.get_name()}') runs on neither the DPU nor this engine",
            hint=f"on the CPU there are: {', '.join(sorted((*_ON_CPU, *_PASSED, *_SHAPED)))}",
        )
    return _ON_CPU[kind](given)


def _sigmoid(x: Array) -> Array:
    made: Array = np.exp(-np.logaddexp(0, -x))
    return made


_ON_CPU: dict[str, Callable[[list[Array]], Array]] = {
    "softmax": lambda given: softmax(given[0]),
    "sigmoid": lambda given: _sigmoid(given[0]),
    "tanh": lambda given: np.tanh(given[0]),
    "relu": lambda given: np.maximum(given[0], 0),
    "relu6": lambda given: np.clip(given[0], 0, 6),
    "add": lambda given: given[0] + given[1],
    "mul": lambda given: given[0] * given[1],
}
