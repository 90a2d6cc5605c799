"""Draft layers put together: what several operators spell out, and what folds into a neighbour."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from ..engines import Array, network
from ..engines.network import Layer
from .draft import Draft, Gather, Spread, Tile

_DILATED = (network.Conv2D, network.DepthwiseConv2D)
_KERNELS = (network.Conv2D, network.DepthwiseConv2D, network.Conv2DTranspose, network.Dense)


def simplify(draft: Draft) -> None:
    """Apply all rules in place, until none applies."""
    for rules in (_SPELLED_OUT, _FOLDED):
        changed = True
        while changed:
            changed = False
            for name in list(draft.layers):
                if name in draft.layers:
                    changed |= any(rule(draft, name) for rule in rules)
            draft.prune()


def _enlargement(draft: Draft, name: str) -> bool:
    """Reshape(Tile(ExpandDims(x))) repeats each pixel along one axis."""
    outer = draft.get(name, network.Reshape)
    tile = outer and draft.get(outer.inputs[0], Tile)
    inner = tile and draft.get(tile.inputs[0], network.Reshape)
    if not inner or sum(n > 1 for n in tile.multiples) != 1:
        return False
    place = next(i for i, n in enumerate(tile.multiples) if n > 1)
    shape, factor = draft.shape(inner.inputs[0]), tile.multiples[place]
    repeated = tuple(n * factor if i == place - 1 else n for i, n in enumerate(shape))
    spread = (*shape[:place], 1, *shape[place:])
    if len(shape) != 4 or place not in (2, 3) or (inner.shape, outer.shape) != (spread, repeated):
        return False
    factors = (factor, 1) if place == 2 else (1, factor)
    draft.replace(name, _like(outer, network.Resize, inner.inputs, factors=factors))
    return True


def _dilation(draft: Draft, name: str) -> bool:
    """A convolution of pixels dealt out to batches, put together again, is a dilated one."""
    outer = draft.get(name, Gather)
    kernel = outer and draft.layers.get(outer.inputs[0])
    inner = kernel and draft.get(kernel.inputs[0], Spread)
    if outer is None or not inner or not isinstance(kernel, _DILATED):
        return False
    if (kernel.strides, kernel.padding, outer.block) != ((1, 1), (0, 0, 0, 0), inner.block):
        return False
    top, _, left, _ = inner.padding
    if outer.crops[0] or outer.crops[2]:
        return False
    given, size = draft.shape(inner.inputs[0]), draft.weights[kernel.name]["kernel"].shape[:2]
    below, right = (
        outer.shape[i + 1] + (size[i] - 1) * inner.block[i] - given[i + 1] - (top, left)[i]
        for i in (0, 1)
    )
    if min(below, right) < 0:
        return False
    how: dict[str, Any] = {"strides": (1, 1), "dilations": inner.block}
    made = _like(
        outer,
        type(kernel),
        inner.inputs,
        source=kernel.source,
        padding=(top, below, left, right),
        **how,
    )
    draft.replace(name, made, draft.weights[kernel.name])
    return True


def _dense_on_pictures(draft: Draft, name: str) -> bool:
    """A matrix product between two reshapes is one over the last axis: on pictures, 1x1."""
    outer = draft.get(name, network.Reshape)
    dense = outer and draft.get(outer.inputs[0], network.Dense)
    inner = dense and draft.get(dense.inputs[0], network.Reshape)
    if outer is None or not inner or draft.sole_user(dense.name) is not outer:
        return False
    shape = draft.shape(inner.inputs[0])
    if shape[:-1] != outer.shape[:-1] or shape[-1] != inner.shape[-1] or len(inner.shape) != 2:
        return False
    weights = draft.weights[dense.name]
    if len(shape) == 4:
        kernel = weights["kernel"][np.newaxis, np.newaxis]
        plain: dict[str, Any] = {"strides": (1, 1), "padding": (0, 0, 0, 0)}
        made = _like(outer, network.Conv2D, inner.inputs, source=dense.source, **plain)
        draft.replace(name, made, {**weights, "kernel": kernel})
    else:
        made = _like(outer, network.Dense, inner.inputs, source=dense.source)
        draft.replace(name, made, weights)
    return True


def _hard_sigmoid(draft: Draft, name: str) -> bool:
    """relu6(v) / 6; with v = x + 3 it is x's."""
    outer = draft.get(name, network.Scale)
    clip = outer and draft.get(outer.inputs[0], network.Relu6)
    if not clip or not _is_scale(draft, name, 1 / 6, 0):
        return False
    if _is_scale(draft, clip.inputs[0], 1, 3):
        source = draft.layers[clip.inputs[0]].inputs
    elif draft.sole_user(clip.name) is outer:
        ones = np.ones(clip.shape[-1])
        shifted = _like(clip, network.Scale, clip.inputs)
        draft.replace(clip.name, shifted, {"scale": ones, "offset": -3 * ones})
        source = (clip.name,)
    else:
        return False
    draft.replace(name, _like(outer, network.HardSigmoid, source))
    return True


def _hard_swish(draft: Draft, name: str) -> bool:
    """x * hard_sigmoid(x), or (x * relu6(x + 3)) / 6."""
    outer = draft.layers[name]
    if isinstance(outer, network.Mul):
        found = _of_itself(draft, outer, network.HardSigmoid)
    elif _is_scale(draft, name, 1 / 6, 0) and draft.get(outer.inputs[0], network.Mul):
        found = _of_itself(draft, draft.layers[outer.inputs[0]], network.Relu6, shift=3)
    else:
        return False
    if found:
        draft.replace(name, _like(outer, network.HardSwish, (found,)))
    return bool(found)


def _of_itself(draft: Draft, product: Layer, kind: type[Layer], shift: float = 0) -> str:
    """x where a product is of x and of `kind(x + shift)`; else nothing."""
    for x, other in (product.inputs, product.inputs[::-1]):
        layer = draft.get(other, kind)
        inner = layer.inputs[0] if layer else ""
        if shift and inner:
            inner = draft.layers[inner].inputs[0] if _is_scale(draft, inner, 1, shift) else ""
        if inner == x:
            return x
    return ""


def _prelu(draft: Draft, name: str) -> bool:
    """relu(x) + a * relu(-x) is x where it is positive, else -a * x."""
    outer = draft.get(name, network.Add)
    for positive, negative in (outer.inputs, outer.inputs[::-1]) if outer else ():
        relu, scaled = draft.get(positive, network.Relu), draft.get(negative, network.Scale)
        other = scaled and draft.get(scaled.inputs[0], network.Relu)
        if not (relu and other and _is_scale(draft, other.inputs[0], -1, 0)):
            continue
        if draft.layers[other.inputs[0]].inputs != relu.inputs:
            continue
        weights = draft.weights[negative]
        if not weights["offset"].any():
            draft.replace(
                name, _like(outer, network.PRelu, relu.inputs), {"alpha": -weights["scale"]}
            )
            return True
    return False


def _nothing(draft: Draft, name: str) -> bool:
    """A layer that passes its input on."""
    layer = draft.layers[name]
    same = draft.shape(layer.inputs[0]) == layer.shape
    idle = (
        (isinstance(layer, network.Reshape) and same)
        or (isinstance(layer, network.Scale) and _is_scale(draft, name, 1, 0, exact=True))
        or (isinstance(layer, network.Pad) and not any(layer.padding))
        or (isinstance(layer, network.Resize) and layer.factors == (1, 1))
    )
    if idle:
        _drop(draft, name, layer.inputs[0])
    return idle


def _two_in_one(draft: Draft, name: str) -> bool:
    """Reshapes and enlargements that follow each other; a reshape that drops pooled axes."""
    outer = draft.layers[name]
    inner = draft.layers.get(outer.inputs[0])
    if inner is None:
        return False
    if isinstance(outer, network.Reshape) and isinstance(inner, network.Reshape):
        draft.replace(name, msgspec.structs.replace(outer, inputs=inner.inputs))
        return True
    if draft.sole_user(inner.name) is not outer:
        return False
    if isinstance(outer, network.Resize) and isinstance(inner, network.Resize):
        if outer.bilinear or inner.bilinear:
            return False
        a, b = outer.factors, inner.factors
        draft.replace(
            name,
            msgspec.structs.replace(outer, inputs=inner.inputs, factors=(a[0] * b[0], a[1] * b[1])),
        )
        return True
    pooled = isinstance(inner, network.GlobalAverage | network.GlobalMax)
    if isinstance(outer, network.Reshape) and pooled and len(outer.shape) == 2:
        draft.replace(name, _like(outer, type(inner), inner.inputs, source=inner.source))
        return True
    return False


def _fold_back(draft: Draft, name: str) -> bool:
    """A scale after a kernel, or after a scale, is part of that."""
    outer = draft.get(name, network.Scale)
    inner = outer and draft.layers.get(outer.inputs[0])
    if outer is None or inner is None or draft.sole_user(inner.name) is not outer:
        return False
    if isinstance(inner, network.Reshape) and inner.shape[-1] == draft.shape(inner.inputs[0])[-1]:
        before = draft.layers.get(inner.inputs[0])
        if not isinstance(before, _KERNELS) or draft.sole_user(before.name) is not inner:
            return False
        weights = draft.weights[name]
        draft.replace(inner.name, _like(outer, network.Scale, inner.inputs, before.shape), weights)
        draft.replace(name, _like(inner, network.Reshape, (inner.name,), outer.shape))
        return True
    if not isinstance(inner, (*_KERNELS, network.Scale)):
        return False
    scale, offset = draft.weights[name]["scale"], draft.weights[name]["offset"]
    weights = draft.weights[inner.name]
    offset_name = "offset" if isinstance(inner, network.Scale) else "bias"
    kernel_name = "scale" if isinstance(inner, network.Scale) else "kernel"
    draft.weights[inner.name] = {
        kernel_name: _scaled_out(inner, weights[kernel_name].astype(np.float64), scale),
        offset_name: weights[offset_name] * scale + offset,
    }
    _drop(draft, name, inner.name)
    return True


def _fold_on(draft: Draft, name: str) -> bool:
    """A scale before a kernel is part of that, where no padding with zeros comes between."""
    inner = draft.get(name, network.Scale)
    outer = draft.sole_user(name) if inner else None
    if not isinstance(outer, network.Conv2D | network.DepthwiseConv2D | network.Dense):
        return False
    scale, offset = draft.weights[name]["scale"], draft.weights[name]["offset"]
    if offset.any() and any(getattr(outer, "padding", ())):
        return False
    weights = draft.weights[outer.name]
    kernel = np.float64(weights["kernel"])
    if isinstance(outer, network.DepthwiseConv2D):
        more = (kernel.sum((0, 1)) * offset[:, np.newaxis]).reshape(-1)
    else:
        more = np.tensordot(offset, kernel.reshape(-1, *kernel.shape[-2:]).sum(0), 1)
    draft.weights[outer.name] = {
        "kernel": kernel * scale[:, np.newaxis],
        "bias": weights["bias"] + more,
    }
    _drop(draft, name, inner.inputs[0])
    return True


def _fold_padding(draft: Draft, name: str) -> bool:
    """Zeros around a picture are part of the convolution that alone reads it."""
    inner = draft.get(name, network.Pad)
    outer = draft.sole_user(name) if inner else None
    if not isinstance(outer, network.Conv2D | network.DepthwiseConv2D):
        return False
    a, b = inner.padding, outer.padding
    padding = (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
    draft.layers[outer.name] = msgspec.structs.replace(outer, padding=padding)
    _drop(draft, name, inner.inputs[0])
    return True


_SPELLED_OUT = (_enlargement, _dilation, _dense_on_pictures, _hard_sigmoid, _hard_swish, _prelu)
_FOLDED = (_nothing, _two_in_one, _fold_back, _fold_on, _fold_padding)


def _scaled_out(layer: Any, kernel: Array, scale: Array) -> Array:
    """A kernel whose outputs are scaled."""
    if isinstance(layer, network.DepthwiseConv2D):
        return kernel * scale.reshape(kernel.shape[2:])
    if isinstance(layer, network.Conv2DTranspose):
        return kernel * scale[:, np.newaxis]
    return kernel * scale


def _is_scale(draft: Draft, name: str, scale: float, offset: float, exact: bool = False) -> bool:
    if draft.get(name, network.Scale) is None:
        return False
    tolerance = 0.0 if exact else 1e-6
    weights = draft.weights[name]
    near = [
        np.allclose(weights["scale"], scale, rtol=tolerance, atol=0),
        np.allclose(weights["offset"], offset, rtol=tolerance, atol=0),
    ]
    return all(near)


def _drop(draft: Draft, name: str, source: str) -> None:
    draft.redirect(name, source)
    del draft.layers[name], draft.weights[name]


def _like(
    layer: Layer,
    kind: type[Any],
    inputs: tuple[str, ...],
    shape: tuple[int, ...] | None = None,
    source: str | None = None,
    **fields: Any,
) -> Any:
    """A layer of another kind in the place of one."""
    return kind(
        name=layer.name,
        inputs=inputs,
        shape=shape or layer.shape,
        source=source or layer.source,
        **fields,
    )
