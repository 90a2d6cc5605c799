"""Shared caches: machine A builds and pushes, machine B takes; beside DVC with the same files.

    python benchmarks/shared.py [--dvc FOLDER] [--only builds|small] [--runs 5]

A and B are two checkouts with a store each; between them stand Debian's nginx and docker-registry
on this machine, started as the tests start them. The recipes are the demo's digits and, where it
lies beside the checkout, the keyword-spotting model, each for every target that is a processor.
Times are of whole processes, interpreter and planning included; bytes are what the remote holds,
and what B took. DVC keeps the very artifacts that A made, with a folder as its remote, which costs
it the least; it is installed into an environment of its own at FOLDER, or left out.

`small`: 1,000 actions of a few bytes are pushed, and taken into an empty store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from engine import docker_registry  # noqa: E402
from servers import nginx  # noqa: E402
from sharing import add_action, new_key, step_of  # noqa: E402
from timed import machine, timed  # noqa: E402

from tf2aif.remotes import open_remote  # noqa: E402
from tf2aif.remotes.keys import SigningKey, Trusted  # noqa: E402
from tf2aif.remotes.shared import Shared  # noqa: E402
from tf2aif.store import ActionRecord, Store  # noqa: E402

KWS = ROOT.parent / "shared" / "kws"
TARGETS = ["cpu", "cpu-openvino", "cpu-tf", "arm", "arm-tf"]
SMALL = 1000

# What `tf2aif build` does, with a line of JSON at its end.
BUILD = """
import json, sys
from pathlib import Path
from tf2aif import tasks
from tf2aif.build import Build
from tf2aif.remotes import RemoteUse, open_shared
from tf2aif.remotes.ahead import fetch_ahead
project, url, write, trusted, report = Path(sys.argv[1]), *sys.argv[2:6]
build = Build.load([project / "recipes"], project)
build.workspace.shared = open_shared([RemoteUse(url, write == "write")], trusted=[trusted])
fetch_ahead(build.graph, build.workspace)
tasks.run(build)
found = build.workspace.shared.finish()
build.close()
assert not build.failures, build.failures
done = [result.done for result in build.results.values()]
ran = sorted(name for name, result in build.results.items() if result.done == "ran")
Path(report).write_text(json.dumps({
    "ran": ran, "steps": len(done), "taken_bytes": found.taken_bytes,
    "given_bytes": found.given_bytes, "warnings": found.warnings,
    "tensorflow": "tensorflow" in sys.modules,
}))
"""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dvc", type=Path, help="a folder for DVC's environment")
    parser.add_argument("--only", choices=("builds", "small"))
    parser.add_argument("--runs", type=int, default=5, help="of the small actions")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["XDG_CONFIG_HOME"] = str(work / "config")
        key = new_key(work)
        os.environ["TF2AIF_SIGNING_KEY"] = str(work / "key")
        if options.only != "builds":
            small_actions(work / "small", key, options.runs)
        if options.only != "small":
            builds(work / "builds", key, options.dvc)


@contextmanager
def servers(work: Path) -> Iterator[dict[str, tuple[str, Path]]]:
    """Name -> the address of a remote, and the folder that its bytes are in."""
    with nginx(work / "nginx") as web, docker_registry(work / "registry") as registry:
        yield {
            "nginx": (web.url, web.files),
            "registry": (f"oci://{registry}/cache", work / "registry" / "files"),
            "folder": (str(work / "folder"), work / "folder"),
        }


# A thousand small actions.


def small_actions(work: Path, key: SigningKey, runs: int) -> None:
    """Push and take them, each run under a new name on the remote and into a new store."""
    store = Store(work / "store")
    records = [add_action(store, work / "made" / str(n), n) for n in range(SMALL)]
    print(f"{SMALL} small actions, median of {runs}, seconds (CPU seconds of ours in brackets)")
    print(f"{'remote':<10} {'push':>14} {'take':>14} {'both':>7}")
    with servers(work) as remotes:
        for name, (url, _) in remotes.items():
            pairs = [
                (push(f"{url}/{n}", records, store, key), take(f"{url}/{n}", records, work, key))
                for n in range(runs)
            ]
            push_s, push_cpu = (statistics.median(p[0][i] for p in pairs) for i in (0, 1))
            take_s, take_cpu = (statistics.median(p[1][i] for p in pairs) for i in (0, 1))
            print(
                f"{name:<10} {push_s:6.2f} ({push_cpu:4.2f}) {take_s:6.2f} ({take_cpu:4.2f}) "
                f"{push_s + take_s:7.2f}"
            )
    print()


def push(
    url: str, records: list[ActionRecord], store: Store, key: SigningKey
) -> tuple[float, float]:
    """Give them all; wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    shared = Shared([(open_remote(url), True)], trusted=Trusted([key.public]), key=key)
    for record in records:
        shared.give(record, store)
    report = shared.finish()
    assert report.given == len(records), report  # noqa: S101
    return time.perf_counter() - wall, time.process_time() - cpu


def take(url: str, records: list[ActionRecord], work: Path, key: SigningKey) -> tuple[float, float]:
    """Take them all into an empty store; wall and CPU seconds."""
    store = Store(Path(tempfile.mkdtemp(dir=work)))
    wall, cpu = time.perf_counter(), time.process_time()
    shared = Shared([(open_remote(url), False)], trusted=Trusted([key.public]))
    asked = [shared.begin_taking(step_of(r), r.key, lambda _: "1", store) for r in records]
    assert [one.result() for one in asked] == records  # noqa: S101
    shared.finish()
    return time.perf_counter() - wall, time.process_time() - cpu


# Machine A, machine B.


def builds(work: Path, key: SigningKey, dvc: Path | None) -> None:
    """A builds and pushes to each remote; B takes; then one calibration byte changes on B."""
    a, b = work / "a" / "checkout", work / "home" / "b" / "clone"
    for checkout in (a, b):
        write_project(checkout)
    print(f"{'what':<44} {'wall s':>8} {'CPU s':>8} {'ran':>5} {'MB moved':>9}")
    with servers(work) as remotes:
        url, files = remotes["nginx"]
        build("A builds, pushes to nginx", a, url, True, key, work / "a" / "store")
        print(f"{'  what nginx holds then':<44} {'':>8} {'':>8} {'':>5} {megabytes(files):9.2f}")
        for name in ("registry", "folder"):
            copy_all(work / "a" / "store", remotes[name][0], key, name)
        for name, (url, _) in remotes.items():
            shutil.rmtree(b / "build", ignore_errors=True)
            store = work / f"b-{name}"
            build(f"B takes from {name}", b, url, False, key, store)
        build("B again: nothing to do", b, url, False, key, store)
        change_a_byte(b)
        build("B: one calibration sample changed", b, url, False, key, store)
    if dvc:
        compare_dvc(work / "dvc", a, dvc)


def write_project(root: Path) -> None:
    """The demo, and the keyword-spotting model where it is there, with its own calibration file."""
    recipes = root / "recipes"
    recipes.mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "digits.py", recipes)
    digits = yaml.safe_load((ROOT / "recipes" / "digits.yaml").read_text())
    (recipes / "digits.yaml").write_text(yaml.safe_dump({**digits, "targets": TARGETS}))
    if not KWS.is_dir():
        print("(without keyword spotting: ../shared/kws is not there)")
        return
    shutil.copytree(KWS / "model", recipes / "model")
    samples = np.load(KWS / "samples.npz")
    np.save(recipes / "calibration.npy", samples["x"][:200])
    np.savez(recipes / "evaluation.npz", x=samples["x"], y=samples["y"])
    evaluation = {"data": "evaluation.npz#x", "labels": "evaluation.npz#y", "metric": "top-1"}
    recipe = {
        "model": {"path": "model"},
        "calibration": {"data": "calibration.npy", "samples": 200},
        "evaluation": evaluation,
        "gate": {"drop": 0.02},
        "targets": TARGETS,
    }
    (recipes / "kws.yaml").write_text(yaml.safe_dump(recipe))


def build(
    what: str, project: Path, url: str, write: bool, key: SigningKey, store: Path
) -> dict[str, Any]:
    """One build in a process of its own, as a row of the table."""
    report = project.parent / "report.json"
    words = [str(project), url, "write" if write else "read", key.public, str(report)]
    environment = {"TF2AIF_CACHE": str(store)}
    times = timed([sys.executable, "-c", BUILD, *words], ROOT, environment)
    found: dict[str, Any] = json.loads(report.read_text())
    moved = (found["given_bytes"] + found["taken_bytes"]) / 1e6
    print(f"{what:<44} {times.wall_s:8.2f} {times.cpu_s:8.2f} {len(found['ran']):5d} {moved:9.2f}")
    for warning in found["warnings"]:
        print(f"  warning: {warning}")
    if found["ran"] and not write:
        print(f"  ran: {' '.join(found['ran'])}")
    if not found["ran"] and found["tensorflow"]:
        print("  TensorFlow was imported, though nothing ran")
    return found


def copy_all(store: Path, url: str, key: SigningKey, name: str) -> None:
    """Give all that A's store has to another remote."""
    start = time.perf_counter()
    shared = Shared([(open_remote(url), True)], trusted=Trusted([key.public]), key=key)
    kept = Store(store)
    for record in kept.all_records():
        shared.give(record, kept)
    moved = shared.finish().given_bytes / 1e6
    wall = time.perf_counter() - start
    print(f"{f'A pushes all to the {name} as well':<44} {wall:8.2f} {'':>8} {'':>5} {moved:9.2f}")


def change_a_byte(project: Path) -> None:
    """Change one sample of the keyword-spotting calibration set."""
    path = project / "recipes" / "calibration.npy"
    if path.exists():
        samples = np.load(path)
        samples[3] *= 3  # a new range
        np.save(path, samples)


def compare_dvc(work: Path, a: Path, tools: Path) -> None:
    """DVC keeps the same artifacts: `dvc add` and `dvc push` on A, `dvc pull` on B."""
    dvc = install_dvc(tools)
    first, second, remote = work / "a", work / "b", work / "remote"
    first.mkdir(parents=True)
    shutil.copytree(a / "build", first / "artifacts", ignore=shutil.ignore_patterns(".tf2aif"))
    quiet = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(work / "site")}
    for words in (["init", "--no-scm"], ["remote", "add", "-d", "shared", str(remote)]):
        timed([dvc, *words], first, quiet)
    row("DVC on A: add", [dvc, "add", "-q", "artifacts"], first, quiet)
    row("DVC on A: push", [dvc, "push", "-q"], first, quiet)
    print(f"{'  what its remote holds then':<44} {'':>8} {'':>8} {'':>5} {megabytes(remote):9.2f}")
    second.mkdir()
    shutil.copytree(first / ".dvc", second / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    shutil.copy(first / "artifacts.dvc", second)
    row("DVC on B: pull", [dvc, "pull", "-q"], second, quiet)
    row("DVC on B: nothing to do", [dvc, "pull", "-q"], second, quiet)


def row(what: str, command: list[str], cwd: Path, environment: dict[str, str]) -> None:
    """A command as a row of the table."""
    times = timed(command, cwd, environment)
    print(f"{what:<44} {times.wall_s:8.2f} {times.cpu_s:8.2f}")


def install_dvc(folder: Path) -> str:
    """An environment with DVC; its command."""
    command = folder / "bin" / "dvc"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", "dvc"], check=True)
    return str(command)


def megabytes(folder: Path) -> float:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
