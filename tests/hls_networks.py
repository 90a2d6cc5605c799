"""Small networks of layers, drawn from a seed, for the tests of the HLS path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tf2aif.engines import Array, TensorSpec, network
from tf2aif.engines.network import Input, Network, Output, write_network
from tf2aif.engines.signature import Signature, write_signature

SIDE = (1, 1, 1, 1)


class Drawn:
    """A network layer by layer; each is named as the step `layers` names it."""

    def __init__(self, *shape: int, name: str = "image") -> None:
        self.generator = np.random.default_rng(3)
        self.inputs = [Input(name=name, dtype="float32", shape=shape)]
        self.layers: list[Any] = []
        self.weights: dict[str, Array] = {}

    def add(self, kind: type[Any], shape: tuple[int, ...], *inputs: str, **fields: Any) -> str:
        """A layer of that kind behind the last one, or behind those named; its name."""
        tag = str(kind.__struct_config__.tag)
        name = f"{tag}_{sum(type(layer) is kind for layer in self.layers)}"
        last = self.layers[-1].name if self.layers else self.inputs[0].name
        weights = {key: fields.pop(key) for key in ("kernel", "scale") if key in fields}
        for key, size in weights.items():
            self.weights[f"{name}/{key}"] = self.draw(size)
            other = "bias" if key == "kernel" else "offset"
            self.weights[f"{name}/{other}"] = self.draw((shape[-1],))
        given = inputs or (last,)
        self.layers.append(kind(name=name, inputs=given, shape=shape, source=tag, **fields))
        return name

    def draw(self, size: tuple[int, ...]) -> Array:
        """Weights of a size that keeps results near one."""
        spread = 1.0 / max(1.0, float(np.sqrt(np.prod(size[:-1]))))
        return self.generator.normal(0, spread, size).astype(np.float32)

    def network(self, *outputs: str) -> Network:
        """With the last layer as the output `y`, or with those layers, named `y0`, `y1`, ..."""
        named = outputs or (self.layers[-1].name,)
        names = ["y"] if len(named) == 1 else [f"y{i}" for i in range(len(named))]
        ends = tuple(Output(name=n, tensor=t) for n, t in zip(names, named, strict=True))
        return Network(tuple(self.inputs), ends, tuple(self.layers), self.weights)


def conv(net: Drawn, shape: tuple[int, ...], size: int, given: int, padding: Any = SIDE) -> str:
    """A convolution of stride 1."""
    kernel = (size, size, given, shape[-1])
    return net.add(network.Conv2D, shape, strides=(1, 1), padding=padding, kernel=kernel)


def everything(*, outputs: int = 2, padded_pool: bool = False) -> Network:
    """Each kind of layer that becomes hardware, with branches; the first output has a softmax."""
    net = Drawn(8, 8, 1)
    conv(net, (8, 8, 6), 3, 1)
    net.add(network.Relu, (8, 8, 6))
    sides = (0, 1, 0, 1) if padded_pool else (0, 0, 0, 0)
    size = (3, 3) if padded_pool else (2, 2)
    pool = net.add(network.MaxPool, (4, 4, 6), size=size, strides=(2, 2), padding=sides)
    kernel = (3, 3, 6, 1)
    net.add(network.DepthwiseConv2D, (4, 4, 6), strides=(1, 1), padding=SIDE, kernel=kernel)
    net.add(network.Scale, (4, 4, 6), scale=(6,))
    wide = conv(net, (4, 4, 6), 1, 6, (0, 0, 0, 0))
    added = net.add(network.Add, (4, 4, 6), pool, wide)
    net.add(network.Concat, (4, 4, 12), added, wide, axis=2)
    net.add(network.Pad, (6, 6, 12), padding=SIDE)
    mean = net.add(
        network.AveragePool, (3, 3, 12), size=(2, 2), strides=(2, 2), padding=(0, 0, 0, 0)
    )
    net.add(network.Reshape, (108,))
    net.add(network.Dense, (5,), kernel=(108, 5))
    first = net.add(network.Softmax, (5,))
    if outputs == 1:
        return net.network(first)
    net.add(network.GlobalAverage, (1, 1, 12), mean)
    net.add(network.Reshape, (12,))
    second = net.add(network.Dense, (3,), kernel=(12, 3))
    return net.network(first, second)


def write_layers(folder: Path, net: Network, batch: int | None = None) -> Path:
    """The artifact that step `layers` would leave."""
    folder.mkdir(parents=True)
    shapes = net.shapes()
    write_network(folder, net)
    write_signature(
        folder,
        Signature(
            inputs=tuple(
                TensorSpec(name=each.name, dtype=each.dtype, shape=(batch, *each.shape))
                for each in net.inputs
            ),
            outputs=tuple(
                TensorSpec(name=each.name, dtype="float32", shape=(batch, *shapes[each.tensor]))
                for each in net.outputs
            ),
        ),
    )
    return folder
