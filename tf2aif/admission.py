"""Steps take their turn here: threads wait until the schedule lets their steps run.

doit hands over every step whose inputs are there, each to a thread of its own; so all that could
run is known, and `tf2aif.schedule` chooses. A step asks when it has its locks and knows that it
must run, and waits for nothing but the machine from then on: two builds that share locks cannot
block each other, and what is restored from the store needs no turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import msgspec

from . import capacity
from .estimates import estimate, history_of
from .graph import Graph
from .schedule import HOLD_S, Scheduler

if TYPE_CHECKING:
    from .workspace import Workspace

SHARE = 0.9
"""Of the memory that we may use, what steps are to keep within."""
ENOUGH = 1 << 20  # cores, where somebody else sees to it that no more run than there are

Tell = Callable[[Literal["locked", "waits", "runs", "over"], str, str], None]
"""Is told what a step does: its name, and what it waits for."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a build stands at one moment."""

    running: dict[str, float]
    """Step -> seconds since it began, in the order in which they began."""
    waiting: dict[str, int]
    """What steps wait for -> how many: cores, memory, a lock, steps before them."""
    finished: int
    total: int
    left_s: float | None
    """Seconds to the end, as expected; None where most of that would be a guess."""


def open_admission(
    graph: Graph,
    workspace: Workspace,
    *,
    jobs: int | None,
    at_hand: Collection[str] = (),
    missing: Collection[str] = (),
    tell: Tell = lambda *_: None,
) -> Admission:
    """The turns of a build's steps on this machine: `jobs` cores' worth, None: any number.

    `at_hand` are steps that are up to date or stored; `missing` ones cannot run here.
    """
    room_mb = min(int(capacity.memory_mb() * SHARE), capacity.available_mb())
    works = estimate(graph, workspace, history_of(workspace), at_hand=at_hand)
    scheduler = Scheduler(
        {name: work for name, work in works.items() if name not in missing},
        {name: step.inputs.values() for name, step in graph.steps.items()},
        {"cores": jobs or ENOUGH, "memory": max(1, room_mb)},
        hold_s=HOLD_S if jobs and jobs > 1 else 0.0,  # else nothing else is about to come
    )
    return Admission(scheduler, tell)


class Admission:
    """The turns of one build's steps; any number of threads may ask."""

    def __init__(self, scheduler: Scheduler, tell: Tell = lambda *_: None) -> None:
        self._scheduler = scheduler
        self._tell = tell
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Event] = {}
        self._locked: set[str] = set()
        self._afar: dict[str, float] = {}
        self._alarm: threading.Timer | None = None
        self._closed = False

    @property
    def cores(self) -> int:
        """How many cores the steps are to keep busy."""
        given = self._scheduler.capacity["cores"]
        return given if given < ENOUGH else capacity.cores()

    @property
    def memory_mb(self) -> int:
        """MiB that they are to keep within, as far as that is known before they run."""
        return self._scheduler.capacity["memory"]

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait for the step's turn, and let the next ones have theirs when it has ended.

        Raises KeyboardInterrupt in a thread that waits while the build is ended: its step was not
        even begun, so nothing of it is to be told or noted.
        """
        if name not in self._scheduler.works:
            yield  # a step of another graph: nothing is known of it
            return
        self._wait(name)
        try:
            self._tell("runs", name, "")
            yield
        finally:
            self._tell("over", name, "")
            with self._lock:
                self._scheduler.release(name, time.monotonic())
                self._serve()

    @contextmanager
    def afar(self, name: str, where: str) -> Iterator[None]:
        """A step that runs on another machine: it needs no turn here, and is seen to run."""
        with self._lock:
            self._scheduler.coming.pop(name, None)
            self._locked.discard(name)
            self._afar[name] = time.monotonic()
        self._tell("runs", name, where)
        try:
            yield
        finally:
            with self._lock:
                self._afar.pop(name, None)

    def locked(self, name: str) -> None:
        """The step waits for another one, of this build or another, that makes the same."""
        with self._lock:
            self._scheduler.coming.pop(name, None)
            self._locked.add(name)
            self._serve()
        self._tell("locked", name, "a lock")

    def finish(self, name: str, *, well: bool) -> None:
        """The step is over: what it makes is there, or it failed."""
        with self._lock:
            self._locked.discard(name)
            if well:
                self._scheduler.finish(name, time.monotonic())
            else:
                self._scheduler.fail(name)
            self._serve()

    def close(self) -> None:
        """Let nobody begin any more."""
        with self._lock:
            self._closed = True
            if self._alarm:
                self._alarm.cancel()
            for turn in self._turns.values():
                turn.set()

    def idle_room_mb(self) -> float:
        """MiB that worker processes may hold which do nothing just now."""
        with self._lock:
            return self._scheduler.free().get("memory", float("inf"))

    def needs(self, name: str) -> dict[str, int]:
        """What a step takes of each resource while it runs."""
        return dict(self._scheduler.needs.get(name, {}))

    def standing(self) -> Standing:
        """How the build stands now."""
        with self._lock:
            now, plan = time.monotonic(), self._scheduler
            began = {**plan.running, **self._afar}
            over = plan.done | plan.lost
            left, guessed = plan.remaining_s(now)
            waiting: dict[str, int] = {}
            for name in plan.works.keys() - over - began.keys():
                what = self._waits_for(name)
                waiting[what] = waiting.get(what, 0) + 1
            return Standing(
                running={n: now - began[n] for n in sorted(began, key=lambda n: began[n])},
                waiting=waiting,
                finished=len(over),
                total=len(plan.works),
                left_s=left if guessed <= left / 2 else None,
            )

    def _waits_for(self, name: str) -> str:
        if name in self._locked:
            return "a lock"
        if name in self._scheduler.waiting:
            what = self._scheduler.lacks(name)
            return "cores" if what == "turn" else what
        return "steps before"

    def _wait(self, name: str) -> None:
        with self._lock:
            self._locked.discard(name)
            turn = self._turns[name] = threading.Event()
            self._scheduler.ask(name, time.monotonic())
            self._serve()
            lacks = "" if turn.is_set() else self._scheduler.lacks(name)
        try:
            if lacks:
                self._tell("waits", name, lacks)
            turn.wait()
            if self._closed:
                raise KeyboardInterrupt
        except BaseException:
            with self._lock:
                self._scheduler.give_up(name)
                self._serve()
            raise
        finally:
            self._turns.pop(name, None)

    def _serve(self) -> None:
        """Begin whatever may begin now, and look again when a step that was expected is late."""
        now = time.monotonic()
        if self._closed:
            return
        for name in self._scheduler.grant(now):
            self._turns[name].set()
        wake = self._scheduler.wake(now)
        if wake is not None and self._alarm is None:
            self._alarm = threading.Timer(wake - now + 0.001, self._look_again)
            self._alarm.daemon = True
            self._alarm.start()

    def _look_again(self) -> None:
        with self._lock:
            self._alarm = None
            self._serve()
