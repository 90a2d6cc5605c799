"""Quantised layers: explicit QuantizeLinear and DequantizeLinear nodes around weighted operators.

Scales are symmetric (every zero point is 0), of weights one for each output channel. Biases stay in
floating point, and each layer has a pair of its own for each input. Pairs stand before a layer's
inputs, not behind its output, so that a compiler can fuse what follows (an activation, a sum) into
it. A sum of a layer's output with a skipped branch has a pair on that branch, for the same reason.

Source: "Working with Quantized Types" of the TensorRT documentation, placement of Q/DQ layers; Wu
et al., "Integer Quantization for Deep Learning Inference", 2020.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..engines import Array
from ..errors import StepFailed
from .onnx_editor import Editor, Shape, inferred_shapes, inferred_types
from .onnx_graph import STANDARD
from .onnx_types import FLOAT

LEVELS = 127  # -127 to 127: symmetric, as TensorRT has it; -128 is not used


class Layer(NamedTuple):
    """An operator with constant weights that can compute in int8."""

    name: str  # of its node
    op: str
    activation: str  # the tensor that it reads
    weights: str
    axis: int  # of the weights, along which its output channels are


class Skip(NamedTuple):
    """The other branch of a sum that a layer's output goes into."""

    sum: str  # the name of its node
    tensor: str


class Placement(NamedTuple):
    """Where pairs go: the layers, and the skipped branches of sums by the layer they belong to."""

    layers: tuple[Layer, ...]
    skips: Mapping[str, Skip]  # by the name of the layer whose output is summed

    def tensors(self) -> list[str]:
        """The activations that need a range, each once."""
        branches = [skip.tensor for skip in self.skips.values()]
        return list(dict.fromkeys([*(layer.activation for layer in self.layers), *branches]))


def find_layers(model: Any) -> Placement:
    """The layers of the main graph that can be quantised, in its order."""
    graph, types, shapes = Editor(model.graph), inferred_types(model), inferred_shapes(model)
    layers = []
    for node in graph.nodes:
        axis = _channel_axis(node, graph)
        if axis is not None and types.get(node.input[0]) == FLOAT:
            layers.append(Layer(node.name, node.op_type, node.input[0], node.input[1], axis))
    return Placement(tuple(layers), _skips(graph, layers, shapes))


def _skips(graph: Editor, layers: list[Layer], shapes: Mapping[str, Shape]) -> dict[str, Skip]:
    found: dict[str, Skip] = {}
    nodes = {node.name: node for node in graph.nodes}
    sums: set[str] = set()
    for layer in layers:
        result = nodes[layer.name].output[0]
        reader = graph.only_reader(result)
        if reader is None or reader.op_type != "Add" or reader.name in sums:
            continue
        other = next((tensor for tensor in reader.input if tensor != result), "")
        if other in graph.makers and shapes.get(other) == shapes.get(result):
            found[layer.name] = Skip(reader.name, other)
            sums.add(reader.name)
    return found


def _channel_axis(node: Any, graph: Editor) -> int | None:
    """Along which axis a layer's weights have its output channels; None for what is no layer."""
    from .onnx_simplify import attribute

    if node.domain not in STANDARD or len(node.input) < 2:
        return None
    weights = graph.constants.get(node.input[1])
    if weights is None or weights.data_type != FLOAT:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) == 1:
        return 1
    if node.op_type == "MatMul" and len(weights.dims) == 2:
        return 1
    if node.op_type == "Gemm" and not attribute(node, "transA", 0):
        return 0 if attribute(node, "transB", 0) else 1
    return None


def quantise(
    model: Any,
    placement: Placement,
    limits: Mapping[str, float],
    chosen: Collection[str],
    *,
    half: bool,
) -> Any:
    """A copy of the model whose chosen layers compute in int8.

    `limits` are of activations, by tensor: the values that become 127. With `half` all scales are
    exact in float16, so that the rest can become it without changing what int8 computes.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = Editor(made.graph)
    nodes = {node.name: node for node in graph.nodes}
    pairs: list[Any] = []
    for layer in placement.layers:
        if layer.name not in chosen:
            continue
        node = nodes[layer.name]
        pairs += _weight_pair(graph, node, layer, half=half)
        pairs += _activation_pair(graph, node, 0, limits[layer.activation], half=half)
        if layer.name in placement.skips:
            name, branch = placement.skips[layer.name]
            index = list(nodes[name].input).index(branch)
            pairs += _activation_pair(graph, nodes[name], index, limits[branch], half=half)
    graph.finish()
    made.graph.node.extend(pairs)
    return made


def _weight_pair(graph: Editor, node: Any, layer: Layer, *, half: bool) -> list[Any]:
    """Weights stored as int8, and the node that gives their real values."""
    from onnx import helper

    weights = graph.value(layer.weights)
    if weights is None:
        raise StepFailed(f"the weights of '{layer.name}' are no constant")
    if not np.isfinite(weights).all():
        raise StepFailed(f"the weights of '{layer.name}' hold NaN or infinity")
    stored, scale = quantised_weights(weights, layer.axis, half=half)
    stem = f"{node.name}.weights"
    inputs = [
        graph.add_constant(f"{stem}.int8", stored),
        graph.add_constant(f"{stem}.scale", scale),
        graph.add_constant(f"{stem}.zero", np.zeros(len(scale), np.int8)),
    ]
    node.input[1] = f"{stem}.real"
    return [helper.make_node("DequantizeLinear", inputs, [node.input[1]], axis=layer.axis)]


def quantised_weights(weights: Array, axis: int, *, half: bool = False) -> tuple[Array, Array]:
    """Weights as int8, and one scale for each index along `axis`; the rest of the axes is free."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scale = scale_of(np.abs(weights).max(axis=others, initial=0.0), half=half)
    shape = [1] * weights.ndim
    shape[axis] = len(scale)
    stored = np.rint(weights / scale.reshape(shape))
    return np.clip(stored, -LEVELS, LEVELS).astype(np.int8), scale


def scale_of(threshold: Array, *, half: bool = False) -> Array:
    """The scale, float32, with which the threshold becomes 127; 1 where the threshold is 0."""
    scale = np.asarray(threshold, np.float32) / np.float32(LEVELS)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    if not half:
        return np.asarray(np.maximum(scale, np.finfo(np.float32).tiny))
    with np.errstate(over="ignore"):
        narrow = scale.astype(np.float16)
    if not np.isfinite(narrow).all():
        raise StepFailed(
            f"a range of {float(np.max(threshold)):.3g} is too wide for a scale in float16",
            hint="leave the rest in float32: 'rest: fp32'",
        )
    # Rounded up: a smaller scale would cut off the largest values.
    up = np.nextafter(narrow, np.float16(np.inf))
    return np.where(narrow.astype(np.float32) < scale, up, narrow).astype(np.float32)


def _activation_pair(
    graph: Editor, node: Any, index: int, limit: float, *, half: bool
) -> list[Any]:
    """The nodes that round what a node reads as its input `index`."""
    from onnx import helper

    scale = scale_of(np.array(limit), half=half)
    stem = f"{node.name}.in{index}"
    parameters = [
        graph.add_constant(f"{stem}.scale", scale),
        graph.add_constant(f"{stem}.zero", np.array(0, np.int8)),
    ]
    source, node.input[index] = node.input[index], f"{stem}.real"
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{stem}.int8"]),
        helper.make_node("DequantizeLinear", [f"{stem}.int8", *parameters], [f"{stem}.real"]),
    ]


class Count(NamedTuple):
    """What of a model is quantised, counted in the graph itself."""

    quantize: int
    dequantize: int
    layers: int  # whose activation and weights both come from a DequantizeLinear


def count_quantised(model: Any) -> Count:
    """Count the nodes of the main graph."""
    makers = {tensor: node for node in model.graph.node for tensor in node.output}
    operators = [node.op_type for node in model.graph.node]

    def dequantised(tensor: str) -> bool:
        maker = makers.get(tensor)
        return maker is not None and maker.op_type == "DequantizeLinear"

    layers = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
        and all(dequantised(tensor) for tensor in node.input[:2])
    ]
    return Count(
        operators.count("QuantizeLinear"), operators.count("DequantizeLinear"), len(layers)
    )
