"""Steps on another machine, over a real sshd: results come whole or not at all, nothing stays."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from engine import Cutter, free_port
from processes import is_running, until
from project import UserProject

from tf2aif.errors import StepFailed
from tf2aif.toolchains import Identity, Missing, identity
from tf2aif.toolchains.places import Place, Places
from tf2aif.workers import Outcome, Request, Workers

HERE = Path(__file__).parent
SSHD = "/usr/sbin/sshd"

Run = Callable[..., Outcome]


TEMPORARY = Path(tempfile.gettempdir())


class Server(NamedTuple):
    """A ssh server, and the key that opens it."""

    port: int
    key: Path
    pid: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ssh server of this test's own on 127.0.0.1, with keys in a temporary folder."""
    if not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd: apt-get install --no-install-recommends openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    number = free_port()
    (folder / "config").write_text(
        f"Port {number}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPidFile {folder}/pid\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"SetEnv PYTHONPATH={HERE} TEST_THERE=yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        until(lambda: process.poll() is not None or answers(number), 30)
        if process.poll() is not None:
            pytest.skip(f"sshd does not start: {(folder / 'log').read_text().strip()[-200:]}")
        yield Server(number, folder / "user", process.pid)
    finally:
        process.terminate()
        process.wait(timeout=10)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
        return client.recv(64).startswith(b"SSH-2.0")
    return False


def place_at(port: int, key: Path, python: str = sys.executable) -> Place:
    options = ["-F", "none", "-p", str(port), "-i", str(key)]
    for option in (
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "IdentityAgent=none",
    ):
        options += ["-o", option]
    user = pwd.getpwuid(os.geteuid()).pw_name
    return Place(ssh=f"{user}@127.0.0.1", python=python, options=tuple(options))


@pytest.fixture
def place(server: Server) -> Place:
    return place_at(server.port, server.key)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.fixture
def run(workers: Workers, tmp_path: Path, place: Place) -> Run:
    """Runs an errand over there."""

    def run(
        do: str, *, place: Place = place, timeout_s: float = 60, inputs=None, code=None,
        environment: tuple[str, ...] = (), **options: object,
    ) -> Outcome:  # fmt: skip
        out = tmp_path / "out"
        out.mkdir()
        request = Request(
            step="net/errand",
            kind="errand",
            module="errands",
            toolchain="python",
            options={"do": do, **options},
            inputs=inputs or {},
            folder=str(tmp_path / "recipes"),
            code=code,
            environment=environment,
            out=str(out),
            place=place,
        )
        return workers.run(request, log=tmp_path / "log.txt", timeout_s=timeout_s)

    return run


def leftovers() -> set[Path]:
    """What unpacked parcels lie about; the folders of others are not ours to count."""
    return {path for path in TEMPORARY.glob("tf2aif-*") if (path / "errand.json").exists()}


# -- what it is --


def test_the_machine_says_what_it_is(place: Place) -> None:
    tool = identity("python", place)
    assert isinstance(tool, Identity)
    here = identity("python")
    assert isinstance(here, Identity)
    assert (tool.kind, tool.python, tool.platform) == ("ssh", here.python, here.platform)
    assert tool.versions == {"numpy": np.__version__}


def test_it_is_asked_once_a_build(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places({"python": place})
    first = places.identity("python")
    monkeypatch.setenv("PATH", "/nowhere")
    assert places.identity("python") is first
    assert places.asks("python")
    assert not places.asks("tensorflow")
    assert isinstance(places.identity("tensorflow"), Identity | Missing)
    assert Places({"python": place}).identity("python") == Missing("ssh", "install an ssh client")


def test_what_is_lacking_there_is_missing(place: Place, tmp_path: Path) -> None:
    """A Python without our needs, and one with them but without the toolchain's root."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = str(tmp_path / "bare" / "bin" / "python")
    lacking = identity("python", Place(ssh=place.ssh, python=bare, options=place.options))
    assert isinstance(lacking, Missing)
    assert "ModuleNotFoundError: No module named" in lacking.hint
    assert "it needs Python 3.11 or newer, with msgspec, numpy and xxhash" in lacking.hint
    none = identity("python", Place(ssh=place.ssh, python="/no/python", options=place.options))
    assert isinstance(none, Missing)
    assert "there is no '/no/python' on " in none.hint


def test_a_host_that_does_not_answer_is_missing(server: Server, place: Place) -> None:
    unreachable = place_at(free_port(), server.key)
    lacking = identity("python", unreachable)
    assert isinstance(lacking, Missing)
    assert lacking.what == f"host {place.ssh}"
    assert "Connection refused" in lacking.hint
    assert "must work without a password" in lacking.hint


def test_a_key_that_is_not_known_is_refused_and_never_asked_for(place: Place) -> None:
    start = place.options.index("-i")
    options = (*place.options[:start], "-i", "/no/key", *place.options[start + 2 :])
    lacking = identity("python", Place(ssh=place.ssh, python=sys.executable, options=options))
    assert isinstance(lacking, Missing)
    assert "Permission denied" in lacking.hint


# -- a step --


def test_a_step_runs_there_and_its_results_come_back(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = leftovers()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "w.npy").write_bytes(os.urandom(3 << 20))
    (tmp_path / "one.txt").write_text("one")
    inputs = {"model": str(tmp_path / "model"), "file": str(tmp_path / "one.txt")}
    outcome = run("copy", inputs=inputs, say="größe", variable="OMP_NUM_THREADS")
    out = tmp_path / "out"
    assert (out / "model" / "deep" / "w.npy").read_bytes() == (
        tmp_path / "model" / "deep" / "w.npy"
    ).read_bytes()
    assert (out / "file").read_text() == "one"
    assert os.access(out / "run.sh", os.X_OK)
    assert (out / "empty").is_dir()
    assert outcome.result["variable"] == "3"
    assert outcome.observed == {}  # its distributions are told by its identity
    assert (tmp_path / "log.txt").read_text() == "größe\n"
    assert leftovers() == before


def test_user_code_goes_along_and_what_it_read_is_observed(run: Run, tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "loader.py").write_text(
        "from pathlib import Path\nfrom scaling import factor\n"
        "def value():\n    return factor * int(Path(__file__).with_name('n.txt').read_text())\n"
    )
    (recipes / "scaling.py").write_text("factor = 2\n")
    (recipes / "n.txt").write_text("21")
    code = str(recipes / "loader.py")
    outcome = run("call", inputs={"code": code, "file0": str(recipes / "n.txt")}, code=code)
    assert outcome.result["value"] == 42
    assert {"module.loader.py", "module.scaling.py"} <= set(outcome.observed)
    from tf2aif.observed import current_value

    assert {n: current_value(n, recipes) for n in outcome.observed} == outcome.observed


def test_a_listed_variable_goes_along_and_others_do_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    assert run("copy", variable="SECRET", environment=("SECRET",)).result["variable"] == "s3cret"
    shutil.rmtree(tmp_path / "out")
    assert run("copy", variable="SECRET").result["variable"] is None
    assert "s3cret" not in (tmp_path / "log.txt").read_text()


# -- what goes wrong --


def test_a_refusal_and_a_crash_are_told_as_at_home(run: Run, tmp_path: Path, place: Place) -> None:
    with pytest.raises(StepFailed) as caught:
        run("refuse")
    fault = caught.value.faults[0]
    assert fault.message.splitlines()[0] == (
        f"net/errand: operator 'Foo' is not supported (on {place.ssh})"
    )
    assert (fault.at, fault.hint) == ("model: Foo", "use Bar")
    (tmp_path / "out").rmdir()
    with pytest.raises(StepFailed) as caught:
        run("crash")
    message = caught.value.faults[0].message
    assert "its process was killed by SIGSEGV" in message
    assert "     | about to crash" in message
    assert str(tmp_path / "log.txt") in message
    assert not list((tmp_path / "out").iterdir())


def test_past_its_time_it_ends_there(run: Run, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(StepFailed, match="over its time limit of 2 s"):
        run("sleep", mark=str(mark), timeout_s=2)
    until(lambda: not any(is_running(pid) for pid in pids_in(mark)), 30)


def pids_in(mark: Path) -> list[int]:
    until(mark.exists, 30)
    return [int(word) for word in mark.read_text().split()]


def sessions(server: Server) -> list[int]:
    """The process ids of the server's connections."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def test_a_dropped_connection_is_one_failed_step_and_ends_it_there(
    run: Run, tmp_path: Path, server: Server, place: Place
) -> None:
    mark, before = tmp_path / "mark", leftovers()
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(run, "sleep", mark=str(mark))
        pids = pids_in(mark)
        for session in sessions(server):
            os.kill(session, signal.SIGKILL)
        with pytest.raises(StepFailed, match=f"the connection to {place.ssh} failed"):
            task.result(timeout=30)
    until(lambda: not any(map(is_running, pids)), 30)
    until(lambda: leftovers() <= before, 30)
    assert not list((tmp_path / "out").iterdir())


def test_a_connection_that_is_cut_while_inputs_are_sent(
    run: Run, tmp_path: Path, server: Server
) -> None:
    cutter = Cutter(f"127.0.0.1:{server.port}")
    cutter.after_bytes, cutter.cuts = 4 << 20, 1
    try:
        (tmp_path / "big").write_bytes(os.urandom(8 << 20))
        through = place_at(int(cutter.address.rpartition(":")[2]), server.key)
        with pytest.raises(StepFailed, match=r"the connection to .* failed"):
            run("copy", place=through, inputs={"big": str(tmp_path / "big")})
        assert not list((tmp_path / "out").iterdir())
    finally:
        cutter.close()


def test_closing_ends_it_there(run: Run, workers: Workers, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(run, "sleep", mark=str(mark))
        pids = pids_in(mark)
        threading.Thread(target=workers.close).start()
        with pytest.raises(StepFailed, match="stopped before it was done"):
            task.result(timeout=30)
    until(lambda: not any(map(is_running, pids)), 30)


PARENT = """
import sys, msgspec
from pathlib import Path
from tf2aif.workers import Request, Workers
request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Request)
with Workers() as workers:
    workers.run(request, log=Path(sys.argv[1] + ".log"))
"""


def test_a_killed_build_ends_it_there(tmp_path: Path, place: Place) -> None:
    from tf2aif.workers import write_request

    mark, out = tmp_path / "mark", tmp_path / "out"
    out.mkdir()
    request = Request(
        step="net/errand", kind="errand", module="errands", toolchain="python",
        options={"do": "sleep", "mark": str(mark)}, out=str(out), place=place,
    )  # fmt: skip
    write_request(request, tmp_path / "request.json")
    words = [sys.executable, "-c", PARENT, str(tmp_path / "request.json")]
    build = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    pids = pids_in(mark)
    build.send_signal(signal.SIGKILL)
    build.wait()
    until(lambda: not any(map(is_running, pids)), 30)


def test_steps_take_turns_on_a_machine(run: Run, tmp_path: Path, place: Place) -> None:
    """Two builds at once, one machine: never two steps there together."""
    requests = []
    for number in range(2):
        (tmp_path / f"out{number}").mkdir()
        options = {"do": "sleep", "mark": str(tmp_path / f"mark{number}"), "seconds": 1.5}
        requests.append(
            Request(
                step="net/errand",
                kind="errand",
                module="errands",
                toolchain="python",
                options=options,
                out=str(tmp_path / f"out{number}"),
                place=place,
            )
        )
    with Workers() as one, Workers() as other, ThreadPoolExecutor(2) as pool:
        tasks = [
            pool.submit(each.run, request, log=tmp_path / f"{number}.txt", timeout_s=60)
            for number, (each, request) in enumerate(zip((one, other), requests, strict=True))
        ]
        for task in tasks:
            with contextlib.suppress(StepFailed):
                task.result(timeout=60)
    told = [(tmp_path / f"{number}.txt").read_text() for number in range(2)]
    assert sum("waiting: another step runs on this machine" in text for text in told) == 1


def test_who_gives_up_waiting_leaves_the_queue(
    run: Run, workers: Workers, tmp_path: Path, place: Place
) -> None:
    """Its process there ends at once, not when its turn has come."""
    mark = tmp_path / "mark"
    other = Request(
        step="net/errand",
        kind="errand",
        module="errands",
        toolchain="python",
        options={"do": "sleep", "mark": str(mark)},
        out=str(tmp_path),
        place=place,
    )
    with Workers() as first, ThreadPoolExecutor(2) as pool:
        running = pool.submit(first.run, other, log=tmp_path / "first.txt")
        pids_in(mark)
        before = leftovers()
        waiting = pool.submit(run, "copy")
        log = tmp_path / "log.txt"
        until(lambda: log.exists() and "waiting: another step" in log.read_text(), 30)
        assert leftovers() > before
        workers.close()
        until(lambda: leftovers() == before, 30)
        assert not running.done()
        first.close()
        for task in (running, waiting):
            with pytest.raises(StepFailed, match="stopped before it was done"):
                task.result(timeout=30)


def test_the_printed_command_runs_it_there_again(run: Run, tmp_path: Path, place: Place) -> None:
    with pytest.raises(StepFailed):
        run("refuse")
    words = [sys.executable, "-m", "tf2aif.worker", "--request", str(tmp_path / "log.request.json")]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"operator 'Foo' is not supported (on {place.ssh})" in done.stderr


# -- in a build --


def test_a_build_whose_converter_is_on_another_machine(
    make_project: Callable[..., UserProject], place: Place, server: Server
) -> None:
    """The samples, with the user's code, are read there; the rest of the build is here."""
    project = make_project()
    data = {"function": "loader.py:samples", "files": ["calibration.npy"]}
    calibration = {"data": data, "samples": 32}
    targets = {"arm": {"precisions": ["int8"]}}
    project.write(project.recipe(calibration=calibration, targets=targets))
    settle(project, place)
    assert "calibration" in project.build()
    assert project.last is not None
    made = project.last.workspace.made("digits/calibration")
    assert made is not None
    assert made.facts["toolchain.kind"] == "ssh"
    assert {"module.loader.py", "module.scaling.py"} <= set(made.observed)
    assert project.build() == set()
    project.path("scaling.py").write_text("def factor():\n    return 2\n")
    assert "calibration" in project.build()
    settle(project, place_at(free_port(), server.key))
    project.path("scaling.py").write_text("def factor():\n    return 3\n")
    project.build()
    assert {record.state for record in project.last.records().values() if record} == {"bundled"}


def settle(project: UserProject, place: Place) -> None:
    """Write the settings of a project whose toolchain `python` is on another machine."""
    words = {"ssh": place.ssh, "python": place.python, "options": list(place.options)}
    (project.root / "tf2aif.yaml").write_text(yaml.safe_dump({"toolchains": {"python": words}}))


def test_another_machine_leaves_no_stamp_that_says_nothing_to_do(
    project: UserProject, place: Place
) -> None:
    """No stat of this machine tells that another one has a new version."""
    project.write(project.recipe(targets={"arm": {"precisions": ["fp32"]}}))
    stamps = []
    for there in (True, False):
        if there:
            settle(project, place)
        else:
            (project.root / "tf2aif.yaml").unlink()
        done = project.cli("build", TF2AIF_IMAGES="no")
        assert done.returncode == 0, done.stderr
        stamps.append(len(list((project.root / "build" / ".tf2aif").glob("noop-*.json"))))
    assert stamps == [0, 1]
