"""Warm worker processes: the planning process hands steps to them and survives whatever they do.

A process serves one toolchain with one set of variables, one step at a time. Importing TensorFlow
costs more than most conversions, so it is kept for the next step. It is replaced after a crash, a
time-out or an unexpected exception, past a memory limit, and after a step that loaded more than
the toolchain itself. A step that calls the user's code gets a process of its own, as a script
would: nothing of it is left behind for the next step, and what is observed is its own.

A step whose toolchain is on another machine or in a container is sent there (`tf2aif.offload`).
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from .errors import StepFailed
from .facts import Facts
from .observed import current_value
from .postmortem import cause_of_death, command_by_hand, full_message, oom_kills
from .processes import tree_cpu_s, tree_memory_mb
from .toolchains import Making, prepare, route
from .trials import kept_trials
from .worker import Failure, Reply, Request, Task, failed_reply, worker_command, write_all

if TYPE_CHECKING:
    from .offload import Trip
    from .toolchains.connection import Connection

__all__ = ["Outcome", "Request", "Workers", "current_value", "outcome_of", "write_request"]

POLL_S = 0.1
_Key = tuple[str, int | None, str, tuple[tuple[str, str], ...]]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a step gave, and what it took."""

    result: dict[str, object]
    """What the step's `run` returned."""
    observed: Facts
    """What it turned out to depend on: see `tf2aif.observed`."""
    wall_s: float
    """Of `run` alone; starting a process and importing its toolchain are not in it."""
    cpu_s: float
    """User and system, child processes included."""
    peak_mb: float
    """MiB resident at the worst, child processes included as far as polling saw them."""


class Workers:
    """The worker processes of one build; any number of threads may run steps at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[_Key, list[_Process]] = {}
        self._busy: set[_Process | Trip] = set()
        self._closed = False
        self.idle_room_mb: Callable[[], float] = lambda: math.inf
        """How much the processes may hold that do nothing, MiB; asked before one more starts."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        request: Request,
        *,
        log: Path,
        timeout_s: float | None = None,
        memory_mb: float | None = None,
    ) -> Outcome:
        """Run one step, its output in `log`. Limits cover start-up, and child processes too.

        What its toolchain lacks is made first (see `tf2aif.toolchains.venv`), within that time.
        Raises StepFailed with what went wrong or killed it, the end of the log and its path, and
        the command that runs the step again. Any other exception here, Ctrl-C too, ends its
        process first.
        """
        reply = self.attempt(request, log=log, timeout_s=timeout_s, memory_mb=memory_mb)
        return outcome_of(request, log, reply)

    def attempt(
        self,
        request: Request,
        *,
        log: Path,
        timeout_s: float | None = None,
        memory_mb: float | None = None,
    ) -> Reply:
        """As `run`; but what goes wrong is in the reply, for who tells of it in his own words."""
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        self._fail_if_closed(request, log)
        way = route(request.toolchain, request.place)
        if way is not None:
            return self._offload(way, request, log, timeout_s, memory_mb)
        try:
            prepare(
                request.toolchain,
                Making(log.absolute(), timeout_s, lambda: self._closed),
                request.place,
            )
        except StepFailed as error:
            self._fail_if_closed(request, log)
            return failed_reply(error)
        return self._work(request, log, timeout_s, memory_mb)

    def _work(
        self, request: Request, log: Path, timeout_s: float | None, memory_mb: float | None
    ) -> Reply:
        """Have a worker on this machine run it."""
        oom_before = oom_kills()
        with _scratch() as scratch, self._process(request, log, memory_mb) as process:
            task = Task(
                request=request, log=str(log.absolute()), scratch=scratch, trials=kept_trials()
            )
            try:
                reply = process.perform(task, timeout_s, memory_mb)
            except _Died as died:
                self._fail_if_closed(request, log)
                failure = Failure(message=died.explain(oom_kills() > oom_before))
                return Reply(wall_s=0.0, cpu_s=0.0, peak_mb=process.peak_mb, failure=failure)
            process.reusable = not reply.retire and request.code is None
        peak_mb = round(max(reply.peak_mb, process.peak_mb), 1)
        return msgspec.structs.replace(reply, peak_mb=peak_mb)

    def _offload(
        self,
        way: Connection,
        request: Request,
        log: Path,
        timeout_s: float | None,
        memory_mb: float | None,
    ) -> Reply:
        """Have it run where its toolchain is."""
        from .offload import Trip, run_elsewhere

        try:
            trip = Trip(way, log)
        except OSError as error:
            raise StepFailed(f"{request.step}: {way.argv[0]}: {error.strerror}") from error
        try:
            with self._lock:
                self._busy.add(trip)
            self._fail_if_closed(request, log)
            return run_elsewhere(trip, way, request, timeout_s=timeout_s, memory_mb=memory_mb)
        finally:
            with self._lock:
                self._busy.discard(trip)
            trip.end()
            self._fail_if_closed(request, log)

    def close(self) -> None:
        """End all processes at once; steps that run fail. Calling it twice is harmless."""
        with self._lock:
            self._closed = True
            idle = [process for group in self._idle.values() for process in group]
            self._idle.clear()
            for process in self._busy:
                process.signal_group()  # the thread that waits for it clears up
        for process in idle:
            process.end()

    @contextlib.contextmanager
    def _process(self, request: Request, log: Path, memory_mb: float | None) -> Iterator[_Process]:
        """A process for this step alone; it goes back among the idle ones if it is reusable."""
        argv, environment = worker_command(request)
        key = (request.toolchain, request.threads, argv[0], tuple(sorted(environment.items())))
        process = self._take(key, memory_mb) if request.code is None else None
        self._make_room()
        process = process or _Process(argv, environment, log)
        process.reusable = False
        try:
            with self._lock:
                self._busy.add(process)
            self._fail_if_closed(request, log)
            yield process
        finally:
            with self._lock:
                self._busy.discard(process)
                keep = process.reusable and not self._closed
                if keep:
                    process.idle_since = time.monotonic()
                    self._idle.setdefault(key, []).append(process)
            if not keep:
                process.end()

    def _take(self, key: _Key, memory_mb: float | None) -> _Process | None:
        """An idle process that lives, and has not grown so large that the step would pay for it."""
        while True:
            with self._lock:
                group = self._idle.get(key)
                if not group:
                    return None
                process = group.pop()
            if process.is_alive() and (not memory_mb or process.memory_mb() < memory_mb / 2):
                return process
            process.end()

    def _make_room(self) -> None:
        """End idle processes, those that were idle for longest first, until the rest has room."""
        room_mb = self.idle_room_mb()
        while room_mb < math.inf:
            with self._lock:
                idle = [(p.idle_since, key, p) for key, group in self._idle.items() for p in group]
                if sum(process.memory_mb() for *_, process in idle) <= room_mb:
                    return
                _, key, oldest = min(idle, key=lambda one: one[0])
                self._idle[key].remove(oldest)
            oldest.end()

    def cpu_s(self) -> float:
        """CPU seconds that the processes have used which still live."""
        with self._lock:
            idle = [process for group in self._idle.values() for process in group]
            busy = [process for process in self._busy if isinstance(process, _Process)]
            return sum(process.cpu_s() for process in (*idle, *busy))

    def _fail_if_closed(self, request: Request, log: Path) -> None:
        if self._closed:
            raise StepFailed(f"{request.step}: stopped before it was done", at=str(log))


class _Died(Exception):
    """A process ended, or was ended, without a reply."""

    def __init__(self, returncode: int | None, ended: str = "") -> None:
        super().__init__(returncode, ended)
        self.returncode = returncode
        self.ended = ended  # why we ended it ourselves

    def explain(self, out_of_memory: bool) -> str:
        return self.ended or cause_of_death(self.returncode, out_of_memory=out_of_memory)


class _Process:
    """One worker process, leader of a session and group of its own, and the pipes to it."""

    def __init__(self, argv: list[str], environment: dict[str, str], log: Path) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        lifeline, self._lifeline = os.pipe()
        theirs = (requests, replies, lifeline)
        try:
            with open(log, "ab") as output:
                self._popen = subprocess.Popen(
                    [*argv, "--serve", ",".join(map(str, theirs))],
                    env=environment,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=theirs,
                    start_new_session=True,  # the terminal's Ctrl-C is ours to handle
                )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self.peak_mb = 0.0
        self.reusable = False
        self.idle_since = 0.0

    def perform(self, task: Task, timeout_s: float | None, memory_mb: float | None) -> Reply:
        """Have one step run. Raises _Died where no reply comes."""
        self.peak_mb = 0.0
        start = time.monotonic()
        try:
            write_all(self._requests, msgspec.json.encode(task) + b"\n")
        except BrokenPipeError:
            raise self._died() from None
        received = bytearray()
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while not received.endswith(b"\n"):
            if poll.poll(POLL_S * 1000):
                received += self._receive()
            else:
                self._check(time.monotonic() - start, timeout_s, memory_mb)
        return msgspec.json.decode(bytes(received), type=Reply)

    def _receive(self) -> bytes:
        data = os.read(self._replies, 1 << 16)
        if not data:
            raise self._died()
        return data

    def _check(self, elapsed_s: float, timeout_s: float | None, memory_mb: float | None) -> None:
        """Is it alive, and within its limits?"""
        if self._popen.poll() is not None and not select.select([self._replies], [], [], 0)[0]:
            raise self._died()  # though a child that it left behind may hold the pipe
        used = self.memory_mb(memory_mb)
        self.peak_mb = max(self.peak_mb, used)
        if memory_mb and used > memory_mb:
            self._end_because(f"over its memory limit: {used:.0f} MiB used, {memory_mb:g} allowed")
        if timeout_s and elapsed_s > timeout_s:
            self._end_because(f"over its time limit of {timeout_s:g} s")

    def _end_because(self, why: str) -> NoReturn:
        self.end()
        raise _Died(None, why)

    def _died(self) -> _Died:
        """Its return code, once it is there: the pipe closes a moment before the process ends."""
        try:
            returncode = self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            returncode = None
        return _Died(returncode)

    def is_alive(self) -> bool:
        """Whether it can be given another step."""
        return self._popen.poll() is None

    def memory_mb(self, limit_mb: float | None = None) -> float:
        """MiB resident in it and in what it started."""
        return tree_memory_mb(self._popen.pid, limit_mb)

    def cpu_s(self) -> float:
        """CPU seconds that it and what it started have used."""
        return tree_cpu_s(self._popen.pid)

    def signal_group(self) -> None:
        """Kill it and all that it started. Its guard keeps the group's number taken until `end`."""
        if self._lifeline < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it with all that it started, and clear up. Calling it twice is harmless."""
        if self._lifeline >= 0:
            self.signal_group()
            self._popen.wait()
            self._close_pipes()

    def _close_pipes(self) -> None:
        for fd in (self._requests, self._replies, self._lifeline):
            os.close(fd)
        self._lifeline = -1


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder to work in, removed afterwards with whatever a killed step left in it."""
    path = os.path.realpath(tempfile.mkdtemp(prefix="tf2aif-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def outcome_of(request: Request, log: Path, reply: Reply) -> Outcome:
    """What a reply says. Raises StepFailed as `Workers.run` does."""
    if reply.failure:
        _refuse(request, log, reply.failure)
    return Outcome(
        result=reply.result,
        observed=reply.observed,
        wall_s=reply.wall_s,
        cpu_s=reply.cpu_s,
        peak_mb=reply.peak_mb,
    )


def write_request(request: Request, path: Path) -> str:
    """Keep what a step was asked; the command that runs it again."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(request), indent=2) + b"\n")
    return command_by_hand(path)


def _refuse(request: Request, log: Path, failure: Failure) -> NoReturn:
    """Hand on what the step, or its exception, said."""
    tail = not failure.expected
    _fail(request, log, failure.message, at=failure.at, hint=failure.hint, tail=tail)


def _fail(
    request: Request, log: Path, what: str, *, at: str = "", hint: str = "", tail: bool = True
) -> NoReturn:
    again = write_request(request, log.with_suffix(".request.json"))
    raise StepFailed(full_message(request.step, what, log, again, tail=tail), at=at, hint=hint)
