"""Why a layer does not go to a DPU: its limits, one rule a family of layers.

Source: AMD, "Vitis AI User Guide" (UG1414), "Currently Supported Operators".
"""

# ruff: noqa: ARG001 - the functions of a table take the same arguments

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..engines import network
from ..engines.integer import picture_size
from ..engines.network import AnyLayer, Layer, Network, Pair

if TYPE_CHECKING:
    from ..steps.dpu_check import Limits, Window

CHANNELS = 256  # times channel_parallel: the most channels of a tensor


def reason_for_cpu(net: Network, layer: AnyLayer, limits: Limits) -> str:
    """Why a layer runs on the processor beside the DPU; empty where the DPU runs it."""
    rule = _RULES.get(type(layer))
    return rule(net, layer, limits) if rule else "not among the operators of a DPU"


def _conv2d(net: Network, layer: Any, limits: Limits) -> str:
    size = _size(net, layer)
    depth = net.weight(layer, "kernel").shape[2]
    return (
        _window(limits.conv, size, layer.strides)
        or _channels(net, layer, limits)
        or _dilations(layer, depth, limits)
        or _padding(layer, size)
        or _bank(size, depth, limits)
    )


def _depthwise(net: Network, layer: Any, limits: Limits) -> str:
    if limits.depthwise is None:
        return "no depthwise convolution"
    if net.weight(layer, "kernel").shape[3] != 1:
        return "a depthwise convolution with a multiplier"
    size = _size(net, layer)
    return (
        _window(limits.depthwise, size, layer.strides)
        or _channels(net, layer, limits)
        or _dilations(layer, layer.shape[2], limits)
        or _padding(layer, size)
    )


def _transposed(net: Network, layer: Any, limits: Limits) -> str:
    if limits.transposed is None:
        return "no transposed convolution"
    size = _size(net, layer)
    return (
        _window(limits.transposed, size, layer.strides)
        or _channels(net, layer, limits)
        or _bank(size, net.weight(layer, "kernel").shape[3], limits)
    )


def _dense(net: Network, layer: Layer, limits: Limits) -> str:
    inputs = net.weight(layer, "kernel").shape[0]
    if inputs > limits.dense_inputs:
        return f"{inputs} inputs; at most {limits.dense_inputs}"
    return _channels(net, layer, limits) if len(layer.shape) == 1 else "not over a vector"


def _scale(net: Network, layer: Layer, limits: Limits) -> str:
    if len(layer.shape) != 3 or limits.depthwise is None:
        return "a factor for each channel that no kernel before it takes in"
    return _window(limits.depthwise, (1, 1), (1, 1)) or _channels(net, layer, limits)


def _max_pool(net: Network, layer: Any, limits: Limits) -> str:
    if limits.max_pool is None:
        return "no max pooling"
    return _window(limits.max_pool, layer.size, layer.strides)


def _average_pool(net: Network, layer: Any, limits: Limits) -> str:
    if limits.average_pool is None:
        return "no average pooling"
    if any(layer.padding):
        return "an average that does not count its padding"
    return _window(limits.average_pool, layer.size, layer.strides)


def _global_pool(kind: str) -> Callable[[Network, Layer, Limits], str]:
    def rule(net: Network, layer: Layer, limits: Limits) -> str:
        window = limits.average_pool if kind == "average" else limits.max_pool
        if window is None:
            return f"no {kind} pooling"
        return _window(window, picture_size(net.shapes()[layer.inputs[0]]), (1, 1))

    return rule


def _activation(name: str) -> Callable[[Network, Any, Limits], str]:
    def rule(net: Network, layer: Any, limits: Limits) -> str:
        if name not in limits.activations:
            return f"no {name.replace('_', ' ')}"
        if name == "leaky_relu" and not math.isclose(layer.alpha, limits.leaky_alpha, abs_tol=2e-3):
            return f"a slope of {layer.alpha:g}; the DPU has {limits.leaky_alpha:g}"
        before = next((each for each in net.layers if each.name == layer.inputs[0]), None)
        if not isinstance(before, _BEFORE_ACTIVATION):
            return "an activation that follows no convolution, dense layer or sum"
        return _why_before(net, before, limits)

    return rule


def _why_before(net: Network, before: AnyLayer, limits: Limits) -> str:
    """An activation is part of what is before it, and goes where that goes."""
    return f"{before.name} runs there" if reason_for_cpu(net, before, limits) else ""


def _elementwise(name: str) -> Callable[[Network, Layer, Limits], str]:
    def rule(net: Network, layer: Layer, limits: Limits) -> str:
        if name not in limits.elementwise:
            return f"no elementwise {name}"
        shapes = [net.shapes()[each] for each in layer.inputs]
        if shapes[0] != shapes[1] and name == "add":
            return f"of shapes {shapes[0]} and {shapes[1]}"
        return _channels(net, layer, limits)

    return rule


def _resize(net: Network, layer: network.Resize, limits: Limits) -> str:
    how = "bilinear" if layer.bilinear else "nearest"
    if how not in limits.resize:
        return f"no {how} enlargement"
    powers = all(factor & (factor - 1) == 0 for factor in layer.factors)
    return "" if powers or not layer.bilinear else f"enlarged by {layer.factors}"


def _moves(net: Network, layer: Layer, limits: Limits) -> str:
    """Concatenation, padding and reshapes are what the compiler makes of its memory."""
    return ""


def _window(window: Window, size: Pair, strides: Pair) -> str:
    low, high = window.kernel
    if not all(low <= n <= high for n in size):
        return f"a window of {size[0]}x{size[1]}; from {low} to {high}"
    if window.kernels and any(n not in window.kernels for n in size):
        return f"a window of {size[0]}x{size[1]}; of {', '.join(map(str, window.kernels))}"
    if window.square and size[0] != size[1]:
        return f"a window of {size[0]}x{size[1]}; only square ones"
    low, high = window.strides
    if not all(low <= n <= high for n in strides):
        return f"strides of {strides[0]}x{strides[1]}; from {low} to {high}"
    return ""


def _channels(net: Network, layer: Layer, limits: Limits) -> str:
    most = CHANNELS * limits.channel_parallel
    return "" if layer.shape[-1] <= most else f"{layer.shape[-1]} channels; at most {most}"


def _dilations(layer: Any, depth: int, limits: Limits) -> str:
    most = CHANNELS * limits.channel_parallel
    largest = max(layer.dilations) * depth
    return "" if largest <= most else f"dilation times channels is {largest}; at most {most}"


def _padding(layer: Any, size: Pair) -> str:
    for axis in (0, 1):
        most = (size[axis] - 1) * layer.dilations[axis]
        if max(layer.padding[2 * axis : 2 * axis + 2]) > most:
            return f"padding of {layer.padding}; at most {most}"
    return ""


def _bank(size: Pair, depth: int, limits: Limits) -> str:
    taken = size[0] * size[1] * math.ceil(depth / limits.channel_parallel)
    most = limits.bank_depth
    return "" if taken <= most else f"its kernel takes {taken} rows of a bank; at most {most}"


def _size(net: Network, layer: Layer) -> Pair:
    kernel = net.weight(layer, "kernel")
    return (kernel.shape[0], kernel.shape[1])


_BEFORE_ACTIVATION = (
    network.Conv2D,
    network.DepthwiseConv2D,
    network.Conv2DTranspose,
    network.Dense,
    network.Scale,
    network.Add,
)

_RULES: dict[type[Layer], Callable[[Network, Any, Limits], str]] = {
    network.Conv2D: _conv2d,
    network.DepthwiseConv2D: _depthwise,
    network.Conv2DTranspose: _transposed,
    network.Dense: _dense,
    network.Scale: _scale,
    network.MaxPool: _max_pool,
    network.AveragePool: _average_pool,
    network.GlobalAverage: _global_pool("average"),
    network.GlobalMax: _global_pool("max"),
    network.Relu: _activation("relu"),
    network.Relu6: _activation("relu6"),
    network.LeakyRelu: _activation("leaky_relu"),
    network.PRelu: _activation("prelu"),
    network.HardSigmoid: _activation("hard_sigmoid"),
    network.HardSwish: _activation("hard_swish"),
    network.Add: _elementwise("add"),
    network.Mul: _elementwise("mul"),
    network.Resize: _resize,
    network.Concat: _moves,
    network.Pad: _moves,
    network.Reshape: _moves,
}
