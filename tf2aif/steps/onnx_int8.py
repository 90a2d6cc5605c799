"""onnx-int8: layers in int8 with explicit Q/DQ nodes, by the ranges of a calibration set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..engines.signature import Signature, read_signature, write_signature
from . import Job

if TYPE_CHECKING:
    from .onnx_layers import Placement

VERSION = 1
TOOLCHAIN = "onnx"
INPUTS = ("model", "calibration")


class Ranges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the ranges of activations are found, and what computes beside int8."""

    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, Meta(gt=50, le=100)] = 99.99
    """Of `calibration: percentile`: how many percent of a tensor's values do not saturate."""
    rest: Literal["fp32", "fp16"] = "fp32"
    """The type of all that is not int8."""
    keep: tuple[str, ...] = ()
    """Operators (`MatMul`) or single layers (`Conv_0`) that are not quantised in any case."""


class Options(Ranges, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """It has those of `Ranges`."""


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.onnx`, `signature.json`, and where the rest is fp16 `check.onnx`.

    Raises StepFailed where the calibration set is not for this model, and where nothing in the
    model is int8 in the end: the nodes are counted in what was written.
    """
    from .onnx_graph import read_model
    from .onnx_layers import find_layers
    from .onnx_written import (
        check_keep,
        check_set,
        nothing_quantised,
        quantised_model,
        write_quantised,
    )

    options = msgspec.convert(job.options, Options)
    signature = read_signature(job.inputs["model"])
    check_set(job.inputs["calibration"], signature)
    model = read_model(job.inputs["model"])
    check_keep(model, options.keep)
    placement = find_layers(model)
    chosen = [x.name for x in placement.layers if not {x.name, x.op} & set(options.keep)]
    if not chosen:
        raise nothing_quantised()
    limits = activation_limits(model, placement, job.inputs["calibration"], signature, options)
    made = quantised_model(model, signature, placement, limits, chosen, options.rest)
    result = write_quantised(made, signature, job.out, options.rest)
    write_signature(job.out, signature)
    return {
        "calibration": options.calibration,
        "layers": len(placement.layers),
        "kept": [layer.name for layer in placement.layers if layer.name not in chosen],
        **result,
    }


def activation_limits(
    model: Any, placement: Placement, calibration: Path, signature: Signature, options: Ranges
) -> dict[str, float]:
    """The value of each activation that becomes 127, from the calibration set."""
    from .calibration import calibration_feeds
    from .onnx_ranges import thresholds

    return thresholds(
        model,
        placement.tensors(),
        lambda: calibration_feeds(calibration, signature),
        options.calibration,
        options.percentile,
    )
