"""tensorrt-rtx: an ONNX model as an engine for NVIDIA RTX GPUs, built with no GPU.

The engine is finished for the very GPU when it is loaded there. NVIDIA's own parser reads the
model, so what this step takes is legal for TensorRT: a zero point that is not 0 is refused.
There is no timing cache, which would ask for a GPU, and no engine without weights, likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..engines.requirement import Requirement, this_platform, write_requirement
from ..engines.signature import read_signature, write_signature
from ..errors import StepFailed
from . import Job
from .still import call_still
from .trt_build import Build, BuildOptions, library_of, profiles_of

VERSION = 1
TOOLCHAIN = "tensorrt-rtx-builder"  # which needs no GPU
COMPILES = True
COMPARE = "outputs"
INPUTS = ("model",)

_NO_GPU = {"CURRENT", "NONE"}  # of the vendor's list
_OLD = {"7.5"}  # built for only where it is asked for: it has no float32 matrix product


class Options(BuildOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For which GPUs, and with which profiles.

    `compute_capabilities`: such as ["8.6", "8.9"]; with none, what the library builds by itself,
    that is for all that it knows from 8.0 on.
    """

    compute_capabilities: tuple[str, ...] = ()


def run(job: Job) -> Mapping[str, Any]:
    """Write `engine.plan`, `engine.json`, `layers.txt` and `signature.json`.

    The same model and options give the same bytes (see `still`), but for large Q/DQ models on a
    busy machine, where the names of inner tensors can differ. Raises StepFailed for an operator
    that the parser refuses, a free axis without a profile, and a GPU that it does not build for.
    """
    options = msgspec.convert(job.options, Options)
    signature = read_signature(job.inputs["model"])
    profiles = profiles_of(signature, options)
    library_of(("tensorrt-rtx",), load=False)
    given = {"options": job.options, "model": str(job.inputs["model"]), "out": str(job.out)}
    answer = call_still(__name__, "build", given)
    write_signature(job.out, signature)
    if not answer.still:
        print("the kernel places memory at random: another build may give other bytes", flush=True)
    return {**answer.result, "profiles": len(profiles)}


def build(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The build itself, of options, a model's folder and a folder to write to.

    The library numbers its inner tensors in an order that hangs on addresses, which for Q/DQ
    models is another one in each process: so it has a process with memory that lies still.
    """
    options = msgspec.convert(given["options"], Options)
    model, out = Path(given["model"]), Path(given["out"])
    library = library_of(("tensorrt-rtx",))
    known = _known(library)
    _check_capabilities(known, options.compute_capabilities)
    build = Build(library, model / "model.onnx")
    build.configure(read_signature(model), options)
    if options.compute_capabilities:
        build.config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            build.config.set_compute_capability(known[capability], index)
    plan = build.serialize()
    (out / "engine.plan").write_bytes(plan)
    (out / "layers.txt").write_text(build.layers(), encoding="utf-8")
    targets = options.compute_capabilities or tuple(each for each in known if each not in _OLD)
    write_requirement(out, _requirement(library, targets))
    return {
        "library": build.name,
        "size_bytes": len(plan),
        "compute_capabilities": list(targets),
    }


def _known(library: Any) -> dict[str, Any]:
    """Compute capability -> the library's name for it."""
    return {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in library.ComputeCapability.__members__.items()
        if name not in _NO_GPU
    }


def _check_capabilities(known: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    """Raise StepFailed for a compute capability that the library does not build for."""
    for each in wanted:
        if each not in known:
            raise StepFailed(
                f"TensorRT for RTX does not build for compute capability {each}",
                hint=f"it builds for {', '.join(known)}",
            )


def _requirement(library: Any, capabilities: tuple[str, ...]) -> Requirement:
    """Built here, run anywhere: of this machine only the platform is in it."""
    return Requirement(
        library="tensorrt-rtx",
        version=library.__version__,
        platform=this_platform(),
        compute_capabilities=capabilities,
        hardware_compatibility="same-compute-capability",
    )
