"""Operators that TensorRT's parser has no way to read, known where TensorRT itself is not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import StepFailed

UNREADABLE = frozenset(
    (
        *("Bernoulli", "BitShift", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det"),
        *("DynamicQuantizeLinear", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix"),
        *("Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement"),
        *("OptionalHasElement", "QLinearConv", "QLinearMatMul", "SequenceAt", "SequenceConstruct"),
        *("SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"),
        *("SoftmaxCrossEntropyLoss", "SplitToSequence", "StringNormalizer", "TfIdfVectorizer"),
        "Unique",
    )
)
"""Of ONNX up to opset 18. What TensorRT may read by a function's body or a plug-in is not here.

Source: `supports_operator` of the parser of TensorRT for RTX 1.7, which a test asks again.
"""


def check_operators(nodes: Iterable[Any]) -> None:
    """Raises StepFailed, which names them, where TensorRT cannot read some of these nodes."""
    found = [f"{n.op_type} (node '{n.name}')" for n in nodes if n.op_type in UNREADABLE]
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise StepFailed(
            f"TensorRT has no operator for: {', '.join(found[:4])}{more}",
            hint="build the model from other operators, or take a target with another engine, "
            "such as gpu-ort",
        )
