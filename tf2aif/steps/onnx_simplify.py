"""Simplifications of an ONNX graph that change nothing in its numbers but the last bits.

What depends on no input is computed now, and so is the shape of a reshape of which all but the
batch is known. What stands beside a convolution only because TensorFlow has an operator of its own
for it (padding before, the scale of a batch normalisation and a bias after) goes into the
convolution: compilers then quantise and fuse the layer as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engines import Array
from .onnx_editor import Editor, Shape, inferred_shapes
from .onnx_graph import STANDARD, bodies

FOLDED_ELEMENTS = 2**18  # a constant that is larger than this, and than its sources, is not kept
ROUNDS = 4  # shapes that become known in one round make constants in the next

# Operators whose results are not their inputs' alone, and those that say how a tensor is stored.
_KEPT = ("Random", "Multinomial", "Bernoulli", "Quantize", "Dequantize")


def simplify(model: Any) -> None:
    """Fold constants, and fold into convolutions what belongs to them, in place."""
    for _ in range(ROUNDS):
        if not fold_constants(model) + fix_reshapes(model):
            break
    graph = Editor(model.graph)
    for fuse in (_fuse_pad, _fuse_scale, _fuse_bias):
        for node in graph.nodes:
            if not graph.dropped(node) and node.domain in STANDARD:
                fuse(graph, node)
    graph.finish()


def fold_constants(model: Any) -> int:
    """Turn nodes that depend on no input into initializers, in place; how many values there are."""
    shapes = inferred_shapes(model)
    graph = Editor(model.graph)
    values: dict[str, Array] = {}
    constant = set(graph.constants)
    found = []
    for node in graph.nodes:
        length = _static_length(node, shapes)
        if length is not None:
            values[node.output[0]] = length
        elif _foldable(node, constant, shapes):
            found.append(node)
        else:
            continue
        constant |= set(node.output)
    values |= _evaluate(model, found, graph, values) if found else {}
    for node in {id(node): node for name in values if (node := graph.makers[name])}.values():
        graph.drop(node)
    for name, value in values.items():
        graph.add_constant(name, value)
    graph.finish()
    return len(values)


def fix_reshapes(model: Any) -> int:
    """Give each Reshape of which one length is open a constant shape, in place; how many did.

    Exporters compute it from the shape of an input, to put the batch in: what is left is -1.
    """
    shapes = inferred_shapes(model)
    graph = Editor(model.graph)
    count = 0
    for node in graph.nodes:
        shape = shapes.get(node.output[0]) if node.op_type == "Reshape" else None
        if shape is None or node.input[1] in graph.constants or 0 in shape or shape.count(None) > 1:
            continue
        lengths = np.array([-1 if length is None else length for length in shape], np.int64)
        graph.set_input(node, 1, graph.add_constant(f"{node.output[0]}.lengths", lengths))
        count += 1
    return count


def _static_length(node: Any, shapes: Mapping[str, Shape]) -> Array | None:
    """What a Shape node gives, where every length is known."""
    shape = shapes.get(node.input[0]) if node.op_type == "Shape" else None
    if shape is None or None in shape or node.attribute:
        return None
    return np.array(shape, np.int64)


def _foldable(node: Any, constant: set[str], shapes: Mapping[str, Shape]) -> bool:
    if node.op_type == "Constant" or node.domain not in STANDARD or bodies(node):
        return False
    if any(word in node.op_type for word in _KEPT) or not node.input:
        return False
    if not all(tensor in constant for tensor in node.input if tensor):
        return False
    limit = max(FOLDED_ELEMENTS, *(_elements(shapes.get(t)) or 0 for t in node.input))
    sizes = [_elements(shapes.get(tensor)) for tensor in node.output if tensor]
    return all(size is not None and size <= limit for size in sizes)


def _elements(shape: Shape | None) -> int | None:
    return None if shape is None or None in shape else math.prod(n for n in shape if n is not None)


def _evaluate(
    model: Any, nodes: list[Any], graph: Editor, values: Mapping[str, Array]
) -> dict[str, Array]:
    """What these nodes give, by ONNX Runtime; they need constants, `values` and each other only."""
    import onnx
    import onnxruntime

    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(nodes)
    inside = Editor(part.graph)
    needed = sorted({tensor for node in nodes for tensor in node.input if tensor})
    for name in needed:
        value = values[name] if name in values else graph.value(name)
        if value is not None:
            inside.add_constant(name, value)
    made = [tensor for node in nodes for tensor in node.output if tensor]
    for tensor in made:
        part.graph.output.add(name=tensor)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(made, session.run(made, {}), strict=True))


def _fuse_pad(graph: Editor, pad: Any) -> None:
    """Padding with zeros becomes the convolution's own."""
    conv = graph.only_reader(pad.output[0]) if pad.op_type == "Pad" else None
    if conv is None or conv.op_type != "Conv" or conv.input[0] != pad.output[0]:
        return
    pads = graph.value(pad.input[1]) if len(pad.input) < 4 else None
    fill = graph.value(pad.input[2]) if len(pad.input) == 3 and pad.input[2] else np.zeros(1)
    if (
        pads is None
        or fill is None
        or fill.any()
        or attribute(pad, "mode", b"constant") != b"constant"
    ):
        return
    begins, ends = np.split(pads, 2)
    own = attribute(conv, "pads", [0] * (len(pads) - 4))
    automatic = attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET"
    if automatic or begins[:2].any() or ends[:2].any() or (pads < 0).any():
        return
    total = np.concatenate([begins[2:], ends[2:]]) + np.array(own)
    _set_ints(conv, "pads", [int(n) for n in total])
    graph.set_input(conv, 0, pad.input[0])
    graph.drop(pad)


def _fuse_scale(graph: Editor, mul: Any) -> None:
    """A factor for each channel goes into weights and bias."""
    conv, factor = _after_conv(graph, mul) if mul.op_type == "Mul" else (None, None)
    if conv is None or factor is None:
        return
    weights = graph.value(conv.input[1])
    bias = graph.value(conv.input[2]) if len(conv.input) == 3 else None
    if weights is None or (len(conv.input) == 3 and bias is None):
        return
    shape = (-1, *[1] * (weights.ndim - 1))
    _replace(graph, conv, 1, weights * factor.reshape(shape))
    if bias is not None:
        _replace(graph, conv, 2, bias * factor)
    graph.take_over(conv, mul)


def _fuse_bias(graph: Editor, add: Any) -> None:
    """A constant for each channel becomes the bias, or is added to it."""
    conv, more = _after_conv(graph, add) if add.op_type == "Add" else (None, None)
    if conv is None or more is None:
        return
    bias = graph.value(conv.input[2]) if len(conv.input) == 3 else np.zeros_like(more)
    if bias is None:
        return
    _replace(graph, conv, 2, bias + more)
    graph.take_over(conv, add)


def _after_conv(graph: Editor, node: Any) -> tuple[Any, Array | None]:
    """The convolution that `node` alone reads, and its other input as one constant a channel."""
    for tensor, other in (tuple(node.input), tuple(node.input)[::-1]):
        conv, constant = graph.makers.get(tensor), graph.value(other)
        if conv is None or conv.op_type != "Conv" or constant is None:
            continue
        weights = graph.constants.get(conv.input[1])
        if weights is None or graph.only_reader(tensor) is None:
            return None, None
        return conv, _per_channel(constant, weights.dims[0], len(weights.dims))
    return None, None


def _per_channel(constant: Array, channels: int, rank: int) -> Array | None:
    """A constant of one value a channel (axis 1 of `rank` axes) or one value; None for others."""
    shape = (1,) * (rank - constant.ndim) + constant.shape
    fits = len(shape) == rank and all(n == 1 for axis, n in enumerate(shape) if axis != 1)
    if not fits or shape[1] not in (1, channels):
        return None
    return np.array(np.broadcast_to(constant.reshape(-1), (channels,)))


def _replace(graph: Editor, node: Any, index: int, value: Array) -> None:
    graph.set_input(node, index, graph.add_constant(f"{node.name}.{index}", value))


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, or the default."""
    from onnx import helper

    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _set_ints(node: Any, name: str, values: list[int]) -> None:
    from onnx import helper

    kept = [each for each in node.attribute if each.name != name]
    copies = [type(each).FromString(each.SerializeToString()) for each in kept]
    del node.attribute[:]
    node.attribute.extend([*copies, helper.make_attribute(name, values)])
