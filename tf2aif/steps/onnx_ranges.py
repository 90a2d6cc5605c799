"""Ranges of activations, observed on a calibration set: the threshold beyond which values saturate.

`minmax` takes the largest absolute value; `percentile` the value that so many percent do not reach;
`entropy` the threshold that loses least information (Kullback-Leibler divergence) of the values'
distribution, after Migacz, "8-bit Inference with TensorRT", 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..engines import Array, Tensors
from ..errors import StepFailed

Method = Literal["minmax", "entropy", "percentile"]

BINS = 2048
LEVELS = 128  # of one sign
STRIDE = 8  # bins between the thresholds that are tried: 240 of them


def thresholds(
    model: Any,
    tensors: Sequence[str],
    feeds: Callable[[], Iterator[Tensors]],
    method: Method,
    percentile: float,
) -> dict[str, float]:
    """A threshold for each tensor, from running the model over all feeds.

    `feeds` is called once for each pass: there are two, but for `minmax`. Only one batch's values
    are in memory at a time. Raises StepFailed for NaN and infinity, and names the tensor.
    """
    session = _observed(model, tensors)
    largest = dict.fromkeys(tensors, 0.0)
    for count, values in enumerate(_passes(session, tensors, feeds), 1):
        for name, array in values.items():
            peak = float(np.abs(array).max(initial=0.0))
            if not np.isfinite(peak):
                raise StepFailed(
                    f"NaN or infinity in '{name}' at batch {count} of the calibration set",
                    hint="does the float model itself give numbers for these samples?",
                )
            largest[name] = max(largest[name], peak)
    if method == "minmax":
        return largest
    counts = {name: np.zeros(BINS, np.int64) for name in tensors}
    for values in _passes(session, tensors, feeds):
        for name, array in values.items():
            counts[name] += _histogram(array, largest[name])
    print(f"{len(tensors)} histograms filled, thresholds by {method}", flush=True)
    choose = entropy_bins if method == "entropy" else lambda c: percentile_bins(c, percentile)
    return {name: largest[name] * choose(counts[name]) / BINS for name in tensors}


def _observed(model: Any, tensors: Sequence[str]) -> Any:
    """A session that gives inner tensors."""
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for i, tensor in enumerate(tensors):
        watched.graph.output.add(name=f"watched.{i}")
        watched.graph.node.add(op_type="Identity", input=[tensor], output=[f"watched.{i}"])
    return make_session(watched)


def make_session(model: Any) -> Any:
    """A session of ONNX Runtime on the CPU, of a model in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _passes(
    session: Any, tensors: Sequence[str], feeds: Callable[[], Iterator[Tensors]]
) -> Iterator[Mapping[str, Array]]:
    wanted = [each.name for each in session.get_outputs()]
    for feed in feeds():
        yield dict(zip(tensors, session.run(wanted, dict(feed)), strict=True))


def _histogram(array: Array, largest: float) -> Array:
    if not largest:
        return np.zeros(BINS, np.int64)
    bins = (np.abs(array).ravel() * (BINS / largest)).astype(np.int32)
    return np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)


def percentile_bins(counts: Array, percentile: float) -> float:
    """How many bins hold that share of the values, counted from zero; the last one in part.

    >>> percentile_bins(np.array([50, 40, 10]), 95.0)
    2.5
    """
    total = np.cumsum(counts)
    if not total[-1]:
        return float(len(counts))
    wanted = total[-1] * percentile / 100
    last = int(np.searchsorted(total, wanted))
    before = total[last - 1] if last else 0
    return last + float((wanted - before) / counts[last])


def entropy_bins(counts: Array, levels: int = LEVELS) -> float:
    """How many bins to keep so that the values' distribution in `levels` steps is nearest to it."""
    if not counts.any():
        return float(len(counts))
    counts = counts.astype(np.float64)
    counts[0] = counts[1]  # the zeros of a ReLU are exact at any scale, and would outweigh the rest
    best, kept = np.inf, len(counts)
    for size in range(levels, len(counts) + 1, STRIDE):
        divergence = _divergence(counts, size, levels)
        if divergence < best:
            best, kept = divergence, size
    return float(kept)


def _divergence(counts: Array, size: int, levels: int) -> float:
    """Kullback-Leibler divergence of `size` bins, the rest saturated, from them in few levels."""
    inside = counts[:size]
    reference = inside.copy()
    reference[-1] += counts[size:].sum()
    edges = np.linspace(0, size, levels + 1).astype(np.int64)
    used = np.add.reduceat((inside > 0).astype(np.float64), edges[:-1])
    sums = np.add.reduceat(inside, edges[:-1])
    means = np.divide(sums, used, out=np.zeros(levels), where=used > 0)
    candidate = np.where(inside > 0, np.repeat(means, np.diff(edges)), 0.0)
    mass, rest = reference.sum(), candidate.sum()
    if not rest:
        return np.inf
    there = (reference > 0) & (candidate > 0)
    p, q = reference[there] / mass, candidate[there] / rest
    # What saturates into an empty bin has no counterpart: it costs as much as a very rare value.
    lost = reference[(reference > 0) & (candidate == 0)].sum() / mass
    return float((p * np.log(p / q)).sum() + lost * np.log(1e6))
