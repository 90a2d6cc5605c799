"""Figures in words, the same in the page's text, its tables and its plots."""

from __future__ import annotations

import math

from ..table import size
from .data import Interval, ReportVariant, Timing

NOT_MEASURED = "not measured"
NOTHING = "–"


def milliseconds(value: float | None) -> str:
    """A time with three digits that count.

    >>> milliseconds(0.03072), milliseconds(12.3456), milliseconds(1234.5), milliseconds(None)
    ('0.0307 ms', '12.3 ms', '1234 ms', '–')
    """
    return NOTHING if value is None else f"{digits(value)} ms"


def seconds(value: float | None) -> str:
    """A duration.

    >>> seconds(0.0123), seconds(75.25)
    ('0.01 s', '75.2 s')
    """
    if value is None:
        return NOTHING
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def digits(value: float) -> str:
    """A number with three digits that count, or all before its point.

    >>> digits(0.00123456), digits(28.2273), digits(65432.1)
    ('0.00123', '28.2', '65432')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def number(value: float | None) -> str:
    """A number, or that there is none.

    >>> number(28.2273), number(None)
    ('28.2', '–')
    """
    return NOTHING if value is None else digits(value)


def ratio(value: float) -> str:
    """A speed-up.

    >>> ratio(28.2273), ratio(1.0234)
    ('28.2×', '1.02×')
    """
    return f"{digits(value)}×"


def interval(found: Interval) -> str:
    """From the least to the most.

    >>> interval(Interval(ratio=28.2, low=27.39, high=29.27))
    '27.4–29.3'
    """
    return f"{digits(found.low)}–{digits(found.high)}"


def bytes_of(value: int | None) -> str:
    """A size, or a dash."""
    return NOTHING if value is None else size(value)


def score(value: float) -> str:
    """A metric's value.

    >>> score(0.92291), score(0.0), score(1e-7), score(-12345.678)
    ('0.9229', '0.0000', '1.000e-07', '-1.235e+04')
    """
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def gain(drop: float) -> str:
    """What a variant gained over its source model, from what it lost.

    >>> gain(0.00167), gain(-0.004), gain(1e-9)
    ('-0.0017', '+0.0040', '+0.0000')
    """
    return f"{round(-drop, 4) + 0.0:+.4f}"


def conditions(timing: Timing) -> str:
    """Under which a time was taken, in a line."""
    parts = [
        "no batch axis" if timing.batch is None else f"batch {timing.batch}",
        "threads as the engine chooses" if timing.threads is None else f"{timing.threads} threads",
        {
            "build": "timed in the build",
            "bench": "tf2aif bench",
            "imported": "tf2aif bench, imported",
        }[timing.origin],
    ]
    if timing.random:
        parts.append("random samples")
    if timing.stable is False:
        parts.append("unstable: repeated windows differ by more than 10%")
    if timing.emulates:
        parts.append(f"emulates {timing.emulates}: not the device's time")
    return ", ".join(parts)


def tip(variant: ReportVariant, timing: Timing | None) -> str:
    """What shows over a mark in a plot."""
    parts = []
    if timing:
        parts.append(milliseconds(timing.median_ms))
    if variant.accuracy:
        parts.append(f"{variant.accuracy.metric} {score(variant.accuracy.value)}")
    if timing and timing.speedup:
        parts.append(f"{ratio(timing.speedup.ratio)} ({interval(timing.speedup)})")
    return f"{variant.number} {variant.id}: {', '.join(parts)}"
