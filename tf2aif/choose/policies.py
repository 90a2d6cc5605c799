"""The greedy policies: one service after the other, each on what is best for it alone.

They keep to the same rules as the solver: no replica takes more than its objectives allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from .problem import SHARES, Option, Plan, Problem, Room

Policy = Literal["cheapest", "fastest", "energy-first"]
Rank = Callable[[Problem, Option], tuple[float, ...]]


def _cheapest(problem: Problem, option: Option) -> tuple[float, ...]:
    """What the share of a node costs that one request a second takes."""
    nodes = problem.classes[option.nodes]
    if nodes.cost_u is None:
        return (1, 0.0)
    return (0, nodes.cost_u / (problem.fit(option) * option.rate_m))


def _fastest(problem: Problem, option: Option) -> tuple[float, ...]:  # noqa: ARG001
    """Its latency without a queue."""
    return (option.times.mean_ms,)


def _energy_first(problem: Problem, option: Option) -> tuple[float, ...]:
    """What it draws, with the idle power of the share of a node that it takes."""
    if option.power_uw is None:
        return (1, 0.0)
    nodes, rate = problem.classes[option.nodes], problem.services[option.service].rate_m
    idle = nodes.idle_uw / (problem.fit(option) * option.rate_m)
    return (0, option.power_uw / rate + idle)


POLICIES: dict[Policy, Rank] = {
    "cheapest": _cheapest,
    "fastest": _fastest,
    "energy-first": _energy_first,
}
"""Policy -> how it ranks the options of a service, best first."""


def greedy(problem: Problem, policy: Policy) -> Plan:
    """The plan of a policy. The services that are hardest to place come first."""
    rank = POLICIES[policy]
    rooms: list[list[Room]] = [[] for _ in problem.classes]
    parts: dict[int, int] = {}
    for index in _hardest_first(problem):
        options = problem.services[index].options
        best = sorted(options, key=lambda one: (*rank(problem, problem.options[one]), one))
        parts |= _place(problem, rooms, best, problem.services[index].service.replicas)
    used = tuple(tuple(dict(sorted(room.holds.items())) for room in one) for one in rooms)
    return Plan(nodes=used, parts=dict(sorted(parts.items())))


def _hardest_first(problem: Problem) -> list[int]:
    """Services by weight, then those with the fewest options."""
    wanted = problem.services
    return sorted(
        range(len(wanted)), key=lambda one: (-wanted[one].service.weight, len(wanted[one].options))
    )


def _place(
    problem: Problem, rooms: Sequence[list[Room]], options: Iterable[int], least: int
) -> dict[int, int]:
    """Place one service wholly, best options first; else nothing of it. Parts by option."""
    left, parts, done = SHARES, dict[int, int](), list[tuple[Room, int, int]]()
    for index in options:
        option = problem.options[index]
        many = sum(count for _, _, count in done)
        wanted = max(problem.replicas_for(option, left), least - many)
        if wanted <= 0:
            break
        put = fill(problem, rooms[option.nodes], index, wanted)
        done += [(room, index, count) for room, count in put]
        taken = min(left, problem.parts_of(option, sum(count for _, count in put)))
        if taken:
            parts[index] = taken
        left -= taken
    if left == 0 and sum(count for _, _, count in done) >= least:
        return parts
    for room, index, count in done:
        room.put(index, problem.options[index], -count)
    for one in rooms:
        one[:] = [room for room in one if room.holds]
    return {}


def fill(problem: Problem, rooms: list[Room], index: int, wanted: int) -> list[tuple[Room, int]]:
    """Put replicas where there is room: nodes in use first, then new ones."""
    option = problem.options[index]
    nodes, done = problem.classes[option.nodes], list[tuple[Room, int]]()
    position = 0
    while wanted > 0:
        if position == len(rooms):
            if len(rooms) == nodes.count or problem.fit(option) < 1:
                break
            rooms.append(Room(nodes))
        room = rooms[position]
        position += 1
        count = min(wanted, room.fit(option))
        if count > 0:
            room.put(index, option, count)
            done.append((room, count))
            wanted -= count
    return done
