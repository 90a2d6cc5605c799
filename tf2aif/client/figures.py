"""Percentiles and throughput of windows, and whether they are stable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from .load import Nanoseconds, Scenario, Window

STABLE_WINDOWS = 3
STABLE_WITHIN = 0.10
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}


class Latency(Struct, frozen=True, kw_only=True):
    """Of queries, milliseconds. A percentile with no query beyond it is None."""

    mean_ms: Annotated[float, Meta(description="of all queries")]
    min_ms: Annotated[float, Meta(description="of the fastest query")]
    max_ms: Annotated[float, Meta(description="of the slowest query")]
    p50_ms: Annotated[float | None, Meta(description="the median")]
    p90_ms: Annotated[float | None, Meta(description="1 in 10 is slower")]
    p95_ms: Annotated[float | None, Meta(description="1 in 20 is slower")]
    p99_ms: Annotated[float | None, Meta(description="1 in 100 is slower")]
    p99_9_ms: Annotated[float | None, Meta(description="1 in 1000 is slower")]


class WindowFigures(Struct, frozen=True, kw_only=True):
    """One window in short."""

    p50_ms: Annotated[float, Meta(description="the median latency of its queries")]
    throughput: Annotated[float, Meta(description="samples a second")]
    queries: Annotated[int, Meta(description="that were answered")]
    errors: Annotated[int, Meta(description="requests that failed")]


class Figures(Struct, frozen=True, kw_only=True):
    """One subject in one scenario: over the last three windows, whether they agree or not."""

    scenario: Annotated[Scenario, Meta(description="of MLPerf LoadGen")]
    stable: Annotated[
        bool, Meta(description="the last three windows are within 10%, no request failed in them")
    ]
    latency: Annotated[
        Latency | None, Meta(description="null: the scenario has none that says anything")
    ]
    throughput: Annotated[float, Meta(description="samples a second")]
    queries: Annotated[int, Meta(description="in the last three windows")]
    samples: Annotated[int, Meta(description="in the last three windows")]
    errors: Annotated[int, Meta(description="requests that failed, of all windows")]
    failures: Annotated[dict[str, int], Meta(description="what was wrong -> how many requests")]
    windows: Annotated[tuple[WindowFigures, ...], Meta(description="all, in order")]


def verdict(figures: Figures) -> str:
    """What the figures are worth, in a word or two."""
    if figures.errors:
        return "with errors"
    return "stable" if figures.stable else "unstable"


def percentile(ordered: Nanoseconds, share: float) -> int:
    """The value at that share of sorted latencies, by LoadGen's rule: no interpolation.

    >>> percentile(np.array([1, 2, 3, 4]), 0.5)
    3
    """
    return int(ordered[min(len(ordered) - 1, int(len(ordered) * share))])


def figures_of(scenario: Scenario, windows: Sequence[Window]) -> Figures:
    """The figures of all windows of one subject, in order; at least one."""
    last = windows[-STABLE_WINDOWS:]
    failures: Counter[str] = Counter()
    for window in windows:
        failures.update(window.failures)
    latencies = np.sort(np.concatenate([window.latencies_ns for window in last]))
    return Figures(
        scenario=scenario,
        stable=is_stable(scenario, windows),
        latency=None if scenario == "offline" else latency_of(latencies),
        throughput=sum(w.samples for w in last) / sum(w.duration_s for w in last),
        queries=len(latencies),
        samples=sum(window.samples for window in last),
        errors=sum(failures.values()),
        failures=dict(failures),
        windows=tuple(_in_short(window) for window in windows),
    )


def is_stable(scenario: Scenario, windows: Sequence[Window]) -> bool:
    """Whether the last three windows are within 10% of each other, without a failed request.

    What is compared is the median latency; the throughput in the scenario offline.
    """
    last = windows[-STABLE_WINDOWS:]
    if len(last) < STABLE_WINDOWS or any(window.failures for window in last):
        return False
    values = [_headline(scenario, window) for window in last]
    return max(values) <= min(values) * (1 + STABLE_WITHIN)


def latency_of(ordered: Nanoseconds) -> Latency:
    """The latency figures of sorted nanoseconds."""
    found = {
        f"{name}_ms": percentile(ordered, share) / 1e6
        if len(ordered) * (1 - share) > 1 - 1e-9  # rounding: 10 * (1 - 0.9) is less than 1
        else None
        for name, share in PERCENTILES.items()
    }
    return Latency(
        mean_ms=float(ordered.mean()) / 1e6,
        min_ms=int(ordered[0]) / 1e6,
        max_ms=int(ordered[-1]) / 1e6,
        **found,
    )


def _headline(scenario: Scenario, window: Window) -> float:
    if scenario == "offline":
        return window.samples / window.duration_s
    return float(np.median(window.latencies_ns))


def _in_short(window: Window) -> WindowFigures:
    return WindowFigures(
        p50_ms=percentile(np.sort(window.latencies_ns), 0.5) / 1e6,
        throughput=window.samples / window.duration_s,
        queries=len(window.latencies_ns),
        errors=sum(window.failures.values()),
    )
