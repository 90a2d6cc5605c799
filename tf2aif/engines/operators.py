"""The layers' arithmetic in numpy, on any dtype: float32 of a float network, or exact integers.

Tensors are NHWC with a batch axis. Sums are in the dtype of the arrays: the caller chooses one in
which they are exact where it needs that.
"""

# ruff: noqa: ARG001 - the functions of a table take the same arguments

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from . import Array, network
from .network import AnyLayer, Layer, Network, Pair, Sides


def run_float(
    net: Network, feeds: Mapping[str, Array], see: Callable[[str, Array], None] | None = None
) -> dict[str, Array]:
    """Run a float network on one batch; `see` is shown every tensor as it is made.

    Feeds are by input name, (batch, *shape); outputs by output name, float32.
    """
    tensors = {each.name: np.asarray(feeds[each.name], np.float32) for each in net.inputs}
    last = last_uses(net)
    if see is not None:
        for name, values in tensors.items():
            see(name, values)
    for layer in net.layers:
        given = [tensors[name] for name in layer.inputs]
        made = apply(layer, given, weights_of(net, layer))
        tensors[layer.name] = made
        if see is not None:
            see(layer.name, made)
        for name in last.get(layer.name, ()):
            del tensors[name]
    return {each.name: tensors[each.tensor] for each in net.outputs}


def weights_of(net: Network, layer: Layer) -> dict[str, Array]:
    """The weights of a layer by their names in it."""
    prefix = f"{layer.name}/"
    names = ("kernel", "bias", "scale", "offset", "alpha")
    return {name: net.weights[prefix + name] for name in names if prefix + name in net.weights}


def last_uses(net: Network) -> dict[str, list[str]]:
    """Which tensors nothing needs any more after a layer, by its name."""
    kept = {each.tensor for each in net.outputs}
    last = {name: layer.name for layer in net.layers for name in layer.inputs}
    found: dict[str, list[str]] = {}
    for name, layer_name in last.items():
        if name not in kept:
            found.setdefault(layer_name, []).append(name)
    return found


def apply(layer: AnyLayer, given: list[Array], weights: Mapping[str, Array]) -> Array:
    """What a layer makes of its inputs, in their dtype."""
    made: Array = _APPLY[type(layer)](layer, given, weights)
    return made


def convolve(x: Array, kernel: Array, strides: Pair, padding: Sides, dilations: Pair) -> Array:
    """A convolution (correlation) with a kernel (height, width, in, out)."""
    height, width, depth, out = kernel.shape
    if (height, width, padding) == (1, 1, (0, 0, 0, 0)):
        direct: Array = x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]
        return direct
    windows = _windows(pad(x, padding), (height, width), strides, dilations)
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(*windows.shape[:3], -1)
    made: Array = columns @ kernel.reshape(height * width * depth, out)
    return made


def convolve_depthwise(
    x: Array, kernel: Array, strides: Pair, padding: Sides, dilations: Pair
) -> Array:
    """A depthwise convolution with a kernel (height, width, in, multiplier)."""
    height, width, depth, multiplier = kernel.shape
    windows = _windows(pad(x, padding), (height, width), strides, dilations)
    total = np.zeros((*windows.shape[:3], depth, multiplier), x.dtype)
    for i in range(height):
        for j in range(width):
            total += windows[..., i, j, np.newaxis] * kernel[i, j]
    return total.reshape(*total.shape[:3], depth * multiplier)


def convolve_transposed(
    x: Array, kernel: Array, strides: Pair, padding: Sides, shape: tuple[int, ...]
) -> Array:
    """The transpose of a convolution: each input pixel scatters a kernel (height, width, out, in).

    `shape` is that of one sample of the result: what `padding` leaves, or zeros beyond it.
    """
    height, width, out, _ = kernel.shape
    count, rows, columns = x.shape[:3]
    top, _, left, _ = padding
    whole = (
        max((rows - 1) * strides[0] + height, top + shape[0]),
        max((columns - 1) * strides[1] + width, left + shape[1]),
    )
    total = np.zeros((count, *whole, out), x.dtype)
    for i in range(height):
        for j in range(width):
            down = slice(i, i + (rows - 1) * strides[0] + 1, strides[0])
            right = slice(j, j + (columns - 1) * strides[1] + 1, strides[1])
            total[:, down, right] += x @ kernel[i, j].T
    return total[:, top : top + shape[0], left : left + shape[1]]


def pad(x: Array, padding: Sides, value: float = 0) -> Array:
    """A picture with `value` around it."""
    if not any(padding):
        return x
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def pool_max(x: Array, size: Pair, strides: Pair, padding: Sides) -> Array:
    """The largest of each window."""
    least = np.iinfo(x.dtype).min if x.dtype.kind == "i" else -np.inf
    windows = _windows(pad(x, padding, least), size, strides, (1, 1))
    made: Array = windows.max(axis=(4, 5))
    return made


def pool_sum(x: Array, size: Pair, strides: Pair, padding: Sides) -> Array:
    """The sum of each window; padding adds nothing."""
    windows = _windows(pad(x, padding), size, strides, (1, 1))
    made: Array = windows.sum(axis=(4, 5), dtype=x.dtype)
    return made


def pool_counts(shape: tuple[int, ...], size: Pair, strides: Pair, padding: Sides) -> Array:
    """How many pixels of a picture of that shape (of one sample) each window covers."""
    ones = np.ones((1, *shape[:2], 1), np.int64)
    return pool_sum(ones, size, strides, padding)


def flat_positions(x: Array) -> Array:
    """A tensor as (batch, positions, channels)."""
    return x.reshape(len(x), -1, x.shape[-1])


def resize(x: Array, factors: Pair, *, bilinear: bool) -> Array:
    """A picture enlarged by whole factors."""
    for axis, factor in enumerate(factors, start=1):
        if factor > 1:
            x = _interpolate(x, axis, factor) if bilinear else np.repeat(x, factor, axis)
    return x


def _interpolate(x: Array, axis: int, factor: int) -> Array:
    """Linear, pixels' centres at one half; beyond the border its value holds."""
    length = x.shape[axis]
    where = (np.arange(length * factor) + 0.5) / factor - 0.5
    low = np.floor(where).astype(int)
    shape = [1] * x.ndim
    shape[axis] = -1
    part = (where - low).astype(x.dtype).reshape(shape)
    first = np.take(x, np.clip(low, 0, length - 1), axis)
    second = np.take(x, np.clip(low + 1, 0, length - 1), axis)
    made: Array = first * (1 - part) + second * part
    return made


def _windows(x: Array, size: Pair, strides: Pair, dilations: Pair) -> Array:
    """(batch, rows, columns, channels, height, width) as a view."""
    reach = tuple((n - 1) * d + 1 for n, d in zip(size, dilations, strict=True))
    view = sliding_window_view(x, reach, axis=(1, 2))
    return view[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]


def softmax(x: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    made: Array = powers / powers.sum(axis=-1, keepdims=True)
    return made


def _conv2d(layer: network.Conv2D, given: list[Array], weights: Mapping[str, Array]) -> Array:
    made = convolve(given[0], weights["kernel"], layer.strides, layer.padding, layer.dilations)
    return made + weights["bias"]


def _depthwise(
    layer: network.DepthwiseConv2D, given: list[Array], weights: Mapping[str, Array]
) -> Array:
    how = (layer.strides, layer.padding, layer.dilations)
    return convolve_depthwise(given[0], weights["kernel"], *how) + weights["bias"]


def _transposed(
    layer: network.Conv2DTranspose, given: list[Array], weights: Mapping[str, Array]
) -> Array:
    how = (layer.strides, layer.padding, layer.shape)
    return convolve_transposed(given[0], weights["kernel"], *how) + weights["bias"]


def _average(layer: network.AveragePool, given: list[Array], weights: Mapping[str, Array]) -> Array:
    how = (layer.size, layer.strides, layer.padding)
    counts = pool_counts(given[0].shape[1:], *how).astype(given[0].dtype)
    made: Array = pool_sum(given[0], *how) / counts
    return made


def _global_average(layer: Layer, given: list[Array], weights: Mapping[str, Array]) -> Array:
    made: Array = flat_positions(given[0]).mean(axis=1).reshape(-1, *layer.shape)
    return made


def _sigmoid(x: Array) -> Array:
    made: Array = np.exp(-np.logaddexp(0, -x))  # never overflows
    return made


def _simple(function: Callable[[Array], Any]) -> Callable[..., Array]:
    def run(layer: Layer, given: list[Array], weights: Mapping[str, Array]) -> Array:
        made: Array = function(given[0])
        return made

    return run


def hard_sigmoid(x: Array) -> Array:
    """relu6(x + 3) / 6."""
    made: Array = np.clip(x + 3, 0, 6) / 6
    return made


_APPLY: dict[type[Layer], Callable[..., Array]] = {
    network.Conv2D: _conv2d,
    network.DepthwiseConv2D: _depthwise,
    network.Conv2DTranspose: _transposed,
    network.Dense: lambda _, given, w: given[0] @ w["kernel"] + w["bias"],
    network.Scale: lambda _, given, w: given[0] * w["scale"] + w["offset"],
    network.Relu: _simple(lambda x: np.maximum(x, 0)),
    network.Relu6: _simple(lambda x: np.clip(x, 0, 6)),
    network.LeakyRelu: lambda layer, given, _: np.where(
        given[0] > 0, given[0], given[0] * given[0].dtype.type(layer.alpha)
    ),
    network.PRelu: lambda _, given, w: np.where(given[0] > 0, given[0], given[0] * w["alpha"]),
    network.HardSigmoid: _simple(hard_sigmoid),
    network.HardSwish: _simple(lambda x: x * hard_sigmoid(x)),
    network.Sigmoid: _simple(_sigmoid),
    network.Tanh: _simple(np.tanh),
    network.Softmax: _simple(softmax),
    network.MaxPool: lambda layer, given, _: pool_max(
        given[0], layer.size, layer.strides, layer.padding
    ),
    network.AveragePool: _average,
    network.GlobalAverage: _global_average,
    network.GlobalMax: lambda layer, given, _: (
        flat_positions(given[0]).max(axis=1).reshape(-1, *layer.shape)
    ),
    network.Add: lambda _, given, __: given[0] + given[1],
    network.Mul: lambda _, given, __: given[0] * given[1],
    network.Concat: lambda layer, given, _: np.concatenate(given, axis=layer.axis + 1),
    network.Pad: lambda layer, given, _: pad(given[0], layer.padding),
    network.Reshape: lambda layer, given, _: given[0].reshape(-1, *layer.shape),
    network.Resize: lambda layer, given, _: resize(
        given[0], layer.factors, bilinear=layer.bilinear
    ),
}


def layer_kinds() -> Iterator[type[Layer]]:
    """The kinds of layer that can be run."""
    return iter(_APPLY)
