"""What we may use of a machine, and what a step is expected to take of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tf2aif import capacity
from tf2aif.admission import open_admission
from tf2aif.estimates import USUAL_MB, USUAL_S, History, Past, Work, estimate
from tf2aif.execute import machine_limit_mb
from tf2aif.graph import Graph, Step
from tf2aif.records import ActionRecord
from tf2aif.toolchains.places import Place, Places
from tf2aif.workspace import Workspace

GIB = 1 << 30

# The machine.


class Host:
    """A machine as its `/proc` and `/sys/fs/cgroup` tell of it."""

    def __init__(self, root: Path) -> None:
        self.proc, self.groups = root / "proc", root / "cgroup"
        self.write(
            self.proc / "meminfo", "MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB"
        )

    def write(self, path: Path, text: str | int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def belong(self, lines: str) -> None:
        """Say in which control groups we are."""
        self.write(self.proc / "self" / "cgroup", lines)

    def group(self, path: str, **files: str | int) -> None:
        """A control group's files, `_` for their dots."""
        for name, text in files.items():
            self.write(self.groups / path / name.replace("_", ".", 1), text)

    def facts(self) -> tuple[int, int, int]:
        """Cores, MiB at most, MiB available."""
        where = {"proc": self.proc, "groups": self.groups}
        return (
            capacity.cores(**where), capacity.memory_mb(**where), capacity.available_mb(**where),
        )  # fmt: skip


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A machine of 8 cores and 32 GiB, 8 of them free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return Host(tmp_path)


def test_without_control_groups_the_machine_is_ours(host: Host) -> None:
    assert host.facts() == (8, 32 << 10, 8 << 10)
    host.belong("0::/")
    assert host.facts() == (8, 32 << 10, 8 << 10)


def test_limits_of_the_groups_above_hold_too(host: Host) -> None:
    host.belong("0::/ci.slice/job.scope")
    host.group("ci.slice", memory_max=4 * GIB, memory_current=3 * GIB, cpu_max="150000 100000")
    host.group("ci.slice", memory_stat=f"anon 1\ninactive_file {GIB}\nfile 5")
    host.group("ci.slice/job.scope", memory_max="max", cpu_max="max 100000")
    assert host.facts() == (2, 4 << 10, 2 << 10)


def test_a_container_sees_its_own_group_as_the_root(host: Host) -> None:
    host.belong("0::/../../docker/0123")
    host.group("", memory_max=2 * GIB, memory_current=0, cpu_max="50000 100000")
    assert host.facts() == (1, 2 << 10, 2 << 10)


def test_the_first_generation_of_control_groups(host: Host) -> None:
    host.belong("9:memory:/docker/1\n4:cpuset:/\n3:cpu,cpuacct:/docker/1\n0::/docker/1")
    (host.groups / "cpu,cpuacct").mkdir(parents=True)
    limit = {"limit_in_bytes": GIB, "usage_in_bytes": GIB, "stat": "total_inactive_file 1048576"}
    for name, value in limit.items():
        host.write(host.groups / "memory" / f"memory.{name}", value)
    for name, value in {"cfs_quota_us": 300000, "cfs_period_us": 100000}.items():
        host.write(host.groups / "cpu,cpuacct" / "docker" / "1" / f"cpu.{name}", value)
    assert host.facts() == (3, 1 << 10, 1)
    host.write(host.groups / "cpu,cpuacct" / "docker" / "1" / "cpu.cfs_quota_us", -1)
    host.write(host.groups / "memory" / "memory.limit_in_bytes", (1 << 63) - 4096)
    assert host.facts() == (8, 32 << 10, 8 << 10)


def test_this_machine() -> None:
    assert 1 <= capacity.cores() <= len(os.sched_getaffinity(0))
    assert 0 < capacity.available_mb() <= capacity.memory_mb()
    assert machine_limit_mb() == capacity.memory_mb() * 9 // 10


# Steps.


def step(name: str, **more: Any) -> Step:
    """A step of a recipe `m`."""
    fields = {
        "id": f"m/{name}", "kind": name, "recipe": "m", "folder": "/", "module": "none",
        "version": 1, "toolchain": "python",
    }  # fmt: skip
    return Step(**{**fields, **more})


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty project with a store of its own."""
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "cache"))
    return Workspace(tmp_path / "project")


def works(space: Workspace, *steps: Step, at_hand: tuple[str, ...] = ()) -> dict[str, Work]:
    """The work of each step, by its name in the recipe."""
    history = History(space.store.root / "times.json")
    graph = Graph({one.id: one for one in steps}, {})
    found = estimate(graph, space, history, at_hand=at_hand)
    return {name.removeprefix("m/"): one for name, one in found.items()}


def note(space: Workspace, of: Step, **timing: Any) -> None:
    """A record of the step's artifact in `build/`."""
    space.note(of, ActionRecord(step=of.id, kind=of.kind, timing=timing))


def test_nothing_is_known_at_first(space: Workspace) -> None:
    steps = [step("latency", toolchain="bench", alone=True), step("check"), step("model", code="f")]
    found = works(space, *steps)
    assert [one.wall_s for one in found.values()] == [USUAL_S["latency"], 1.0, USUAL_S["model"]]
    mb = [one.needs["memory"] for one in found.values()]
    assert mb == [USUAL_MB[True], USUAL_MB[False], USUAL_MB[True]]
    assert not any(one.known for one in found.values())
    assert found["latency"].alone


def test_what_a_step_took_is_expected_again(space: Workspace) -> None:
    history = History(space.store.root / "times.json")
    history.add({"m/check": Past(kind="check", wall_s=12.5, cpu_s=30.0, peak_mb=700.2)})
    note(space, step("check"), wall_s=1.0, cpu_s=1.0, peak_mb=1.0)
    check = works(space, step("check"))["check"]
    assert check == Work(wall_s=12.5, needs={"cores": 2, "memory": 701}, known=True)


def test_the_record_in_build_serves_where_there_is_no_history(space: Workspace) -> None:
    note(space, step("check"), wall_s=3.0, cpu_s=2.0, peak_mb=99.0)
    check = works(space, step("check"))["check"]
    assert check == Work(wall_s=3.0, needs={"cores": 1, "memory": 100}, known=True)
    note(space, step("check"), wall_s="nonsense")
    assert not works(space, step("check"))["check"].known


def test_a_new_step_is_expected_to_be_as_others_of_its_kind(space: Workspace) -> None:
    history = History(space.store.root / "times.json")
    seconds = {"a": 2.0, "b": 4.0, "c": 30.0}
    history.add(
        {n: Past(kind="check", wall_s=s, cpu_s=s, peak_mb=100 * s) for n, s in seconds.items()}
    )
    check = works(space, step("check"))["check"]
    assert check == Work(wall_s=4.0, needs={"cores": 1, "memory": 3001}, known=True)


def test_a_step_of_another_kind_with_the_same_name_says_nothing(space: Workspace) -> None:
    history = History(space.store.root / "times.json")
    history.add({"m/check": Past(kind="gate", wall_s=77.0)})
    note(space, step("check", kind="gate"), wall_s=77.0, cpu_s=1.0, peak_mb=1.0)
    assert works(space, step("check"))["check"].wall_s == 1.0


def test_threads_that_a_step_is_told_to_use_are_its_cores(space: Workspace) -> None:
    engine = step("check", options={"engine_options": {"threads": 3}})
    found = works(space, engine, step("latency", threads=4))
    assert [one.needs["cores"] for one in found.values()] == [3, 4]


def test_where_a_step_runs_decides_what_it_takes(space: Workspace) -> None:
    places = {
        "litert": Place(ssh="user@board"),
        "onnx": Place(docker="sha256:" + "0" * 64, gpus="all"),
        "openvino": Place(venv="lock.txt"),
    }
    space.__dict__["places"] = Places(places)
    found = works(
        space,
        step("far", toolchain="litert", alone=True),
        step("container", toolchain="onnx"),
        step("venv", toolchain="openvino"),
        step("engine", toolchain="tensorrt-rtx-builder", device="nvidia"),
        step("gpu", toolchain="tensorrt"),
    )
    assert found["far"].needs == {"host user@board": 1}
    assert not found["far"].alone
    devices = [name for name, one in found.items() if "device" in one.needs]
    assert devices == ["container", "engine", "gpu"]
    assert found["venv"].needs.keys() == {"cores", "memory"}


def test_what_is_at_hand_takes_no_time(space: Workspace) -> None:
    found = works(space, step("check"), at_hand=("m/check",))["check"]
    assert found.at_hand
    assert found.wall_s < 0.1
    assert found.needs["cores"] == 1  # should it have to run after all


def test_a_history_keeps_what_others_wrote_meanwhile(tmp_path: Path) -> None:
    first, second = History(tmp_path / "t" / "times.json"), History(tmp_path / "t" / "times.json")
    first.add({"a": Past(kind="x", wall_s=1.0), "b": Past(kind="x", wall_s=1.0)})
    second.add({"b": Past(kind="x", wall_s=2.0)})
    read = History(tmp_path / "t" / "times.json")
    assert {name: past.wall_s for name, past in read._past.items()} == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"a": 1}', b'{"a": {"kind": "x"}}'])
def test_a_damaged_history_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(content)
    assert list(History(path).values()) == []
    History(path).add({"a": Past(kind="x", wall_s=1.0)})
    assert len(list(History(path).values())) == 1


def test_a_history_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "times.json")
    history.add({"a": Past(kind="x", wall_s=1.0)})
    assert len(list(history.values())) == 1


def test_a_build_keeps_within_what_is_free(space: Workspace) -> None:
    graph = Graph({"m/check": step("check"), "m/gone": step("gone")}, {})
    admission = open_admission(graph, space, jobs=3, missing={"m/gone"})
    assert admission.cores == 3
    assert 0 < admission.memory_mb <= capacity.memory_mb() * 0.9
    assert admission.standing().total == 1  # what cannot run here is not waited for
    assert open_admission(graph, space, jobs=None).cores == capacity.cores()
