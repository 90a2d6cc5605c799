"""What goes wrong with a farm while it works: each build ends right, and nothing runs twice."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farms import TestBuild, TestFarm, content, plain_environment, step
from processes import until
from servers import Nginx, nginx

pytest.importorskip("distributed", reason="needs 'tf2aif[farm]'")

from tf2aif.errors import StepFailed
from tf2aif.execute import Result

TESTS = Path(__file__).parent
OTHER = "TF2AIF_FARM_PYTHON"
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def _plain_environment() -> Iterator[None]:
    with plain_environment():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """The shared cache."""
    with nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, server: Nginx) -> Iterator[TestFarm]:
    """A scheduler; tests say how many machines they need, and leave those that live."""
    farm = TestFarm(tmp_path_factory.mktemp("farm"), cache=server.url)
    try:
        yield farm
    finally:
        farm.close()


def need(farm: TestFarm, number: int) -> list[str]:
    """So many machines with one slot each, started where they are lacking; their names."""
    names = [
        name
        for name, process in list(farm.processes.items())
        if name.startswith("m") and process.poll() is None
    ]
    new = [f"m{next(_NUMBERS)}" for _ in range(number - len(names))]
    for name in new:
        farm.add(name, "--slots", "1", wait=False)
    for name in new:
        farm.wait_for(name)
    return [*names, *new]


def _in_background(build: TestBuild, *steps: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(build.run_all(steps)))
    thread.start()
    return thread, found


def test_a_machine_killed_in_the_middle_of_a_step(farm: TestFarm) -> None:
    names = need(farm, 2)
    with farm.build("kill") as build:
        done = step("done", build.folder)
        build.run(done)
        one = step("killed", build.folder, after=done, deed="kill-once")
        result = build.run(one)
        assert result.done == "ran"
        assert build.content(one) == content("done", "killed")
        (died,) = set(names) - {result.machine}
        assert farm.processes[died].wait(timeout=30) == -signal.SIGKILL
    assert farm.runs("killed") == 2  # on the one that died, and on the other
    assert farm.runs("done") == 1
    assert not _running(farm, "killed")


def _running(farm: TestFarm, name: str) -> list[int]:
    """Processes of the step that outlived their machine."""
    lines = (farm.root / "home" / "runs").read_text().splitlines()
    pids = [int(line.split()[1]) for line in lines if line.split()[0] == name]
    time.sleep(0.3)
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and _is_ours(pid)]


def _is_ours(pid: int) -> bool:
    """The warm process that did it well may still be there; a killed machine's may not."""
    status = Path(f"/proc/{pid}/status").read_text()
    return "State:\tZ" not in status and "PPid:\t1\n" in status


def test_the_scheduler_is_killed_and_comes_back(farm: TestFarm) -> None:
    need(farm, 1)
    with farm.build("back", patience_s=60.0) as build:
        done = step("done", build.folder)
        build.run(done)
        one = step("during", build.folder, sleep_s=1.0, after=done)
        thread, found = _in_background(build, one)
        until(lambda: farm.runs("during") == 1)
        farm.kill("scheduler")
        farm.start_scheduler()
        thread.join(timeout=120)
        assert isinstance(found[0], Result), found
        assert build.content(one) == content("done", "during")
    assert farm.runs("done") == 1
    assert farm.runs("during") <= 2


def test_a_scheduler_that_stays_away_ends_the_step_and_the_next_build_goes_on(
    farm: TestFarm,
) -> None:
    (name, *_) = need(farm, 1)
    with farm.build("away", patience_s=2.0) as build:
        done = step("done", build.folder)
        build.run(done)
        one = step("away", build.folder, sleep_s=60.0, after=done)
        thread, found = _in_background(build, one)
        until(lambda: farm.runs("away") == 1)
        pid = farm.pid("away")
        farm.kill("scheduler")
        thread.join(timeout=60)
        assert "the scheduler of the farm has gone" in str(found[0])
        assert "what is done is kept" in found[0].faults[0].hint
        until(lambda: not Path(f"/proc/{pid}").exists())  # nobody waits for it: it was ended
    before = farm.log(name).count("waits for steps")
    farm.start_scheduler()
    until(lambda: farm.log(name).count("waits for steps") == before + 1)
    with farm.build("away") as build:
        assert build.run(done).done == "fresh"
        assert build.run(step("next", build.folder, after=done)).done == "ran"
    assert farm.runs("done") == 1


def test_the_shared_cache_is_away_for_a_while(farm: TestFarm, server: Nginx) -> None:
    need(farm, 1)
    with farm.build("cache") as build:
        done = step("done", build.folder)
        build.run(done)
        one = step("no-cache", build.folder, sleep_s=1.0, after=done)
        thread, found = _in_background(build, one)
        until(lambda: farm.runs("no-cache") == 1)
        server.kill()
        time.sleep(10.0)  # the step ends meanwhile
        assert thread.is_alive()
        server.start()
        thread.join(timeout=60)
        assert isinstance(found[0], Result), found
        assert build.content(one) == content("done", "no-cache")
    assert farm.runs("no-cache") == 1


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_machine_without_disk_is_in_trouble_and_another_does_it(
    farm: TestFarm, tiny_disk: Path
) -> None:
    (well, *_) = need(farm, 1)
    farm.add("full", "--slots", "8", "--scratch", str(tiny_disk))
    with farm.build("full") as build:
        for number in range(3):  # some of them are given to the one that is full first
            one = step(f"large-{number}", build.folder, size=4_000_000)
            assert build.run(one).machine != "full"
            assert build.content(one) == content(f"large-{number}", size=4_000_000)
    farm.kill("full")
    assert farm.processes[well].poll() is None


BUILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from farms import KIND, TestBuild, TestFarm, step
from tf2aif.steps import STEPS
from tf2aif.remotes.keys import find_signing_key
STEPS[KIND] = "farm_step"
farm = object.__new__(TestFarm)
farm.root, farm.cache, farm.tls, farm.port = Path({root!r}), {cache!r}, None, {port}
farm.key = find_signing_key({{"TF2AIF_SIGNING_KEY": str(farm.root / "key")}})
with TestBuild(farm, "killed") as build:
    before = None
    for number in range(8):
        before = step(f"half-{{number}}", build.folder, after=before, sleep_s=0.3)
        build.run(before)
"""


def test_a_build_killed_after_half_of_its_steps(farm: TestFarm) -> None:
    need(farm, 1)
    began = farm.runs()
    script = BUILD.format(tests=str(TESTS), root=str(farm.root), cache=farm.cache, port=farm.port)
    process = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: farm.runs() >= began + 4)
    process.kill()
    process.wait()
    with farm.build("killed") as build:
        done = []
        before = None
        for number in range(8):
            before = step(f"half-{number}", build.folder, after=before, sleep_s=0.3)
            done.append(build.run(before).done)
        assert build.content(before) == content(*(f"half-{n}" for n in range(8)))
    assert done[:3] == ["fresh"] * 3
    assert all(farm.runs(f"half-{number}") == 1 for number in (0, 1, 2))
    assert farm.runs() <= began + 9  # the one that ran as the build was killed may have begun twice


def test_a_machine_that_is_asked_to_end_hands_its_step_on(farm: TestFarm) -> None:
    names = need(farm, 2)
    with farm.build("handed-on") as build:
        one = step("handed-on", build.folder, deed="nap-once")
        thread, found = _in_background(build, one)
        log = build.space.log(one)
        until(lambda: log.exists() and "handed-on begins" in log.read_text())
        (first,) = (name for name in names if f"on {name}" in log.read_text())
        farm.processes[first].send_signal(signal.SIGTERM)
        assert farm.processes[first].wait(timeout=30) == 0
        thread.join(timeout=50)
        assert isinstance(found[0], Result), found
        assert found[0].machine in set(names) - {first}


def test_a_machine_with_another_python(farm: TestFarm) -> None:
    """It takes steps of its own label only, and makes the same bytes."""
    python = os.environ.get(OTHER, "")
    if not python:
        pytest.skip(f"needs ${OTHER}: another Python with distributed, msgspec, numpy, xxhash …")
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert version != f"{sys.version_info.major}.{sys.version_info.minor}"
    ours = need(farm, 1)
    farm.add("other", "--slots", "1", python=python)
    with farm.build("ours") as build:
        for number in range(3):
            assert build.run(step(f"ours-{number}", build.folder)).machine in ours
    label = next(
        one.labels[0]
        for one in build.space.farm.seats.offers  # type: ignore[union-attr]
        if one.machine == "other"
    )
    assert f"-py{version}@" in label
    with farm.build("theirs", chosen={"python": label}) as build:
        for number in range(3):
            one = step(f"ours-{number}", build.folder)
            assert build.run(one).machine == "other"
            made = build.space.made(one)
            assert made is not None
            assert made.facts["toolchain.python"] == version
            assert build.content(one) == content(f"ours-{number}")


def test_a_step_that_kills_machines_is_not_tried_on_every_one(farm: TestFarm) -> None:
    names = need(farm, 3)
    with farm.build("deadly") as build:
        with pytest.raises(StepFailed, match="the machines that ran it died: ") as failed:
            build.run(step("deadly", build.folder, deed="kill-host"))
        named = [name for name in names if name in str(failed.value)]
        assert len(named) == 2
        assert farm.runs("deadly") == 2
        assert build.run(step("after", build.folder)).done == "ran"  # the third is well
