"""How much load one replica can take before its latency is over the objective.

A replica is one server that answers one request at a time, first come first served. Requests come
at random (Poisson), so it is the queue M/G/1 of the field, and its waiting time is a known
distribution (Pollaczek and Khinchine). Its tail is taken by Lundberg's inequality, an upper bound:
what is planned with it holds. Sources: J. F. C. Kingman, "Inequalities in the theory of queues",
Journal of the Royal Statistical Society B 32 (1970); S. Asmussen, "Applied Probability and
Queues", 2nd edition (2003), chapters VIII.5 and XIII.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from msgspec import Struct

from .catalogue import Percentiles

LEVELS = {
    "p10_ms": 0.10,
    "p50_ms": 0.50,
    "p90_ms": 0.90,
    "p95_ms": 0.95,
    "p99_ms": 0.99,
    "p99_9_ms": 0.999,
}
"""Field of a measurement -> the share of requests that are not slower."""

_STEPS = 34  # of the bisection: rates to a millionth
_MOST = 600.0  # of the exponent: e^600 is still a float


class ServiceTimes(Struct, frozen=True):
    """How long one request takes without a queue: (milliseconds, share), fastest first.

    Only measured values are in it. A request between two percentiles takes either of them, with
    the odds that give the measured mean: nothing between the same ends with that mean varies more,
    so it waits no longer in truth. Where no mean is known it takes the slower one. A request
    beyond the last percentile that was measured is given that one.
    """

    atoms: tuple[tuple[float, float], ...]
    known: float  # the share of the highest percentile that was measured

    @property
    def mean_ms(self) -> float:
        """The mean of `atoms`."""
        return sum(value * share for value, share in self.atoms)

    def at(self, level: float) -> float:
        """The latency, ms, that this share of requests does not go beyond."""
        below = 0.0
        for value, share in self.atoms:
            below += share
            if below >= level - 1e-9:
                return value
        return self.atoms[-1][0]


def service_times(latency: Percentiles) -> ServiceTimes | None:
    """The distribution that the measured percentiles say; None where none was measured.

    >>> service_times(Percentiles(p50_ms=1.0, p90_ms=2.0)).atoms
    ((1.0, 0.5), (2.0, 0.5))
    >>> service_times(Percentiles(mean_ms=1.3, p50_ms=1.0, p90_ms=2.0)).atoms
    ((1.0, 0.7), (2.0, 0.3))
    """
    pieces = list(_pieces(latency))  # (share, faster end, slower end)
    if not pieces or pieces[-1][2] <= 0:
        return None
    slow = sum(share * high for share, _, high in pieces)
    fast = sum(share * low for share, low, _ in pieces)
    odds = 1.0
    if latency.mean_ms is not None and slow > fast:
        odds = min(1.0, max(0.0, (latency.mean_ms - fast) / (slow - fast)))
    atoms: dict[float, float] = {}
    for share, low, high in pieces:
        atoms[low] = atoms.get(low, 0.0) + share * (1 - odds)
        atoms[high] = atoms.get(high, 0.0) + share * odds
    kept = tuple((value, round(share, 12)) for value, share in atoms.items() if share > 1e-12)
    return ServiceTimes(kept, max(_measured(latency)))


def _measured(latency: Percentiles) -> dict[float, float]:
    """Share of requests -> the percentile that was measured; never less than one below."""
    found, value = {}, 0.0
    for field, level in LEVELS.items():
        measured = getattr(latency, field)
        if measured is not None:
            found[level] = value = max(value, measured)
    return found


def _pieces(latency: Percentiles) -> Iterator[tuple[float, float, float]]:
    """Shares of requests, and between which two times they are."""
    known = _measured(latency)
    before, low = 0.0, 0.0
    for level, value in known.items():
        yield level - before, low or value, value
        before, low = level, value
    if known:
        yield 1 - before, low, low


def late_share(times: ServiceTimes, rate: float, deadline_ms: float) -> float:
    """An upper bound of the share of requests that take longer than `deadline_ms`, queue included.

    `rate` is in requests a second. 1 where the queue would grow without end.
    """
    if rate * times.mean_ms >= 1e3:
        return 1.0
    low, high = 0.0, _MOST / times.atoms[-1][0]
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _rate(times, middle) > rate else (low, middle)
    return _bound(times, low, rate, deadline_ms) if low else 1.0


@lru_cache(maxsize=100_000)
def highest_rate(
    times: ServiceTimes, deadline_ms: float | None, late: float, utilisation: float
) -> float:
    """Requests a second with which at most the share `late` takes longer than `deadline_ms`.

    The replica is busy at most the share `utilisation` of the time. Without a deadline that is
    all; 0 where not even a request that waits for nobody is in time.
    """
    most = utilisation * 1e3 / times.mean_ms
    if deadline_ms is None:
        return most
    low, high = 0.0, _MOST / times.atoms[-1][0]
    if _bound(times, high, _rate(times, high), deadline_ms) > late:
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        holds = _bound(times, middle, _rate(times, middle), deadline_ms) <= late
        low, high = (low, middle) if holds else (middle, high)
    return min(most, _rate(times, high))


def _rate(times: ServiceTimes, exponent: float) -> float:
    """The arrivals a second whose Lundberg exponent (1/ms) this is: l (E[e^tS] - 1) = t."""
    grown = sum(share * math.expm1(exponent * value) for value, share in times.atoms)
    return 1e3 * exponent / grown


def _bound(times: ServiceTimes, exponent: float, rate: float, deadline_ms: float) -> float:
    """P(wait + service > deadline): an upper bound."""
    return sum(
        share * _waits(times, exponent, rate, deadline_ms - value) for value, share in times.atoms
    )


def _waits(times: ServiceTimes, exponent: float, rate: float, over_ms: float) -> float:
    """P(wait > over): an upper bound.

    A request that waits does so for the rest R of the one that is served, and for another wait
    W' that is distributed as its own: P(W > t) = r P(R + W' > t), r the utilisation. Lundberg's
    P(W' > t) <= e^(-exponent t) stands in the place of W'.
    """
    if over_ms < 0:
        return 1.0
    rest = within = 0.0
    for value, share in times.atoms:
        rest += share * max(0.0, value - over_ms)
        inside = min(value, over_ms) - over_ms
        within += share * (math.exp(exponent * inside) - math.exp(-exponent * over_ms))
    return rate / 1e3 * (rest + within / exponent)
