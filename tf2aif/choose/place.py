"""Placing services on a fleet: the solver's plan, beside those of the greedy policies, explained.

The best plan of all is taken, by the same numbers for each, so the solver's answer is never worse
than a greedy one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from .options import UTILISATION
from .placement import (
    Bound,
    By,
    Group,
    Placement,
    Refused,
    ServicePlacement,
    Sum,
    UsedNodes,
)
from .policies import POLICIES, greedy
from .problem import SHARES, Option, Plan, Problem, Wanted, check, totals
from .queueing import late_share
from .solver import EFFORT, Solution, solve

Aim = Literal["energy", "cost"]

ORDER: tuple[Aim, ...] = ("energy", "cost")
"""What is minimised by default, after services that find no room."""

_AIMS = {"energy_nw": "energy", "cost_u": "cost"}


def plans(
    problem: Problem,
    policies: Sequence[By] = ("solver", *POLICIES),
    order: Sequence[Aim] = ORDER,
    effort: float = EFFORT,
) -> tuple[dict[By, Plan], Solution | None]:
    """The plan of each policy, and what the solver says of its own.

    The solver starts from the best greedy plan. Raises Tf2aifError where it is not installed.
    """
    greedily: dict[By, Plan] = {name: greedy(problem, name) for name in POLICIES}
    found: dict[By, Plan] = {name: greedily[name] for name in policies if name != "solver"}
    solution = None
    if "solver" in policies:
        best = min(greedily.values(), key=lambda plan: totals(problem, plan).rank(order))
        solution = solve(problem, order, best, effort)
        found = {"solver": solution.plan, **found}
    for plan in found.values():
        check(problem, plan)
    return found, solution


def place(
    problem: Problem,
    policies: Sequence[By] = ("solver", *POLICIES),
    order: Sequence[Aim] = ORDER,
    *,
    effort: float = EFFORT,
    utilisation: float = UTILISATION,
    currency: str = "",
) -> Placement:
    """The best plan of these policies, with all that is to be known of it."""
    found, solution = plans(problem, policies, order, effort)
    by = min(found, key=lambda name: totals(problem, found[name]).rank(order))
    plan = found[by]
    return Placement(
        by=by,
        order=tuple(order),
        utilisation=utilisation,
        currency=currency,
        total=_sum(problem, plan),
        bounds=_bounds(solution) if solution and by == "solver" else (),
        exact=solution.exact if solution and by == "solver" else None,
        policies={name: _sum(problem, each) for name, each in found.items()},
        services=tuple(_service(problem, wanted, plan) for wanted in problem.services),
        nodes=tuple(_nodes(problem, plan)),
    )


def _bounds(solution: Solution) -> tuple[Bound, ...]:
    return tuple(
        Bound(aim=_AIMS.get(tier.name, tier.name), gap=tier.gap)  # type: ignore[arg-type]
        for tier in solution.tiers
    )


def _sum(problem: Problem, plan: Plan) -> Sum:
    known = totals(problem, plan)
    placed = {problem.options[number].service for number in plan.parts}
    return Sum(
        unplaced=tuple(w.name for index, w in enumerate(problem.services) if index not in placed),
        power_w=known.energy_nw / 1e9,
        power_unknown=known.energy_unknown / 1e6,
        cost_per_hour=known.cost_u / 1e6,
        cost_unknown=known.cost_unknown,
        nodes=sum(len(rooms) for rooms in plan.nodes),
        replicas=known.replicas,
    )


def _service(problem: Problem, wanted: Wanted, plan: Plan) -> ServicePlacement:
    replicas = plan.replicas()
    taken = [number for number in wanted.options if number in replicas]
    reason = "" if taken else _no_room(problem, wanted)
    return ServicePlacement(
        name=wanted.name,
        recipe=wanted.service.recipe,
        rate=wanted.service.rate,
        objectives=wanted.service.objectives,
        weight=wanted.service.weight,
        placed=bool(taken),
        reason=reason,
        groups=tuple(group for number in taken for group in _groups(problem, number, plan)),
        refused=tuple(_refused(problem, wanted, taken)),
    )


def _no_room(problem: Problem, wanted: Wanted) -> str:
    """Why a service is not placed."""
    if not wanted.options:
        return "no variant can answer it on these nodes"
    fewest = min(
        (problem.options[number] for number in wanted.options),
        key=lambda one: problem.replicas_for(one, SHARES) / max(1, problem.fit(one)),
    )
    nodes = problem.classes[fewest.nodes]
    many = max(problem.replicas_for(fewest, SHARES), wanted.service.replicas)
    return (
        f"no room is left: it needs at least {many} x {fewest.variant} on {nodes.name}, "
        f"{problem.fit(fewest)} to a node, or as much elsewhere"
    )


def _groups(problem: Problem, number: int, plan: Plan) -> Iterator[Group]:
    """The replicas of an option, by kind of node: nodes that do not differ can be of several."""
    option = problem.options[number]
    counts: Counter[str] = Counter()
    for name, holds in _named_nodes(problem, option.nodes, plan):
        counts[name] += holds.get(number, 0)
    whole = sum(counts.values())
    for name, count in counts.items():
        if count:
            yield _group(problem, option, plan.parts.get(number, 0) / SHARES, name, count, whole)


def _group(
    problem: Problem, option: Option, share: float, name: str, count: int, whole: int
) -> Group:
    wanted = problem.services[option.service]
    rate = wanted.service.rate * share / whole
    limits = [one for one in wanted.service.limits if one.of.kind == "latency"]
    return Group(
        variant=option.variant,
        nodes=name,
        replicas=count,
        share=share * count / whole,
        rate=rate,
        capacity=option.rate_m / 1000,
        utilisation=rate * option.times.mean_ms / 1000,
        late={str(one): late_share(option.times, rate, one.limit) for one in limits},
        alone=option.measurement.latency,
        origin=option.measurement.origin,
        machine=option.measurement.machine,
        energy_j=option.request_j,
        cores=option.cores,
        memory_mb=option.memory_mb,
        resources=dict(option.resources),
        why=_why(problem, option),
        notes=option.notes,
    )


def _why(problem: Problem, option: Option) -> str:
    """What speaks for an option, and against the others that hold the objectives."""
    count = len(problem.services[option.service].options)
    known = [_watts(problem, option), _cost(problem, option)]
    told = ", ".join(one for one in known if one)
    of = "the only one" if count == 1 else f"one of {count}"
    return f"{of} that hold{'s' if count == 1 else ''} the objectives{f'; {told}' if told else ''}"


def _watts(problem: Problem, option: Option) -> str:
    """What it draws with the idle power of its share of nodes, for the whole service."""
    if option.power_uw is None:
        return ""
    nodes, many = problem.classes[option.nodes], problem.replicas_for(option, SHARES)
    idle = nodes.idle_uw * many / problem.fit(option)
    return f"{(option.power_uw + idle) / 1e6:.3g} W for all of it"


def _cost(problem: Problem, option: Option) -> str:
    nodes, many = problem.classes[option.nodes], problem.replicas_for(option, SHARES)
    if nodes.cost_u is None:
        return ""
    return f"{nodes.cost_u * many / problem.fit(option) / 1e6:.3g} an hour"


def _refused(problem: Problem, wanted: Wanted, taken: Sequence[int]) -> Iterator[Refused]:
    """All that was not taken, those with the same reason together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for refusal in wanted.refused:
        names = reasons.setdefault((refusal.variant, refusal.why), [])
        names += [refusal.nodes] if refusal.nodes else []
    for number in wanted.options:
        option = problem.options[number]
        if number not in taken:
            told = ", ".join(filter(None, (_watts(problem, option), _cost(problem, option))))
            but = "others are better for the whole" if taken else "there is no room for it"
            why = f"it holds the objectives{f' ({told})' if told else ''}, but {but}"
            reasons.setdefault((option.variant, why), []).append(problem.classes[option.nodes].name)
    for (variant, why), nodes in reasons.items():
        yield Refused(variant=variant, nodes=tuple(nodes), why=why)


def _named_nodes(
    problem: Problem, index: int, plan: Plan
) -> Iterator[tuple[str, Mapping[int, int]]]:
    """The nodes of a class that are in use, each with the kind that it is given."""
    names = [name for name, count in problem.classes[index].names for _ in range(count)]
    yield from zip(names, plan.nodes[index], strict=False)


def _nodes(problem: Problem, plan: Plan) -> Iterator[UsedNodes]:
    for index, one in enumerate(problem.classes):
        alike: Counter[tuple[str, tuple[tuple[int, int], ...]]] = Counter()
        for name, held in _named_nodes(problem, index, plan):
            alike[name, tuple(sorted(held.items()))] += 1
        for (name, items), count in alike.items():
            holds: dict[str, dict[str, int]] = {}
            for number, replicas in items:
                option = problem.options[number]
                service = problem.services[option.service].name
                holds.setdefault(service, {})[option.variant] = replicas
            cores = sum(problem.options[number].cores * replicas for number, replicas in items)
            yield UsedNodes(nodes=name, count=count, holds=holds, cores_used=cores / one.cores)
