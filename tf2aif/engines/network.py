"""The layer graph: a network of layers in topological order, its folder, and its weights.

`layers.json` holds the structure, `weights.npz` the arrays by `LAYER/NAME`. Tensors are NHWC; all
shapes are those of one sample, without the batch axis. A tensor has the name of the layer, or the
input, that makes it. The files' bytes depend on the network only.

A quantised network is the same with fixed-point positions: a stored integer `q` at position `fix`
means the real number `q / 2**fix`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from ..errors import Tf2aifError
from . import Array
from .signature import artifact_file

LAYERS = "layers.json"
WEIGHTS = "weights.npz"

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]  # top, bottom, left, right


class Layer(
    Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="op",
    omit_defaults=True,
):
    """What all layers have."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    """Of its output, for one sample."""
    source: str
    """The operator of the imported graph that it comes from, such as `Conv2D_0`."""
    fix: int | None = None
    """Position of its int8 output; None where it is not quantised, or stays an accumulator."""
    weights_fix: dict[str, int] = {}
    """Positions of its stored weights, by their names."""
    floats: bool = False
    """In a quantised network: it runs in floating point, on the processor beside the DPU."""


class Conv2D(Layer, frozen=True, kw_only=True, tag="conv2d"):
    """Kernel (height, width, in, out), bias (out). Padded with zeros."""

    strides: Pair
    padding: Sides
    dilations: Pair = (1, 1)


class DepthwiseConv2D(Layer, frozen=True, kw_only=True, tag="depthwise_conv2d"):
    """Kernel (height, width, in, multiplier), bias (in * multiplier). Padded with zeros."""

    strides: Pair
    padding: Sides
    dilations: Pair = (1, 1)


class Conv2DTranspose(Layer, frozen=True, kw_only=True, tag="conv2d_transpose"):
    """Kernel (height, width, out, in), bias (out); `padding` is cut off what it scatters."""

    strides: Pair
    padding: Sides


class Dense(Layer, frozen=True, kw_only=True, tag="dense"):
    """Kernel (in, out), bias (out), over the last axis."""


class Scale(Layer, frozen=True, kw_only=True, tag="scale"):
    """`x * scale + offset`, both (channels), over the last axis."""


class Relu(Layer, frozen=True, kw_only=True, tag="relu"):
    """max(x, 0)."""


class Relu6(Layer, frozen=True, kw_only=True, tag="relu6"):
    """min(max(x, 0), 6)."""


class LeakyRelu(Layer, frozen=True, kw_only=True, tag="leaky_relu"):
    """x where it is positive, else `alpha * x`."""

    alpha: float


class PRelu(Layer, frozen=True, kw_only=True, tag="prelu"):
    """A leaky ReLU whose weight `alpha` (channels) is one number for each channel."""


class HardSigmoid(Layer, frozen=True, kw_only=True, tag="hard_sigmoid"):
    """relu6(x + 3) / 6."""


class HardSwish(Layer, frozen=True, kw_only=True, tag="hard_swish"):
    """x * relu6(x + 3) / 6."""


class Sigmoid(Layer, frozen=True, kw_only=True, tag="sigmoid"):
    """1 / (1 + exp(-x))."""


class Tanh(Layer, frozen=True, kw_only=True, tag="tanh"):
    """The hyperbolic tangent."""


class Softmax(Layer, frozen=True, kw_only=True, tag="softmax"):
    """Over the last axis."""


class MaxPool(Layer, frozen=True, kw_only=True, tag="max_pool"):
    """The largest of each window; padding never wins."""

    size: Pair
    strides: Pair
    padding: Sides


class AveragePool(Layer, frozen=True, kw_only=True, tag="average_pool"):
    """The mean of each window; padding is not counted."""

    size: Pair
    strides: Pair
    padding: Sides


class GlobalAverage(Layer, frozen=True, kw_only=True, tag="global_average"):
    """The mean of all positions, for each channel; `shape` says whether their axes stay."""


class GlobalMax(Layer, frozen=True, kw_only=True, tag="global_max"):
    """The largest of all positions, for each channel."""


class Add(Layer, frozen=True, kw_only=True, tag="add"):
    """The sum of two tensors, which numpy's rules broadcast."""


class Mul(Layer, frozen=True, kw_only=True, tag="mul"):
    """The product of two tensors, which numpy's rules broadcast."""


class Concat(Layer, frozen=True, kw_only=True, tag="concat"):
    """Tensors after each other along `axis`; axis 0 is a sample's first."""

    axis: int


class Pad(Layer, frozen=True, kw_only=True, tag="pad"):
    """Zeros around a picture."""

    padding: Sides


class Reshape(Layer, frozen=True, kw_only=True, tag="reshape"):
    """The same values in their order, in another shape."""


class Resize(Layer, frozen=True, kw_only=True, tag="resize"):
    """A picture enlarged by whole factors; `bilinear` has its pixels' centres at one half."""

    factors: Pair
    bilinear: bool = False


AnyLayer = (
    Conv2D
    | DepthwiseConv2D
    | Conv2DTranspose
    | Dense
    | Scale
    | Relu
    | Relu6
    | LeakyRelu
    | PRelu
    | HardSigmoid
    | HardSwish
    | Sigmoid
    | Tanh
    | Softmax
    | MaxPool
    | AveragePool
    | GlobalAverage
    | GlobalMax
    | Add
    | Mul
    | Concat
    | Pad
    | Reshape
    | Resize
)


class Input(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """An input, by its name in the signature; `shape` is that of one sample."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fix: int | None = None


class Output(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An output, by its name in the signature, and the tensor that it is."""

    name: str
    tensor: str


class Structure(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`layers.json`."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    layers: tuple[AnyLayer, ...]


class Network(NamedTuple):
    """A network: inputs and outputs in the order of its signature, layers, weights."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    layers: tuple[AnyLayer, ...]
    weights: dict[str, Array]
    """Arrays by `LAYER/NAME`: float32, or int8 in a quantised network."""

    def weight(self, layer: Layer, name: str) -> Array:
        """One weight of a layer."""
        return self.weights[f"{layer.name}/{name}"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor for one sample."""
        return {each.name: each.shape for each in (*self.inputs, *self.layers)}

    def consumers(self) -> dict[str, list[AnyLayer]]:
        """Which layers read each tensor."""
        found: dict[str, list[AnyLayer]] = {name: [] for name in self.shapes()}
        for layer in self.layers:
            for name in dict.fromkeys(layer.inputs):
                found[name].append(layer)
        return found


def read_network(folder: Path) -> Network:
    """Read `layers.json` and `weights.npz`; raises Tf2aifError where they are missing or broken."""
    path, arrays = artifact_file(folder, LAYERS), artifact_file(folder, WEIGHTS)
    try:
        told = msgspec.json.decode(path.read_bytes(), type=Structure)
    except msgspec.MsgspecError as error:
        raise Tf2aifError(f"not a layer graph: {error}", at=str(path)) from error
    try:
        with open(arrays, "rb") as file, np.load(file, allow_pickle=False) as stored:
            weights = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise Tf2aifError(f"broken weights: {error}", at=str(arrays)) from error
    network = Network(told.inputs, told.outputs, told.layers, weights)
    _check(network, path)
    return network


def write_network(folder: Path, network: Network) -> None:
    """Write `layers.json` and `weights.npz`; the same network gives the same bytes."""
    told = Structure(inputs=network.inputs, outputs=network.outputs, layers=network.layers)
    encoded = msgspec.json.format(msgspec.json.encode(told), indent=1)
    (folder / LAYERS).write_bytes(encoded + b"\n")
    write_arrays(folder / WEIGHTS, network.weights)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """An `.npz` without times and without compression, its members sorted by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]))
            file.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue())


def _check(network: Network, path: Path) -> None:
    """Raises Tf2aifError where a layer reads what no earlier one makes."""
    known = {each.name for each in network.inputs}
    for layer in network.layers:
        lost = [name for name in layer.inputs if name not in known]
        if lost:
            raise Tf2aifError(f"layer '{layer.name}' reads '{lost[0]}', not there", at=str(path))
        known.add(layer.name)
    lost = [each.tensor for each in network.outputs if each.tensor not in known]
    if lost:
        raise Tf2aifError(f"an output is '{lost[0]}', which no layer makes", at=str(path))
