"""What the ONNX steps of one precision share: the calibration set's check, and what they write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from ..engines.signature import Signature, fits
from ..errors import StepFailed
from ..sampleset import read_set
from .onnx_graph import all_nodes, canonical_form, write_model
from .onnx_layers import count_quantised
from .onnx_types import emulation, has_half, lower

CHECK_FILE = "check.onnx"

Rest = Literal["fp32", "fp16"]


def write_typed(model: Any, signature: Signature, out: Path) -> int:
    """Write `model.onnx` in canonical form, and `check.onnx` where it has half precision.

    Gives the size of `model.onnx` in bytes.
    """
    made = canonical_form(model, signature)
    size = write_model(made, out)
    if has_half(made):
        write_model(canonical_form(emulation(made), signature), out, CHECK_FILE)
    return size


def write_quantised(model: Any, signature: Signature, out: Path, rest: Rest) -> dict[str, Any]:
    """Write a model with Q/DQ nodes; what of it is int8, as counted in what is written.

    Raises StepFailed where that is nothing, whatever went before.
    """
    typed = lower(model, "fp16").model if rest == "fp16" else model
    size = write_typed(typed, signature, out)
    count = count_quantised(typed)
    if not count.layers or not count.quantize or not count.dequantize:
        raise nothing_quantised()
    return {
        "size_bytes": size,
        "rest": rest,
        "int8_layers": count.layers,
        "quantize_nodes": count.quantize,
        "dequantize_nodes": count.dequantize,
    }


def computed(model: Any, signature: Signature, rest: Rest) -> Any:
    """What a CPU runs in place of that quantised model once the rest of it has its type."""
    if rest == "fp32":
        return model
    typed = canonical_form(lower(model, "fp16").model, signature)
    return canonical_form(emulation(typed), signature)


def nothing_quantised() -> StepFailed:
    """The failure of a step that would leave a float model under the name of int8."""
    return StepFailed(
        "nothing in the model was quantised: it has no layer of constant weights "
        "(Conv, ConvTranspose, MatMul, Gemm) outside of loops that is not kept",
        hint="leave int8 of this target out of the recipe",
    )


def check_keep(model: Any, keep: Collection[str]) -> None:
    """Raises StepFailed where `keep` names an operator or node that the model has not."""
    nodes = list(all_nodes(model.graph))
    there = {name for node in nodes for name in (node.op_type, node.name)}
    unknown = [name for name in keep if name not in there]
    if unknown:
        counts = Counter(node.op_type for node in nodes)
        told = ", ".join(f"{op} ({count})" for op, count in sorted(counts.items()))
        raise StepFailed(
            f"'keep' names '{unknown[0]}', which is no operator and no node of the model",
            hint=f"its operators are: {told}; the third Conv is Conv_2",
        )


def check_set(folder: Path, signature: Signature) -> None:
    """Raises StepFailed where a calibration set is not for this model, before it is run."""
    found = read_set(folder).inputs
    for spec in signature.inputs:
        if spec.name not in found:
            raise StepFailed(
                f"the calibration set lacks the input '{spec.name}'",
                hint=f"it has: {', '.join(found)}",
            )
        array = found[spec.name]
        batched = array.ndim == len(spec.shape)
        wanted = spec.shape[1:] if batched else spec.shape
        if array.dtype.name != spec.dtype or not fits(array.shape[1:], wanted):
            raise StepFailed(
                f"a calibration sample of '{spec.name}' is {array.dtype.name} "
                f"{array.shape[1:]}; the model takes {spec.dtype} {_told(wanted)}",
                hint="build the calibration set for this model, with its preprocessing",
            )
        if not len(array):
            raise StepFailed("the calibration set is empty", hint="100 to 500 samples are usual")


def _told(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"
