"""The solver's policy: a placement as a model of whole numbers for OR-tools' CP-SAT.

Equal nodes are one bin with a count, so that a thousand nodes are a few bins; what is in a bin is
packed into its nodes afterwards. Where there are few nodes each is a bin of its own, and the
answer is exact. A large problem is searched in widening circles: first among the options that the
linear relaxation likes best, then among more of them, each time from the best plan so far.

One thread, a fixed seed and limits in the solver's own deterministic time: the same problem gives
the same plan on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

from msgspec import Struct

from ..errors import Tf2aifError
from .policies import POLICIES, Rank, fill
from .problem import SHARES, Option, Plan, Problem, Room, Wanted, totals
from .relaxation import relax

EXACT = 400
"""Up to so many replica counts, each node is a bin of its own."""

LARGE = 1500
"""Of more options than these, only the best of each service by some simple order are looked at."""

EFFORT = 1.0
"""Deterministic time by default: some seconds of one core."""

_ELSE = "or take a greedy policy: --policy cheapest"
_CIRCLES = (0, 2, 4)  # so many more options of each service than the relaxation takes; then all
_SHARES = (0.1, 0.35, 0.25, 0.3)  # of the effort for each, in the first aim
_LATER = (0.05, 0.1)  # in the others, which have little room left: the first circles only
_BEST = 10  # options of a service by each order, of a problem that is LARGE
_TAKEN = 1e-9  # a share of the relaxation that is one

Counts = Mapping[tuple[int, int], int]  # (option, bin) -> replicas
Terms = list[tuple[int, Any]]  # of a sum: factor, variable


class Tier(Struct, frozen=True, kw_only=True):
    """One aim: what was reached, and what no plan can beat that holds the aims before it."""

    name: str
    value: int
    bound: int | None  # None: it was not looked for

    @property
    def gap(self) -> float | None:
        """By which share the best plan could be below what was reached; 0: it is the best."""
        if self.bound is None:
            return None
        return (self.value - self.bound) / self.value if self.value else 0.0


class Solution(Struct, frozen=True, kw_only=True):
    """What the solver found."""

    plan: Plan
    tiers: tuple[Tier, ...]
    exact: bool  # each node was a bin of its own


def solve(problem: Problem, order: Sequence[str], start: Plan, effort: float = EFFORT) -> Solution:
    """The solver's plan: from `start`, a greedy one, on; never a worse one.

    OR-tools runs in a process of its own, one for all calls: beside libraries that a user's process
    has loaded it was seen to end in a segmentation fault. Raises Tf2aifError where it is not
    installed, or its process dies.
    """
    if find_spec("ortools") is None:
        raise Tf2aifError("OR-tools is not installed", hint=f"pip install 'tf2aif[place]', {_ELSE}")
    try:
        return _process().submit(_solve_here, problem, tuple(order), start, effort).result()
    except BrokenProcessPool as error:
        _process.cache_clear()
        raise Tf2aifError("the process of OR-tools died", hint=_ELSE.removeprefix("or ")) from error


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))


def _solve_here(problem: Problem, order: Sequence[str], start: Plan, effort: float) -> Solution:
    search = _Search(problem, start, effort)
    tiers = tuple(search.minimise(name) for name in tier_names(order))
    return Solution(plan=search.plan, tiers=tiers, exact=search.exact)


def tier_names(order: Sequence[str]) -> list[str]:
    """What is minimised, first things first."""
    names = {"energy": ("energy_unknown", "energy_nw"), "cost": ("cost_unknown", "cost_u")}
    return ["unplaced", *(one for name in order for one in names[name]), "replicas"]


class _Search:
    """The best plan so far, and how it is made better in one aim after the other."""

    def __init__(self, problem: Problem, start: Plan, effort: float) -> None:
        self.problem = problem
        self.fits = [problem.fit(option) for option in problem.options]
        self.bins, self.exact = _bins(problem)
        self.plan = start
        self.effort = effort
        self.limits: dict[str, int] = {}  # of aims that are done
        self.usable = [many for _, many in self.bins]
        self.tightened = False  # fewer are usable than there are: what is found bounds nothing
        self.aim: str | None = None  # the first one of energy and cost
        self.circles: list[frozenset[int]] = []  # of it
        self.looked_at = _looked_at(problem)

    def minimise(self, name: str) -> Tier:
        """Make the plan better in one aim without losing in those before it."""
        bound = 0 if self._value(name) == 0 else self._improve(name)
        self.limits[name] = value = self._value(name)
        return Tier(name=name, value=value, bound=None if bound is None else min(bound, value))

    def _improve(self, name: str) -> int | None:
        """Search circle after circle; what cannot be beaten, where that is known."""
        every, aim = self.looked_at, name.partition("_")[0]
        first = aim == "unplaced" or self.aim in (None, aim)
        if aim != "unplaced":
            self.aim = self.aim or aim
        if first:
            self.circles = [] if self.exact else self._circles(every, name)
        shares = list(_SHARES if first else _LATER)
        if self.exact:
            shares = [sum(shares)]
        circles = [*self.circles, every][: len(shares)]
        left = bound = 0.0
        for chosen, share in zip(circles, shares, strict=True):
            left += share * self.effort
            found, bound, spent = _Model(self, chosen, name).search(left)
            left = max(0.0, left - spent)
            if found is not None:
                self._take(found, name)
        whole = len(every) == len(self.problem.options) and not self.tightened
        return math.ceil(bound - 0.5) if whole and (first or self.exact) else None

    def _value(self, name: str) -> int:
        value: int = getattr(totals(self.problem, self.plan), name)
        return value

    def _circles(self, every: frozenset[int], name: str) -> list[frozenset[int]]:
        """Sets of options to search among, each larger than the one before."""
        likes = _Model(self, every, name).likes()
        taken = frozenset(number for number, loss in likes.items() if loss <= 0)
        return [
            taken.union(
                *(
                    sorted(set(wanted.options) & likes.keys(), key=lambda one: (likes[one], one))[
                        : 1 + more
                    ]
                    for wanted in self.problem.services
                )
            )
            for more in _CIRCLES
        ]

    def _take(self, found: _Found, name: str) -> None:
        """Keep what was found where it has room on the nodes, and is better."""
        packed = _packed(self.problem, self.bins, found)
        if isinstance(packed, int):  # the next search leaves some of that class's nodes free
            at = next(b for b, (of, _) in enumerate(self.bins) if of == packed)
            self.usable[at] -= max(1, self.usable[at] // 20)
            self.tightened = True
        else:
            names = (*self.limits, name)
            known, new = (totals(self.problem, plan) for plan in (self.plan, packed))
            if [getattr(new, one) for one in names] < [getattr(known, one) for one in names]:
                self.plan = packed


class _Found(Struct, frozen=True):
    """The values of a solution."""

    counts: Counts
    parts: Mapping[int, int]
    placed: frozenset[int]


class _Model:
    """The model of one aim among some of the options, started from the best plan so far."""

    def __init__(self, search: _Search, chosen: frozenset[int], name: str) -> None:
        from ortools.sat.python import cp_model

        self.problem, self.bins, self.usable = search.problem, search.bins, search.usable
        self.plan, self.fits = search.plan, search.fits
        self.options = sorted(chosen | set(self.plan.parts) | set(self.plan.replicas()))
        self.model = cp_model.CpModel()
        self._make_variables()
        for index in range(len(self.problem.services)):
            self._serve(index)
        for index in range(len(self.bins)):
            self._hold(index)
        for done, limit in search.limits.items():
            self.model.add(_sum(self._terms(done)) <= limit)
        self.model.minimize(_sum(self._terms(name)))

    def _make_variables(self) -> None:
        new, problem = self.model.new_int_var, self.problem
        used = [len(rooms) for rooms in self.plan.nodes]
        self.open = [
            new(0, max(many, used[of] if self.bins[b][1] > 1 else 0), f"open{b}")
            for b, ((of, _), many) in enumerate(zip(self.bins, self.usable, strict=True))
        ]
        self.placed = [self.model.new_bool_var(f"placed{s}") for s in range(len(problem.services))]
        self.parts = {o: new(0, SHARES, f"parts{o}") for o in self.options}
        self.counts: dict[int, dict[int, Any]] = {}
        self.held: list[dict[int, Any]] = [{} for _ in self.bins]  # by bin
        for number in self.options:
            option = problem.options[number]
            most, fit = _most(problem, option), self.fits[number]
            self.counts[number] = {
                index: new(0, min(most, fit * many), f"count{number}_{index}")
                for index, (nodes, many) in enumerate(self.bins)
                if nodes == option.nodes
            }
            for index, var in self.counts[number].items():
                self.held[index][number] = var

    def _serve(self, index: int) -> None:
        """A service is placed wholly or not at all, and no replica takes more than it can."""
        wanted, add, every = self.problem.services[index], self.model.add, list[Any]()
        own = [number for number in wanted.options if number in self.parts]
        for number in own:
            option, counts = self.problem.options[number], list(self.counts[number].values())
            every += counts
            add(self.parts[number] * wanted.rate_m <= sum(counts) * (SHARES * option.rate_m))
        add(sum(self.parts[n] for n in own) == SHARES * self.placed[index])
        add(sum(every) >= wanted.service.replicas * self.placed[index])

    def _hold(self, index: int) -> None:
        """What runs in a bin has room on the nodes that are in use."""
        of, many = self.bins[index]
        nodes = self.problem.classes[of]
        held = self.held[index]
        options = {number: self.problem.options[number] for number in held}
        limits = [(nodes.cores, {n: one.cores for n, one in options.items()})]
        if nodes.memory_mb is not None:
            limits.append((nodes.memory_mb, {n: one.memory_mb for n, one in options.items()}))
        for name, amount in nodes.resources.items():
            limits.append((amount, {n: one.resources.get(name, 0) for n, one in options.items()}))
        for limit, needs in limits:
            used = sum(need * held[n] for n, need in needs.items() if need)
            self.model.add(used <= limit * self.open[index])
            for most in (1, 2, 3) if many > 1 else ():  # that need more than 1/2, 1/3, 1/4 of one
                large = [held[n] for n, need in needs.items() if need * (most + 1) > limit]
                if large:
                    self.model.add(sum(large) <= most * self.open[index])
        for number, var in held.items():
            self.model.add(var <= self.fits[number] * self.open[index])
        if index and many == 1 and self.bins[index - 1] == self.bins[index]:  # any first: the first
            self.model.add(self.open[index - 1] >= self.open[index])

    def _terms(self, name: str) -> Terms:
        """An aim as a sum."""
        problem = self.problem
        if name == "unplaced":
            weights = [wanted.service.weight for wanted in problem.services]
            lost = zip((-weight for weight in weights), self.placed, strict=True)
            return [(sum(weights), 1), *lost]
        if name == "replicas":
            return [(1, var) for counts in self.counts.values() for var in counts.values()]
        nodes = [problem.classes[of] for of, _ in self.bins]
        if name in ("cost_u", "cost_unknown"):
            known = [
                one.cost_u or 0 if name == "cost_u" else int(one.cost_u is None) for one in nodes
            ]
            return list(zip(known, self.open, strict=True))
        split = [(_weight(problem, number, name), var) for number, var in self.parts.items()]
        if name == "energy_unknown":
            return split
        return [*zip((one.idle_uw * SHARES for one in nodes), self.open, strict=True), *split]

    def likes(self) -> dict[int, float]:
        """What the linear relaxation loses with all of a service on an option; 0: it takes it."""
        variables, relaxed = relax(self.model)
        found = dict.fromkeys(self.options, 0.0)
        if relaxed.Solve() != relaxed.OPTIMAL:  # then all are liked, and the circles are all
            return found
        for number in self.options:
            part = variables[self.parts[number].index]
            (count,) = (variables[var.index] for var in self.counts[number].values())
            loss = part.reduced_cost() + count.reduced_cost()
            found[number] = 0.0 if part.solution_value() > _TAKEN else max(loss, _TAKEN)
        return found

    def search(self, effort: float) -> tuple[_Found | None, float, float]:
        """(what was found, what cannot be beaten with these options, the effort it took)."""
        from ortools.sat.python import cp_model

        self._hint()
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        solver.parameters.linearization_level = 2
        solver.parameters.max_deterministic_time = effort
        status = solver.solve(self.model)
        bound, spent = solver.best_objective_bound, solver.response_proto.deterministic_time
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, max(0.0, bound), spent
        value = solver.value
        counts = {
            (number, index): value(var)
            for number, counts in self.counts.items()
            for index, var in counts.items()
        }
        parts = {number: value(var) for number, var in self.parts.items()}
        placed = frozenset(index for index, var in enumerate(self.placed) if value(var))
        return _Found(counts, parts, placed), max(0.0, bound), spent

    def _hint(self) -> None:
        """Start from the plan."""
        hint, replicas = self.model.add_hint, dict.fromkeys(range(len(self.bins)), 0)
        held = {(number, b): 0 for number, counts in self.counts.items() for b in counts}
        for of, rooms in enumerate(self.plan.nodes):
            own = [b for b, (nodes, _) in enumerate(self.bins) if nodes == of]
            for position, holds in enumerate(rooms):
                at = own[min(position, len(own) - 1)]
                replicas[at] += 1
                for number, count in holds.items():
                    held[number, at] += count
        for index, var in enumerate(self.open):
            hint(var, replicas[index])
        for (number, index), count in held.items():
            hint(self.counts[number][index], count)
        served = {self.problem.options[number].service for number in self.plan.parts}
        for number, var in self.parts.items():
            hint(var, self.plan.parts.get(number, 0))
        for index, var in enumerate(self.placed):
            hint(var, index in served)


def _sum(terms: Iterable[tuple[int, Any]]) -> Any:
    return sum(factor * var for factor, var in terms if factor)


def _weight(problem: Problem, number: int, name: str) -> int:
    """What one part of a service's load on an option counts."""
    option = problem.options[number]
    if name == "energy_nw":
        return option.power_uw or 0
    return problem.services[option.service].rate_m if option.power_uw is None else 0


def _most(problem: Problem, option: Option) -> int:
    """More replicas of an option than these are of no use to its service."""
    least = problem.services[option.service].service.replicas
    return max(problem.replicas_for(option, SHARES), least)


def _looked_at(problem: Problem) -> frozenset[int]:
    """The options to search among: all, or of a large problem the best by each simple order."""
    if len(problem.options) <= LARGE:
        return frozenset(range(len(problem.options)))

    def best(rank: Rank, wanted: Wanted) -> list[int]:
        ranked = sorted(wanted.options, key=lambda n: (*rank(problem, problem.options[n]), n))
        return ranked[:_BEST]

    return frozenset(
        number
        for wanted in problem.services
        for rank in POLICIES.values()
        for number in best(rank, wanted)
    )


def _bins(problem: Problem) -> tuple[list[tuple[int, int]], bool]:
    """(class, nodes in it) of each bin; and whether each is one node."""
    useful = [_useful(problem, index) for index in range(len(problem.classes))]
    here = [sum(one.nodes == index for one in problem.options) for index in range(len(useful))]
    exact = sum(many * count for many, count in zip(useful, here, strict=True)) <= EXACT
    if exact:
        return [(index, 1) for index, many in enumerate(useful) for _ in range(many)], True
    return [(index, many) for index, many in enumerate(useful) if many], False


def _useful(problem: Problem, index: int) -> int:
    """How many nodes of a class can be of use at most."""
    of: dict[int, list[Option]] = {}
    for option in problem.options:
        if option.nodes == index:
            of.setdefault(option.service, []).append(option)
    replicas = sum(max(_most(problem, one) for one in many) + len(many) for many in of.values())
    return min(problem.classes[index].count, replicas)


def _packed(problem: Problem, bins: Sequence[tuple[int, int]], found: _Found) -> Plan | int:
    """The values as a plan; or the class whose nodes do not hold them."""
    needed = dict(_needed(problem, found))
    nodes: list[tuple[Mapping[int, int], ...]] = []
    for index, one in enumerate(problem.classes):
        own = [b for b, (of, _) in enumerate(bins) if of == index]
        if all(bins[b][1] == 1 for b in own):
            rooms = [{n: c for (n, at), c in needed.items() if at == b} for b in own]
        else:
            packed = _pack(problem, {n: c for (n, b), c in needed.items() if b in own})
            if packed is None or len(packed) > one.count:
                return index
            rooms = packed
        nodes.append(tuple(holds for holds in rooms if holds))
    return Plan(nodes=tuple(nodes), parts={n: p for n, p in sorted(found.parts.items()) if p})


def _needed(problem: Problem, found: _Found) -> Iterator[tuple[tuple[int, int], int]]:
    """The replicas of services that are placed: nothing holds those of others to 0."""
    for (number, index), count in sorted(found.counts.items()):
        if count and problem.options[number].service in found.placed:
            yield (number, index), count


def _pack(problem: Problem, counts: Mapping[int, int]) -> list[dict[int, int]] | None:
    """Replicas onto equal nodes: first fit, the largest first; None where they have no room."""
    rooms: list[Room] = []
    for number in sorted(counts, key=lambda one: (problem.fit(problem.options[one]), one)):
        put = fill(problem, rooms, number, counts[number])
        if sum(count for _, count in put) < counts[number]:
            return None
    return [dict(sorted(room.holds.items())) for room in rooms]
