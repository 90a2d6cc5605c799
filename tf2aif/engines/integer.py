"""Power-of-two int8 arithmetic, integer by integer, as AMD's DPU computes.

Every stored integer `q` at position `fix` means `q / 2**fix`. Activations are rounded half up
(`floor(x + 0.5)`), weights half to even, both saturate to [-128, 127]; accumulators are 32 bits.
Sums of products run through floating-point matrix products where these are exact: each sum is
bounded by what the weights allow, and lies within the integers that the dtype holds.

Sources: AMD, "Vitis AI User Guide" (UG1414); the constants of pooling, leaky ReLU and hard
sigmoid are those that AMD Quark (MIT) simulates for its XINT8 scheme.
"""

# ruff: noqa: ARG001 - the functions of a table take the same arguments

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import Tf2aifError
from . import Array, network, operators
from .network import Layer, Network, Pair

LOW, HIGH = -128, 127
ACCUMULATOR_BITS = 32
LEAKY_BITS = 8  # leaky ReLU's slope is a whole number of 1/256: 0.1 becomes 26/256
HARD_PLACES = 24  # the highest position of what a hard sigmoid reads: its products fit 64 bits
SIXTH = (2731, 14)  # 1/6 of a hard sigmoid, as a factor and a shift

_AGAIN = "quantise the model again"

# Means of these windows, as factor and shift; of all others the nearest factor.
_MEANS: dict[Pair, tuple[int, int]] = {
    (3, 3): (7, 6),
    (5, 5): (10, 8),
    (6, 6): (7, 8),
    (3, 6): (7, 7),
    (6, 3): (7, 7),
    (7, 7): (21, 10),
    (14, 14): (21, 12),
}


class Value(NamedTuple):
    """A tensor: integers at a position, or real numbers where it has none."""

    array: Array
    fix: int | None


def quantise_half_up(real: Array, fix: int) -> Array:
    """Real activations as int8: floor(x * 2**fix + 0.5), saturated."""
    scaled = np.asarray(real, np.float64) * 2.0**fix
    stored: Array = np.clip(np.floor(scaled + 0.5), LOW, HIGH).astype(np.int8)
    return stored


def quantise_half_even(real: Array, fix: int) -> Array:
    """Real weights as int8: rounded half to even, saturated."""
    scaled = np.asarray(real, np.float64) * 2.0**fix
    stored: Array = np.clip(np.rint(scaled), LOW, HIGH).astype(np.int8)
    return stored


def real_of(stored: Array, fix: int) -> Array:
    """What stored integers mean, float32: exact for int8."""
    made: Array = (stored * 2.0**-fix).astype(np.float32)
    return made


def rescale(integers: Array, fix: int, wanted: int) -> Array:
    """Integers at one position as int8 at another: shifted, rounded half up, saturated."""
    shift = fix - wanted
    # Half a bit is added behind all but the last bit of the shift: no sum can overflow there.
    narrow = integers.dtype.itemsize < 8 and 1 < shift < 32
    moved: Any = integers.astype(np.int32 if narrow else np.int64)
    if shift > 62:  # all of an int64 is less than half of one
        moved[...] = 0
    elif shift > 0:
        moved >>= shift - 1
        moved += 1
        moved >>= 1
    elif shift < 0:
        # What saturates anyway is cut off before it is shifted out of 64 bits.
        np.clip(moved, LOW, HIGH, out=moved)
        moved <<= min(-shift, 32)
    stored: Array = np.clip(moved, LOW, HIGH, out=moved).astype(np.int8)
    return stored


def mean_factor(size: Pair) -> tuple[int, int]:
    """1 / (height * width) as the DPU has it: a factor and the shift after it.

    >>> mean_factor((7, 7)), mean_factor((2, 2))
    ((21, 10), (1, 2))
    """
    if size in _MEANS:
        return _MEANS[size]
    count = size[0] * size[1]
    best: tuple[int, int] = (1, 0)
    for shift in range((count * 128 - 1).bit_length()):
        factor = round(2**shift / count)
        if abs(factor / 2**shift - 1 / count) < abs(best[0] / 2 ** best[1] - 1 / count):
            best = (factor, shift)
    return best


def leaky_factor(alpha: float) -> int:
    """A leaky ReLU's slope in 1/256."""
    return round(alpha * (1 << LEAKY_BITS))


class Integers:
    """A quantised network that is ready to run: weights widened, dtypes of the sums chosen."""

    def __init__(self, net: Network) -> None:
        """Raises Tf2aifError where a sum could leave the accumulator."""
        self._net = net
        self._last = operators.last_uses(net)
        self._fixes = {each.name: each.fix for each in net.inputs}
        self._sums: dict[str, _Sum] = {}
        for layer in net.layers:
            fix = self._fixes[layer.inputs[0]]
            if layer.weights_fix and isinstance(layer, _WEIGHTED):
                self._sums[layer.name] = prepared = _prepare(net, layer, fix)
                fix = prepared.fix
            self._fixes[layer.name] = layer.fix if layer.fix is not None else fix

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch of real inputs; real outputs, float32, by output name."""
        values = {each.name: _door(feeds[each.name], each.fix) for each in self._net.inputs}
        for layer in self._net.layers:
            values[layer.name] = self._apply(layer, [values[name] for name in layer.inputs])
            for name in self._last.get(layer.name, ()):
                del values[name]
        return {each.name: _real(values[each.tensor]) for each in self._net.outputs}

    def _apply(self, layer: Any, given: list[Value]) -> Value:
        if layer.floats:
            weights = operators.weights_of(self._net, layer)
            made = operators.apply(layer, [_real(value) for value in given], weights)
            return _door(made, layer.fix)
        prepared = self._sums.get(layer.name)
        if prepared is None:
            array, fix = _INTEGER[type(layer)](layer, given, self._net)
        else:
            array, fix = prepared.run(layer, given[0]), prepared.fix
        if layer.fix is None:
            return Value(array, fix)
        return Value(rescale(array, fix, layer.fix), layer.fix)


class _Sum(NamedTuple):
    """A layer of products and sums: its weights as whole numbers in a dtype that is exact."""

    weights: dict[str, Array]
    fix: int
    """Position of its accumulator."""
    dtype: Any

    def run(self, layer: Any, given: Value) -> Array:
        made = operators.apply(layer, [given.array.astype(self.dtype)], self.weights)
        integers: Array = made.astype(np.int64 if self.dtype is np.float64 else np.int32)
        return integers


_WEIGHTED = (
    network.Conv2D,
    network.DepthwiseConv2D,
    network.Conv2DTranspose,
    network.Dense,
    network.Scale,
)


def _prepare(net: Network, layer: Layer, fix: int | None) -> _Sum:
    kernel_name, bias_name = weight_names(layer)
    if fix is None:
        raise Tf2aifError(f"layer '{layer.name}' is quantised, and what it reads is not")
    kernel = net.weight(layer, kernel_name).astype(np.int64)
    bias = net.weight(layer, bias_name).astype(np.int64)
    place = fix + layer.weights_fix[kernel_name]
    shift = place - layer.weights_fix[bias_name]
    if not 0 <= shift <= ACCUMULATOR_BITS:
        raise Tf2aifError(f"the bias of layer '{layer.name}' has more places than its sum")
    bias = bias << shift
    largest = sum_bound(layer, kernel, bias)
    if largest >= 1 << (ACCUMULATOR_BITS - 1):
        raise Tf2aifError(f"a sum of layer '{layer.name}' can leave {ACCUMULATOR_BITS} bits")
    dtype = np.float32 if largest < 2**24 else np.float64
    weights = {kernel_name: kernel.astype(dtype), bias_name: bias.astype(dtype)}
    return _Sum(weights, place, dtype)


def weight_names(layer: Layer) -> tuple[str, str]:
    """What a layer multiplies with, and what it adds."""
    return ("scale", "offset") if isinstance(layer, network.Scale) else ("kernel", "bias")


def sum_bound(layer: Layer, kernel: Array, bias: Array) -> int:
    """The largest that a sum of products of int8 inputs can be, in magnitude, at any point."""
    sizes = np.abs(kernel)
    if isinstance(layer, network.Conv2DTranspose):
        sums = sizes.sum(axis=(0, 1, 3))
    elif isinstance(layer, network.DepthwiseConv2D):
        sums = sizes.sum(axis=(0, 1)).reshape(-1)
    elif isinstance(layer, network.Scale):
        sums = sizes
    else:
        sums = sizes.reshape(-1, sizes.shape[-1]).sum(axis=0)
    return int((sums * -LOW + np.abs(bias)).max(initial=0))


def _door(real: Array, fix: int | None) -> Value:
    if fix is None:
        return Value(np.asarray(real, np.float32), None)
    return Value(quantise_half_up(real, fix), fix)


def _real(value: Value) -> Array:
    return value.array if value.fix is None else real_of(value.array, value.fix)


_Made = tuple[Array, int]


def _fixed(value: Value) -> _Made:
    if value.fix is None:
        raise Tf2aifError("an integer layer reads a tensor that is not quantised")
    return value.array, value.fix


def _relu(layer: Layer, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    return np.maximum(array, 0), fix


def _relu6(layer: Layer, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    array, fix = _at_least(array, fix, 0)
    return np.clip(array, 0, min(6 << fix, int(np.iinfo(array.dtype).max))), fix


def _leaky(layer: network.LeakyRelu, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    wide = array.astype(np.int64)
    slope = leaky_factor(layer.alpha)
    return np.where(wide > 0, wide << LEAKY_BITS, wide * slope), fix + LEAKY_BITS


def _prelu(layer: Layer, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    array, place = array.astype(np.int64), layer.weights_fix["alpha"]
    slope = net.weight(layer, "alpha").astype(np.int64)
    whole = array << place if place >= 0 else array
    bent = array * slope if place >= 0 else (array * slope) << -place
    return np.where(array > 0, whole, bent), fix + max(place, 0)


def _hard(layer: Layer, given: list[Value], net: Network) -> _Made:
    """relu6(x + 3) / 6 of an int8 tensor; times x where it is a hard swish."""
    array, fix = _at_least(*_fixed(given[0]), 0)
    if fix > HARD_PLACES:
        raise Tf2aifError(f"layer '{layer.name}' reads a tensor at position {fix}", hint=_AGAIN)
    factor, shift = SIXTH
    bent = np.clip(array.astype(np.int64) + (3 << fix), 0, 6 << fix) * factor
    if isinstance(layer, network.HardSwish):
        return array * bent, 2 * fix + shift
    return bent, fix + shift


def _max_pool(layer: network.MaxPool, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    return operators.pool_max(array, layer.size, layer.strides, layer.padding), fix


def _average_pool(layer: network.AveragePool, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    factor, shift = mean_factor(layer.size)
    wide = array.astype(np.int64)
    return operators.pool_sum(wide, layer.size, layer.strides, layer.padding) * factor, fix + shift


def _global_average(layer: Layer, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    factor, shift = mean_factor(picture_size(array.shape[1:]))
    total = operators.flat_positions(array).sum(axis=1, dtype=np.int64)
    return total.reshape(-1, *layer.shape) * factor, fix + shift


def picture_size(shape: tuple[int, ...]) -> Pair:
    """Height and width of one sample; a sequence is one pixel wide."""
    return (shape[0], shape[1]) if len(shape) == 3 else (shape[0], 1)


def _add(layer: Layer, given: list[Value], net: Network) -> _Made:
    (a, a_fix), (b, b_fix) = (_fixed(value) for value in given)
    fix = max(a_fix, b_fix)
    left, right = (
        _at_least(each.astype(np.int64), at, fix)[0] for each, at in ((a, a_fix), (b, b_fix))
    )
    return left + right, fix


def _mul(layer: Layer, given: list[Value], net: Network) -> _Made:
    (a, a_fix), (b, b_fix) = (_fixed(value) for value in given)
    return a.astype(np.int64) * b, a_fix + b_fix


def _concat(layer: network.Concat, given: list[Value], net: Network) -> _Made:
    fix = layer.fix
    if fix is None:
        raise Tf2aifError(f"layer '{layer.name}' has no position")
    parts = [rescale(array, at, fix) for array, at in map(_fixed, given)]
    return np.concatenate(parts, axis=layer.axis + 1), fix


def _moved(layer: Any, given: list[Value], net: Network) -> _Made:
    """What only moves values computes the same on integers."""
    array, fix = _fixed(given[0])
    return operators.apply(layer, [array], {}), fix


def _resize(layer: network.Resize, given: list[Value], net: Network) -> _Made:
    array, fix = _fixed(given[0])
    if not layer.bilinear:
        return operators.resize(array, layer.factors, bilinear=False), fix
    # By a power of two the parts are whole numbers of 1 / (2 * factor) in each direction.
    places = sum((2 * factor).bit_length() - 1 for factor in layer.factors if factor > 1)
    made = operators.resize(array.astype(np.float64), layer.factors, bilinear=True)
    return (made * 2**places).astype(np.int64), fix + places


def _at_least(array: Array, fix: int, wanted: int) -> _Made:
    """The same numbers at a position that is not lower than the wanted one."""
    if fix >= wanted:
        return array, fix
    return array.astype(np.int64) << (wanted - fix), wanted


_INTEGER: dict[type[Layer], Callable[[Any, list[Value], Network], _Made]] = {
    network.Relu: _relu,
    network.Relu6: _relu6,
    network.LeakyRelu: _leaky,
    network.PRelu: _prelu,
    network.HardSigmoid: _hard,
    network.HardSwish: _hard,
    network.MaxPool: _max_pool,
    network.AveragePool: _average_pool,
    network.GlobalAverage: _global_average,
    network.GlobalMax: _moved,
    network.Add: _add,
    network.Mul: _mul,
    network.Concat: _concat,
    network.Pad: _moved,
    network.Reshape: _moved,
    network.Resize: _resize,
}
