"""A simulation of plans under a load: what their latency, energy and cost come to.

Each replica answers one request at a time, first come first served; which replica takes a request
is drawn by the shares of the plan, as a load balancer with weights does. So the replicas do not
hang on each other, and the events of each are known without a queue of events: a request starts
when it has come and the one before it is done (Lindley's recursion; D. V. Lindley, "The theory of
queues with a single server", Proc. Cambridge Philosophical Society 48, 1952). Over arrays that is
a running sum and a running maximum: a million requests take a fraction of a second.

Service times are drawn from the measured percentiles, see `queueing.service_times`. All plans get
the same requests and the same random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..client.figures import Latency, latency_of
from .load import Load, Seconds
from .objective import Objective
from .placement import By
from .problem import SHARES, Option, Plan, Problem, Wanted
from .queueing import LEVELS
from .simulation import Energy, PolicyResult, Series, ServiceResult, Simulation

BINS = 60
"""Points of a time series at most."""

_CHANCE = 3.0
"""Standard errors: an objective that is missed by less is held."""

Bools = NDArray[np.bool_]


class _Served(Struct, frozen=True, kw_only=True):
    """What became of the requests of one service."""

    arrivals: Seconds
    latency_ms: NDArray[np.float64]
    options: Mapping[int, tuple[int, float]]  # option -> (requests, seconds of work)
    busiest: float  # share of the time of the busiest replica


def simulate(
    problem: Problem,
    plans: Mapping[By, Plan],
    load: Load,
    seed: int = 0,
    order: Sequence[Literal["energy", "cost"]] = ("energy", "cost"),
    currency: str = "",
) -> Simulation:
    """What each plan comes to under the load. The same arguments give the same result."""
    return Simulation(
        load="poisson" if load.recorded is None else "recorded",
        source=load.recorded,
        seed=seed,
        duration_s=load.duration_s,
        requests=load.requests,
        order=tuple(order),
        currency=currency,
        policies={name: _run(problem, plan, load, seed) for name, plan in plans.items()},
    )


def ranks(result: PolicyResult, order: Sequence[str]) -> tuple[float, ...]:
    """What a policy came to in the order in which it counts; less is better."""
    tiers = {
        "energy": (result.energy.unknown_requests, result.energy.joules),
        "cost": (result.cost_unknown, result.cost),
    }
    return (result.missed_weight, *(one for name in order for one in tiers[name]))


def answer(arrivals: Seconds, work: Seconds) -> Seconds:
    """When each request of one replica is done: arrivals in order, and the seconds each takes.

    >>> answer(np.array([0.0, 1.0, 5.0]), np.array([2.0, 2.0, 1.0]))
    array([2., 4., 6.])
    """
    done = np.cumsum(work)
    return done + np.maximum.accumulate(arrivals - (done - work))


def _run(problem: Problem, plan: Plan, load: Load, seed: int) -> PolicyResult:
    served = {
        wanted.name: _serve(problem, index, plan, load, seed)
        for index, wanted in enumerate(problem.services)
    }
    services = {
        wanted.name: _service(wanted, served[wanted.name], load) for wanted in problem.services
    }
    there = [one for one in served.values() if one is not None]
    in_time = {w.name: _in_time(w, served[w.name]) for w in problem.services}
    hours = load.duration_s / 3600
    used = [(problem.classes[i], len(rooms)) for i, rooms in enumerate(plan.nodes)]
    return PolicyResult(
        latency=_latency(np.concatenate([np.zeros(0), *(one.latency_ms for one in there)])),
        in_time=sum(int(one.sum()) for one in in_time.values()) / max(1, load.requests),
        missed=tuple(name for name, one in services.items() if not one.met),
        missed_weight=sum(w.service.weight for w in problem.services if not services[w.name].met),
        energy=_energy(problem, plan, there, load.duration_s),
        cost=sum(count * (nodes.cost_u or 0) for nodes, count in used) / 1e6 * hours,
        cost_unknown=sum(count for nodes, count in used if nodes.cost_u is None),
        nodes=sum(count for _, count in used),
        replicas=sum(plan.replicas().values()),
        utilisation=_utilisation(problem, plan, there, load.duration_s),
        services=services,
        series=_series(load, served, in_time),
    )


def _serve(problem: Problem, index: int, plan: Plan, load: Load, seed: int) -> _Served | None:
    """Send the requests of one service to its replicas; None where it is not placed."""
    wanted, replicas = problem.services[index], plan.replicas()
    own = [number for number in wanted.options if plan.parts.get(number)]
    if not own:
        return None
    arrivals = load.arrivals[wanted.name]
    random = np.random.default_rng([seed, index, 1])
    to, slow = random.random(len(arrivals)), random.random(len(arrivals))
    edges = np.repeat(
        [plan.parts[number] / SHARES / replicas[number] for number in own],
        [replicas[number] for number in own],
    ).cumsum()
    replica = np.minimum(np.searchsorted(edges, to, side="right"), len(edges) - 1)
    of = np.repeat(own, [replicas[number] for number in own])
    work = np.empty(len(arrivals))
    options: dict[int, tuple[int, float]] = {}
    for number in own:
        mine = of[replica] == number
        work[mine] = _work(problem.options[number], slow[mine])
        options[number] = int(mine.sum()), float(work[mine].sum())
    done, busy = _by_replica(arrivals, work, replica, len(edges))
    return _Served(
        arrivals=arrivals,
        latency_ms=(done - arrivals) * 1000,
        options=options,
        busiest=busy / load.duration_s,
    )


def _work(option: Option, drawn: NDArray[np.float64]) -> Seconds:
    """Seconds of work of requests, from numbers drawn between 0 and 1."""
    values = np.array([value for value, _ in option.times.atoms]) / 1000
    edges = np.cumsum([share for _, share in option.times.atoms])
    found: Seconds = values[
        np.minimum(np.searchsorted(edges, drawn, side="right"), len(values) - 1)
    ]
    return found


def _by_replica(
    arrivals: Seconds, work: Seconds, replica: NDArray[np.int64], count: int
) -> tuple[Seconds, float]:
    """(when each request is done, seconds that the busiest replica works)."""
    order = np.argsort(replica, kind="stable")
    ends = np.searchsorted(replica[order], np.arange(count + 1))
    done = np.empty(len(arrivals))
    busiest = 0.0
    for low, high in pairwise(ends):
        mine = order[low:high]
        if len(mine):
            done[mine] = answer(arrivals[mine], work[mine])
            busiest = max(busiest, float(work[mine].sum()))
    return done, busiest


def _service(wanted: Wanted, served: _Served | None, load: Load) -> ServiceResult:
    """What one service's requests came to."""
    requests = len(load.arrivals[wanted.name])
    if served is None:
        return ServiceResult(placed=False, met=False, requests=requests)
    limits = [one for one in wanted.service.limits if one.of.kind == "latency"]
    shares = {str(one): _share(served.latency_ms, one) for one in limits}
    return ServiceResult(
        placed=True,
        met=all(_holds(shares[str(one)], one, requests) for one in limits),
        requests=requests,
        latency=_latency(served.latency_ms),
        within=shares,
        busiest=served.busiest,
    )


def _share(latency_ms: NDArray[np.float64], objective: Objective) -> float:
    """The share of requests within a latency objective; of none at all, all."""
    within = latency_ms < objective.limit if objective.strict else latency_ms <= objective.limit
    return float(within.mean()) if len(within) else 1.0


def _holds(share: float, objective: Objective, requests: int) -> bool:
    """Whether a share is what the objective asks for, but for chance."""
    level = _level(objective)
    return share >= level - _CHANCE * math.sqrt(level * (1 - level) / max(1, requests))


def _level(objective: Objective) -> float:
    return LEVELS[f"{objective.quantity.replace('.', '_')}_ms"]


def _in_time(wanted: Wanted, served: _Served | None) -> Bools:
    """Of each request, whether it is within the objective of the highest percentile."""
    if served is None:
        return np.zeros(0, dtype=bool)
    limits = [one for one in wanted.service.limits if one.of.kind == "latency"]
    if not limits:
        return np.ones(len(served.latency_ms), dtype=bool)
    return np.asarray(served.latency_ms <= max(limits, key=_level).limit)


def _latency(latency_ms: NDArray[np.float64]) -> Latency | None:
    if not len(latency_ms):
        return None
    return latency_of(np.sort(np.round(latency_ms * 1e6).astype(np.int64)))


def _energy(problem: Problem, plan: Plan, served: Sequence[_Served], duration_s: float) -> Energy:
    """Of nodes in use and of requests."""
    idle = sum(
        problem.classes[index].idle_uw * len(rooms) / 1e6 * duration_s
        for index, rooms in enumerate(plan.nodes)
    )
    known, unknown = 0.0, 0
    for one in served:
        for number, (requests, _) in one.options.items():
            joules = problem.options[number].request_j
            known += requests * (joules or 0.0)
            unknown += requests if joules is None else 0
    return Energy(joules=idle + known, idle_joules=idle, unknown_requests=unknown)


def _utilisation(
    problem: Problem, plan: Plan, served: Sequence[_Served], duration_s: float
) -> float | None:
    """The share of the cores of nodes in use that work; None where none is in use."""
    cores = sum(problem.classes[index].cores * len(rooms) for index, rooms in enumerate(plan.nodes))
    if not cores:
        return None
    work = sum(
        seconds * problem.options[number].cores
        for one in served
        for number, (_, seconds) in one.options.items()
    )
    return work / duration_s / cores


def _series(
    load: Load, served: Mapping[str, _Served | None], in_time: Mapping[str, Bools]
) -> Series:
    """All requests in equal pieces of time."""
    edges = np.linspace(0.0, load.duration_s, BINS + 1)
    there = [(name, one) for name, one in served.items() if one is not None]
    every = np.concatenate([np.zeros(0), *load.arrivals.values()])
    came = np.histogram(every, edges)[0]
    arrivals = np.concatenate([np.zeros(0), *(one.arrivals for _, one in there)])
    latency = np.concatenate([np.zeros(0), *(one.latency_ms for _, one in there)])
    good = np.concatenate([np.zeros(0, dtype=bool), *(in_time[name] for name, _ in there)])
    pieces = np.clip(np.searchsorted(edges, arrivals, side="right") - 1, 0, BINS - 1)
    found = [_piece(latency[pieces == number]) for number in range(BINS)]
    kept = np.bincount(pieces[good], minlength=BINS)
    width = load.duration_s / BINS
    return Series(
        start_s=tuple(round(float(one), 6) for one in edges[:-1]),
        rate=tuple(float(one) / width for one in came),
        p50_ms=tuple(piece[0] for piece in found),
        p99_ms=tuple(piece[1] for piece in found),
        in_time=tuple(
            float(good_) / int(all_) if all_ else None
            for good_, all_ in zip(kept, came, strict=True)
        ),
    )


def _piece(latency_ms: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """(median, 99th percentile) of some requests, by LoadGen's rule; None where there are none."""
    count = len(latency_ms)
    if not count:
        return None, None
    ordered = np.sort(latency_ms)
    return float(ordered[int(count * 0.5)]), float(ordered[min(count - 1, int(count * 0.99))])
