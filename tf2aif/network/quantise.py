"""Power-of-two int8 quantisation of a float network after training, for AMD's DPUs.

Each tensor, each kernel and each bias gets one position (a scale `2**-fix`), symmetric, without
zero points. What only moves values shares its position with what it moves; an activation after a
kernel is computed on the accumulator, and only its result has a position.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from ..engines import Array, network
from ..engines.integer import (
    ACCUMULATOR_BITS,
    HARD_PLACES,
    quantise_half_even,
    sum_bound,
    weight_names,
)
from ..engines.network import AnyLayer, Layer, Network
from . import ranges

Search = Literal["minmax", "mse"]

# What the shifters of a DPU reach: results are shifted right from the accumulator, biases and the
# terms of a sum left onto it.
CUT_BITS = 16
BIAS_BITS = 15
READ_BITS = 15
ALPHA_PLACES = 15  # of a PReLU's slopes: smaller ones are zero beside the accumulator

WEIGHTED = (
    network.Conv2D,
    network.DepthwiseConv2D,
    network.Conv2DTranspose,
    network.Dense,
    network.Scale,
)
FUSED = (network.Relu, network.Relu6, network.LeakyRelu, network.PRelu)
MOVES = (
    network.Concat,
    network.GlobalMax,
    network.MaxPool,
    network.Pad,
    network.Reshape,
)
FLOATS = (network.Sigmoid, network.Softmax, network.Tanh)


def quantise(
    net: Network, samples: Mapping[str, Array], *, search: Search, floats: Collection[str] = ()
) -> Network:
    """The quantised network: positions from samples (by input name), int8 weights.

    `floats` names layers that are to run in floating point; those that the arithmetic has no
    integers for do so in any case.
    """
    in_floats = _in_floats(net, floats)
    accumulated = _accumulated(net, in_floats)
    fixed = _fixed_tensors(net, in_floats, accumulated)
    groups = _groups(net, in_floats, fixed)
    fixes = _positions(net, samples, groups, search)
    ends = _ends(net, in_floats, accumulated)
    kernels = _settle(net, fixes, groups, ends, search)
    places = _places(net, fixes, kernels, in_floats, search)
    return _stored(net, fixes, places, in_floats)


def _in_floats(net: Network, asked: Collection[str]) -> set[str]:
    """Which layers run in floating point; what moves their results does so too."""
    found: set[str] = set()
    for layer in net.layers:
        alone = isinstance(layer, FLOATS) or layer.name in asked or not _has_integers(layer, net)
        moves = isinstance(layer, (*MOVES, network.Resize))
        if alone or (moves and any(name in found for name in layer.inputs)):
            found.add(layer.name)
    return found


def _has_integers(layer: AnyLayer, net: Network) -> bool:
    if isinstance(layer, network.Resize) and layer.bilinear:
        return all(factor & (factor - 1) == 0 for factor in layer.factors)
    if isinstance(layer, network.AveragePool):
        return not _has_partial_windows(layer, net)
    return True


def _has_partial_windows(layer: network.AveragePool, net: Network) -> bool:
    """Whether a window covers padding, which the source does not count and the DPU does."""
    from ..engines.operators import pool_counts

    shape = net.shapes()[layer.inputs[0]]
    counts = pool_counts(shape, layer.size, layer.strides, layer.padding)
    return bool((counts != layer.size[0] * layer.size[1]).any())


def _accumulated(net: Network, in_floats: set[str]) -> set[str]:
    """Layers whose sums go into the one activation that reads them, before they are rounded."""
    consumers = net.consumers()
    kept = {each.tensor for each in net.outputs}
    found = set()
    for layer in net.layers:
        sums = isinstance(layer, (*WEIGHTED, network.Add)) and layer.name not in in_floats
        users = consumers[layer.name]
        alone = len(users) == 1 and layer.name not in kept
        if sums and alone and isinstance(users[0], FUSED) and users[0].name not in in_floats:
            found.add(layer.name)
    return found


def _ends(net: Network, in_floats: set[str], accumulated: set[str]) -> dict[str, str]:
    """For each integer layer the tensor in which its sum is stored."""
    consumers = net.consumers()
    return {
        layer.name: consumers[layer.name][0].name if layer.name in accumulated else layer.name
        for layer in net.layers
        if layer.name not in in_floats
    }


def _fixed_tensors(net: Network, in_floats: set[str], accumulated: set[str]) -> set[str]:
    """Tensors that are stored as int8: what integer layers make, and what they read."""
    integer = [layer for layer in net.layers if layer.name not in in_floats]
    read = {name for layer in integer for name in layer.inputs}
    return (read | {layer.name for layer in integer}) - accumulated


def _groups(net: Network, in_floats: set[str], fixed: set[str]) -> dict[str, str]:
    """Each stored tensor's group, by one of its members: those that share a position."""
    parent = {name: name for name in net.shapes() if name in fixed}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for layer in net.layers:
        plain = isinstance(layer, network.Resize) and not layer.bilinear
        if layer.name in in_floats or not (plain or isinstance(layer, MOVES)):
            continue
        for name in layer.inputs:
            parent[root(name)] = root(layer.name)
    return {name: root(name) for name in parent}


def _positions(
    net: Network, samples: Mapping[str, Array], groups: Mapping[str, str], search: Search
) -> dict[str, int]:
    """The position of each stored tensor."""
    largest = ranges.largest_values(net, samples)
    tops: dict[str, float] = {}
    for name, group in groups.items():
        tops[group] = max(tops.get(group, 0.0), largest[name])
    if search == "minmax":
        found = {group: ranges.fitting(top) for group, top in tops.items()}
    else:
        tried = {name: ranges.candidates(tops[group]) for name, group in groups.items()}
        errors = ranges.position_errors(net, samples, tried)
        found = {}
        for group, top in tops.items():
            members = [errors[name] for name in groups if groups[name] == group]
            sums = {fix: sum(each[fix] for each in members) for fix in ranges.candidates(top)}
            found[group] = ranges.best(sums)
    return {name: found[group] for name, group in groups.items()}


def _bring_together(net: Network, groups: Mapping[str, str], fixes: dict[str, int]) -> None:
    """The terms of a sum within reach of the shifter."""
    for layer in net.layers:
        if isinstance(layer, network.Add) and all(name in groups for name in layer.inputs):
            limit = min(fixes[name] for name in layer.inputs) + READ_BITS
            for name in layer.inputs:
                _lower(fixes, groups, name, limit)


def _settle(
    net: Network,
    fixes: dict[str, int],
    groups: Mapping[str, str],
    ends: Mapping[str, str],
    search: Search,
) -> dict[str, int]:
    """The position of each kernel, with those of the tensors (`fixes`, in place) made to fit.

    No result has more places than its sum, none is out of the shifter's reach, and no sum can
    leave the accumulator. Positions only ever go down, so this ends.
    """
    kernels = {layer.name: _best_place(_kernel(net, layer), search) for layer in _sums(net, ends)}
    while True:
        before = dict(kernels), dict(fixes)
        for layer in _sums(net, ends):
            given, end = fixes[layer.inputs[0]], ends[layer.name]
            kernels[layer.name] = min(kernels[layer.name], fixes[end] + CUT_BITS - given)
            while _overflows(net, layer, given, kernels[layer.name], search):
                kernels[layer.name] -= 1
            _lower(fixes, groups, end, given + kernels[layer.name])
        _bring_together(net, groups, fixes)
        for layer in net.layers:
            if isinstance(layer, (network.HardSigmoid, network.HardSwish)) and layer.name in ends:
                _lower(fixes, groups, layer.inputs[0], HARD_PLACES)
        if (kernels, fixes) == before:
            return kernels


def _sums(net: Network, ends: Mapping[str, str]) -> list[AnyLayer]:
    """The layers that are sums of products of integers."""
    return [layer for layer in net.layers if layer.name in ends and isinstance(layer, WEIGHTED)]


def _kernel(net: Network, layer: Layer) -> Array:
    return net.weight(layer, weight_names(layer)[0])


def _lower(fixes: dict[str, int], groups: Mapping[str, str], name: str, limit: int) -> None:
    """A tensor and all that share its position at no more than a limit."""
    if fixes[name] > limit:
        fixes.update({each: limit for each in groups if groups[each] == groups[name]})


def _overflows(net: Network, layer: Layer, given: int, place: int, search: Search) -> bool:
    kernel_name, bias_name = weight_names(layer)
    bias_place = _bias_place(net, layer, given + place, search)
    whole = quantise_half_even(net.weight(layer, kernel_name), place).astype(np.int64)
    added = quantise_half_even(net.weight(layer, bias_name), bias_place).astype(np.int64)
    largest = sum_bound(layer, whole, added << (given + place - bias_place))
    return largest >= 1 << (ACCUMULATOR_BITS - 1)


def _bias_place(net: Network, layer: Layer, total: int, search: Search) -> int:
    """The position of a bias: no more places than the sum, and within the shifter's reach."""
    wanted = _best_place(net.weight(layer, weight_names(layer)[1]), search)
    return max(min(wanted, total), total - BIAS_BITS)


def _places(
    net: Network,
    fixes: Mapping[str, int],
    kernels: Mapping[str, int],
    in_floats: set[str],
    search: Search,
) -> dict[str, dict[str, int]]:
    """The positions of all weights, by layer and name."""
    found: dict[str, dict[str, int]] = {}
    for layer in net.layers:
        if layer.name in kernels:
            kernel_name, bias_name = weight_names(layer)
            place = kernels[layer.name]
            total = fixes[layer.inputs[0]] + place
            bias = _bias_place(net, layer, total, search)
            found[layer.name] = {kernel_name: place, bias_name: bias}
        elif isinstance(layer, network.PRelu) and layer.name not in in_floats:
            place = _best_place(net.weight(layer, "alpha"), search)
            found[layer.name] = {"alpha": min(place, ALPHA_PLACES)}
    return found


def _best_place(array: Array, search: Search) -> int:
    """A position for weights: without saturation, or of least squared error."""
    largest = float(np.abs(array).max(initial=0))
    if search == "minmax" or largest == 0:
        return ranges.fitting(largest)
    wide = array.astype(np.float64)
    errors = {
        fix: float(np.square(quantise_half_even(wide, fix) * 2.0**-fix - wide).sum())
        for fix in ranges.candidates(largest)
    }
    return ranges.best(errors)


def _stored(
    net: Network,
    fixes: Mapping[str, int],
    places: Mapping[str, Mapping[str, int]],
    in_floats: set[str],
) -> Network:
    """The network with its positions, its weights rounded to them."""
    change: Any = msgspec.structs.replace
    weights = dict(net.weights)
    for layer_name, found in places.items():
        for name, fix in found.items():
            key = f"{layer_name}/{name}"
            weights[key] = quantise_half_even(weights[key], fix)
    layers = tuple(
        change(
            layer,
            fix=fixes.get(layer.name),
            weights_fix=dict(places.get(layer.name, {})),
            floats=layer.name in in_floats,
        )
        for layer in net.layers
    )
    inputs = tuple(change(each, fix=fixes.get(each.name)) for each in net.inputs)
    return net._replace(inputs=inputs, layers=layers, weights=weights)
