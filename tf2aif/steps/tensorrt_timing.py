"""tensorrt-timing: how long each kernel takes on the GPU of this machine, for a model's structure.

TensorRT tries many kernels for each layer and keeps what it measured in a timing cache. The cache
is made from the model's structure, without its weights, and belongs to one GPU, driver and version
of TensorRT: a model that was only trained anew finds it, and its engine is built in a fraction of
the time, from the same kernels as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..engines.signature import read_signature
from . import Job
from .tensorrt import Options, prepare, vendor_library
from .trt_build import profiles_of

__all__ = ["DEVICE", "FROM", "INPUTS", "TOOLCHAIN", "VERSION", "Options", "run"]

VERSION = 1
TOOLCHAIN = "tensorrt"
DEVICE = "nvidia"
INPUTS = ("structure",)
COMPILES = True
COMPARE = "nothing"
FROM = {"structure": "onnx-structure"}


def run(job: Job) -> Mapping[str, Any]:
    """Write `timing.cache`. The engine that is built on the way is thrown away.

    Raises StepFailed as step `tensorrt` does.
    """
    options = msgspec.convert(job.options, Options)
    profiles_of(read_signature(job.inputs["structure"]), options)
    build = prepare(vendor_library(), job.inputs["structure"], options)
    build.config.set_timing_cache(build.config.create_timing_cache(b""), False)
    build.serialize()
    kept = bytes(build.config.get_timing_cache().serialize())
    (job.out / "timing.cache").write_bytes(kept)
    return {"library": build.name, "size_bytes": len(kept)}
