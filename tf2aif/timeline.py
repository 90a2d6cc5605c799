"""What a build did, and when: for its last line, for the report, and as a trace to look at.

`build/.tf2aif/last_build.json` is the last build that did something. `tf2aif build --timeline FILE`
writes a build in the Trace Event Format, which Perfetto and Chrome's about:tracing open (Google,
"Trace Event Format", its JSON object form): a lane for each step that ran at once, and counters of
the cores and the memory that steps had.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from .workspace import write_atomically

SCHEMA = 1
FILE = "last_build.json"

Done = Literal["fresh", "restored", "ran", "failed"]


class BuiltStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step that a build ran or restored. Times are seconds after the build's start."""

    name: str
    kind: str
    start_s: float
    """When it had its turn; of one that was restored or failed before it, when it was looked at."""
    seconds: float
    """Until it was over: starting a worker and storing what it made are in it."""
    waited_s: float = 0.0
    """For its turn, after all that it reads was there."""
    done: Done
    lane: int = 0
    """Steps in one lane did not overlap; a build with so many lanes had so many steps at once."""
    cores: int = 0
    memory_mb: int = 0
    """What was kept for it."""
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    """What it took; 0 where it did not run."""
    where: str = ""
    """The machine, if another one."""


class LastBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build that ran or restored something."""

    schema: int = SCHEMA
    started: float
    """Seconds since the epoch."""
    seconds: float
    cpu_s: float
    """Of this process and of all that it started."""
    jobs: int
    """How many cores it was given."""
    memory_mb: int
    """What its steps were to keep within."""
    ran: int
    restored: int
    fresh: int
    failed: int
    steps: tuple[BuiltStep, ...]


class _Span(msgspec.Struct):
    """A step, or a variant's folder, on its way."""

    kind: str
    handed: float
    asked: float | None = None
    runs: float | None = None
    left: float | None = None
    end: float | None = None
    done: Done | Literal["variant"] = "failed"
    where: str = ""
    needs: dict[str, int] = {}
    cpu_s: float = 0.0
    peak_mb: float = 0.0


class Chronicle:
    """Notes what happens in a build as it does; safe for threads."""

    def __init__(
        self, *, jobs: int, memory_mb: int, cpu_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        """`cpu_s` gives the CPU seconds of worker processes that still live."""
        self.jobs, self.memory_mb = jobs, memory_mb
        self.started, self._start = time.time(), time.monotonic()
        self._workers_cpu_s = cpu_s
        self._cpu_s = _own_cpu_s() + cpu_s()
        self._lock = threading.Lock()
        self._spans: dict[str, _Span] = {}
        self._fresh: set[str] = set()
        self._end: tuple[float, float] | None = None  # wall and CPU seconds

    def hand(self, name: str, kind: str) -> None:
        """A step was handed over: all that it reads is there."""
        with self._lock:
            self._spans[name] = _Span(kind=kind, handed=time.monotonic())

    def run(self, name: str, needs: dict[str, int], where: str = "") -> None:
        """It has its turn, and so much is kept for it."""
        with self._lock:
            if span := self._spans.get(name):
                span.runs, span.needs, span.where = time.monotonic(), needs, where

    def leave(self, name: str) -> None:
        """Its turn is over, and with that what it took: others go before its end is told."""
        with self._lock:
            if span := self._spans.get(name):
                span.left = time.monotonic()

    def end(
        self,
        name: str,
        done: Done,
        *,
        cpu_s: float = 0.0,
        peak_mb: float = 0.0,
        where: str = "",
    ) -> None:
        """It is over, on the machine `where`. One that was up to date all along has no span."""
        with self._lock:
            span = self._spans.get(name)
            if span is not None and span.end is not None:
                return  # somebody looks at it again
            if done == "fresh":
                self._fresh.add(name)
                self._spans.pop(name, None)
            elif span is not None:
                span.end, span.done = span.left or time.monotonic(), done
                span.cpu_s, span.peak_mb = cpu_s, peak_mb
                span.where = where or span.where

    def took_s(self, name: str) -> float:
        """Seconds since the step's turn began, or since it was handed over if it needed none."""
        with self._lock:
            span = self._spans[name]
            end = time.monotonic() if span.left is None else span.left
            return end - (span.handed if span.runs is None else span.runs)

    @contextmanager
    def variant(self, name: str) -> Iterator[None]:
        """A variant's folder is written meanwhile."""
        start = time.monotonic()
        try:
            yield
        finally:
            span = _Span(kind="variant", handed=start, end=time.monotonic(), done="variant")
            with self._lock:
                self._spans[name] = span

    def stop(self) -> None:
        """The build is over: what is written and looked at behind it does not count."""
        self._end = self._used()

    def _used(self) -> tuple[float, float]:
        """Wall and CPU seconds since the build began."""
        cpu_s = _own_cpu_s() + self._workers_cpu_s() - self._cpu_s
        return round(time.monotonic() - self._start, 3), round(cpu_s, 3)

    def last(self) -> LastBuild:
        """The build as it is now."""
        with self._lock:
            over = {n: s for n, s in self._spans.items() if s.end is not None}
            steps = _in_lanes([self._step(n, s) for n, s in over.items() if s.done != "variant"])
            counts = {done: sum(s.done == done for s in steps) for done in _COUNTED}
            wall_s, cpu_s = self._end or self._used()
            return LastBuild(
                started=self.started,
                seconds=wall_s,
                cpu_s=cpu_s,
                jobs=self.jobs,
                memory_mb=self.memory_mb,
                fresh=len(self._fresh),
                steps=steps,
                **counts,
            )

    def _step(self, name: str, span: _Span) -> BuiltStep:
        start = span.handed if span.runs is None else span.runs
        end = start if span.end is None else span.end
        return BuiltStep(
            name=name,
            kind=span.kind,
            start_s=round(start - self._start, 6),
            seconds=round(end - start, 6),
            waited_s=round(start - span.handed, 6),
            done=span.done if span.done != "variant" else "ran",
            cores=span.needs.get("cores", 0),
            memory_mb=span.needs.get("memory", 0),
            cpu_s=round(span.cpu_s, 3),
            peak_mb=span.peak_mb,
            where=span.where,
        )

    def variants(self) -> tuple[BuiltStep, ...]:
        """The folders of variants that were written, in lanes of their own."""
        with self._lock:
            found = [(n, s) for n, s in self._spans.items() if s.done == "variant"]
            return _in_lanes([self._step(name, span) for name, span in found])


_COUNTED: tuple[Done, ...] = ("ran", "restored", "failed")


def _own_cpu_s() -> float:
    """CPU seconds of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _in_lanes(steps: Iterable[BuiltStep]) -> tuple[BuiltStep, ...]:
    """Each step in the first lane that is free when it begins; in the order of their starts."""
    ends: list[float] = []
    placed = []
    for step in sorted(steps, key=lambda s: (s.start_s, s.name)):
        lane = next((i for i, end in enumerate(ends) if end <= step.start_s), len(ends))
        ends[lane:lane] = [] if lane < len(ends) else [0.0]
        ends[lane] = step.start_s + step.seconds
        placed.append(msgspec.structs.replace(step, lane=lane))
    return tuple(placed)


def write_last(private: Path, last: LastBuild) -> None:
    """Keep the build for the report, if it did something. Raises OSError."""
    if last.steps:
        write_atomically(private / FILE, msgspec.json.encode(last) + b"\n")


def read_last(private: Path) -> LastBuild | None:
    """The last build that did something; None where none is known."""
    try:
        last = msgspec.json.decode((private / FILE).read_bytes(), type=LastBuild)
    except (OSError, msgspec.DecodeError):
        return None
    return last if last.schema == SCHEMA else None


# The trace.

_STEPS, _VARIANTS = 1, 2  # what the format calls processes: groups of lanes


def trace(last: LastBuild, variants: Iterable[BuiltStep] = ()) -> dict[str, Any]:
    """The build in the Trace Event Format; times are in microseconds."""
    written = tuple(variants)
    events = [
        _meta("process_name", _STEPS, 0, "steps"),
        *_lane_names(_STEPS, last.steps),
        *(_complete(_STEPS, step) for step in last.steps),
        *_counters(last),
    ]
    if written:
        events.append(_meta("process_name", _VARIANTS, 0, "folders of variants"))
        events += _lane_names(_VARIANTS, written)
        events += [_complete(_VARIANTS, one) for one in written]
    about = {"started": last.started, "seconds": last.seconds, "jobs": last.jobs}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def write_trace(path: Path, chronicle: Chronicle) -> None:
    """Write the trace of a build. Raises OSError."""
    content = trace(chronicle.last(), chronicle.variants())
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def _meta(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _lane_names(pid: int, steps: Iterable[BuiltStep]) -> list[dict[str, Any]]:
    lanes = sorted({step.lane for step in steps})
    return [_meta("thread_name", pid, lane + 1, f"lane {lane + 1}") for lane in lanes]


def _complete(pid: int, step: BuiltStep) -> dict[str, Any]:
    """A complete event: something with a start and a duration."""
    about = {name: value for name, value in msgspec.to_builtins(step).items() if name in _TOLD}
    return {
        "ph": "X",
        "name": step.name,
        "cat": step.kind,
        "pid": pid,
        "tid": step.lane + 1,
        "ts": _us(step.start_s),
        "dur": _us(step.start_s + step.seconds) - _us(step.start_s),
        "args": about,
    }


_TOLD = ("done", "waited_s", "cores", "memory_mb", "cpu_s", "peak_mb", "where")


def _counters(last: LastBuild) -> list[dict[str, Any]]:
    """Cores and memory that steps had, at each moment when that changed."""
    changes: dict[int, list[int]] = {0: [0, 0]}
    for step in last.steps:
        if step.cores or step.memory_mb:
            for at, sign in ((step.start_s, 1), (step.start_s + step.seconds, -1)):
                change = changes.setdefault(_us(at), [0, 0])
                change[0] += sign * step.cores
                change[1] += sign * step.memory_mb
    events, cores, memory = [], 0, 0
    for at in sorted(changes):
        cores, memory = cores + changes[at][0], memory + changes[at][1]
        for name, value, unit in (("cores", cores, "in use"), ("memory", memory, "MiB")):
            events.append({"ph": "C", "name": name, "pid": _STEPS, "ts": at, "args": {unit: value}})
    return events


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
