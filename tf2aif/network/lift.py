"""From the operators of a TensorFlow graph to layers: one function a family, in a table.

What has no function is refused by its name. Several operators that make up one layer (a hard
swish, an enlargement) are lifted one by one here, and put together in `simplify`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..engines import Array, network
from ..engines.network import Pair, Sides
from ..errors import StepFailed
from .constants import Known, tensor
from .draft import Draft, Gather, Spread, Tile

_PASSED_ON = ("Identity", "StopGradient", "PreventGradient", "Snapshot", "CheckNumerics")
_LOOPS = ("While", "StatelessWhile", "TensorList")
_FLOATS = (1, 2, 19, 14)  # DT_FLOAT, DT_DOUBLE, DT_HALF, DT_BFLOAT16


def lift(known: Known) -> Draft:
    """Every operator of a graph as a layer, as yet with batch axes and nothing folded.

    Raises StepFailed that names all operators for which there is no layer.
    """
    _check_operators(known)
    lifting = _Lifting(known)
    for node in known.nodes:
        if node.op == "Placeholder":
            continue
        lifting.tensors[f"{node.name}:0"] = LIFTS[node.op](lifting, node)
    for name, made in known.outputs.items():
        if made not in lifting.tensors:
            raise StepFailed(f"output '{name}' does not depend on the inputs")
        lifting.draft.outputs[name] = lifting.tensors[made]
    return lifting.draft


def refuse(node: Any, why: str, hint: str = "") -> StepFailed:
    """An operator for which there is no layer: what it is, and where."""
    return StepFailed(
        f"no layer for operator {node.op}: {why}",
        at=node.name,
        hint=hint or "build the model from other operators, or take a target with another engine",
    )


class _Lifting:
    """The graph that is lifted, and the layers so far."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.draft = Draft()
        self.tensors: dict[str, str] = {}
        for name, made in known.inputs.items():
            self.draft.inputs[name] = known.shapes[made]
            self.tensors[made] = name

    def constant(self, node: Any, index: int) -> Array | None:
        return self.known.constants.get(tensor(node.input[index]))

    def value(self, node: Any, index: int) -> Array:
        found = self.constant(node, index)
        if found is None:
            raise refuse(node, f"its argument {index} is computed from the inputs")
        return found

    def shape(self, node: Any) -> tuple[int, ...]:
        found = self.known.shapes.get(f"{node.name}:0")
        if found is None:
            raise refuse(node, "the shape of what it makes is not known before it runs")
        return found

    def source(self, node: Any, index: int = 0) -> str:
        """The tensor that an operator reads, by the name of its layer."""
        name = tensor(node.input[index])
        if name in self.known.constants:
            raise refuse(node, f"its argument {index} is a constant")
        if name not in self.tensors:
            raise refuse(node, f"it reads {name}, a second result of an operator")
        return self.tensors[name]

    def add(self, node: Any, kind: type[Any], inputs: Sequence[str] = (), /, **fields: Any) -> str:
        """A layer for an operator; by default of its first argument."""
        weights = fields.pop("weights", None)
        layer = kind(
            name=f"{node.name}.{len(self.draft.layers)}",
            inputs=tuple(inputs) or (self.source(node),),
            shape=fields.pop("shape", None) or self.shape(node),
            source=node.name,
            **fields,
        )
        return self.draft.add(layer, weights)

    def scale(self, node: Any, source: str, scale: Any, offset: Any) -> str:
        """`source * scale + offset`, each a number or one for each channel."""
        shape = self.draft.shape(source)
        if shape != self.shape(node):
            raise refuse(node, f"it spreads {shape} to {self.shape(node)}")
        weights = {
            "scale": self._channels(node, scale, shape),
            "offset": self._channels(node, offset, shape),
        }
        return self.add(node, network.Scale, [source], weights=weights)

    def _channels(self, node: Any, values: Any, shape: tuple[int, ...]) -> Array:
        array = np.asarray(values, np.float64)
        if array.size not in (1, shape[-1]) or array.shape[-1:] not in ((), (1,), shape[-1:]):
            raise refuse(
                node,
                f"a constant of shape {array.shape} is not one number for each channel",
                hint="PReLU needs shared_axes=[1, 2]; other constants one value a channel",
            )
        return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (shape[-1],)))


def _check_operators(known: Known) -> None:
    found = Counter(node.op for node in known.nodes if node.op not in (*LIFTS, "Placeholder"))
    if not found:
        return
    first = {op: next(n for n in known.nodes if n.op == op) for op in found}
    told = ", ".join(f"{op} ({first[op].name})" for op in sorted(found))
    hint = "build the model from other operators, or take a target with another engine"
    if any(op.startswith(_LOOPS) for op in found):
        hint = "recurrent layers (GRU, LSTM) are loops, which have no layer here: " + hint
    elif any("3D" in op for op in found):
        hint = "3-D convolution and pooling have no layer here: " + hint
    elif any(op.endswith("PartitionedCall") for op in found):
        hint = "a function compiled by itself (XLA) is closed to us, such as Keras' convolution in "
        hint += "groups: build the model without it, or take a target with another engine"
    raise StepFailed(f"the layer graph has no operator: {told}", hint=hint)


def _pass_on(lifting: _Lifting, node: Any) -> str:
    return lifting.source(node)


def _cast(lifting: _Lifting, node: Any) -> str:
    if node.attr["DstT"].type not in _FLOATS:
        raise refuse(node, "only a cast to floating point is one")
    return lifting.source(node)


def _conv2d(lifting: _Lifting, node: Any) -> str:
    kernel = lifting.value(node, 1)
    shape = lifting.draft.shape(lifting.source(node))
    if kernel.shape[2] != shape[3]:
        raise refuse(node, f"a grouped convolution of {shape[3] // kernel.shape[2]} groups")
    how = _window(lifting, node, (kernel.shape[0], kernel.shape[1]))
    weights = {"kernel": kernel, "bias": np.zeros(kernel.shape[3])}
    return lifting.add(node, network.Conv2D, weights=weights, **how)


def _depthwise(lifting: _Lifting, node: Any) -> str:
    kernel = lifting.value(node, 1)
    how = _window(lifting, node, (kernel.shape[0], kernel.shape[1]))
    weights = {"kernel": kernel, "bias": np.zeros(kernel.shape[2] * kernel.shape[3])}
    return lifting.add(node, network.DepthwiseConv2D, weights=weights, **how)


def _transposed(lifting: _Lifting, node: Any) -> str:
    kernel, source, shape = lifting.value(node, 1), lifting.source(node, 2), lifting.shape(node)
    _check_format(node)
    if tuple(node.attr["dilations"].list.i)[1:3] not in ((), (1, 1)):
        raise refuse(node, "a transposed convolution with dilations")
    strides = _two(node, "strides")
    given = lifting.draft.shape(source)
    return lifting.add(
        node,
        network.Conv2DTranspose,
        [source],
        strides=strides,
        # What the forward convolution of the result would pad is cut off here.
        padding=_sides(node, shape, (kernel.shape[0], kernel.shape[1]), strides, (1, 1), given),
        weights={"kernel": kernel, "bias": np.zeros(kernel.shape[2])},
    )


def _dense(lifting: _Lifting, node: Any) -> str:
    kernel = lifting.value(node, 1)
    if node.attr["transpose_a"].b:
        raise refuse(node, "its first argument is transposed")
    kernel = kernel.T if node.attr["transpose_b"].b else kernel
    weights = {"kernel": kernel, "bias": np.zeros(kernel.shape[1])}
    return lifting.add(node, network.Dense, weights=weights)


def _bias(lifting: _Lifting, node: Any) -> str:
    _check_format(node)
    return lifting.scale(node, lifting.source(node), 1.0, lifting.value(node, 1))


def _batch_norm(lifting: _Lifting, node: Any) -> str:
    _check_format(node)
    if node.attr["is_training"].b:
        raise refuse(
            node,
            "it normalises by each batch",
            hint="export the model for inference: training=False",
        )
    gamma, beta, mean, variance = (np.float64(lifting.value(node, i)) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + node.attr["epsilon"].f)
    return lifting.scale(node, lifting.source(node), scale, beta - mean * scale)


def _sum(lifting: _Lifting, node: Any) -> str:
    for index, other in ((1, 0), (0, 1)):
        value = lifting.constant(node, index)
        if value is not None:
            return lifting.scale(node, lifting.source(node, other), 1.0, value)
    return lifting.add(node, network.Add, _both(lifting, node))


def _difference(lifting: _Lifting, node: Any) -> str:
    right, left = lifting.constant(node, 1), lifting.constant(node, 0)
    if right is not None:
        return lifting.scale(node, lifting.source(node), 1.0, -np.float64(right))
    if left is not None:
        return lifting.scale(node, lifting.source(node, 1), -1.0, left)
    raise refuse(node, "the difference of two computed tensors")


def _product(lifting: _Lifting, node: Any) -> str:
    for index, other in ((1, 0), (0, 1)):
        value = lifting.constant(node, index)
        if value is not None:
            return lifting.scale(node, lifting.source(node, other), value, 0.0)
    return lifting.add(node, network.Mul, _both(lifting, node))


def _quotient(lifting: _Lifting, node: Any) -> str:
    value = np.float64(lifting.value(node, 1))
    return lifting.scale(node, lifting.source(node), 1 / value, 0.0)


def _negative(lifting: _Lifting, node: Any) -> str:
    return lifting.scale(node, lifting.source(node), -1.0, 0.0)


def _clip(lifting: _Lifting, node: Any) -> str:
    """Between 0 and a limit: a ReLU6 of the input, stretched."""
    low, high = (float(lifting.value(node, i)) for i in (1, 2))
    if low != 0 or high <= 0:
        raise refuse(node, f"a clip to [{low:g}, {high:g}]; from 0 up it is one")
    wide = lifting.scale(node, lifting.source(node), 6 / high, 0.0)
    clipped = lifting.add(node, network.Relu6, [wide])
    return clipped if high == 6 else lifting.scale(node, clipped, high / 6, 0.0)


def _leaky(lifting: _Lifting, node: Any) -> str:
    return lifting.add(node, network.LeakyRelu, alpha=round(float(node.attr["alpha"].f), 7))


def _pool(kind: type[Any]) -> Callable[[_Lifting, Any], str]:
    def run(lifting: _Lifting, node: Any) -> str:
        size = _two(node, "ksize")
        how = _window(lifting, node, size)
        del how["dilations"]
        return lifting.add(node, kind, size=size, **how)

    return run


def _global(kind: type[Any]) -> Callable[[_Lifting, Any], str]:
    def run(lifting: _Lifting, node: Any) -> str:
        rank = len(lifting.draft.shape(lifting.source(node)))
        axes = sorted(int(axis) % rank for axis in np.ravel(lifting.value(node, 1)))
        if rank < 3 or axes != list(range(1, rank - 1)):
            raise refuse(node, f"over axes {axes} of {rank}; over all but batch and channels it is")
        return lifting.add(node, kind)

    return run


def _concat(lifting: _Lifting, node: Any) -> str:
    count = len(node.input) - 1
    sources = [lifting.source(node, index) for index in range(count)]
    axis = int(lifting.value(node, count)) % len(lifting.shape(node))
    if axis == 0:
        raise refuse(node, "it joins batches")
    if count == 1:
        return sources[0]
    return lifting.add(node, network.Concat, sources, axis=axis - 1)


def _pad(lifting: _Lifting, node: Any) -> str:
    sides = np.asarray(lifting.value(node, 1))
    if len(node.input) > 2 and float(lifting.value(node, 2)) != 0:
        raise refuse(node, "padding with another value than zero")
    if len(sides) != 4 or sides[[0, 3]].any():
        raise refuse(node, "padding of other axes than height and width")
    padding = tuple(int(n) for n in sides[1:3].reshape(-1))
    return lifting.add(node, network.Pad, padding=padding)


def _reshape(lifting: _Lifting, node: Any) -> str:
    return lifting.add(node, network.Reshape)


def _transpose(lifting: _Lifting, node: Any) -> str:
    order = [int(axis) for axis in lifting.value(node, 1)]
    shape = lifting.draft.shape(lifting.source(node))
    moved = [axis for axis in order if shape[axis] != 1]
    if moved != sorted(moved):
        raise refuse(node, f"it moves the axes of {shape} to the order {order}")
    return lifting.add(node, network.Reshape)


def _tile(lifting: _Lifting, node: Any) -> str:
    multiples = tuple(int(n) for n in lifting.value(node, 1))
    if set(multiples) == {1}:
        return lifting.source(node)
    return lifting.add(node, Tile, multiples=multiples)


def _spread(lifting: _Lifting, node: Any) -> str:
    block, padding = _blocks(lifting, node)
    return lifting.add(node, Spread, block=block, padding=padding)


def _gather(lifting: _Lifting, node: Any) -> str:
    block, crops = _blocks(lifting, node)
    return lifting.add(node, Gather, block=block, crops=crops)


def _blocks(lifting: _Lifting, node: Any) -> tuple[Pair, Sides]:
    block = [int(n) for n in lifting.value(node, 1)]
    sides = [int(n) for n in lifting.value(node, 2).reshape(-1)]
    if len(block) != 2:
        raise refuse(node, f"over {len(block)} axes; over height and width it is one")
    return (block[0], block[1]), (sides[0], sides[1], sides[2], sides[3])


def _enlarge(lifting: _Lifting, node: Any) -> str:
    before, after = lifting.draft.shape(lifting.source(node)), lifting.shape(node)
    factors = after[1] // before[1], after[2] // before[2]
    if (before[1] * factors[0], before[2] * factors[1]) != after[1:3] or 0 in factors:
        raise refuse(node, f"from {before[1:3]} to {after[1:3]}; whole factors are one")
    bilinear = node.op == "ResizeBilinear"
    corners, half = node.attr["align_corners"].b, node.attr["half_pixel_centers"].b
    if corners or (bilinear and not half and factors != (1, 1)):
        raise refuse(
            node,
            "its pixels' centres are not at one half",
            hint="resize with half_pixel_centers=True, as Keras' UpSampling2D does",
        )
    return lifting.add(node, network.Resize, factors=factors, bilinear=bilinear)


def _softmax(lifting: _Lifting, node: Any) -> str:
    return lifting.add(node, network.Softmax)


def _activation(kind: type[Any]) -> Callable[[_Lifting, Any], str]:
    return lambda lifting, node: lifting.add(node, kind)


def _both(lifting: _Lifting, node: Any) -> list[str]:
    sources = [lifting.source(node, index) for index in range(2)]
    if len(node.input) != 2:
        raise refuse(node, f"of {len(node.input)} tensors")
    ranks = {len(lifting.draft.shape(name)) for name in sources}
    if len(ranks) > 1:
        raise refuse(node, f"of tensors with {sorted(ranks)} axes")
    return sources


def _window(lifting: _Lifting, node: Any, size: Pair) -> dict[str, Any]:
    """Strides, padding and dilations of what slides a window over a picture."""
    _check_format(node)
    shape = lifting.draft.shape(lifting.source(node))
    strides = _two(node, "strides")
    dilations = _two(node, "dilations") if node.attr["dilations"].list.i else (1, 1)
    made = lifting.shape(node)
    padding = _sides(node, shape, size, strides, dilations, made)
    return {"strides": strides, "padding": padding, "dilations": dilations}


def _sides(
    node: Any,
    shape: tuple[int, ...],
    size: Pair,
    strides: Pair,
    dilations: Pair,
    made: tuple[int, ...],
) -> Sides:
    """Padding as numbers; TensorFlow puts the odd pixel at the end."""
    how = node.attr["padding"].s.decode()
    if how == "VALID":
        return (0, 0, 0, 0)
    if how == "EXPLICIT":
        top, bottom, left, right = node.attr["explicit_paddings"].list.i[2:6]
        return (int(top), int(bottom), int(left), int(right))
    sides: list[int] = []
    for axis in (0, 1):
        reach = (size[axis] - 1) * dilations[axis] + 1
        total = max((made[axis + 1] - 1) * strides[axis] + reach - shape[axis + 1], 0)
        sides += [total // 2, total - total // 2]
    return (sides[0], sides[1], sides[2], sides[3])


def _two(node: Any, name: str) -> Pair:
    values = [int(n) for n in node.attr[name].list.i]
    if len(values) != 4 or (values[0], values[3]) != (1, 1):
        raise refuse(node, f"its {name} {values} go over batch or channels")
    return (values[1], values[2])


def _check_format(node: Any) -> None:
    told = node.attr["data_format"].s.decode()
    if told not in ("", "NHWC"):
        raise refuse(
            node,
            f"its pictures are {told}",
            hint="export the model with channels last (NHWC)",
        )


LIFTS: dict[str, Callable[[_Lifting, Any], str]] = {
    **dict.fromkeys(_PASSED_ON, _pass_on),
    "Add": _sum,
    "AddV2": _sum,
    "AvgPool": _pool(network.AveragePool),
    "BatchToSpaceND": _gather,
    "BiasAdd": _bias,
    "Cast": _cast,
    "ClipByValue": _clip,
    "ConcatV2": _concat,
    "Conv2D": _conv2d,
    "Conv2DBackpropInput": _transposed,
    "DepthwiseConv2dNative": _depthwise,
    "ExpandDims": _reshape,
    "FusedBatchNormV3": _batch_norm,
    "LeakyRelu": _leaky,
    "MatMul": _dense,
    "Max": _global(network.GlobalMax),
    "MaxPool": _pool(network.MaxPool),
    "Mean": _global(network.GlobalAverage),
    "Mul": _product,
    "Neg": _negative,
    "Pad": _pad,
    "PadV2": _pad,
    "RealDiv": _quotient,
    "Relu": _activation(network.Relu),
    "Relu6": _activation(network.Relu6),
    "Reshape": _reshape,
    "ResizeBilinear": _enlarge,
    "ResizeNearestNeighbor": _enlarge,
    "Sigmoid": _activation(network.Sigmoid),
    "Softmax": _softmax,
    "SpaceToBatchND": _spread,
    "Squeeze": _reshape,
    "Sub": _difference,
    "Tanh": _activation(network.Tanh),
    "Tile": _tile,
    "Transpose": _transpose,
}
