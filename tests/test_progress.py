"""Builds of small real steps: what is seen of them while they run, and what is kept of them."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_schedule import open_with, wait_until, work

from tf2aif import build as build_module
from tf2aif import progress, tasks
from tf2aif.admission import Standing
from tf2aif.build import Build, Event
from tf2aif.cli import main
from tf2aif.errors import StepFailed
from tf2aif.estimates import history_of
from tf2aif.execute import Result
from tf2aif.graph import Graph, Step
from tf2aif.timeline import (
    FILE,
    BuiltStep,
    Chronicle,
    LastBuild,
    _in_lanes,
    read_last,
    trace,
    write_last,
    write_trace,
)
from tf2aif.workers import Workers
from tf2aif.workspace import Workspace

HERE = Path(__file__).parent


def chain(folder: Path, *, fails: str = "") -> Graph:
    """A root, four steps that read it, and one that reads these; and one that measures."""

    def step(name: str, *reads: str, **more: Any) -> Step:
        module = "deeds" if name == fails else "shared_step"
        options = {"do": "refuse"} if name == fails else {"size": 1000, "salt": name}
        return Step(
            id=f"m/{name}", kind=f"kind-{name}", recipe="m", folder=str(folder), module=module,
            version=1, toolchain="python", options=options,
            inputs={read: f"m/{read}" for read in reads}, **more,
        )  # fmt: skip

    parts = [f"part{i}" for i in range(4)]
    steps = [step("root"), *(step(part, "root") for part in parts), step("end", *parts)]
    steps.append(step("measure", "root", alone=True))
    return Graph({one.id: one for one in steps}, {})


@pytest.fixture
def open_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Build]]:
    """A function that opens a build of the steps in a project of its name."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "cache"))
    opened: list[Build] = []

    def make(name: str = "project", *, fails: str = "", **more: Any) -> Build:
        (tmp_path / name).mkdir(exist_ok=True)
        graph = chain(tmp_path / name, fails=fails)
        opened.append(Build(graph, Workspace(tmp_path / name), workers=Workers(), **more))
        return opened[-1]

    yield make
    for build in opened:
        build.close()


def files(build: Build) -> dict[str, bytes]:
    """What the steps made."""
    root = build.workspace.build / "m" / ".steps"
    folders = [build.workspace.artifact(step) for step in build.graph.steps]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_two_cores_make_the_same_bytes_as_one(
    open_build: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for jobs in (1, 2):
        monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / f"cache{jobs}"))
        build = open_build(f"jobs{jobs}")
        tasks.run(build, jobs=jobs)
        assert build.count("ran") == 7
        made.append(files(build))
        build.close()
        last = read_last(build.workspace.private)
        assert last is not None
        assert max(step.lane for step in last.steps) < jobs
    assert made[0] == made[1]
    assert len(made[0]) == 14


def test_what_a_build_did_is_kept(open_build: Callable[..., Build]) -> None:
    build = open_build()
    before = time.time()
    tasks.run(build, jobs=2)
    build.close()
    last = read_last(build.workspace.private)
    assert last is not None
    assert (last.ran, last.restored, last.fresh, last.failed, last.jobs) == (7, 0, 0, 0, 2)
    assert before <= last.started <= time.time()
    assert 0 < last.seconds < 60
    assert 0 < last.cpu_s < 60
    spans = {s.name: (s.start_s, s.start_s + s.seconds) for s in last.steps}
    for name, step in build.graph.steps.items():
        assert all(spans[read][1] <= spans[name][0] for read in step.inputs.values())
    # What measures had the machine for itself.
    begin, end = spans.pop("m/measure")
    assert all(stop <= begin or end <= start for start, stop in spans.values())
    by_name = {step.name: step for step in last.steps}
    assert (by_name["m/measure"].cores, by_name["m/end"].cores) == (2, 1)
    assert all(step.peak_mb > 10 and step.done == "ran" for step in last.steps)
    history = history_of(build.workspace)
    assert {past.kind for past in history.values()} == {s.kind for s in build.graph.steps.values()}


def test_what_is_restored_is_told_and_what_is_fresh_changes_nothing(
    open_build: Callable[..., Build],
) -> None:
    tasks.run(open_build(), jobs=2)
    build = open_build("elsewhere")  # another project with the same store
    tasks.run(build, jobs=2)
    build.close()
    last = read_last(build.workspace.private)
    assert last is not None
    assert (last.ran, last.restored, last.fresh) == (0, 7, 0)
    assert {(step.done, step.cores, step.peak_mb) for step in last.steps} == {("restored", 0, 0.0)}
    again = open_build("elsewhere")
    tasks.run(again, jobs=2)
    again.close()
    assert again.count("fresh") == 7
    assert read_last(build.workspace.private) == last


def test_a_failure_is_told_and_what_rests_on_it_does_not_run(
    open_build: Callable[..., Build], capsys: pytest.CaptureFixture[str]
) -> None:
    build = open_build(fails="part2")
    with progress.follow(build):
        tasks.run(build, jobs=2)
    assert set(build.failures) == {"m/part2"}
    build.close()
    last = read_last(build.workspace.private)
    assert last is not None
    assert (last.ran, last.failed) == (5, 1)  # all but the one and the end
    assert build.workspace.admission is not None
    standing = build.workspace.admission.standing()
    assert (standing.finished, standing.total, standing.running) == (7, 7, {})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert any(
        re.fullmatch(r"\[\d/7\] failed    m/part2: operator 'Foo' is not .*", s) for s in lines
    ), lines
    assert any(re.fullmatch(r"\[\d/7\] ran       m/root  \d+\.\d s", line) for line in lines)


def test_a_step_that_is_stopped_with_the_build_has_not_failed(
    open_build: Callable[..., Build], tmp_path: Path
) -> None:
    build = open_build()
    mark = tmp_path / "mark"
    sleeps = {"do": "sleep", "mark": str(mark)}
    root = msgspec.structs.replace(build.graph.steps["m/root"], module="deeds", options=sleeps)
    build.graph.steps["m/root"] = root
    told: list[Event] = []
    build.listen = told.append
    raised: list[str] = []

    def run() -> None:
        with pytest.raises(StepFailed) as stopped:
            build.run_step("m/root")
        raised.append(str(stopped.value))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(mark.exists)
    build.close()
    thread.join(10)
    assert len(raised) == 1
    assert "stopped before it was done" in raised[0]
    assert build.failures == {}
    assert "failed" not in {event.what for event in told}


def test_files_are_looked_at_once_a_build(
    open_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Graph] = []
    survey = build_module.survey

    def counting(graph: Graph, workspace: Workspace) -> Any:
        looked.append(graph)
        return survey(graph, workspace)

    monkeypatch.setattr(build_module, "survey", counting)
    graph = chain(HERE)
    far = msgspec.structs.replace(graph.steps["m/end"], id="m/far", toolchain="vitis")
    build = open_build()
    build = Build(Graph({**graph.steps, "m/far": far}, {}), build.workspace, workers=build.workers)
    assert set(build.missing) == {"m/far"}
    build.check()
    assert len(looked) == 1


def test_idle_workers_make_room(open_build: Callable[..., Build]) -> None:
    build = open_build()
    build.schedule(1)
    build.run_step("m/root")
    held = [process for group in build.workers._idle.values() for process in group]
    assert len(held) == 1
    build.workers.idle_room_mb = lambda: 1.0
    # A step with other variables needs another process; the one that is idle has to go first.
    other = msgspec.structs.replace(build.graph.steps["m/part0"], threads=3)
    build.graph.steps["m/part0"] = other
    build.run_step("m/part0")
    assert not held[0].is_alive()
    assert build.workers.cpu_s() > 0


# The trace.


def built(**more: Any) -> BuiltStep:
    """A step that ran."""
    fields = {"name": "m/s", "kind": "check", "start_s": 0.0, "seconds": 1.0, "done": "ran"}
    return BuiltStep(**{**fields, **more})


def check_trace(content: dict[str, Any]) -> None:
    """The rules of the Trace Event Format for the kinds of events that we write."""
    assert content["displayTimeUnit"] in ("ms", "ns")
    ends: dict[tuple[int, int], int] = {}
    named = {(e["pid"], e["tid"]) for e in content["traceEvents"] if e["name"] == "thread_name"}
    for event in content["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
        elif event["ph"] == "X":
            lane = (event["pid"], event["tid"])
            assert lane in named
            assert event["ts"] >= ends.get(lane, 0)  # what overlaps in a lane must be nested
            assert event["dur"] >= 0
            ends[lane] = event["ts"] + event["dur"]
        else:
            assert event["ph"] == "C"
            assert event["ts"] >= 0
            assert all(isinstance(value, int) for value in event["args"].values())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(0, 4)), max_size=30))
def test_a_trace_is_as_the_format_wants_it(spans: list[tuple[int, int, int]]) -> None:
    steps = _in_lanes(
        built(name=f"m/{i}", start_s=start / 7, seconds=long / 7, cores=cores, memory_mb=10 * cores)
        for i, (start, long, cores) in enumerate(spans)
    )
    last = LastBuild(
        started=0.0, seconds=60.0, cpu_s=1.0, jobs=2, memory_mb=100, ran=len(steps), restored=0,
        fresh=0, failed=0, steps=steps,
    )  # fmt: skip
    content = json.loads(json.dumps(trace(last, [built(kind="variant")])))
    check_trace(content)
    slices = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == len(spans) + 1
    cores = [e["args"]["in use"] for e in content["traceEvents"] if e["name"] == "cores"]
    assert cores[-1] == 0
    assert min(cores) == 0
    starts = [span[0] for span in spans if span[1]]
    most = max((sum(c for s, n, c in spans if s <= at < s + n) for at in starts), default=0)
    # Where one ends as another starts, rounding may let them touch for a microsecond.
    assert max(cores) >= most
    lanes = {step.lane for step in steps}
    assert lanes == set(range(len(lanes)))


def test_a_build_writes_its_trace(open_build: Callable[..., Build], tmp_path: Path) -> None:
    build = open_build(fails="part1")
    tasks.run(build, jobs=2)
    assert build.chronicle is not None
    with build.chronicle.variant("m/cpu-int8"):
        time.sleep(0.01)
    write_trace(tmp_path / "trace.json", build.chronicle)
    content = json.loads((tmp_path / "trace.json").read_text())
    check_trace(content)
    slices = {e["name"]: e for e in content["traceEvents"] if e["ph"] == "X"}
    assert slices.keys() == {*build.graph.steps, "m/cpu-int8"} - {"m/end"}
    assert slices["m/part1"]["args"]["done"] == "failed"
    assert slices["m/cpu-int8"]["dur"] >= 10_000
    assert slices["m/cpu-int8"]["pid"] != slices["m/root"]["pid"]


def test_times_on_another_machine_are_its_own(tmp_path: Path) -> None:
    chronicle = Chronicle(jobs=2, memory_mb=10)
    chronicle.hand("m/a", "check")
    chronicle.run("m/a", {}, "cpu label")
    chronicle.end("m/a", "ran", cpu_s=3.0, peak_mb=50.0, where="board")
    (step,) = chronicle.last().steps
    assert (step.where, step.cores, step.cpu_s) == ("board", 0, 3.0)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema": 99}'])
def test_another_last_build_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_last(tmp_path) is None
    write_last(tmp_path, Chronicle(jobs=1, memory_mb=1).last())  # nothing was done
    assert (tmp_path / FILE).read_text() == content


@pytest.mark.parametrize(("where", "hint"), [("no/such/t.json", "first"), ("", "it is a folder")])
def test_a_timeline_that_cannot_be_written_stops_the_build_before_it_begins(
    where: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["build", "--timeline", str(tmp_path / where)]) == 2
    told = capsys.readouterr().err
    assert "cannot be written" in told
    assert "--timeline" in told
    assert hint in told


# What is seen.


def test_durations_are_rounder_the_longer() -> None:
    words = [progress.duration(s) for s in (0.2, 59.4, 59.6, 3599, 3600, 90_000)]
    assert words == ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 0 min"]


def test_what_waits_is_worded_with_the_most_first() -> None:
    waiting = {"steps before": 40, "memory": 1, "cores": 3, "a lock": 3}
    standing = Standing(running={}, waiting=waiting, finished=0, total=50, left_s=95.0)
    assert (
        progress.waits(standing) == "3 for a lock, 3 for cores, 1 for memory, 40 for steps before"
    )
    assert progress.left(standing) == "about 1 min 35 s left"
    for unknown in (None, 0.4):
        assert progress.left(msgspec.structs.replace(standing, left_s=unknown)) == ""


class Shown:
    """A build as progress looks at it: with an admission whose steps are ours to move."""

    def __init__(self, steps: int = 12) -> None:
        works = {f"m/s{i}": work(100, 1, 1) for i in range(steps)}
        self.admission, self.told = open_with(works, hold_s=0.0)
        self.workspace = self
        self.runnable = tuple(works)
        self.listen: Callable[[Event], None] = lambda _: None
        self.over = threading.Event()
        self.threads = [
            threading.Thread(target=self._run, args=(name,), daemon=True) for name in works
        ]
        for thread in self.threads:
            thread.start()
        wait_until(lambda: self.admission.standing().waiting.get("cores", 0) == steps - 4)

    def _run(self, name: str) -> None:
        with self.admission.turn(name):
            self.over.wait(20)

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def shown() -> Iterator[Shown]:
    """Twelve steps, four of which run."""
    build = Shown()
    yield build
    build.end()


def test_a_silent_build_says_now_and_then_what_runs(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.05)
    told = ""
    with progress.follow(shown):  # type: ignore[arg-type]
        end = time.monotonic() + 10
        while not told and time.monotonic() < end:
            time.sleep(0.02)
            told = capsys.readouterr().err
    line = told.splitlines()[0]
    assert line.startswith("[0/12] runs      m/s")
    assert line.endswith("; waiting: 8 for cores")
    assert line.count("m/s") == 4


@pytest.mark.parametrize("width", [40, 100])
def test_the_view_of_a_terminal(shown: Shown, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(progress._View(shown).render())  # type: ignore[arg-type]
    lines = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert " 0/12" in lines[0]
    assert len(lines) == 6
    assert all(len(line) <= width for line in lines)
    assert lines[-1].startswith("waiting: 8 for cores")


def test_the_view_hides_what_does_not_fit() -> None:
    shown = Shown(steps=4)
    shown.end()
    afar = [shown.admission.afar(f"farm{i}", "board") for i in range(11)]
    for step in afar:
        step.__enter__()
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(progress._View(shown).render())  # type: ignore[arg-type]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("farm") == progress.SHOWN
    assert "and 3 more" in text


@pytest.mark.parametrize("plain", [False, True])
def test_a_bar_on_a_terminal_and_lines_elsewhere(
    shown: Shown, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    if plain:
        monkeypatch.setenv("CI", "true")
    main_end, other_end = os.openpty()
    with os.fdopen(other_end, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with progress.follow(shown):  # type: ignore[arg-type]
            shown.listen(Event("start", "m/s0"))
            shown.listen(Event("done", "m/s0", Result("ran", 2.04)))
            shown.listen(Event("done", "m/s1", Result("fresh", 0.0)))
            time.sleep(0.1)
        terminal.flush()
        written = os.read(main_end, 1 << 16).decode()
    os.close(main_end)
    assert "ran       m/s0  2.0 s" in written
    assert ("waiting: 8 for cores" in written) == (not plain)
    assert ("[1/12] ran" in written) == plain
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", written)  # no colour


def test_json_is_followed_by_nobody(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.follow(shown, quiet=True):  # type: ignore[arg-type]
        shown.listen(Event("done", "m/s0", Result("ran", 2.0)))
    assert capsys.readouterr().err == ""
