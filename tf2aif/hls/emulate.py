"""What the hardware computes, bit by bit, in numpy.

Every sum is exact (see `types.accumulators`), in float64, by the same BLAS that float networks
use: the hardware's result is that sum, rounded once to the type of the result. A search can so try
a set of types in a fraction of a second, where compiling the C simulation takes many; that both
agree is checked each time that a C simulation is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from .fixed import Fixed, nearest, quantize
from .stages import Pipeline, Stage
from .types import Types, accumulators, result_types

if TYPE_CHECKING:
    from ..engines import Array

CHUNK = 64
"""Samples at a time: bounds memory."""


def emulate(pipeline: Pipeline, types: Types, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The stages' values at the model's outputs, by output name, before the door; float64.

    `inputs` are by input name of the source model, samples along axis 0, finite real values.
    """
    results = result_types(pipeline, types)
    sums = accumulators(pipeline, types)
    stages = tuple(_with_constants(stage, types) for stage in pipeline.stages)

    def compute(stage: Stage, given: list[Array]) -> Array:
        exact = _compute(stage, given, sums.get(stage.name))
        return quantize(exact, results[stage.name])

    return _run(pipeline, stages, inputs, compute)


def run_float(pipeline: Pipeline, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """As `emulate`, with nothing rounded: the float network, in float64."""

    def compute(stage: Stage, given: list[Array]) -> Array:
        return _compute(stage, given, None)

    return _run(pipeline, pipeline.stages, inputs, compute)


def ranges(pipeline: Pipeline, inputs: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of every stage's output in float, over all samples."""
    found: dict[str, tuple[float, float]] = {}

    def compute(stage: Stage, given: list[Array]) -> Array:
        made = _compute(stage, given, None)
        low, high = found.get(stage.name, (np.inf, -np.inf))
        found[stage.name] = min(low, float(made.min())), max(high, float(made.max()))
        return made

    _run(pipeline, pipeline.stages, inputs, compute)
    return found


def _run(
    pipeline: Pipeline,
    stages: tuple[Stage, ...],
    inputs: Mapping[str, Array],
    compute: Callable[[Stage, list[Array]], Array],
) -> dict[str, Array]:
    made: dict[str, list[Array]] = {output.name: [] for output in pipeline.outputs}
    for chunk in _chunks(inputs):
        values: dict[str, Array] = {}
        feeds = {stage: chunk[name] for name, stage in pipeline.inputs.items()}
        for stage in stages:
            given = [values[name] for name in stage.inputs]
            if stage.kind == "input":
                raw = np.asarray(feeds[stage.name], np.float64)
                given = [raw.reshape(len(raw), *stage.shape)]
            values[stage.name] = compute(stage, given)
        for output in pipeline.outputs:
            made[output.name].append(values[output.stage])
    return {name: np.concatenate(parts) for name, parts in made.items()}


def _chunks(inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    count = len(next(iter(inputs.values())))
    for start in range(0, count, CHUNK):
        yield {name: values[start : start + CHUNK] for name, values in inputs.items()}


def _with_constants(stage: Stage, types: Types) -> Stage:
    chosen = types.get(stage.name)
    if chosen is None or chosen.weight is None or chosen.bias is None:
        return stage
    weight, bias = stage.constants()
    return msgspec.structs.replace(
        stage, weight=nearest(weight, chosen.weight), bias=nearest(bias, chosen.bias)
    )


def _compute(stage: Stage, given: list[Array], sums: Fixed | None) -> Array:
    first = given[0]
    match stage.kind:
        case "input":
            return first
        case "conv":
            return _conv(stage, first)
        case "depthwise":
            return _depthwise(stage, first)
        case "dense":
            weight, bias = stage.constants()
            made: Array = first @ weight.astype(np.float64) + bias
            return made
        case "relu":
            return np.maximum(first, 0.0)
        case "max_pool" | "global_max":
            largest: Array = _windows(first, stage, -np.inf).max(axis=(3, 4))
            return largest.reshape(len(first), *stage.shape)
        case "average_pool" | "global_average":
            return _average(stage, first, sums)
        case "add":
            return first + given[1]
        case "concat":
            return np.concatenate(given, axis=-1)
        case "pad":
            return _padded(first, stage.hole().padding, 0.0)
        case "reshape":
            return first.reshape(len(first), *stage.shape)


def _padded(values: Array, padding: tuple[int, int, int, int], fill: float) -> Array:
    top, bottom, left, right = padding
    if not any(padding):
        return values
    sides = ((0, 0), (top, bottom), (left, right), (0, 0))
    made: Array = np.pad(values, sides, constant_values=fill)
    return made


def _windows(values: Array, stage: Stage, fill: float) -> Array:
    """(samples, rows, columns, kernel height, kernel width, channels), a view."""
    hole = stage.hole()
    padded = _padded(values, hole.padding, fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, hole.kernel, axis=(1, 2))
    strided = view[:, :: hole.strides[0], :: hole.strides[1]]
    return np.moveaxis(strided, 3, 5)


def _conv(stage: Stage, values: Array) -> Array:
    weight, bias = stage.constants()
    windows = _windows(values, stage, 0.0)
    flat = windows.reshape(-1, weight[..., 0].size)
    made = flat @ weight.reshape(-1, weight.shape[-1]).astype(np.float64) + bias
    return made.reshape(len(values), *stage.shape)


def _depthwise(stage: Stage, values: Array) -> Array:
    weight, bias = stage.constants()
    windows = _windows(values, stage, 0.0)
    made = np.broadcast_to(bias.astype(np.float64), windows.shape[:3] + bias.shape).copy()
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            made += windows[:, :, :, row, column] * weight[row, column]
    return made


def _average(stage: Stage, values: Array, sums: Fixed | None) -> Array:
    """Sums divided by the number of values that are no padding.

    With a type of the sums the quotient is cut to its last bit, towards zero, as the division of
    two integers is in C.
    """
    summed = _windows(values, stage, 0.0).sum(axis=(3, 4))
    counts = _windows(np.ones_like(values[:1]), stage, 0.0).sum(axis=(3, 4))
    if sums is None:
        quotient = summed / counts
    else:
        quotient = _cut(np.ldexp(summed, sums.fraction), counts)
        quotient = np.ldexp(quotient, -sums.fraction)
    made: Array = quotient.reshape(len(values), *stage.shape)
    return made


def _cut(whole: Array, counts: Array) -> Array:
    """Integers divided by integers, cut towards zero; both float64 below 2**53."""
    size = np.abs(whole)
    return np.copysign((size - np.mod(size, counts)) / counts, whole)
