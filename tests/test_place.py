"""Placing services on fleets: the queue, the options, the policies, the solver, the simulator."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from choosing import XEON, measured, variant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tf2aif.choose import solver
from tf2aif.choose.catalogue import (
    Catalogue,
    CatalogueVariant,
    Percentiles,
    Requirements,
    encode_catalogue,
)
from tf2aif.choose.fleet import Fleet, Given, Node
from tf2aif.choose.load import MOST, Load, poisson, recorded
from tf2aif.choose.options import make_problem
from tf2aif.choose.place import place, plans
from tf2aif.choose.placement import encode_placement, read_placement
from tf2aif.choose.policies import POLICIES, greedy
from tf2aif.choose.problem import (
    SHARES,
    NodeClass,
    Option,
    Plan,
    Problem,
    Room,
    Wanted,
    check,
    totals,
)
from tf2aif.choose.queueing import (
    LEVELS,
    ServiceTimes,
    highest_rate,
    late_share,
    service_times,
)
from tf2aif.choose.select import places_of
from tf2aif.choose.services import FleetService, Services, convert_services
from tf2aif.choose.simulate import answer, ranks, simulate
from tf2aif.choose.simulation import encode_simulation, read_simulation
from tf2aif.cli import main
from tf2aif.errors import FilesError, Tf2aifError
from tf2aif.spec.document import parse

ROOT = Path(__file__).parents[1]
AIMS = ("energy", "cost")
quick = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


# The queue.


def one_by_one(arrivals: Sequence[float], work: Sequence[float]) -> Iterator[float]:
    """When each request is done, event by event: the oracle of `answer`."""
    free = 0.0
    for came, takes in zip(arrivals, work, strict=True):
        free = max(free, came) + takes
        yield free


@quick
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 5)), min_size=1, max_size=40))
def test_a_replica_answers_in_the_order_of_arrival(requests: list[tuple[float, float]]) -> None:
    arrivals = np.sort([came for came, _ in requests])
    work = np.array([takes for _, takes in requests])
    assert answer(arrivals, work) == pytest.approx(list(one_by_one(arrivals, work)))


@pytest.mark.parametrize("utilisation", [0.3, 0.7])
@pytest.mark.parametrize("kind", ["M/M/1", "M/D/1"])
def test_mean_waits_are_those_of_theory(kind: str, utilisation: float) -> None:
    # Pollaczek and Khinchine: W = l E[S^2] / 2(1 - r); E[S^2] is 2 for M/M/1, 1 for M/D/1.
    random, count, batches = np.random.default_rng(5), 400_000, 20
    arrivals = np.cumsum(random.exponential(1 / utilisation, count))
    work = random.exponential(1.0, count) if kind == "M/M/1" else np.ones(count)
    waits = answer(arrivals, work) - arrivals - work
    means = waits.reshape(batches, -1).mean(axis=1)  # batch means: waits hang on each other
    error = means.std(ddof=1) / math.sqrt(batches)
    theory = utilisation * (2 if kind == "M/M/1" else 1) / (2 * (1 - utilisation))
    assert error < 0.1 * theory
    assert abs(waits.mean() - theory) < 4 * error


def drawn(times: ServiceTimes, count: int, random: np.random.Generator) -> Any:
    shares = np.array([share for _, share in times.atoms])
    return random.choice([value for value, _ in times.atoms], size=count, p=shares / shares.sum())


TIMES = [
    ServiceTimes(((1.0, 1.0),), 0.99),
    ServiceTimes(((1.0, 0.5), (1.2, 0.4), (1.5, 0.05), (2.0, 0.05)), 0.99),
    ServiceTimes(((1.0, 0.9), (8.0, 0.1)), 0.99),
]


@pytest.mark.parametrize("times", TIMES, ids=["constant", "narrow", "wide"])
@pytest.mark.parametrize(("deadline", "late"), [(2.5, 0.05), (9.0, 0.01), (30.0, 0.01)])
def test_the_planned_rate_holds_its_objective(
    times: ServiceTimes, deadline: float, late: float
) -> None:
    rate = highest_rate(times, deadline, late, 1.0)
    alone = sum(share for value, share in times.atoms if value > deadline)
    assert (rate == 0) == (alone > late)
    if not rate:
        return
    count, random = 300_000, np.random.default_rng(11)
    arrivals = np.cumsum(random.exponential(1e3 / rate, count))
    took = answer(arrivals, drawn(times, count, random)) - arrivals
    over = (took > deadline).reshape(20, -1).mean(axis=1)
    assert over.mean() <= late + 4 * over.std() / math.sqrt(20)
    assert late_share(times, rate, deadline) == pytest.approx(late, rel=1e-3)
    assert (
        late_share(times, rate * 1.01, deadline) > late > late_share(times, rate * 0.99, deadline)
    )


def test_a_bound_is_no_wild_guess() -> None:
    # M/M/1, whose time in the system is exponential: P(T > t) = e^-(m - l)t, known exactly.
    edges = np.linspace(0, 1, 80, endpoint=False) + 1 / 160
    times = ServiceTimes(tuple((float(-math.log(1 - e)), 1 / 80) for e in edges), 0.999)
    exact = 1e3 * (1 + math.log(0.01) / 20)  # a second, where P(T > 20 ms) is 1%
    assert 0.97 * exact < highest_rate(times, 20.0, 0.01, 1.0) < 1.01 * exact


def test_without_an_objective_utilisation_is_the_limit() -> None:
    assert highest_rate(TIMES[0], None, 0.0, 0.8) == pytest.approx(800)
    assert highest_rate(TIMES[0], 1e9, 0.01, 0.8) == pytest.approx(800)
    assert late_share(TIMES[0], 1001.0, 1e9) == 1.0


percentiles = st.lists(st.floats(0.01, 100), min_size=6, max_size=6).map(sorted)


@quick
@given(percentiles, st.floats(0.01, 100))
def test_service_times_keep_what_was_measured(values: list[float], mean: float) -> None:
    measured_ = dict(zip(LEVELS, values, strict=True))
    times = service_times(Percentiles(**measured_))
    assert times is not None
    assert sum(share for _, share in times.atoms) == pytest.approx(1)
    assert {value for value, _ in times.atoms} <= set(values)
    assert [times.at(level) for level in LEVELS.values()] == values
    with_mean = service_times(Percentiles(**measured_, mean_ms=mean))
    assert with_mean is not None
    assert with_mean.mean_ms <= times.mean_ms * (1 + 1e-9)
    low = sum(s * v for s, v in zip((0.5, 0.4, 0.05, 0.04, 0.009, 0.001), values, strict=True))
    if low <= mean <= times.mean_ms:  # shares of the slower ends of p50 to p99.9, at their faster
        assert with_mean.mean_ms <= max(mean, low) * (1 + 1e-6) or with_mean.mean_ms == mean
    for level, value in zip(LEVELS.values(), values, strict=True):
        assert with_mean.at(level) <= value


def test_nothing_measured_is_no_service_time() -> None:
    assert service_times(Percentiles()) is None
    assert service_times(Percentiles(mean_ms=1.0)) is None


# The options.


def fleet_of(**nodes: Any) -> Fleet:
    return msgspec.convert(
        {"nodes": {k: {"platform": "linux/amd64", **v} for k, v in nodes.items()}}, Fleet
    )


def services_of(**services: Any) -> Services:
    return msgspec.convert(
        {"services": {k: {"recipe": "net", "rate": 100, **v} for k, v in services.items()}},
        Services,
    )


def problem_of(
    variants: Sequence[CatalogueVariant], fleet: Fleet, services: Services, **more: Any
) -> Problem:
    return make_problem(Catalogue(variants=tuple(variants)), places_of(fleet), services, **more)


def refusals(problem: Problem) -> dict[str, str]:
    return {one.variant: one.why for wanted in problem.services for one in wanted.refused}


def test_each_variant_that_is_no_option_has_its_reason() -> None:
    variants = [
        variant("arm", measured(), platform="linux/arm64"),
        variant("failed", measured(), state="failed", reason="an operator is missing"),
        variant("good", measured(1.0, threads=1)),
        variant("inexact", measured(), accuracy=0.5),
        variant("slow", measured(8.0)),
        variant("tail", measured(1.0, latency=Percentiles(p50_ms=1.0, p90_ms=2.0))),
        variant("unmeasured"),
        variant("wide", measured(1.0)),  # measured with all of 4 cores
        variant("worse", measured(1.5, threads=1)),
    ]
    fleet = fleet_of(small={"cores": 2})
    problem = problem_of(
        variants, fleet, services_of(s={"objectives": ["p99<=10ms", "accuracy>=0.8"]})
    )
    assert [one.variant for one in problem.options] == ["net/good"]
    assert refusals(problem) == {
        "net/arm": "the node is linux/amd64, not linux/arm64",
        "net/failed": "failed: an operator is missing",
        "net/inexact": "accuracy is 0.5000: not accuracy >= 0.8000",
        "net/slow": "no p99 of such a node: measured with 4 cores, the node has 2",
        "net/tail": "its p99 was not measured; too few queries for it",
        "net/unmeasured": "its p99 was not measured",
        "net/wide": "no p99 of such a node: measured with 4 cores, the node has 2",
        "net/worse": "net/good is as good in all that counts",
    }
    large = problem_of(
        variants, fleet_of(n={"cores": 4}), services_of(s={"objectives": ["p99<=10ms"]})
    )
    why = refusals(large)
    assert why["net/slow"] == "p99 is 16 ms without any queue: p99 <= 10 ms leaves none"
    assert why["net/tail"] == "its p99 was not measured; too few queries for it"


def test_what_was_given_is_taken_and_says_so() -> None:
    given_ = Given(variant="net/arm", p50_ms=2.0, p99_ms=4.0, source="a data sheet")
    node = {"platform": "linux/arm64", "figures": [msgspec.to_builtins(given_)], "cores": 4}
    arm = variant("arm", platform="linux/arm64")
    problem = problem_of([arm], fleet_of(edge=node), services_of(s={"objectives": ["p95<=9ms"]}))
    (option,) = problem.options
    assert (option.cores, option.memory_mb, option.request_j) == (4, 0, None)
    assert option.times.atoms == ((2.0, 0.5), (4.0, 0.5))
    assert option.notes == (
        "its figures were given, not measured: a data sheet",
        "on how many cores is not known: one replica a node",
        "its memory was not measured: not counted",
        "its energy was not measured",
    )


def test_a_request_costs_what_idle_nodes_do_not() -> None:
    fleet = fleet_of(n={"cores": 4, "power": {"idle_w": 10, "busy_w": 50}})
    one = variant("a", measured(latency=Percentiles(p50_ms=2.0), threads=1))
    services = services_of(s={})
    (told,) = problem_of([one], fleet, services).options
    assert told.request_j == pytest.approx((50 - 10) * 0.002 / 4)
    metered = variant("a", measured(latency=Percentiles(p50_ms=2.0), threads=1, energy_j=0.02))
    (option,) = problem_of([metered], fleet, services).options
    assert option.request_j == pytest.approx(0.02 - 10 * 0.002 / 4)
    gpu = variant(
        "gpu", measured(threads=1), requires=Requirements(resources={"nvidia.com/gpu": 1})
    )
    with_gpu = fleet_of(
        n={"resources": {"nvidia.com/gpu": 2}, "power": {"idle_w": 10, "busy_w": 50}}
    )
    on_host = msgspec.structs.replace(gpu.measurements[0].machine, gpu="H100")  # type: ignore[type-var]
    gpu = msgspec.structs.replace(
        gpu, measurements=(msgspec.structs.replace(gpu.measurements[0], machine=on_host),)
    )
    (option,) = problem_of([gpu], with_gpu, services).options
    assert (option.request_j, option.resources) == (None, {"nvidia.com/gpu": 1})


def test_a_resource_is_taken_by_its_full_name() -> None:
    card, other = "amd.com/xilinx_u250_shell_4", "amd.com/xilinx_u250_shell_3"
    fpga = variant(
        "fpga",
        measured(threads=1),
        requires=Requirements(resources={"amd.com/xilinx_u250_*": 2}),
    )
    fleet = fleet_of(n={"resources": {other: 1, card: 2}}, m={"resources": {other: 1, card: 1}})
    problem = problem_of([fpga], fleet, services_of(s={}))
    (option,) = problem.options
    assert option.resources == {card: 2}
    assert "the node has too little of amd.com/xilinx_u250" in refusals(problem)["net/fpga"]


def test_nodes_that_do_not_differ_are_one_class() -> None:
    fleet = fleet_of(a={"cores": 4, "count": 3}, b={"cores": 4, "count": 2}, c={"cores": 8})
    problem = problem_of([variant("x", measured(threads=4))], fleet, services_of(s={"rate": 2000}))
    assert [(one.name, one.count) for one in problem.classes] == [("a and 1 more", 5), ("c", 1)]
    found = place(problem, ("cheapest",))
    kinds = {used.nodes: used.count for used in found.nodes}
    assert sum(kinds.values()) == 4
    (groups,) = [one.groups for one in found.services]
    assert sum(group.share for group in groups) == pytest.approx(1)
    assert {group.nodes for group in groups} <= {"a", "b", "c"}


# Policies and the solver.


def node_class(count: int, **fields: Any) -> NodeClass:
    known: dict[str, Any] = {
        "names": (("n", count),),
        "node": Node(platform="linux/amd64"),
        "count": count,
        "cores": 4,
        "memory_mb": None,
        "resources": {},
        "idle_uw": 0,
        "cost_u": None,
    }
    return NodeClass(**{**known, **fields})


small_classes = st.builds(
    node_class,
    st.integers(1, 2),
    cores=st.integers(1, 4),
    memory_mb=st.sampled_from([None, 3, 5]),
    resources=st.sampled_from([{}, {"gpu": 1}, {"gpu": 2}]),
    idle_uw=st.integers(0, 20).map(lambda watts: watts * 10**6),
    cost_u=st.sampled_from([None, 0, 1, 2, 7]),
)


@st.composite
def small_problems(draw: Any) -> Problem:
    """At most two services, two classes of at most two nodes, three options a service."""
    classes = draw(st.lists(small_classes, min_size=1, max_size=2))
    options: list[Option] = []
    services = []
    for index in range(draw(st.integers(1, 2))):
        rate, own = draw(st.integers(1, 6)) * 1000, []
        for number in range(draw(st.integers(0, 3))):
            own.append(len(options))
            nodes = draw(st.integers(0, len(classes) - 1))
            power = draw(st.one_of(st.none(), st.integers(0, 30)))
            options.append(
                Option(
                    service=index,
                    variant=f"net/v{number}",
                    nodes=nodes,
                    measurement=measured(),
                    times=TIMES[0],
                    rate_m=draw(st.integers(500, 5000)),
                    cores=draw(st.integers(1, min(3, classes[nodes].cores))),
                    memory_mb=draw(st.integers(0, 3)),
                    resources=draw(st.sampled_from([{}, {"gpu": 1}]))
                    if classes[nodes].resources
                    else {},
                    request_j=None if power is None else power / rate * 1000,
                    power_uw=None if power is None else power * 10**6,
                )
            )
        service = FleetService(
            recipe="net", rate=rate / 1000, replicas=draw(st.integers(1, 2)), weight=index + 1
        )
        services.append(
            Wanted(name=f"s{index}", service=service, rate_m=rate, options=tuple(own), refused=())
        )
    return Problem(services=tuple(services), classes=tuple(classes), options=tuple(options))


def contents(problem: Problem, index: int) -> list[dict[int, int]]:
    """All that one node of a class can hold."""
    found: list[dict[int, int]] = [{}]
    for number, option in enumerate(problem.options):
        if option.nodes == index:
            found = [
                {**holds, **({number: count} if count else {})}
                for holds in found
                for count in range(room_for(problem, index, holds, option) + 1)
            ]
    return found


def room_for(problem: Problem, index: int, holds: dict[int, int], option: Option) -> int:
    room = Room(problem.classes[index])
    for number, count in holds.items():
        room.put(number, problem.options[number], count)
    return min(room.fit(option), 4)


def all_plans(problem: Problem) -> Iterator[Plan]:
    """Every way to fill the nodes, with the load split to draw the least."""
    ways = [
        list(itertools.combinations_with_replacement(contents(problem, index), one.count))
        for index, one in enumerate(problem.classes)
    ]
    for choice in itertools.product(*ways):
        plan = Plan(nodes=tuple(tuple(h for h in rooms if h) for rooms in choice), parts={})
        if (parts := split(problem, plan.replicas())) is not None:
            yield msgspec.structs.replace(plan, parts=parts)


def split(problem: Problem, replicas: dict[int, int]) -> dict[int, int] | None:
    """The parts of each option, those that draw least first; None where that is no plan."""
    parts: dict[int, int] = {}
    for wanted in problem.services:
        own = [number for number in wanted.options if replicas.get(number)]
        if not own:
            continue
        left = SHARES
        for number in sorted(
            own,
            key=lambda n: (problem.options[n].power_uw is None, problem.options[n].power_uw or 0),
        ):
            taken = min(left, problem.parts_of(problem.options[number], replicas[number]))
            left -= taken
            if taken:
                parts[number] = taken
        if left or sum(replicas[number] for number in own) < wanted.service.replicas:
            return None
    return parts


@settings(quick, max_examples=40)
@given(small_problems(), st.permutations(AIMS))
def test_the_solver_finds_the_best_of_all_plans(problem: Problem, order: list[str]) -> None:
    found, solution = plans(problem, order=order)  # type: ignore[arg-type]
    assert solution is not None
    assert solution.exact
    best = min(totals(problem, plan).rank(order) for plan in all_plans(problem))
    assert totals(problem, found["solver"]).rank(order) == best
    assert all(tier.gap == 0 for tier in solution.tiers)
    for plan in found.values():
        assert totals(problem, plan).rank(order) >= best


def large_problem(seed: int, services: int = 12) -> Problem:
    """Some kinds of nodes, tens of each, and more load than a few of them take."""
    random = np.random.default_rng(seed)
    kinds = [
        (30, 8, 30, 0.2, {}),
        (20, 16, 80, 0.5, {}),
        (10, 16, 120, 1.5, {"gpu": 2}),
        (25, 4, 5, 0.05, {}),
    ]
    classes = tuple(
        node_class(
            count,
            names=((f"k{index}", count),),
            cores=cores,
            memory_mb=cores * 1000,
            resources=resources,
            idle_uw=watts * 10**6,
            cost_u=round(cost * 10**6),
        )
        for index, (count, cores, watts, cost, resources) in enumerate(kinds)
    )
    options: list[Option] = []
    wanted = []
    for index in range(services):
        rate, base, own = int(random.integers(50, 2000)), float(random.choice([0.5, 3, 10])), []
        for nodes, number in itertools.product(range(len(classes)), range(3)):
            gpu = number == 2 and "gpu" in classes[nodes].resources
            value = base * float(random.uniform(0.5, 2)) * (0.1 if gpu else 1)
            times = ServiceTimes(((value, 0.9), (value * 1.3, 0.1)), 0.999)
            joules = value / 1000 * float(random.uniform(1, 15))
            most = highest_rate(times, base * 8, 0.01, 0.8)
            own.append(len(options))
            options.append(
                Option(
                    service=index,
                    variant=f"net/v{number}",
                    nodes=nodes,
                    measurement=measured(),
                    times=times,
                    rate_m=int(most * 1000),
                    cores=1 if gpu else int(random.choice([1, 2, 4])),
                    memory_mb=int(random.choice([200, 500, 1000])),
                    resources={"gpu": 1} if gpu else {},
                    request_j=joules,
                    power_uw=round(joules * rate * 10**6),
                )
            )
        service = FleetService(
            recipe="net", rate=rate, objectives=(f"p99<={base * 8}ms",), replicas=1 + index % 2
        )
        wanted.append(
            Wanted(
                name=f"s{index}",
                service=service,
                rate_m=rate * 1000,
                options=tuple(own),
                refused=(),
            )
        )
    return Problem(services=tuple(wanted), classes=classes, options=tuple(options))


@pytest.fixture(scope="module", params=[1, 2])
def solved(request: Any) -> tuple[Problem, Any, solver.Solution]:
    problem = large_problem(request.param)
    found, solution = plans(problem, effort=0.2)
    assert solution is not None
    return problem, found, solution


def test_the_solver_is_never_worse_than_a_greedy_policy(solved: Any) -> None:
    problem, found, solution = solved
    assert not solution.exact
    by = {name: totals(problem, plan).rank(AIMS) for name, plan in found.items()}
    assert min(by.values()) == by["solver"]
    assert by["solver"] < min(by[name] for name in POLICIES)
    energy = next(tier for tier in solution.tiers if tier.name == "energy_nw")
    assert energy.bound is not None
    assert 0 < energy.bound <= totals(problem, found["solver"]).energy_nw <= energy.value
    assert energy.gap is not None
    assert energy.gap < 0.5


def test_nor_in_the_simulator(solved: Any) -> None:
    problem, found, _ = solved
    services = Services(services={one.name: one.service for one in problem.services})
    result = simulate(problem, found, poisson(services, 3, 20.0), 3)
    by = {name: ranks(one, AIMS) for name, one in result.policies.items()}
    assert min(by.values()) == by["solver"]
    assert [one.missed for one in result.policies.values()] == [()] * 4


def test_the_same_problem_gives_the_same_plan() -> None:
    problem = large_problem(4, services=6)
    start = greedy(problem, "cheapest")
    first, second = (solver.solve(problem, AIMS, start, 0.05) for _ in range(2))
    assert first == second


@quick
@given(small_problems(), st.sampled_from(list(POLICIES)))
def test_greedy_policies_keep_the_rules(problem: Problem, policy: Any) -> None:
    plan = greedy(problem, policy)
    check(problem, plan)
    assert all(holds for rooms in plan.nodes for holds in rooms)


def test_a_broken_plan_is_refused() -> None:
    problem = large_problem(1, services=1)
    plan = greedy(problem, "fastest")
    (number,) = plan.parts
    rooms = [list(one) for one in plan.nodes]
    nodes = problem.options[number].nodes
    rooms[nodes] = [{number: 1000}]
    with pytest.raises(ValueError, match="have no room"):
        check(problem, Plan(nodes=tuple(map(tuple, rooms)), parts=plan.parts))
    with pytest.raises(ValueError, match="not placed wholly"):
        check(problem, Plan(nodes=plan.nodes, parts={number: SHARES - 1}))
    rooms[nodes] = [{number: 1}] * 1000
    with pytest.raises(ValueError, match="more than there are"):
        check(problem, Plan(nodes=tuple(map(tuple, rooms)), parts=plan.parts))


def test_where_not_all_have_room_the_weightier_stay() -> None:
    services = services_of(light={"rate": 400}, heavy={"rate": 400, "weight": 2})
    problem = problem_of([variant("a", measured(threads=4))], fleet_of(n={"cores": 4}), services)
    found = place(problem)
    assert found.unplaced == ("light",)
    light, heavy = found.services
    assert heavy.placed
    assert light.reason.startswith("no room is left: it needs at least 1 x net/a on n")
    assert [one.why for one in light.refused] == [
        "it holds the objectives, but there is no room for it"
    ]


def test_a_solver_that_dies_is_one_message_and_the_next_call_works(solved: Any) -> None:
    problem, found, _ = solved
    solver._process().submit(os.abort)
    with pytest.raises(Tf2aifError, match="process of OR-tools died"):
        solver.solve(problem, AIMS, found["cheapest"], 0.01)
    assert solver.solve(problem, AIMS, found["cheapest"], 0.01).plan


def test_without_the_solver_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "find_spec", lambda name: None)
    problem = large_problem(1, services=1)
    with pytest.raises(Tf2aifError) as caught:
        plans(problem)
    assert "pip install 'tf2aif[place]'" in str(caught.value)
    assert set(plans(problem, ("cheapest",))[0]) == {"cheapest"}


# The simulator.


def tiny() -> tuple[Problem, Any, Services]:
    fleet = fleet_of(
        n={"cores": 4, "count": 2, "cost_per_hour": 3.6, "power": {"idle_w": 10, "busy_w": 50}}
    )
    services = services_of(a={"objectives": ["p99<=5ms"], "rate": 2}, b={"rate": 10_000})
    one = variant("x", measured(latency=Percentiles(p50_ms=4.0, p99_ms=4.0), threads=4))
    problem = problem_of([one], fleet, services)
    return problem, {"cheapest": greedy(problem, "cheapest")}, services


def test_a_simulation_adds_up() -> None:
    problem, found, _ = tiny()
    times = np.array([0.0, 0.002, 1.0, 9.0])
    load = Load(arrivals={"a": times, "b": np.array([1.0])}, duration_s=10.0)
    result = simulate(problem, found, load).policies["cheapest"]
    a, b = result.services["a"], result.services["b"]
    assert (a.placed, a.requests, b.placed, b.requests) == (True, 4, False, 1)
    assert a.latency is not None
    assert (a.latency.min_ms, a.latency.max_ms) == (4.0, 6.0)  # the second waits for the first
    assert a.within == {"p99 <= 5 ms": 0.75}
    assert result.in_time == 3 / 5
    assert result.missed == ("a", "b")  # of four requests one is late: more than chance
    assert result.energy.joules == pytest.approx(10 * 10.0 + 4 * 40 * 0.004)
    assert result.cost == pytest.approx(3.6 * 10 / 3600)
    assert result.utilisation == pytest.approx(4 * 0.004 / 10)
    assert sum(result.series.rate) * 10 / 60 == pytest.approx(5)
    assert result.series.in_time[0] == 0.5


def test_an_objective_that_does_not_hold_is_missed() -> None:
    problem, found, _ = tiny()
    busy = services_of(a={"objectives": ["p99<=5ms"], "rate": 200}, b={"rate": 1})
    result = simulate(problem, found, poisson(busy, 0, 60.0)).policies["cheapest"]
    assert not result.services["a"].met
    assert result.missed_weight == 2


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    problem, found, services = tiny()
    first, second, third = (
        encode_simulation(simulate(problem, found, poisson(services, seed, 5.0), seed))
        for seed in (1, 1, 2)
    )
    assert first == second != third


def test_random_requests_come_as_often_as_asked() -> None:
    services = services_of(a={"rate": 1000}, b={"rate": 10})
    load = poisson(services, 0, 100.0)
    assert abs(len(load.arrivals["a"]) - 100_000) < 5 * math.sqrt(100_000)
    gaps = np.diff(load.arrivals["a"])
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.02)  # exponential
    assert poisson(services_of(a={"rate": 1e6}), 0).duration_s == 2
    with pytest.raises(Tf2aifError, match="more than fit") as caught:
        poisson(services, 0, MOST / 10)
    assert "--duration 19801" in str(caught.value)


RECORDED = {
    "csv": "time_s,service\n5.0,a\n3,b\n4.5,a\n",
    "spaced": "service , time_s\na,5.0\n b ,3\na,4.5\n",
    "jsonl": '{"time_s": 5.0, "service": "a"}\n\n{"time_s": 3, "service": "b"}\n'
    '{"time_s": "4.5", "service": "a"}\n',
}


@pytest.mark.parametrize("kind", RECORDED)
def test_recorded_requests_start_at_the_first(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "load"
    path.write_text(RECORDED[kind])
    load = recorded(path, services_of(a={}, b={}))
    assert {name: list(times) for name, times in load.arrivals.items()} == {
        "a": [1.5, 2.0],
        "b": [0],
    }
    assert (load.duration_s, load.requests) == (2.0, 3)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("time,service\n1,a\n", ("its first line has no column time_s", 1)),
        ("time_s,service\n1,a\n2,aa\nx,a\n", ("unknown service 'aa'", 3)),
        ("time_s,service\n1,a\nnan,a\n", ("'nan' is no time", 3)),
        ("time_s,service\n1,a\n,a\n", ("'' is no time", 3)),
        ('{"time_s": 1, "service": "a"}\n{"time_s": \n', ("not JSON: Expecting value", 2)),
        ('{"time_s": true, "service": "a"}\n', ("'True' is no time", 1)),
        ("time_s,service\n1,a\n", ("fewer than two requests are in it", None)),
        ("time_s,service\n1,a\n1,a\n", ("all its requests come at once", None)),
        ("", ("its first line has no column time_s and no service", 1)),
    ],
)
def test_a_wrong_load_says_where(tmp_path: Path, text: str, fault: tuple[str, int | None]) -> None:
    path = tmp_path / "load.csv"
    path.write_text(text)
    with pytest.raises(FilesError) as caught:
        recorded(path, services_of(a={}, b={}))
    first = caught.value.faults[0]
    message, line = fault
    assert first.message == message
    assert first.at == (f"{path}:{line}" if line else str(path))


# The services file.


ONE = "a: {recipe: net, rate: 5, "
WRONG = [
    ("a: {recipe: net}", "missing key 'rate'", "a", "requests a second"),
    ("a: {recipe: net, rate: -1}", "-1 is less than 0.001", "a.rate", ""),
    (ONE + "objective: [x]}", "unknown key 'objective'", "a.objective", "'objectives'?"),
    (ONE + "objectives: [p98<=5ms]}", "unknown quantity 'p98'", "a.objectives[0]", "did you mean"),
    (ONE + "objectives: [p99<=5 apples]}", "unknown unit 'apples' of p99", "a.objectives[0]", ""),
    (
        ONE + "objectives: [mean<=5ms]}",
        "mean cannot be an objective of a service",
        "a.objectives[0]",
        "limit a percentile",
    ),
    (
        ONE + "objectives: [throughput>=5]}",
        "throughput cannot be an objective of a service",
        "a.objectives[0]",
        "'rate' says",
    ),
    (
        ONE + "objectives: [p99<=5ms, p99<=6ms]}",
        "p99 is limited twice: 'p99<=5ms' and 'p99<=6ms'",
        "a.objectives[1]",
        "keep one",
    ),
    (ONE + "replicas: 0}", "0 is less than 1", "a.replicas", ""),
]


@pytest.mark.parametrize(("text", "message", "at", "hint"), WRONG)
def test_a_wrong_services_file_says_where(text: str, message: str, at: str, hint: str) -> None:
    with pytest.raises(FilesError) as caught:
        convert_services(parse(f"services:\n  {text}\n", "services.yaml"))
    (fault,) = caught.value.faults
    assert (fault.message, fault.at) == (message, f"services.yaml:2: services.{at}")
    assert hint in fault.hint


def test_services_of_nothing_are_none() -> None:
    with pytest.raises(FilesError, match="1 or more keys"):
        convert_services(parse("services: {}", "services.yaml"))


# The command line.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a catalogue of two variants, a fleet and three services."""
    monkeypatch.chdir(tmp_path)
    variants = (
        variant("cpu-fp32", measured(4.0, threads=2, memory_mb=300.0), accuracy=0.95),
        variant("cpu-int8", measured(1.0, threads=1, memory_mb=100.0), accuracy=0.9),
    )
    (tmp_path / "build").mkdir()
    catalogue = encode_catalogue(Catalogue(variants=variants))
    (tmp_path / "build" / "catalogue.json").write_bytes(catalogue)
    (tmp_path / "fleet.yaml").write_text(
        f"currency: EUR\nnodes:\n  rack:\n    platform: linux/amd64\n    cpu: {XEON}\n"
        "    count: 3\n    cores: 4\n    memory_mb: 1000\n    cost_per_hour: 0.2\n"
        "    power: {idle_w: 20, busy_w: 60}\n"
    )
    (tmp_path / "services.yaml").write_text(
        "services:\n  fine: {recipe: net, rate: 50, objectives: ['p99<=40ms', 'accuracy>=0.93']}\n"
        "  fast: {recipe: net, rate: 900, objectives: [p99<=8ms], replicas: 2}\n"
    )
    return tmp_path


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def holds_schema(path: Path, kind: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    schema = json.loads((ROOT / "schemas" / f"{kind}.json").read_text())
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
    return value


def test_place_writes_and_tells(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = say(capsys, "place", "--why")
    assert code == 0
    assert "2 of 2 services on" in out
    assert "by the solver: energy is the least" in out
    assert "not cpu-int8: accuracy is 0.9000: not accuracy >= 0.9300" in out
    path = project / "build" / "placement.json"
    value = holds_schema(path, "placement")
    fine, fast = value["services"]
    assert [group["variant"] for group in fine["groups"]] == ["net/cpu-fp32"]
    assert {group["variant"] for group in fast["groups"]} == {"net/cpu-int8"}
    assert sum(group["replicas"] for group in fast["groups"]) >= 2
    assert all(late <= 0.01 for group in fast["groups"] for late in group["late"].values())
    read = read_placement(path)
    first = path.read_bytes()
    assert encode_placement(read) == first
    assert say(capsys, "place", "--json")[0] == 0
    assert path.read_bytes() == first


def test_a_service_without_room_is_told_and_fails(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (project / "services.yaml").open("a") as file:
        file.write("  huge: {recipe: net, rate: 100000}\n")
    code, out, _ = say(capsys, "place", "--minimise", "cost", "-o", "there/plan.json")
    assert code == 1
    assert "2 of 3 services on" in out
    assert "not placed: huge: no room is left: it needs at least" in out
    assert holds_schema(project / "there" / "plan.json", "placement")["order"] == ["cost", "energy"]


def test_simulate_compares_the_policies(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("simulate", "--duration", "5", "--seed", "3")
    code, out, _ = say(capsys, *words)
    assert code == 0
    for policy in ("solver", *POLICIES):
        assert f"\n{policy} " in out
    path = project / "build" / "simulation.json"
    value = holds_schema(path, "simulation")
    assert set(value["policies"]) == {"solver", *POLICIES}
    assert all(one["in_time"] > 0.98 for one in value["policies"].values())
    assert encode_simulation(read_simulation(path)) == path.read_bytes()
    (project / "load.csv").write_text("time_s,service\n0,fine\n1,fast\n2,fast\n")
    code, out, _ = say(capsys, "simulate", "--load", "load.csv", "--policy", "fastest")
    assert code == 0
    assert "3 requests from load.csv, 2 s" in out
    assert list(holds_schema(path, "simulation")["policies"]) == ["fastest"]


def test_all_that_is_wrong_is_told_at_once(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services, fleet = project / "services.yaml", project / "fleet.yaml"
    services.write_text("services:\n  a: {recipe: nett, rate: 5}\n")
    fleet.write_text(fleet.read_text().replace("memory_mb: 1000", "memory_mb: -5"))
    code, _, err = say(capsys, "place")
    assert code == 2
    assert "no variant of a recipe 'nett' is in the catalogue" in err
    assert "services.yaml:2: services.a.recipe" in err
    assert "did you mean 'net'?" in err
    assert "-5 is less than 1\n   at: fleet.yaml:8: nodes.rack.memory_mb" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("place", "none.yaml"), "no such file"),
        (("place", "--nodes", "none.yaml"), "no such file"),
        (("place", "--catalogue", "none.json"), "there is no catalogue"),
        (("place", "--assume", "net/cpu-int9:p99=4ms"), "did you mean 'net/cpu-int8'?"),
        (("simulate", "--load", "none.csv"), "no such file"),
        (("simulate", "--duration", "1e9"), "requests are more than fit"),
        (("simulate", "--load", "x.csv", "--duration", "5"), "leave --duration out"),
    ],
)
def test_wrong_words_are_told(
    project: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    code, _, err = say(capsys, *words)
    assert code in (1, 2)
    assert told in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--utilisation", "1"), "not below 1"),
        (("--utilisation", "much"), "not a number above 0"),
        (("--effort", "0"), "not a number above 0"),
        (("--policy", "best"), "invalid choice"),
        (("--minimise", "latency"), "invalid choice"),
    ],
)
def test_wrong_options_are_told(
    project: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit):
        main(("place", *words))
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "read"), [("placement", read_placement), ("simulation", read_simulation)]
)
def test_another_schema_is_refused(tmp_path: Path, kind: str, read: Any) -> None:
    path = tmp_path / f"{kind}.json"
    for text, message in (
        ('{"schema": 9}', f"a {kind} of schema 9; this tf2aif reads schema 1"),
        ("[]", f"a {kind} of schema None; this tf2aif reads schema 1"),
        ("{", "not JSON"),
        ('{"schema": 1}', f"not a {kind}: Object missing required field"),
    ):
        path.write_text(text)
        with pytest.raises(FilesError, match=message):
            read(path)
    with pytest.raises(FilesError, match=f"there is no {kind}"):
        read(tmp_path / "none.json")
