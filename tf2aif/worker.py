"""A worker process: it imports a toolchain once, then runs one step after another.

It is started by `tf2aif.workers` with three pipes: requests come in on one, replies go out on
another, both one JSON line each, and the third is only held open by the parent. Standard output
and error go to the log of the step that runs.

By hand, `python -m tf2aif.worker --request FILE` runs the step of a request that was kept when it
failed, in the same environment, with its output on the terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .errors import StepFailed, Tf2aifError
from .facts import Facts
from .toolchains import (
    Making,
    child_environment,
    command,
    environment_facts,
    prepare,
    route,
    search_path,
    warm_modules,
)
from .toolchains.installed import loaded, locked
from .toolchains.places import Place
from .trials import VARIABLE as TRIALS
from .trials import kept_trials, trials_folder


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One step to run. Paths are absolute."""

    step: str
    kind: str
    module: str
    """Dotted name of the module whose `run` does it."""
    toolchain: str
    options: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    out: str
    """A folder that exists and is empty."""
    folder: str = ""
    """The recipe's: what the user's code reads is named relative to it."""
    code: str | None = None
    """The file of user code that the step calls, if any."""
    environment: tuple[str, ...] = ()
    """Further variables that this code may see."""
    seed: int | None = None
    threads: int | None = None
    """Steps that ask for another number share no process: TensorFlow takes it once a process."""
    place: Place | None = None
    """Where the project wants the toolchain to run, if not as the table says."""
    variables: dict[str, str] | None = None
    """Those that can change results, of the machine that asked; None: this machine's own."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A request, and where the process prints and works meanwhile."""

    request: Request
    log: str
    scratch: str
    trials: str
    """Where searches keep their trials: of the task, not of the process, which serves any build."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a step did not succeed although its process lived to say so."""

    message: str
    at: str = ""
    hint: str = ""
    expected: bool = False
    """The step itself refused: its process is as good as before."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request."""

    result: dict[str, Any] = {}
    observed: Facts = {}
    wall_s: float
    cpu_s: float
    peak_mb: float
    failure: Failure | None = None
    retire: bool = False
    """The next step needs a new process: this one broke, or loaded more than its toolchain."""


def failed_reply(error: Tf2aifError) -> Reply:
    """A reply that says why a step did not even begin."""
    fault = error.faults[0]
    failure = Failure(message=fault.message, at=fault.at, hint=fault.hint, expected=True)
    return Reply(wall_s=0.0, cpu_s=0.0, peak_mb=0.0, failure=failure)


class Worker:
    """The state of a process between steps: what was loaded before the first one.

    Distributions that this very process needs are no facts: how they write JSON or hash changes no
    artifact, and a new version of them would make every step stale. Those of which the toolchain's
    lock fixes the version are a declared fact already: its digest.
    """

    def __init__(self, toolchain: str) -> None:
        self._toolchain = toolchain
        self._machinery: frozenset[str] = frozenset()
        self._baseline: frozenset[str] | None = None

    def run(self, request: Request) -> Reply:
        """Run one step in this process; whatever it raises becomes a failure in the reply."""
        result: dict[str, Any] = {}
        observed: Facts = {}
        failure = None
        meter = Meter()
        try:
            self._warm_up()
            meter = Meter()
            result, observed = self._run(request)
        except BaseException as error:  # the boundary of the process: nothing may end it unsaid
            failure = failure_of(error)
        return Reply(
            result=result,
            observed=observed,
            wall_s=meter.wall_s(),
            cpu_s=meter.cpu_s(),
            peak_mb=meter.peak_mb(),
            failure=failure,
            retire=self._is_spent(failure),
        )

    def _warm_up(self) -> None:
        """Import the toolchain before the first step."""
        if self._baseline is None:
            self._machinery = frozenset(loaded(sys.modules))
            for name in warm_modules(self._toolchain):
                importlib.import_module(name)
            self._baseline = frozenset(self._loaded())
            gc.freeze()  # a million objects of TensorFlow that no collection needs to look at

    def _is_spent(self, failure: Failure | None) -> bool:
        """Whether the next step would not find here what the first one did."""
        if failure and not failure.expected:
            return True
        return self._baseline is None or self._baseline != self._loaded().keys()

    def _run(self, request: Request) -> tuple[dict[str, Any], Facts]:
        from .steps import Job
        from .usercode import own_modules

        _start_alike(request.seed or 0)
        module = importlib.import_module(request.module)
        job = Job(
            step=request.step,
            kind=request.kind,
            options=request.options,
            inputs={name: Path(path) for name, path in request.inputs.items()},
            out=Path(request.out),
        )
        result, seen = _watched(request, lambda: module.run(job))
        own = own_modules() if request.code else ()
        versions = self._loaded(own)
        observed = {f"dist.{n}": v for n, v in versions.items() if n not in locked()}
        return _plain(result), observed | seen

    def _loaded(self, own: Collection[str] = ()) -> dict[str, str]:
        versions = loaded(sys.modules, own)
        return {n: v for n, v in versions.items() if n not in self._machinery}


def _watched(request: Request, run: Any) -> tuple[Any, Facts]:
    """Run it, and note what it reads where it is the user's code."""
    if request.code is None:
        return run(), {}
    from .watch import watching

    ignore = [request.out, os.getcwd(), str(trials_folder()), *request.inputs.values()]
    folder = request.folder or os.path.dirname(request.code)
    with watching(Path(folder), [Path(path) for path in ignore]) as watch:
        result = run()
    return result, watch.facts()


def _start_alike(seed: int) -> None:
    """Every step starts with the same random numbers and layer names, warm process or not."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % (1 << 32))
    if tensorflow := sys.modules.get("tensorflow"):
        tensorflow.random.set_seed(seed)
    for name in ("keras", "tf_keras"):
        if keras := sys.modules.get(name):
            keras.backend.clear_session()


def _plain(result: Mapping[str, Any] | None) -> dict[str, Any]:
    """The result as JSON gives it back."""
    try:
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(dict(result or {})))
    except (TypeError, ValueError) as error:
        raise Tf2aifError(f"the step returned what JSON cannot hold: {error}") from error
    return plain


def failure_of(error: BaseException) -> Failure:
    """What is told of an exception; its traceback goes to the log."""
    from .usercode import fault_of

    if isinstance(error, Tf2aifError):
        if error.__cause__ is not None:
            _print_traceback(error.__cause__)
        fault = error.faults[0]
        message = "; ".join(one.message for one in error.faults)
        return Failure(message=message, at=fault.at, hint=fault.hint, expected=True)
    _print_traceback(error)
    fault = fault_of(error)
    if isinstance(error, MemoryError):
        return Failure(message=f"ran out of memory ({fault.message})", at=fault.at)
    if isinstance(error, SystemExit):
        return Failure(message=f"something in it called exit({error.code!r})", at=fault.at)
    return Failure(message=fault.message, at=fault.at, hint=fault.hint)


def _print_traceback(error: BaseException) -> None:
    """Into the log, without the frames of this file, which tell a reader nothing."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    traceback.print_exception(error.with_traceback(frames))


class Meter:
    """Measures this process from now on: seconds, and MiB of resident memory at the worst."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # not every kernel and sandbox lets us
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
        self._wall, self._cpu = time.perf_counter(), self._cpu_now()

    def wall_s(self) -> float:
        """Wall seconds since the start."""
        return round(time.perf_counter() - self._wall, 6)

    def cpu_s(self) -> float:
        """CPU seconds since the start, user and system, ended child processes included."""
        return round(self._cpu_now() - self._cpu, 6)

    @staticmethod
    def peak_mb() -> float:
        """The kernel's high-water mark of resident memory."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) / 1024, 1)
        return 0.0

    @staticmethod
    def _cpu_now() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


def serve(requests: int, replies: int, lifeline: int) -> None:
    """Answer requests until the parent closes the pipe."""
    for fd in (requests, replies, lifeline):
        os.set_inheritable(fd, False)  # nothing that a step starts may hold them open
    _start_guard(lifeline)
    process = os.getpid()
    worker: Worker | None = None
    with open(requests, "rb") as lines:
        for line in lines:
            task = msgspec.json.decode(line, type=Task)
            with _printing_to(task.log), _working_in(task.scratch, task.trials):
                worker = worker or Worker(task.request.toolchain)
                reply = worker.run(task.request)
                if os.getpid() != process:
                    os._exit(0)  # a child that the step forked came back from it
            write_all(replies, msgspec.json.encode(reply) + b"\n")


def _start_guard(lifeline: int) -> None:
    """Start a small process in our group that kills the group once the parent is gone.

    The kernel closes the parent's end of the pipe however the parent ends. A thread of ours could
    not do it: native code that holds Python's lock would keep it from running.
    """
    script = "trap '' TERM INT HUP; read _; kill -KILL 0"
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    actions = [(os.POSIX_SPAWN_DUP2, lifeline, 0), *quiet]
    os.posix_spawn("/bin/sh", ["sh", "-c", script], {}, file_actions=actions)
    os.close(lifeline)


@contextlib.contextmanager
def _printing_to(log: str) -> Iterator[None]:
    """What the process prints goes to the log, from Python and from native code."""
    _redirect(log)
    try:
        yield
    finally:
        _redirect(os.devnull)


def _redirect(path: str) -> None:
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the step may have replaced or closed them
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


@contextlib.contextmanager
def _working_in(scratch: str, trials: str) -> Iterator[None]:
    """The step works in the scratch folder, and temporary files go there too."""
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.environ[TRIALS] = trials
    os.chdir(scratch)
    try:
        yield
    finally:
        os.chdir("/")


def write_all(fd: int, data: bytes) -> None:
    """Write to a pipe or socket until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def worker_command(request: Request) -> tuple[list[str], dict[str, str]]:
    """The command and the whole environment that start a worker for a request."""
    environment = child_environment(request.environment)
    if request.variables is not None:
        ours = environment_facts(request.environment)
        environment = {n: v for n, v in environment.items() if n not in ours} | request.variables
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    paths = (*given, *search_path(request.toolchain, request.place))
    if path := os.pathsep.join(dict.fromkeys(p for p in paths if p)):
        environment["PYTHONPATH"] = path
    return command(request.toolchain, request.place), environment


def run_by_hand(request: Request) -> int:
    """Run one step on the terminal; its exit code."""
    if way := route(request.toolchain, request.place):
        from .offload import Trip, run_elsewhere  # they rest on this module

        trip = Trip(way, Path("/dev/stderr"))
        reply = run_elsewhere(trip, way, request, timeout_s=None, memory_mb=None)
    else:
        with (
            tempfile.TemporaryDirectory(prefix="tf2aif-") as scratch,
            _working_in(scratch, kept_trials()),
        ):
            reply = Worker(request.toolchain).run(request)
    if failure := reply.failure:
        error = StepFailed(f"{request.step}: {failure.message}", at=failure.at, hint=failure.hint)
        print(error.render(), file=sys.stderr)
        return StepFailed.exit_code
    print(msgspec.json.format(msgspec.json.encode(reply.result)).decode())
    print(f"written to {request.out}", file=sys.stderr)
    return 0


def _resolved(path: Path, replaced: Mapping[str, str]) -> Request:
    """The request in a file; its relative paths start from the file's own folder."""
    request = msgspec.json.decode(path.read_bytes(), type=Request)
    here = path.absolute().parent
    inputs = {name: str(here / value) for name, value in request.inputs.items()}
    inputs |= {name: os.path.abspath(value) for name, value in replaced.items()}
    return msgspec.structs.replace(
        request,
        inputs=inputs,
        folder=str(here / request.folder),
        code=str(here / request.code) if request.code else None,
    )


def main() -> int:
    """The command line of this process."""
    parser = argparse.ArgumentParser(prog="python -m tf2aif.worker", description=__doc__)
    parser.add_argument("--serve", metavar="FDS", help="used by tf2aif itself")
    parser.add_argument("--request", type=Path, help="run the step of this file")
    parser.add_argument("--out", type=Path, help="an empty folder for its output")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=PATH", help="in place of the file's"
    )
    parser.add_argument("--here", action="store_true", help="in this very environment")
    words = parser.parse_args()
    if words.serve:
        serve(*map(int, words.serve.split(",")))
        return 0
    if not words.request:
        parser.error("--request FILE is needed")
    request = _resolved(words.request, dict(one.split("=", 1) for one in words.input))
    if not words.here and route(request.toolchain, request.place) is None:
        prepare(request.toolchain, Making(Path("/dev/stderr")), request.place)
        argv, environment = worker_command(request)
        os.execve(argv[0], [*argv, *sys.argv[1:], "--here"], environment)
    out = words.out or Path(tempfile.mkdtemp(prefix="tf2aif-out-"))
    out.mkdir(parents=True, exist_ok=True)
    return run_by_hand(msgspec.structs.replace(request, out=str(out.absolute())))


if __name__ == "__main__":
    sys.exit(main())
