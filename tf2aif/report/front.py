"""The Pareto front: which variants nobody beats in both, accuracy and latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite

import msgspec

from .data import ReportVariant, Timing


def timing_on(variant: ReportVariant, machine: str) -> Timing | None:
    """The variant's own time on a machine; None where it was not measured, or only emulated."""
    own = (t for t in variant.timings if t.machine == machine and not t.emulates)
    return next((timing for timing in own if timing.median_ms > 0), None)


def machines_of(variants: Iterable[ReportVariant]) -> tuple[str, ...]:
    """The machines on which any of them was timed; first the one with the most of them."""
    found = Counter(t.machine for v in variants for t in v.timings if not t.emulates)
    return tuple(machine for machine, _ in found.most_common())


def pareto_front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """The names whose (cost, worth) no other one dominates, by rising cost.

    One dominates another where it costs no more, is worth no less, and differs. Of equals all stay.

    >>> pareto_front({"a": (1.0, 0.9), "b": (2.0, 0.9), "c": (3.0, 0.95)})
    ('a', 'c')
    """
    ordered = sorted(points.items(), key=lambda item: (item[1][0], -item[1][1]))
    front: list[str] = []
    best: tuple[float, float] | None = None
    for name, point in ordered:
        if best is None or point[1] > best[1] or point == best:
            front.append(name)
            best = point
    return tuple(front)


def with_fronts(variants: Iterable[ReportVariant]) -> tuple[ReportVariant, ...]:
    """Variants of one recipe, each told on which machines it is on the front.

    One that failed its gate is on none: what it lost is too much at any speed.
    """
    these = tuple(variants)
    on: dict[str, list[str]] = {one.id: [] for one in these}
    for machine in machines_of(these):
        for name in pareto_front(_points(these, machine)):
            on[name].append(machine)
    return tuple(msgspec.structs.replace(v, front_on=tuple(on[v.id])) for v in these)


def _points(variants: Iterable[ReportVariant], machine: str) -> dict[str, tuple[float, float]]:
    """Latency and accuracy of each variant that has both, and may be used."""
    return {
        v.id: (timing.median_ms, v.accuracy.value)
        for v in variants
        if v.state != "failed" and (timing := timing_on(v, machine))
        if v.accuracy and isfinite(v.accuracy.value)
    }
