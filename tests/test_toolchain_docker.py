"""Steps in containers of a real Docker engine, from an image that is named by its digest."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from engine import docker_engine, docker_registry, need

from tf2aif import toolchains
from tf2aif.errors import StepFailed
from tf2aif.oci import debian
from tf2aif.toolchains import Identity, Missing, identity
from tf2aif.toolchains.places import Place
from tf2aif.workers import Outcome, Request, Workers, write_request

HERE = Path(__file__).parent

Run = Callable[..., Outcome]


class Image(NamedTuple):
    """An image in a registry and in an engine."""

    name: str  # NAME@sha256:…
    id: str  # sha256:… of its configuration


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Debian's Python with what we need there, in a registry; `DOCKER_HOST` names an engine."""
    need("docker", "apt-get", "docker-registry")
    root = make_root(tmp_path_factory.mktemp("root"))
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(docker_engine(tmp_path_factory.mktemp("engine")))
        registry = stack.enter_context(docker_registry(tmp_path_factory.mktemp("registry")))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DOCKER_HOST", address)
        patch.setenv("DOCKER_CONFIG", str(tmp_path_factory.mktemp("config")))
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            name = f"{registry}/team/far"
            docker("import", "-", f"{name}:1", stdin=tar.stdout)
        pushed = re.search(r"sha256:[0-9a-f]{64}", docker("push", f"{name}:1"))
        assert pushed
        shown = docker("image", "inspect", "--format", "{{.Id}}", f"{name}:1").strip()
        docker("rmi", f"{name}:1")  # so that the first step pulls it
        yield Image(f"{name}@{pushed[0]}", shown)


def make_root(folder: Path) -> Path:
    """The files of an image: Debian's packages and wheels, as our own images are made of."""
    from tf2aif.oci.apt import fetch, lock_packages
    from tf2aif.oci.bytecode import compile_tree
    from tf2aif.oci.deb import unpack

    root = folder / "root"
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    lock = lock_packages([*debian.PACKAGES, "dash"], debian.SUITE, architecture)
    for deb in fetch(lock, folder / "debs").values():
        unpack(deb, root)
    for name in ("bin", "lib", "lib64", "sbin"):
        if (root / "usr" / name).is_dir():
            (root / name).symlink_to(f"usr/{name}")
    (root / "usr" / "bin" / "python3").symlink_to("python3.11")
    (root / "tmp").mkdir(exist_ok=True)
    packages = root / "usr" / "local" / "lib" / "python3.11" / "dist-packages"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv: pip install 'tf2aif[images]'")
    words = [uv, "pip", "install", "--quiet", "--target", str(packages), "--python-version", "3.11"]
    words += ["--only-binary", ":all:", "msgspec", "numpy", "xxhash"]
    subprocess.run(words, check=True, timeout=300)
    for compiled in (root / "usr" / "lib" / "python3.11", packages):
        compile_tree(compiled, f"/{compiled.relative_to(root)}", debian.PYTHON)
    return root


def docker(*words: str, stdin: object = None) -> str:
    done = subprocess.run(["docker", *words], stdin=stdin, capture_output=True, text=True)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture
def place(image: Image) -> Place:
    """Our test's own module is brought in through the arguments of `docker run`."""
    run = ("--volume", f"{HERE}:/tests:ro", "--env", "PYTHONPATH=/tests")
    return Place(docker=image.name, run=run)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.fixture
def run(workers: Workers, tmp_path: Path, place: Place) -> Run:
    """Runs an errand in a container."""

    def run(do: str, *, place: Place = place, timeout_s: float = 120, inputs=None, **options):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        request = make_request(out, place, do=do, **options)
        request = Request(**{**fields(request), "inputs": inputs or {}})
        return workers.run(request, log=tmp_path / "log.txt", timeout_s=timeout_s)

    return run


def fields(request: Request) -> dict[str, object]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


def make_request(out: Path, place: Place, **options: object) -> Request:
    return Request(
        step="net/errand",
        kind="errand",
        module="errands",
        toolchain="python",
        options=options,
        out=str(out),
        place=place,
    )


def containers() -> list[str]:
    """The names of ours that are there, ended or not."""
    return docker("ps", "--all", "--format", "{{.Names}}").split()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.05)


DIGEST = "sha256:" + "0123456789abcdef" * 4


# -- what it is --


def test_its_identity_is_the_digest_and_how_it_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    need("docker")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")  # nothing is asked
    tool = identity("python", Place(docker=f"there:5000/team/x@{DIGEST}"))
    assert isinstance(tool, Identity)
    assert tool.facts() == {
        "kind": "docker",
        "python": "python3",
        "platform": f"linux-{platform.machine()}",
        "image": DIGEST,
    }
    assert identity("python", Place(docker=DIGEST)) == tool
    other = identity("python", Place(docker=DIGEST, run=("--ipc", "host"), gpus=2))
    assert isinstance(other, Identity)
    assert other.facts()["run"] == '["--ipc", "host"]'
    assert other.facts()["gpus"] == "2"


def test_gpus_are_asked_of_the_engine() -> None:
    way = toolchains.route("python", Place(docker=DIGEST, gpus="all"))
    assert way is not None
    assert way.argv[way.argv.index("--gpus") + 1] == "all"
    assert way.argv[way.argv.index("--network") + 1] == "none"


def test_without_docker_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    lacking = identity("python", Place(docker=DIGEST))
    assert isinstance(lacking, Missing)
    assert lacking.what == "docker"


# -- a step --


def test_a_step_runs_in_a_container_and_its_results_come_back(
    run: Run, tmp_path: Path, image: Image
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.npy").write_bytes(os.urandom(3 << 20))
    outcome = run("copy", inputs={"model": str(tmp_path / "model")}, say="größe")
    out = tmp_path / "out"
    sent, back = tmp_path / "model" / "w.npy", out / "model" / "w.npy"
    assert sent.read_bytes() == back.read_bytes()
    assert back.stat().st_uid == os.getuid()
    assert os.access(out / "run.sh", os.X_OK)
    assert outcome.result["python"] == "/usr"
    assert outcome.observed == {}
    assert "größe\n" in (tmp_path / "log.txt").read_text()
    assert containers() == []


def test_an_image_of_the_engine_by_its_id_and_no_network(
    run: Run, place: Place, image: Image
) -> None:
    docker("pull", "--quiet", image.name)
    result = run("network", place=Place(docker=image.id, run=place.run)).result
    assert result == {"interfaces": ["lo"], "user": 0}


# -- what goes wrong --


def test_a_crash_is_told_as_at_home(run: Run, tmp_path: Path, image: Image) -> None:
    with pytest.raises(StepFailed) as caught:
        run("crash")
    message = caught.value.faults[0].message
    assert (
        f"killed by SIGSEGV (a segmentation fault in native code) (in a container of {image.name}"
        in message
    )
    assert "     | about to crash" in message
    assert not list((tmp_path / "out").iterdir())
    assert containers() == []


def test_past_its_time_it_ends(run: Run) -> None:
    with pytest.raises(StepFailed, match="over its time limit of 2 s"):
        run("sleep", mark="/tmp/mark", timeout_s=2)
    wait_until(lambda: containers() == [])


def started(log: Path, ended: Callable[[], bool]) -> None:
    """Until the step runs, or has ended already."""
    wait_until(lambda: ended() or (log.exists() and "sleeping" in log.read_text()), 60)
    assert not ended()


def test_a_container_that_is_killed_is_one_failed_step(run: Run, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(run, "sleep", mark="/tmp/mark")
        started(tmp_path / "log.txt", task.done)
        (name,) = containers()
        docker("kill", name)
        with pytest.raises(StepFailed, match=r"the container was killed \(SIGKILL\)"):
            task.result(timeout=30)
    assert not list((tmp_path / "out").iterdir())
    assert containers() == []


def test_closing_ends_the_container(run: Run, workers: Workers, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(run, "sleep", mark="/tmp/mark")
        started(tmp_path / "log.txt", task.done)
        workers.close()
        with pytest.raises(StepFailed, match="stopped before it was done"):
            task.result(timeout=30)
    assert containers() == []


PARENT = """
import sys, msgspec
from pathlib import Path
from tf2aif.workers import Request, Workers
request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Request)
with Workers() as workers:
    workers.run(request, log=Path(sys.argv[1] + ".log"))
"""


def test_a_killed_build_ends_its_container(tmp_path: Path, place: Place) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "request.json"
    write_request(make_request(tmp_path / "out", place, do="sleep", mark="/tmp/mark"), path)
    words = [sys.executable, "-c", PARENT, str(path)]
    build = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    started(Path(f"{path}.log"), lambda: build.poll() is not None)
    build.send_signal(signal.SIGKILL)
    build.wait()
    wait_until(lambda: containers() == [])


def test_what_docker_says_of_an_image_that_is_not_there(run: Run, image: Image) -> None:
    wrong = Place(docker=f"{image.name.partition('@')[0]}@{DIGEST}")
    with pytest.raises(StepFailed) as caught:
        run("network", place=wrong)
    message = caught.value.faults[0].message
    assert message.startswith("net/errand: docker could not start the container\n     | ")
    assert "not found" in message or "unknown" in message


def test_an_engine_that_does_not_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(StepFailed) as caught:
        run("network")
    assert "docker could not start the container" in caught.value.faults[0].message
    assert "DOCKER_HOST" in caught.value.faults[0].hint


@pytest.mark.parametrize(
    ("python", "said"),
    [("python3.99", "there is no 'python3.99' in the image"), ("/etc", "'/etc' cannot be run")],
)
def test_an_image_without_that_python(run: Run, image: Image, python: str, said: str) -> None:
    with pytest.raises(StepFailed) as caught:
        run("network", place=Place(docker=image.name, python=python))
    assert said in caught.value.faults[0].message
    assert "msgspec, numpy and xxhash" in caught.value.faults[0].hint


def test_an_image_without_what_we_need(run: Run, place: Place) -> None:
    hidden = (*place.run, "--tmpfs", "/usr/local/lib/python3.11/dist-packages")
    with pytest.raises(
        StepFailed, match="ModuleNotFoundError: No module named 'msgspec'"
    ) as caught:
        run("network", place=Place(docker=place.docker, run=hidden))
    assert "it needs Python 3.11 or newer, with msgspec" in caught.value.faults[0].hint
