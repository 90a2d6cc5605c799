"""tensorrt: an ONNX model as a TensorRT engine for the very GPU of this machine.

The engine is built once and stored: a server never builds one. Builds measure how long kernels
take, so two builds differ in their bytes; the step's key is its inputs and its device, and what is
shipped is what was built.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..engines.requirement import (
    HardwareCompatibility,
    Requirement,
    this_platform,
    write_requirement,
)
from ..engines.signature import read_signature, write_signature
from ..errors import StepFailed, Tf2aifError
from . import Job
from .trt_build import Build, BuildOptions, library_of, profiles_of

VERSION = 1
TOOLCHAIN = "tensorrt"
DEVICE = "nvidia"
INPUTS = ("model", "timing")
COMPILES = True
COMPARE = "outputs"
FROM = {"timing": "tensorrt-timing"}

_OLDEST = 10  # strongly typed networks with all that is used here
_LEVELS = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


class Options(BuildOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Profiles, and how far the engine can be moved.

    `hardware_compatibility` and `version_compatible` cost speed: the builder leaves out kernels
    that other GPUs or later versions do not have. `strip_weights` keeps the weights as ONNX beside
    the engine, which gets them back when it is loaded.
    """

    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    strip_weights: bool = False
    timing_cache: bool = True


def inputs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Which artifacts these options need."""
    return INPUTS if msgspec.convert(options, Options).timing_cache else ("model",)


def run(job: Job) -> Mapping[str, Any]:
    """Write `engine.plan`, `engine.json`, `inspector.json` and `signature.json`.

    Raises StepFailed for an operator that the parser refuses, a free axis without a profile, and
    where TensorRT or its GPU is not here.
    """
    options = msgspec.convert(job.options, Options)
    signature = read_signature(job.inputs["model"])
    profiles = profiles_of(signature, options)
    library = vendor_library()
    requirement = _requirement(library, options)
    build = prepare(library, job.inputs["model"], options)
    _use_timing(build, job.inputs.get("timing"))
    plan = build.serialize()
    (job.out / "engine.plan").write_bytes(plan)
    if options.strip_weights:
        shutil.copyfile(job.inputs["model"] / "model.onnx", job.out / "weights.onnx")
    write_signature(job.out, signature)
    write_requirement(job.out, requirement)
    layers = _inspect(build, requirement, job.out)
    return {
        "library": build.name,
        "gpu": requirement.gpu,
        "size_bytes": len(plan),
        "profiles": len(profiles),
        "layers": layers,
    }


def vendor_library() -> Any:
    """TensorRT 10 or later. Raises StepFailed for an older one."""
    library = library_of(("tensorrt",))
    if int(library.__version__.partition(".")[0]) < _OLDEST:
        raise StepFailed(
            f"TensorRT {library.__version__} is too old",
            hint=f"TensorRT {_OLDEST} or later is needed; on a Jetson that is JetPack 6.1 or later",
        )
    return library


def prepare(library: Any, model: Path, options: Options) -> Build:
    """A builder that has read the model and taken over the options."""
    build = Build(library, model / "model.onnx")
    build.configure(read_signature(model), options)
    config, flags = build.config, library.BuilderFlag
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.hardware_compatibility in _LEVELS:
        level = _LEVELS[options.hardware_compatibility]
        config.hardware_compatibility_level = getattr(library.HardwareCompatibilityLevel, level)
    if options.strip_weights:
        config.set_flag(flags.STRIP_PLAN)
        config.set_flag(flags.REFIT_IDENTICAL)  # the same weights come back: nothing is lost
    return build


def _use_timing(build: Build, folder: Path | None) -> None:
    """Give the builder the kernels' times that were measured before."""
    if folder is None:
        return
    kept = (folder / "timing.cache").read_bytes()
    if not build.config.set_timing_cache(build.config.create_timing_cache(kept), False):
        raise StepFailed(
            "the timing cache is for another GPU or another TensorRT",
            at=str(folder / "timing.cache"),
            hint="set 'timing_cache: false' for this step",
        )


def _inspect(build: Build, requirement: Requirement, out: Path) -> int:
    """Load the engine as a server would, keep what its inspector tells; the number of layers."""
    from ..engines.tensorrt import Loaded

    try:
        engine = Loaded(build.library, requirement).engine(out / "engine.plan")
    except Tf2aifError as error:
        raise StepFailed(f"the engine was built, but {error.faults[0].message}") from error
    inspector = engine.create_engine_inspector()
    told = inspector.get_engine_information(build.library.LayerInformationFormat.JSON)
    (out / "inspector.json").write_text(told, encoding="utf-8")
    try:
        return len(msgspec.json.decode(told.encode())["Layers"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return int(engine.num_layers)


def _requirement(library: Any, options: Options) -> Requirement:
    """What this machine is: the engine runs on no other, but for what the options loosen."""
    from ..engines.cuda import Cuda
    from ..engines.nvidia import read_machine

    machine = read_machine()
    try:
        cuda = Cuda()
        made = Requirement(
            library="tensorrt",
            version=library.__version__,
            platform=this_platform(),
            compute_capabilities=(cuda.compute_capability(),),
            gpu=cuda.name(),
            multiprocessors=cuda.multiprocessors(),
            driver=machine.driver,
            cuda=cuda.version(),
            l4t=machine.jetson.l4t if machine.jetson else "",
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
            stripped=options.strip_weights,
        )
        cuda.close()
    except Tf2aifError as error:
        fault = error.faults[0]
        raise StepFailed(fault.message, hint=fault.hint) from error
    return made
