"""Cross-layer equalisation: the channels between two kernels take like ranges.

One scale for a whole kernel wastes bits where its channels differ much, as those of depthwise
networks do. Between two kernels, through what commutes with positive factors, a channel can be
divided in the first and multiplied in the second; the network computes the same.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engines import Array, network
from ..engines.network import AnyLayer, Network

ROUNDS = 20
STILL = 1e-3  # a round that changes no channel by more ends it

_KERNELS = (network.Conv2D, network.DepthwiseConv2D, network.Dense)
# f(s * x) = s * f(x) for s > 0, each channel by itself.
_HOMOGENEOUS = (
    network.Relu,
    network.LeakyRelu,
    network.PRelu,
    network.MaxPool,
    network.AveragePool,
    network.GlobalAverage,
    network.GlobalMax,
    network.Pad,
    network.Resize,
)


def replace_relu6(net: Network) -> Network:
    """The network with ReLU for ReLU6: another function, where an activation exceeds 6."""
    layers = tuple(
        network.Relu(name=layer.name, inputs=layer.inputs, shape=layer.shape, source=layer.source)
        if isinstance(layer, network.Relu6)
        else layer
        for layer in net.layers
    )
    return net._replace(layers=layers)


def equalise(net: Network) -> Network:
    """The same function in float arithmetic, with kernels whose channels have like ranges."""
    weights = {name: array.astype(np.float64) for name, array in net.weights.items()}
    made = net._replace(weights=weights)
    pairs = _pairs(made)
    for _ in range(ROUNDS):
        moved = [_balance(made, first, second) for first, second in pairs]
        if max(moved, default=0.0) < STILL:
            break
    return net._replace(weights={n: a.astype(np.float32) for n, a in weights.items()})


def _pairs(net: Network) -> list[tuple[AnyLayer, AnyLayer]]:
    """Kernels that follow each other with nothing between them that has another reader."""
    consumers = net.consumers()
    kept = {each.tensor for each in net.outputs}
    found: list[tuple[AnyLayer, AnyLayer]] = []
    for layer in net.layers:
        if not isinstance(layer, _KERNELS):
            continue
        last: Any = layer
        while last.name not in kept and len(consumers[last.name]) == 1:
            after = consumers[last.name][0]
            if isinstance(after, _KERNELS):
                found.append((layer, after))
                break
            if not isinstance(after, _HOMOGENEOUS):
                break
            last = after
    return found


def _balance(net: Network, first: AnyLayer, second: AnyLayer) -> float:
    """Move one factor a channel from the first kernel to the second; the largest change."""
    out = np.abs(_rows_out(first, net.weight(first, "kernel"))).max(axis=1)
    into = np.abs(_rows_in(net.weight(second, "kernel"))).max(axis=1)
    usable = (out > 0) & (into > 0)
    factor = np.ones_like(out)
    factor[usable] = np.sqrt(out[usable] / into[usable])
    kernel, bias, after = (
        f"{first.name}/kernel",
        f"{first.name}/bias",
        f"{second.name}/kernel",
    )
    net.weights[kernel] = net.weights[kernel] / _shaped_out(first, net.weights[kernel], factor)
    net.weights[bias] = net.weights[bias] / factor
    net.weights[after] = net.weights[after] * factor[:, np.newaxis]
    return float(np.abs(np.log(factor)).max(initial=0))


def _rows_out(layer: AnyLayer, kernel: Array) -> Array:
    """A kernel as (channels out, all else)."""
    if isinstance(layer, network.DepthwiseConv2D):
        return kernel.reshape(-1, kernel.shape[2] * kernel.shape[3]).T
    return kernel.reshape(-1, kernel.shape[-1]).T


def _rows_in(kernel: Array) -> Array:
    """A kernel as (channels in, all else)."""
    moved: Array = np.moveaxis(kernel, -2, 0)
    return moved.reshape(kernel.shape[-2], -1)


def _shaped_out(layer: AnyLayer, kernel: Array, factor: Array) -> Array:
    """One factor for each channel out, as it divides a kernel."""
    depthwise = isinstance(layer, network.DepthwiseConv2D)
    return factor.reshape(kernel.shape[2:]) if depthwise else factor
