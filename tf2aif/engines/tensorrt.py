"""TensorRT: runs `engine.plan`, the engine that step `tensorrt` built on such a device.

Nothing is built here, and nothing is allocated while requests run: each optimisation profile has
its execution context, its device memory and pinned host memory from the start. Where all shapes are
fixed, a whole run is one CUDA graph.

Source: TensorRT's Python API, as 10.x and 11.x have it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .cuda import Cuda, Stream
from .nvidia import read_jetson
from .requirement import Here, Requirement, check_machine, read_requirement, this_platform
from .signature import Signature, artifact_file, check_feeds, read_signature
from .tensorrt_lane import Lane
from .tensorrt_library import find_library, import_library, probe
from .threads import thread_count

# The lean runtime runs version-compatible engines, is 46 MB, and is the one part of TensorRT whose
# libraries are on the public index as wheels. A base image with all of TensorRT wants the engine
# `tensorrt-system`.
REQUIREMENTS = (
    "numpy>=1.26,<3",
    "tensorrt-lean-cu13-bindings>=11.4,<12",
    "tensorrt-lean-cu13-libs>=11.4,<12",
)

PLAN = "engine.plan"
WEIGHTS = "weights.onnx"


def load(
    artifact: Path, *, threads: int | None = None, device: int = 0, cuda_graph: bool = True
) -> TensorRT:
    """Load the engine in that folder onto GPU number `device`.

    `threads` is checked, and has no meaning on a GPU. `cuda_graph`: where shapes are fixed.
    Raises Tf2aifError where a file is missing or broken, where there is no driver, no GPU or no
    TensorRT, and where the engine is for another device; nothing of that crashes the process.
    """
    requirement = read_requirement(artifact)
    lean = ("tensorrt-lean",) if requirement.version_compatible else ()
    return load_with(("tensorrt", *lean), artifact, threads, device, cuda_graph)


def load_with(
    flavours: Sequence[str], artifact: Path, threads: int | None, device: int, cuda_graph: bool
) -> TensorRT:
    """Load with the first of these flavours of TensorRT that is installed."""
    signature = read_signature(artifact)
    plan = artifact_file(artifact, PLAN)
    requirement = read_requirement(artifact)
    thread_count(threads)
    cuda = Cuda(device)
    try:
        module = find_library(flavours)
        here = _here(flavours[0], probe(module), cuda)
        check_machine(requirement, here, artifact)
        loaded = Loaded(import_library(flavours), requirement)
        engine = loaded.engine(plan)
        _match(loaded.library, engine, signature, plan)
        return TensorRT(signature, loaded, engine, cuda, here, cuda_graph)
    except Tf2aifError:
        cuda.close()
        raise


class TensorRT:
    """A loaded engine: a lane for each optimisation profile, and one stream for all."""

    def __init__(
        self,
        signature: Signature,
        loaded: Loaded,
        engine: Any,
        cuda: Cuda,
        here: Here,
        cuda_graph: bool,
    ) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._cuda = cuda
        self._keep: Loaded | None = loaded  # the vendor's runtime must outlive its engine
        self._engine = engine
        self._stream = Stream(cuda)
        self._lanes: list[Lane] = []
        try:
            for profile in range(engine.num_optimization_profiles):
                lane = Lane(cuda, self._stream, engine, signature, profile, cuda_graph=cuda_graph)
                self._lanes.append(lane)
        except Tf2aifError:
            self._release()
            raise
        self._batched = all(spec.shape[:1] == (None,) for spec in signature.inputs)
        self.facts = self._describe(here)

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch; the outputs are arrays of the caller's own.

        A free batch may have any number of rows: more than the largest profile takes are run in
        pieces, fewer than the smallest are filled up and cut.
        """
        if self._engine is None:
            raise Tf2aifError("the engine is closed")
        arrays = check_feeds(feeds, self.inputs)
        self._cuda.use()
        if not self._batched:
            return self._lanes[0].run(arrays)
        rows = {array.shape[0] for array in arrays.values()}
        if len(rows) != 1:
            raise Tf2aifError(f"TensorRT cannot run it: inputs of {sorted(rows)} rows together")
        return self._run_rows(arrays, rows.pop())

    def close(self) -> None:
        """Give all device memory back. Calling it twice is harmless."""
        if self._engine is None:
            return
        self._cuda.use()
        self._release()
        self._cuda.close()

    def _release(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        self._engine = self._keep = None
        self._stream.close()

    def _run_rows(self, arrays: dict[str, Array], rows: int) -> dict[str, Array]:
        import numpy as np

        largest = max(lane.most_rows for lane in self._lanes)
        parts = []
        for start in range(0, max(rows, 1), largest):
            piece = {name: array[start : start + largest] for name, array in arrays.items()}
            parts.append(self._run_piece(piece, min(largest, rows - start)))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_piece(self, arrays: dict[str, Array], rows: int) -> dict[str, Array]:
        import numpy as np

        lane = self._lane_for(rows)
        missing = max(lane.fewest_rows - rows, 0)
        if not missing:
            return lane.run(arrays)
        if not rows:
            raise Tf2aifError("TensorRT cannot run it: a batch of 0 rows")
        filled = {
            name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
            for name, array in arrays.items()
        }
        return {name: values[:rows] for name, values in lane.run(filled).items()}

    def _lane_for(self, rows: int) -> Lane:
        """The profile that was tuned for the batch next to this one, of those that take it."""
        fitting = [lane for lane in self._lanes if lane.fewest_rows <= rows <= lane.most_rows]
        candidates = fitting or [lane for lane in self._lanes if rows <= lane.most_rows]
        return min(candidates, key=lambda lane: (abs(lane.best_rows - rows), lane.most_rows))

    def _describe(self, here: Here) -> dict[str, str]:
        profiles = ", ".join(lane.words for lane in self._lanes)
        memory = sum(lane.size_bytes for lane in self._lanes)
        memory += int(self._engine.device_memory_size_v2) * len(self._lanes)
        return {
            "library": f"{here.library} {here.version}",
            "gpu": here.gpu,
            "compute-capability": here.compute_capability,
            "profiles": profiles,
            "device-memory-bytes": str(memory),
        }


class Loaded:
    """The vendor's module with what it said, and its runtime."""

    def __init__(self, library: Any, requirement: Requirement) -> None:
        self.library = library
        self._requirement = requirement
        self._logger, self._said = _logger(library)
        self._runtime: Any = None

    def engine(self, plan: Path) -> Any:
        """Deserialise the plan. Raises Tf2aifError, in the vendor's words, where that fails."""
        try:
            self._runtime = self.library.Runtime(self._logger)
        except TypeError as error:  # pybind's word for a null pointer
            raise self._failed("gives no runtime", plan) from error
        if self._requirement.version_compatible:
            self._runtime.engine_host_code_allowed = True  # its own runtime, which we packed
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise self._failed("cannot load it", plan)
        if self._requirement.stripped:
            self._refit(engine, artifact_file(plan.parent, WEIGHTS))
        return engine

    def _refit(self, engine: Any, weights: Path) -> None:
        """Put the weights into an engine that was shipped without."""
        if not hasattr(self.library, "Refitter"):  # the lean runtime
            name = self.library.__name__
            raise Tf2aifError(
                f"{name} cannot put weights into an engine",
                at=str(weights),
                hint="build without 'strip_weights', or take the engine `tensorrt-system` and a "
                "base image with all of TensorRT",
            )
        refitter = self.library.Refitter(engine, self._logger)
        parser = self.library.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise self._failed("cannot put the weights back", weights)

    def _failed(self, what: str, at: Path) -> Tf2aifError:
        said = "; ".join(self._said) or "it does not say why"
        return Tf2aifError(f"{self._requirement.library} {what}: {said}", at=str(at))


def _here(flavour: str, version: str, cuda: Cuda) -> Here:
    jetson = read_jetson()
    return Here(
        library=flavour,
        version=version,
        platform=this_platform(),
        compute_capability=cuda.compute_capability(),
        gpu=cuda.name(),
        multiprocessors=cuda.multiprocessors(),
        cuda=cuda.version(),
        l4t=jetson.l4t if jetson else "",
    )


def _logger(library: Any) -> tuple[Any, list[str]]:
    """A logger for the vendor's library, and the list of errors that it fills."""
    said: list[str] = []

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                said.append(" ".join(message.split()))

    return Logger(), said


def _match(library: Any, engine: Any, signature: Signature, plan: Path) -> None:
    """Raise Tf2aifError where names or dtypes of the engine are not the signature's."""
    told = {spec.name: spec.dtype for spec in (*signature.inputs, *signature.outputs)}
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {name: dtype_name(library, engine.get_tensor_dtype(name)) for name in names}
    if told != found:
        raise Tf2aifError(
            "its inputs and outputs are not those of signature.json",
            at=str(plan),
            hint="build the variant again; both files come from one step",
        )


def dtype_name(library: Any, dtype: Any) -> str:
    """A dtype of TensorRT's as numpy calls it; its own name where numpy has none (bf16)."""
    import numpy as np

    try:
        return str(np.dtype(library.nptype(dtype)).name)
    except TypeError:
        return str(dtype).rpartition(".")[2].lower()
