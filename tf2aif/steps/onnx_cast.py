"""onnx-cast: an ONNX model in float16 or bfloat16, as types in its graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ..engines.signature import read_signature, write_signature
from ..errors import StepFailed
from . import Job

VERSION = 1
TOOLCHAIN = "onnx"
INPUTS = ("model",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which type, and what stays float32."""

    precision: Literal["fp16", "bf16"] = "fp16"
    keep: tuple[str, ...] = ()
    """Operators (`Softmax`) or single nodes (`Conv_3`) that stay float32."""


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.onnx`, `check.onnx` and `signature.json`.

    Inputs and outputs stay float32. `check.onnx` computes the same on a CPU, see
    `onnx_types.emulation`. Raises StepFailed where a weight is beyond the range of the type, where
    nothing can compute in it, and where `keep` names what is not there.
    """
    from .onnx_graph import read_model
    from .onnx_types import lower
    from .onnx_written import check_keep, write_typed

    options = msgspec.convert(job.options, Options)
    signature = read_signature(job.inputs["model"])
    model = read_model(job.inputs["model"])
    check_keep(model, options.keep)
    lowered = lower(model, options.precision, options.keep)
    if not lowered.nodes:
        raise StepFailed(
            f"nothing in the model can compute in {options.precision}",
            hint="leave this precision out of the recipe",
        )
    size = write_typed(lowered.model, signature, job.out)
    write_signature(job.out, signature)
    return {
        "size_bytes": size,
        "lowered": lowered.nodes,
        "kept": lowered.kept,
        "flushed_weights": lowered.flushed,
    }
