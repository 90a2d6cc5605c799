"""Compose images against `docker build` of an equivalent Dockerfile, in one run.

    python benchmarks/image.py            needs root, docker.io and iptables of Debian

Two variants: a model of 100 MB of random weights, and one of 45 kB, the size of keyword spotting.
Three states: cold (nothing made before; packages were downloaded), only the model changed, nothing
changed. Before each measurement the disk is left to finish what others wrote: our store waits for
the disk (fsync), and would pay for what docker, which does not, left to be written.

The Dockerfile has the same content: packages of Debian unpacked, the same wheels
installed from the same cache by the same uv and compiled, our code, the model; the engine's own
cache is empty when it is cold, and works as ever after that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from engine import docker_engine  # noqa: E402

from tf2aif.execute import bring_up_to_date  # noqa: E402
from tf2aif.graph import Graph, Step, Variant  # noqa: E402
from tf2aif.oci.apt import fetch, read_lock  # noqa: E402
from tf2aif.oci.bytecode import compile_tree  # noqa: E402
from tf2aif.oci.deb import unpack  # noqa: E402
from tf2aif.oci.engine import Engine, context_of  # noqa: E402
from tf2aif.oci.lockfile import Wanted, install  # noqa: E402
from tf2aif.oci.planning import ImagePlan, find_inputs  # noqa: E402
from tf2aif.oci.record import write_image  # noqa: E402
from tf2aif.oci.shipped import shipped_files  # noqa: E402
from tf2aif.steps import STEPS  # noqa: E402
from tf2aif.steps.image_base import package_cache  # noqa: E402
from tf2aif.workers import Workers  # noqa: E402
from tf2aif.workspace import Workspace  # noqa: E402

SIZES = {"kws (45 kB)": 45_000, "100 MB": 100_000_000}
REPEATS = 7
SETTLED_S = 0.3  # a model is older than that: it was checked first
PLATFORM, PYTHON = "linux/amd64", "3.11"
# `RUN` needs a shell and uv, which a distroless image has not: what it would install is copied.
DOCKERFILE = """FROM scratch
COPY base /
COPY packages /opt/tf2aif/packages
COPY app /opt/tf2aif/app
COPY model /variant
ENV PYTHONPATH=/opt/tf2aif/app:/opt/tf2aif/packages
USER 65532:65532
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/bin/python3.11", "-m", "tf2aif.serve", "/variant"]
"""


class Ours:
    """The steps of one image, and its composing, as a build does them."""

    def __init__(self, root: Path, workers: Workers) -> None:
        os.environ["TF2AIF_CACHE"] = str(root / "cache")
        self.root, self.workers = root, workers
        self.workspace = Workspace(root)
        self.steps = plan(root)

    def __call__(self) -> int:
        """Bring the image up to date; how many steps ran or were composed."""
        with ThreadPoolExecutor(2) as pool:  # as `tf2aif build -n 2`: no step needs another
            done = list(pool.map(self._bring, self.steps.values()))
        ran = len(done) - done.count("fresh")
        out = self.root / "image"
        if ran or not out.exists():
            shutil.rmtree(out, ignore_errors=True)
            write_image(VARIANT, IMAGE, Graph(self.steps, {}), self.workspace, out)
        return ran

    def _bring(self, step: Step) -> str:
        return bring_up_to_date(step, self.workspace, self.workers).done


IMAGE = ImagePlan(
    base="b/image-base", packages="b/image-packages", app="b/image-app", model="b/image-model",
    platform=PLATFORM, revision="benchmark",
)  # fmt: skip
VARIANT = Variant(
    recipe="b", target="cpu", precision="fp32", platform=PLATFORM, engine="litert",
    engine_options={}, baseline=False, labels={}, allowed_drop=0.0, artifact="b/image-model",
    check="b/image-model", image=IMAGE,
)  # fmt: skip


def plan(root: Path) -> dict[str, Step]:
    """The steps, with a folder in place of the artifact and of the check's result."""
    inputs = find_inputs(ROOT)
    machine = {"platform": PLATFORM, "python": PYTHON}
    names = {"recipe": "b", "variant": "cpu-fp32", "target": "cpu", "precision": "fp32"}
    lock = Path(inputs.locks["litert-linux-amd64-py3.11.txt"])
    (root / "lock").mkdir()
    shutil.copy(lock, root / "lock" / "lock.txt")
    wanted: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "image-base": ({"base": "debian", **machine},
                       {"lock": inputs.locks["debian-bookworm-amd64.json"]}),
        "image-packages": (machine, {"lock": str(root / "lock")}),
        "image-app": ({"python": PYTHON}, {f"source/{n}": p for n, p in inputs.sources.items()}),
        "image-model": ({**names, "platform": PLATFORM, "engine": {"name": "litert"}},
                        {"artifact": str(root / "artifact"), "check": str(root / "check")}),
    }  # fmt: skip
    return {
        f"b/{kind}": Step(
            id=f"b/{kind}", kind=kind, recipe="b", folder=str(root), module=STEPS[kind],
            version=1, toolchain="image", options=options, files=files,
        )
        for kind, (options, files) in wanted.items()
    }  # fmt: skip


def write_model(root: Path, size: int, seed: int) -> None:
    """Weights of that many bytes, and what the check says of them."""
    import numpy as np

    (root / "artifact").mkdir(exist_ok=True)
    (root / "check").mkdir(exist_ok=True)
    weights = np.random.default_rng(seed).bytes(size)
    (root / "artifact" / "model.tflite").write_bytes(weights)
    (root / "check" / "check.json").write_text(json.dumps({"metric": None}))


class Docker:
    """A context with the same content, built by a real engine."""

    def __init__(self, root: Path, ours: Path, engine: Engine) -> None:
        self.root, self.ours, self.engine = root, ours, engine

    def __call__(self) -> int:
        """Fill the context and build it."""
        for name, fill in (("base", self._base), ("packages", self._packages), ("app", self._app)):
            if not (self.root / name).exists():
                fill(self.root / name)
        shutil.rmtree(self.root / "model", ignore_errors=True)
        shutil.copytree(self.ours / "artifact", self.root / "model" / "artifact")
        (self.root / "Dockerfile").write_text(DOCKERFILE)
        with context_of(self.root) as context:
            self.engine.build(context, "b:docker")
        return 0

    def _base(self, dest: Path) -> None:
        lock = read_lock(Path(find_inputs(ROOT).locks["debian-bookworm-amd64.json"]))
        for deb in fetch(lock, package_cache()).values():
            unpack(deb, dest)
        compile_tree(dest / "usr/lib/python3.11", "/usr/lib/python3.11", PYTHON)

    def _packages(self, dest: Path) -> None:
        lock = Path(find_inputs(ROOT).locks["litert-linux-amd64-py3.11.txt"])
        install(lock, Wanted(requirements=(), platform=PLATFORM, python=PYTHON), dest)
        compile_tree(dest, "/opt/tf2aif/packages", PYTHON)

    def _app(self, dest: Path) -> None:
        for name, path in shipped_files().items():
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, dest / name)


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Wall seconds, and what it said. What others wrote before is on the disk by then."""
    os.sync()
    time.sleep(SETTLED_S)
    start = time.perf_counter()
    said = work()
    return time.perf_counter() - start, said


def hash_and_write_twice(source: Path, folder: Path) -> int:
    """The floor for a changed model: its SHA-256 while it is written to the disk, two times."""
    for number in range(2):
        state = hashlib.sha256()
        copy = folder / f"copy{number}"
        with source.open("rb") as reading, copy.open("wb") as writing:
            while data := reading.read(1 << 20):
                state.update(data)
                writing.write(data)
            writing.flush()
            os.fsync(writing.fileno())
    return 0


def measure(size: int, folder: Path, workers: Workers, engine: Engine) -> dict[str, float]:
    """One model: seconds of each state, ours and docker's, one after the other."""
    ours_at, theirs_at = folder / "ours", folder / "docker"
    ours_at.mkdir(parents=True)
    theirs_at.mkdir()
    write_model(ours_at, size, seed=0)
    ours, theirs = Ours(ours_at, workers), Docker(theirs_at, ours_at, engine)
    found: dict[str, float] = {}
    found["cold, ours"], _ = timed(ours)
    found["cold, docker build"], _ = timed(theirs)
    found |= model_changed(size, ours, ours_at, folder)
    found["model changed, docker build"], _ = timed(theirs)
    found["unchanged, ours"], ran = timed(ours)
    found["unchanged, steps run"] = ran
    found["unchanged, docker build"], _ = timed(theirs)
    blobs = (f for f in (ours_at / "image").rglob("*") if f.is_file())
    found["image MB"] = sum(f.stat().st_size for f in blobs) / 1e6
    return found


def model_changed(size: int, ours: Ours, ours_at: Path, folder: Path) -> dict[str, float]:
    """Ours and the floor in turn: how long a write takes differs by a factor of four here."""
    taken: dict[str, list[float]] = {"ours": [], "floor": []}
    ran = 0
    for seed in range(1, REPEATS + 1):
        write_model(ours_at, size, seed)
        model = ours_at / "artifact" / "model.tflite"
        taken["floor"].append(timed(lambda m=model: hash_and_write_twice(m, folder))[0])
        for number in range(2):
            (folder / f"copy{number}").unlink()
        wall, ran = timed(ours)
        taken["ours"].append(wall)
    return {
        "model changed, ours": median(taken["ours"]),
        "  best of it": min(taken["ours"]),
        "  worst of it": max(taken["ours"]),
        "  steps run": ran,
        "hash and write the model twice": median(taken["floor"]),
        "  best of that": min(taken["floor"]),
        "  worst of that": max(taken["floor"]),
    }


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    workers = Workers()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm_caches(folder / "warm")
        for number, (label, size) in enumerate(SIZES.items()):
            docker = folder / f"engine{number}"  # a fresh one each: it remembers layers
            docker.mkdir()
            with docker_engine(docker) as address, Engine(address) as engine:
                found[label] = measure(size, folder / str(number), workers, engine)
    workers.close()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for label, figures in found.items():
        print(label)
        for what, value in figures.items():
            print(f"  {what:<34} {value:8.2f}")


def warm_caches(folder: Path) -> None:
    """Download what both sides use, before the clock runs."""
    theirs = Docker(folder, folder, engine=None)  # type: ignore[arg-type]
    theirs._base(folder / "base")
    theirs._packages(folder / "packages")


if __name__ == "__main__":
    main()
