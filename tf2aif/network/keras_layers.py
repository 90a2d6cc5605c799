"""Each layer of a network as one or several plain Keras layers, with their weights.

Only layers and fields that both Keras 2.12 (which AMD's tools run with) and Keras 3 know.
"""

# ruff: noqa: ARG001, ARG005 - the functions of a table take the same arguments

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..engines import Array, network
from ..engines.network import Layer, Network, Pair, Sides
from ..errors import StepFailed

EPSILON = 1e-3  # Keras' own for batch normalisation; its fused kernel refuses much less


class KerasLayer(NamedTuple):
    """A Keras layer: its class, the arguments that make it, what it reads, its weights."""

    name: str
    class_name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    weights: tuple[Array, ...] = ()


def keras_layers(net: Network) -> list[KerasLayer]:
    """The layers of a float network, in order. The last one made of a layer bears its name.

    Raises StepFailed for what Keras has no layer for, which it names.
    """
    shapes = net.shapes()
    found: list[KerasLayer] = []
    for layer in net.layers:
        found += _MADE[type(layer)](net, layer, [shapes[name] for name in layer.inputs])
    return found


def keras_name(name: str) -> str:
    """A tensor's name as Keras allows it."""
    return name.replace("/", "_")


def _one(
    layer: Layer, class_name: str, weights: Sequence[Array] = (), /, **config: Any
) -> list[KerasLayer]:
    return [KerasLayer(layer.name, class_name, config, layer.inputs, tuple(weights))]


def _padded(
    layer: Layer, padding: Sides, class_name: str, weights: Sequence[Array], config: dict[str, Any]
) -> list[KerasLayer]:
    """A layer without padding of its own, after one that pads with zeros."""
    top, bottom, left, right = padding
    name = f"{layer.name}_pad"
    sides = {"padding": ((top, bottom), (left, right))}
    return [
        KerasLayer(name, "ZeroPadding2D", sides, layer.inputs),
        KerasLayer(layer.name, class_name, {**config, "padding": "valid"}, (name,), tuple(weights)),
    ]


def _convolution(class_name: str) -> Callable[..., list[KerasLayer]]:
    def make(net: Network, layer: Any, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
        kernel = net.weight(layer, "kernel")
        config = {
            "kernel_size": kernel.shape[:2],
            "strides": layer.strides,
            "dilation_rate": layer.dilations,
        }
        last = kernel.shape[3]
        config["filters" if class_name == "Conv2D" else "depth_multiplier"] = last
        weights = (kernel, net.weight(layer, "bias"))
        reach = _reach((kernel.shape[0], kernel.shape[1]), layer.dilations)
        known = _named_padding(layer, shapes[0], reach)
        if known is None:
            return _padded(layer, layer.padding, class_name, weights, config)
        return _one(layer, class_name, weights, **config, padding=known)

    return make


def _transposed(net: Network, layer: Any, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    kernel = net.weight(layer, "kernel")
    size, strides = (kernel.shape[0], kernel.shape[1]), layer.strides
    config = {"filters": kernel.shape[2], "kernel_size": size, "strides": strides}
    weights = (kernel, net.weight(layer, "bias"))
    given, made = shapes[0], layer.shape
    if made[:2] == (given[0] * strides[0], given[1] * strides[1]) and layer.padding == _same(
        made, size, strides, given
    ):
        return _one(layer, "Conv2DTranspose", weights, **config, padding="same")
    whole = [n * s + max(k - s, 0) for n, s, k in zip(given, strides, size, strict=False)]
    top, _, left, _ = layer.padding
    crop = ((top, whole[0] - top - made[0]), (left, whole[1] - left - made[1]))
    if min(*crop[0], *crop[1]) < 0:
        raise StepFailed(
            "Keras has no transposed convolution of this padding",
            at=f"{layer.name} ({layer.source})",
        )
    if not any((*crop[0], *crop[1])):
        return _one(layer, "Conv2DTranspose", weights, **config, padding="valid")
    name = f"{layer.name}_whole"
    return [
        KerasLayer(name, "Conv2DTranspose", {**config, "padding": "valid"}, layer.inputs, weights),
        KerasLayer(layer.name, "Cropping2D", {"cropping": crop}, (name,)),
    ]


def _pool(class_name: str) -> Callable[..., list[KerasLayer]]:
    def make(net: Network, layer: Any, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
        known = _named_padding(layer, shapes[0], layer.size)
        if known is None:
            raise StepFailed(
                f"Keras has no pooling with padding {layer.padding}",
                at=f"{layer.name} ({layer.source})",
            )
        how = {"pool_size": layer.size, "strides": layer.strides, "padding": known}
        return _one(layer, class_name, **how)

    return make


def _global(kind: str) -> Callable[..., list[KerasLayer]]:
    def make(net: Network, layer: Layer, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
        rank = len(shapes[0])
        name = f"Global{kind}Pooling{rank - 1}D"
        return _one(layer, name, keepdims=len(layer.shape) == rank)

    return make


def _dense(net: Network, layer: Layer, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    kernel = net.weight(layer, "kernel")
    return _one(layer, "Dense", (kernel, net.weight(layer, "bias")), units=kernel.shape[1])


def _scale(net: Network, layer: Layer, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    """Batch normalisation whose statistics change nothing."""
    scale, offset = net.weight(layer, "scale"), net.weight(layer, "offset")
    return [_normalisation(layer.name, layer.inputs, scale, offset)]


def _normalisation(name: str, inputs: tuple[str, ...], scale: Array, offset: Array) -> KerasLayer:
    still = np.zeros_like(scale), np.full_like(scale, 1 - EPSILON)
    return KerasLayer(
        name, "BatchNormalization", {"epsilon": EPSILON}, inputs, (scale, offset, *still)
    )


def _prelu(net: Network, layer: Layer, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    rank = len(shapes[0])
    alpha = net.weight(layer, "alpha").reshape((1,) * (rank - 1) + (-1,))
    return _one(layer, "PReLU", (alpha,), shared_axes=list(range(1, rank)) or None)


def _hard(net: Network, layer: Layer, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    """Spelled out: what `hard_sigmoid` names differs between Keras 2 and 3."""
    ones = np.ones(shapes[0][-1], np.float32)
    names = [f"{layer.name}_{part}" for part in ("shifted", "clipped", "sixth")]
    swish = isinstance(layer, network.HardSwish)
    last = names[2] if swish else layer.name
    made = [
        _normalisation(names[0], layer.inputs, ones, 3 * ones),
        KerasLayer(names[1], "ReLU", {"max_value": 6.0}, (names[0],)),
        _normalisation(last, (names[1],), ones / 6, 0 * ones),
    ]
    if swish:
        made.append(KerasLayer(layer.name, "Multiply", {}, (*layer.inputs, last)))
    return made


def _reshape(net: Network, layer: Layer, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    if len(layer.shape) == 1:
        return _one(layer, "Flatten")
    return _one(layer, "Reshape", target_shape=layer.shape)


def _pad(net: Network, layer: network.Pad, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    top, bottom, left, right = layer.padding
    return _one(layer, "ZeroPadding2D", padding=((top, bottom), (left, right)))


def _resize(net: Network, layer: network.Resize, shapes: list[tuple[int, ...]]) -> list[KerasLayer]:
    how = "bilinear" if layer.bilinear else "nearest"
    return _one(layer, "UpSampling2D", size=layer.factors, interpolation=how)


def _plain(class_name: str, **config: Any) -> Callable[..., list[KerasLayer]]:
    return lambda net, layer, shapes: _one(layer, class_name, **config)


def _named_padding(layer: Any, given: tuple[int, ...], reach: Pair) -> str | None:
    """`valid` or `same` where the padding is what Keras calls so."""
    if not any(layer.padding):
        return "valid"
    same = layer.padding == _same(given, reach, layer.strides, layer.shape)
    whole = all(-(-given[i] // layer.strides[i]) == layer.shape[i] for i in (0, 1))
    return "same" if same and whole else None


def _same(given: tuple[int, ...], reach: Pair, strides: Pair, made: tuple[int, ...]) -> Sides:
    """What SAME pads a picture with; the odd pixel is at the end."""
    sides: list[int] = []
    for i in (0, 1):
        total = max((made[i] - 1) * strides[i] + reach[i] - given[i], 0)
        sides += [total // 2, total - total // 2]
    return (sides[0], sides[1], sides[2], sides[3])


def _reach(size: Pair, dilations: Pair) -> Pair:
    return ((size[0] - 1) * dilations[0] + 1, (size[1] - 1) * dilations[1] + 1)


_MADE: dict[type[Layer], Callable[..., list[KerasLayer]]] = {
    network.Conv2D: _convolution("Conv2D"),
    network.DepthwiseConv2D: _convolution("DepthwiseConv2D"),
    network.Conv2DTranspose: _transposed,
    network.Dense: _dense,
    network.Scale: _scale,
    network.Relu: _plain("ReLU"),
    network.Relu6: _plain("ReLU", max_value=6.0),
    network.LeakyRelu: lambda net, layer, shapes: _one(layer, "LeakyReLU", alpha=layer.alpha),
    network.PRelu: _prelu,
    network.HardSigmoid: _hard,
    network.HardSwish: _hard,
    network.Sigmoid: _plain("Activation", activation="sigmoid"),
    network.Tanh: _plain("Activation", activation="tanh"),
    network.Softmax: _plain("Activation", activation="softmax"),
    network.MaxPool: _pool("MaxPooling2D"),
    network.AveragePool: _pool("AveragePooling2D"),
    network.GlobalAverage: _global("Average"),
    network.GlobalMax: _global("Max"),
    network.Add: _plain("Add"),
    network.Mul: _plain("Multiply"),
    network.Concat: lambda net, layer, shapes: _one(layer, "Concatenate", axis=layer.axis + 1),
    network.Pad: _pad,
    network.Reshape: _reshape,
    network.Resize: _resize,
}
