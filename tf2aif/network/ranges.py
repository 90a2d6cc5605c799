"""What a float network's tensors hold over a calibration set, and the positions that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..engines import Array
from ..engines.network import Network
from ..engines.operators import run_float

CANDIDATES = 5  # positions that are tried: the first without saturation, and those above it
HIGHEST = 48  # an untrained network's last activations can be that small
LOWEST = -48
BATCH_VALUES = 2**22  # in the widest tensor of a batch: what calibration holds at once


def batches(net: Network, samples: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """All samples, in batches whose widest tensor fits into memory with ease."""
    widest = max(math.prod(shape) for shape in net.shapes().values())
    size = max(1, min(64, BATCH_VALUES // max(widest, 1)))
    count = len(next(iter(samples.values())))
    for start in range(0, count, size):
        yield {name: np.asarray(a[start : start + size]) for name, a in samples.items()}


def largest_values(net: Network, samples: Mapping[str, Array]) -> dict[str, float]:
    """The largest magnitude of every tensor over all samples."""
    found: dict[str, float] = {}

    def see(name: str, values: Array) -> None:
        found[name] = max(found.get(name, 0.0), float(np.abs(values).max(initial=0)))

    for feeds in batches(net, samples):
        run_float(net, feeds, see)
    return found


def position_errors(
    net: Network, samples: Mapping[str, Array], candidates: Mapping[str, Iterable[int]]
) -> dict[str, dict[int, float]]:
    """The squared error of every tensor at each candidate position, over all samples."""
    found = {name: dict.fromkeys(fixes, 0.0) for name, fixes in candidates.items()}

    def see(name: str, values: Array) -> None:
        for fix in found.get(name, {}):
            found[name][fix] += rounding_error(values, fix)

    for feeds in batches(net, samples):
        run_float(net, feeds, see)
    return found


def rounding_error(values: Array, fix: int) -> float:
    """The squared error of values stored as int8 at a position, rounded half up."""
    scaled = values * np.float32(2.0**fix)
    difference = np.clip(np.floor(scaled + np.float32(0.5)), -128, 127)
    difference -= scaled
    flat = difference.reshape(-1)
    return float(np.dot(flat, flat)) * 4.0**-fix


def fitting(largest: float) -> int:
    """The highest position at which a magnitude does not saturate; 7 for nothing but zeros.

    >>> fitting(1.0), fitting(0.99), fitting(6.0)
    (6, 7, 4)
    """
    if largest == 0:
        return 7
    return max(LOWEST, min(HIGHEST, math.floor(math.log2(127.5 / largest))))


def candidates(largest: float) -> range:
    """The positions that are tried for a magnitude."""
    first = fitting(largest)
    return range(first, min(first + CANDIDATES, HIGHEST + 1))


def best(errors: Mapping[int, float]) -> int:
    """The position of least error; of equals the lowest, which saturates least."""
    return min(errors, key=lambda fix: (errors[fix], fix))
