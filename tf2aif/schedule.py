"""Which step goes next: longest path first, within cores, memory and devices.

List scheduling (Graham 1969) with upward ranks (HEFT: Topcuoglu, Hariri, Wu 2002): of the steps
that are ready, the one with the longest way to the end of the build goes first. Where that one does
not fit yet, room is kept for it from when it is expected to, and others fill the gap only if that
does not delay it (EASY backfilling: Lifka 1995). Pure: time is an argument, so a simulation of a
build runs the very code that a build does. See docs/why/schedule.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from .estimates import Work

PASSES = 16
"""How many steps may fill gaps before one that waits, should the estimates be wrong."""
HOLD_S = 0.1
"""How long room is kept for a step that must come at once, since all that it reads is there."""

Needs = Mapping[str, int]


class Reservation(msgspec.Struct):
    """When the first step that does not fit is expected to, and what is left beside it then."""

    name: str
    at: float
    spare: dict[str, int]


class Scheduler:
    """The state of a build, as its order of steps sees it. Not safe for threads by itself."""

    def __init__(
        self,
        works: Mapping[str, Work],
        inputs: Mapping[str, Iterable[str]],
        capacity: Needs,
        *,
        hold_s: float = HOLD_S,
    ) -> None:
        """`works` has all steps, each after those it reads, and `inputs` what each one reads.

        What `capacity` does not name there is one of. A step that needs more than all gets all.
        """
        self.capacity = dict(capacity)
        self.works = works
        self.needs = {name: self._clipped(work) for name, work in works.items()}
        self.inputs = {name: frozenset(inputs.get(name, ())) & works.keys() for name in works}
        self.readers = _readers(self.inputs)
        self.ranks = ranks(works, self.readers)
        self.running: dict[str, float] = {}  # step -> since when
        self.waiting: dict[str, float] = {}
        self.done: set[str] = set()
        self.ended: set[str] = set()  # their room is free; what they made is being noted
        self.lost: set[str] = set()  # what they rest on has failed
        self.coming: dict[str, float] = {}  # ready and expected at once -> since when
        self._passed: dict[str, int] = {}
        self._hold_s = hold_s
        self._begun = False

    # What happens to steps.

    def ask(self, name: str, now: float) -> None:
        """A step wants to run."""
        self._begin(now)
        self.coming.pop(name, None)
        self.waiting[name] = now

    def give_up(self, name: str) -> None:
        """It does not want to run any more, or not even now that it may."""
        self.waiting.pop(name, None)
        self.running.pop(name, None)

    def release(self, name: str, now: float) -> None:
        """It has ended, well or not; its room is free, and what reads it may come at once."""
        self.running.pop(name, None)
        self.ended.add(name)
        self._expect_readers(name, now)

    def finish(self, name: str, now: float) -> None:
        """What it makes is there: up to date, restored, or made."""
        self._begin(now)
        self.coming.pop(name, None)
        if name in self.works and name not in self.done:
            self.done.add(name)
            self.ended.discard(name)
            self._expect_readers(name, now)

    def fail(self, name: str) -> None:
        """It failed, so what rests on it will not run."""
        self.ended.discard(name)
        for lost in self._below(name):
            self.lost.add(lost)
            self.coming.pop(lost, None)

    def _begin(self, now: float) -> None:
        """The clock of the first steps starts when the first of them comes."""
        if not self._begun:
            self._begun = True
            for name in self.works:
                if not self.inputs[name]:
                    self._expect(name, now)

    def _expect_readers(self, name: str, now: float) -> None:
        for reader in self.readers[name]:
            if all(name in self.done or name in self.ended for name in self.inputs[reader]):
                self._expect(reader, now)

    def _expect(self, name: str, now: float) -> None:
        here = name in self.done or name in self.waiting or name in self.running
        if not here and name not in self.lost and not self.works[name].at_hand:
            self.coming[name] = now

    # Who goes.

    def grant(self, now: float) -> list[str]:
        """The steps that go now; they run from here on."""
        self._forget_late(now)
        free = self.free()
        blocked: list[Reservation] = []
        granted: list[str] = []
        for name in sorted((*self.waiting, *self.coming), key=self._order):
            needs = self.needs[name]
            if not _fits(needs, free):
                if name in self.waiting and not self._rivals(name, blocked):
                    blocked.append(self._reserve(name, now, free))
                continue
            if not all(self._may_pass(name, one, now) for one in self._rivals(name, blocked)):
                continue
            _take(needs, free)
            if name in self.waiting:
                granted.append(name)
                self._start(name, now, blocked)
        return granted

    def _start(self, name: str, now: float, blocked: list[Reservation]) -> None:
        self.running[name] = now
        del self.waiting[name]
        for one in self._rivals(name, blocked):
            self._passed[one.name] = self._passed.get(one.name, 0) + 1

    def _rivals(self, name: str, blocked: list[Reservation]) -> list[Reservation]:
        """Those of them that want something which the step takes too."""
        return [one for one in blocked if self.needs[one.name].keys() & self.needs[name].keys()]

    def _may_pass(self, name: str, blocked: Reservation, now: float) -> bool:
        """Whether a step that fits now leaves the reservation as it is."""
        if self._passed.get(blocked.name, 0) >= PASSES:
            return False
        if now + self.works[name].wall_s <= blocked.at:
            return True
        if not _fits(self.needs[name], blocked.spare):
            return False
        _take(self.needs[name], blocked.spare)
        return True

    def _reserve(self, name: str, now: float, free: Needs) -> Reservation:
        """When those that run are expected to have made room; who is late, at once."""
        spare = dict(free)
        ends = [(max(now, since + self.works[n].wall_s), n) for n, since in self.running.items()]
        for end, other in sorted(ends):
            for resource, amount in self.needs[other].items():
                spare[resource] = spare.get(resource, 1) + amount
            if _fits(self.needs[name], spare):
                _take(self.needs[name], spare)
                return Reservation(name, end, spare)
        # All have ended and it does not fit: room is kept for a step that must come at once.
        return Reservation(name, now, dict.fromkeys((*spare, *self.needs[name]), 0))

    def _forget_late(self, now: float) -> None:
        late = [name for name, since in self.coming.items() if now >= since + self._hold_s]
        for name in late:
            del self.coming[name]

    def _order(self, name: str) -> tuple[bool, float, float, str]:
        """The longest path first, but what measures at the end of one last.

        Such steps cost the same whenever they run, since nothing else does meanwhile; one after
        the other they empty the machine once only, and what fails does so before them.
        """
        last = self.works[name].alone and not self.readers[name]
        return last, -self.ranks[name], self.waiting.get(name, math.inf), name

    def wake(self, now: float) -> float | None:
        """When to look again although nothing happens: room may be kept for who does not come."""
        if not self.waiting or not self.coming:
            return None
        return max(now, min(self.coming.values()) + self._hold_s)

    # What can be told of it.

    def free(self) -> dict[str, int]:
        """What is left of each resource."""
        free = dict(self.capacity)
        for name in self.running:
            _take(self.needs[name], free)
        return free

    def lacks(self, name: str) -> str:
        """What a step waits for: a resource, or `turn` where that is kept for another step."""
        free = self.free()
        return next((r for r, n in self.needs[name].items() if free.get(r, 1) < n), "turn")

    def remaining_s(self, now: float) -> tuple[float, float]:
        """Seconds to the end, as expected, and how many of them rest on guesses alone.

        No order is faster than the longest path; nor than what runs alone here, and besides the
        longest path of the rest, or that spread over the cores.
        """
        over = self.done | self.lost
        left = {name: self._left_s(name, now) for name in self.works if name not in over}
        shared = {n: s if self._shares(n) else 0.0 for n, s in left.items()}
        alone = sum(s for name, s in left.items() if self.works[name].alone)
        spread = sum(map(self._spread, shared, shared.values()))
        total = max(self._longest(left), alone + max(self._longest(shared), spread))
        guessed = sum(s for name, s in left.items() if not self.works[name].known)
        return total, total * guessed / max(sum(left.values()), 1e-9)

    def _longest(self, seconds: Mapping[str, float]) -> float:
        """The longest way through these steps."""
        paths: dict[str, float] = {}
        for name in reversed(list(seconds)):
            behind = (paths.get(reader, 0.0) for reader in self.readers[name])
            paths[name] = seconds[name] + max(behind, default=0.0)
        return max(paths.values(), default=0.0)

    def _shares(self, name: str) -> bool:
        """Whether it runs here, with others beside it."""
        return not self.works[name].alone and self.needs[name].get("cores", 0) > 0

    def _left_s(self, name: str, now: float) -> float:
        expected = self.works[name].wall_s
        if name in self.running:
            return max(0.0, expected - (now - self.running[name]))
        return expected

    def _spread(self, name: str, seconds: float) -> float:
        return seconds * self.needs[name].get("cores", 0) / max(1, self.capacity.get("cores", 1))

    def _clipped(self, work: Work) -> dict[str, int]:
        """What it needs, of what there is: a step larger than everything takes everything."""
        needs = {r: min(n, self.capacity.get(r, 1)) for r, n in work.needs.items() if n > 0}
        if work.alone:
            needs["cores"] = self.capacity.get("cores", 1)
        return needs

    def _below(self, name: str) -> Iterator[str]:
        """A step and all that rests on it."""
        seen, stack = {name}, [name]
        while stack:
            yield (here := stack.pop())
            fresh = [r for r in self.readers.get(here, ()) if r not in seen]
            seen.update(fresh)
            stack += fresh


def ranks(works: Mapping[str, Work], readers: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Of each step the seconds from its start to the build's end, if nothing ever waited."""
    found: dict[str, float] = {}
    for name in reversed(list(works)):
        behind = (found[reader] for reader in readers[name])
        found[name] = works[name].wall_s + max(behind, default=0.0)
    return found


def simulate(
    scheduler: Scheduler, lasts: Callable[[str], float] | None = None
) -> dict[str, tuple[float, float]]:
    """When each step would start and end, if each lasted so long; by default as expected."""
    lasts = lasts or (lambda name: scheduler.works[name].wall_s)
    spans: dict[str, tuple[float, float]] = {}
    ends: dict[str, float] = {}
    asked: set[str] = set()
    now = 0.0
    while ends or len(spans) < len(scheduler.works):
        for name in scheduler.works:
            if name not in asked and scheduler.inputs[name] <= scheduler.done:
                asked.add(name)
                scheduler.ask(name, now)
        for name in scheduler.grant(now):
            ends[name] = now + lasts(name)
            spans[name] = (now, ends[name])
        now = min(ends.values())
        for name in [n for n, end in ends.items() if end <= now]:
            del ends[name]
            scheduler.release(name, now)
            scheduler.finish(name, now)
    return spans


def _readers(inputs: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {name: [] for name in inputs}
    for name, reads in inputs.items():
        for other in reads:
            readers[other].append(name)
    return readers


def _fits(needs: Needs, free: Needs) -> bool:
    return all(free.get(resource, 1) >= amount for resource, amount in needs.items())


def _take(needs: Needs, free: dict[str, int]) -> None:
    for resource, amount in needs.items():
        free[resource] = free.get(resource, 1) - amount
