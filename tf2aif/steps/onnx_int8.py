"""onnx-int8: layers in int8 with explicit Q/DQ nodes, by the ranges of a calibration set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

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
    from .onnx_written import write_quantised

    options = msgspec.convert(job.options, Options)
    ready = prepare(job, options)
    made = ready.quantised(ready.chosen)
    result = write_quantised(made, ready.signature, job.out, options.rest)
    write_signature(job.out, ready.signature)
    return {
        "calibration": options.calibration,
        "layers": len(ready.placement.layers),
        "kept": [x.name for x in ready.placement.layers if x.name not in ready.chosen],
        **result,
    }


class Prepared(NamedTuple):
    """A float32 model with the ranges of its activations."""

    model: Any
    signature: Signature
    placement: Placement
    limits: dict[str, float]  # by tensor: the value that becomes 127
    chosen: tuple[str, ...]  # the layers that may be quantised, in the graph's order
    half: bool  # scales that float16 holds exactly

    def quantised(self, layers: Collection[str]) -> Any:
        """The model with these layers in int8 and the rest in float32, in canonical form."""
        from .onnx_graph import canonical_form
        from .onnx_layers import quantise

        made = quantise(self.model, self.placement, self.limits, layers, half=self.half)
        return canonical_form(made, self.signature)


def prepare(job: Job, options: Ranges) -> Prepared:
    """Read the model and observe its ranges on the calibration set.

    Raises StepFailed where the set is not for this model, and where no layer may be quantised.
    """
    from .calibration import calibration_feeds
    from .onnx_graph import read_model
    from .onnx_layers import find_layers
    from .onnx_ranges import thresholds
    from .onnx_written import check_keep, check_set, nothing_quantised

    signature = read_signature(job.inputs["model"])
    check_set(job.inputs["calibration"], signature)
    model = read_model(job.inputs["model"])
    check_keep(model, options.keep)
    placement = find_layers(model)
    kept = set(options.keep)
    chosen = tuple(x.name for x in placement.layers if not {x.name, x.op} & kept)
    if not chosen:
        raise nothing_quantised()
    limits = thresholds(
        model,
        placement.tensors(),
        lambda: calibration_feeds(job.inputs["calibration"], signature),
        options.calibration,
        options.percentile,
    )
    return Prepared(model, signature, placement, limits, chosen, options.rest == "fp16")
