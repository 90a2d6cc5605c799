"""Building a TensorRT engine from ONNX: one path for TensorRT 10, 11 and TensorRT for RTX.

The network is strongly typed: fp16 and bf16 are types in the ONNX, int8 is explicit Q/DQ. There are
no precision flags and no calibrators, which 11 does not have any more.

Source: TensorRT's Python API reference, 10.16 and 11.4; that of TensorRT for RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from ..engines import TensorSpec
from ..engines.signature import Signature
from ..errors import StepFailed, Tf2aifError

Size = Annotated[int, Meta(ge=1)]
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Input -> its smallest, best and largest shape."""

_MIB = 1 << 20
_LAYERS = "Layers:"


def _check_order(what: str, given: Batches | Axis) -> None:
    """Raises ValueError, which `tf2aif check` tells, where the lengths are not in order."""
    if not given.min <= given.opt <= given.max:
        raise ValueError(
            f"{what}: min {given.min}, opt {given.opt}, max {given.max} are not in this order"
        )


class Batches(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The batches that one optimisation profile takes; it is tuned for `opt` samples."""

    min: Size = 1
    opt: Size = 8
    max: Size = 32

    def __post_init__(self) -> None:
        _check_order("batches", self)


class Axis(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The lengths of a free axis other than the batch, of one input."""

    input: str
    axis: Size
    min: Size
    opt: Size
    max: Size

    def __post_init__(self) -> None:
        _check_order(f"axes of '{self.input}'", self)


class BuildOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of engine are built with. Profiles are for free axes only."""

    batches: Annotated[tuple[Batches, ...], Meta(min_length=1)] = (Batches(),)
    axes: tuple[Axis, ...] = ()
    workspace_mb: Size | None = None  # None: as much as the device has
    optimization_level: Annotated[int, Meta(ge=0, le=5)] = 3  # 5 looks longest for fast kernels
    tf32: bool = True  # float32 products with 10 bits of mantissa, as TensorFlow does on GPUs


def profiles_of(signature: Signature, options: BuildOptions) -> list[Shapes]:
    """The optimisation profiles of a model: none where all its shapes are fixed.

    Raises StepFailed for a free axis that no option speaks of, and for options that do not fit.
    """
    free = [spec for spec in signature.inputs if None in spec.shape]
    known = {(axis.input, axis.axis): axis for axis in options.axes}
    _check_axes(signature, options.axes)
    for spec in free:
        for index, length in enumerate(spec.shape):
            if length is None and index and (spec.name, index) not in known:
                raise StepFailed(
                    f"input '{spec.name}' has a free axis {index} and the engine no profile for it",
                    hint=f"fix its shape under 'model: inputs:' of the recipe, or give the step "
                    f"'axes: [{{input: {spec.name}, axis: {index}, min: 1, opt: 64, max: 256}}]'",
                )
    if not free:
        return []
    return [
        {spec.name: _shapes(spec, batches, known) for spec in signature.inputs}
        for batches in options.batches
    ]


def _shapes(
    spec: TensorSpec, batches: Batches, known: Mapping[tuple[str, int], Axis]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    def of(which: str) -> tuple[int, ...]:
        return tuple(
            length
            if length is not None
            else getattr(known[spec.name, index] if index else batches, which)
            for index, length in enumerate(spec.shape)
        )

    return of("min"), of("opt"), of("max")


def _check_axes(signature: Signature, axes: tuple[Axis, ...]) -> None:
    shapes = {spec.name: spec.shape for spec in signature.inputs}
    for axis in axes:
        if axis.input not in shapes:
            raise StepFailed(
                f"'axes' names the input '{axis.input}', which the model does not have",
                hint=f"its inputs are: {', '.join(shapes)}",
            )
        shape = shapes[axis.input]
        if axis.axis >= len(shape) or shape[axis.axis] is not None:
            raise StepFailed(f"axis {axis.axis} of input '{axis.input}' is not free: {shape}")


class Build:
    """A vendor's builder at work on one network: parse, configure, serialise."""

    def __init__(self, library: Any, model: Path) -> None:
        self.library = library
        self.logger, self._said = _listen(library)
        try:
            self._builder = library.Builder(self.logger)
        except TypeError as error:  # pybind's word for a null pointer
            raise self._failed("gives no builder") from error
        typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        self._parser = library.OnnxParser(self._network, self.logger)
        # Bytes, not a path: an engine that is built elsewhere is the same.
        if not self._parser.parse(model.read_bytes()):
            raise self._refused()
        self.config = self._builder.create_builder_config()

    @property
    def name(self) -> str:
        """The library with its version."""
        return f"{self.library.__name__.removesuffix('_bindings')} {self.library.__version__}"

    def configure(self, signature: Signature, options: BuildOptions) -> None:
        """Take over the options. Raises StepFailed where the network is not as the signature."""
        self._check_inputs(signature)
        config, library = self.config, self.library
        config.builder_optimization_level = options.optimization_level
        config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
        if options.workspace_mb is not None:
            pool = library.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, options.workspace_mb * _MIB)
        if not options.tf32:
            config.clear_flag(library.BuilderFlag.TF32)
        for shapes in profiles_of(signature, options):
            profile = self._builder.create_optimization_profile()
            for name, (low, best, high) in shapes.items():
                profile.set_shape(name, low, best, high)
            if config.add_optimization_profile(profile) < 0:
                raise self._failed(f"refuses the profile {shapes}")

    def serialize(self) -> bytes:
        """The engine. Raises StepFailed, in the vendor's words, where none can be built."""
        print(f"{self.name}: building an engine of {self._network.num_layers} layers", flush=True)
        made = self._builder.build_serialized_network(self._network, self.config)
        if made is None:
            raise self._failed("cannot build an engine")
        return bytes(made)

    def layers(self) -> str:
        """The finished layers, as the builder told them; "" where it did not."""
        told = [each for each in self._said.layers if each.startswith(_LAYERS)]
        return told[-1] if told else ""

    def _check_inputs(self, signature: Signature) -> None:
        found = [self._network.get_input(i) for i in range(self._network.num_inputs)]
        names = {tensor.name for tensor in found}
        wanted = {spec.name for spec in signature.inputs}
        if names != wanted:
            raise StepFailed(
                f"the ONNX file's inputs are {_listed(names)}, the signature's {_listed(wanted)}",
                hint="build the variant again; both files come from one step",
            )
        for tensor in found:
            if tensor.is_shape_tensor:
                raise StepFailed(
                    f"input '{tensor.name}' gives the shape of another tensor",
                    hint="TensorRT wants such an input in the host's memory, which is not done "
                    "here: make it a constant of the model",
                )

    def _refused(self) -> StepFailed:
        """What the parser says, with each node that it does not take."""
        errors = list(_parser_errors(self._parser))
        if not errors:
            return self._failed("cannot read the ONNX file")
        return StepFailed(
            f"{self.name} does not take: {'; '.join(errors)}",
            hint="build the model from other operators, or take a target with another engine",
        )

    def _failed(self, what: str) -> StepFailed:
        said = "; ".join(self._said.errors[-4:]) or "it does not say why"
        return StepFailed(f"{self.library.__name__} {what}: {said}", hint=_hint(said))


def library_of(flavours: tuple[str, ...], *, load: bool = True) -> Any:
    """The vendor's module, or its name. Raises StepFailed where it is not here or does not load."""
    from ..engines.tensorrt_library import find_library, import_library

    try:
        return import_library(flavours) if load else find_library(flavours)
    except Tf2aifError as error:
        fault = error.faults[0]
        raise StepFailed(fault.message, hint=fault.hint) from error


class _Said:
    """What the vendor's library said: errors, and its table of layers."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.layers: list[str] = []


def _listen(library: Any) -> tuple[Any, _Said]:
    """A logger for the vendor's library: warnings and errors go to the step's log, too."""
    said = _Said()
    kinds = library.ILogger

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR):
                said.errors.append(" ".join(message.split()))
            elif severity == kinds.VERBOSE:
                said.layers += [message] if message.startswith(_LAYERS) else []
            if severity != kinds.VERBOSE:
                print(f"{severity.name.lower()}: {message}", flush=True)

    return Logger(), said


def _parser_errors(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} (node '{error.node_name()}')"
        named = node if error.node_operator() else "the model"
        words = " ".join(error.desc().split())
        yield named if words in ("", "false") else f"{named}: {words}"


def _hint(said: str) -> str:
    """What to try, for those of the vendor's errors that mean one thing."""
    if "optimization profile" in said:
        return "give the step 'batches', or fix the batch in the recipe"
    if "Turing" in said or "SM75" in said:
        return "leave 7.5 out of 'compute_capabilities', or build fp16"
    if "insufficient" in said or "cudaError 35" in said or "CUDA initialization failure" in said:
        return "TensorRT needs an NVIDIA GPU with its driver to build an engine"
    if "memory" in said.lower():
        return "free memory on the GPU, or give the step a smaller 'workspace_mb' or batch"
    return "the whole log of the step has more"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
