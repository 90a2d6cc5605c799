"""Real builds with a shared cache between them, on a real web server.

First the mutation matrix once more, row for row (`test_mutations`): the store of the machine is
emptied before each build, so that only the remote keeps anything. Then machine A and machine B.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_mutations
from project import UserProject
from servers import Nginx, nginx
from sharing import new_key
from test_mutations import *  # noqa: F403 -- the rows
from test_mutations import EVERYTHING

from tf2aif import tasks
from tf2aif.build import Build
from tf2aif.noop import ASK_AGAIN_S, forget, nothing_to_do, stamp_path, write_stamp
from tf2aif.remotes import open_remote, transfer
from tf2aif.remotes.keys import SigningKey, Trusted
from tf2aif.remotes.shared import Report, Shared
from tf2aif.toolchains import Missing
from tf2aif.workers import Workers

INT8 = test_mutations.INT8


class SharedProject(UserProject):
    """A project on a machine that keeps nothing between builds but its `build/` folder."""

    url: str
    key: SigningKey
    report = Report()

    def build(self, jobs: int = 1, **options: Any) -> set[str]:
        shutil.rmtree(os.environ["TF2AIF_CACHE"], ignore_errors=True)
        build = Build.load([self.root / "recipes"], self.root, workers=self.workers, **options)
        self.last = build
        shared = Shared(
            [(open_remote(self.url), True)], trusted=Trusted([self.key.public]), key=self.key
        )
        build.workspace.shared = shared
        try:
            tasks.run(build, jobs=jobs)
        finally:
            self.report = shared.finish()
        build.workspace.stats.save()
        assert not self.report.refused or "with damaged bytes" in self.report.refused
        return self.did("ran")


@pytest.fixture(scope="module", autouse=True)
def _large_and_small_alike() -> Iterator[None]:
    """Every output is an entry of its own, so that a row can find and damage it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "INLINE_FILE", -1)
        yield


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return new_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def first_build(
    tmp_path_factory: pytest.TempPathFactory, exported: Path, warm: Workers, key: SigningKey
) -> Iterator[Path]:
    """The files of a web server after machine A's first build, in which every step ran."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch, nginx(folder / "nginx") as server:
        patch.setenv("TF2AIF_CACHE", str(folder / "store"))
        project = SharedProject.create(folder / "checkout", exported, warm)
        project.url, project.key = server.url, key  # type: ignore[attr-defined]
        assert project.build() == EVERYTHING
        yield server.files


@pytest.fixture
def server(first_build: Path, tmp_path: Path) -> Iterator[Nginx]:
    """A web server of the test's own, with what machine A gave; where rows expect the store."""
    shutil.copytree(first_build, tmp_path / "cache")
    with nginx(tmp_path / "nginx", tmp_path / "cache") as server:
        yield server


@pytest.fixture
def make_project(
    tmp_path: Path,
    exported: Path,
    warm: Workers,
    server: Nginx,
    key: SigningKey,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., UserProject]:
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "store"))

    def make(name: str = "project") -> UserProject:
        project = SharedProject.create(tmp_path / name, exported, warm)
        project.url, project.key = server.url, key  # type: ignore[attr-defined]
        return project

    return make


@pytest.fixture
def built(project: SharedProject) -> SharedProject:
    """Machine B after its first build: all came from machine A."""
    assert project.build() == set()
    assert project.did("restored") == EVERYTHING
    assert project.report.warnings == ()
    return project


# Machine A, machine B.

BUILD = """
import json, resource, sys
from pathlib import Path
from tf2aif import tasks
from tf2aif.build import Build
from tf2aif.remotes import RemoteUse, open_shared
from tf2aif.remotes.ahead import fetch_ahead
project, url, trusted = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
build = Build.load([project / "recipes"], project)
build.check()
build.workspace.shared = open_shared([RemoteUse(url)], trusted=[trusted])
ahead = fetch_ahead(build.graph, build.workspace)
asked = build.workspace.shared.report().taken
tasks.run(build)
report = build.workspace.shared.finish()
build.close()
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "done": {name: result.done for name, result in build.results.items()},
    "failures": list(build.failures),
    "ahead": ahead,
    "asked": asked,
    "taken": report.taken,
    "refused": report.refused,
    "warnings": report.warnings,
    "tensorflow": "tensorflow" in sys.modules,
    "children_mb": children.ru_maxrss,
}))
"""


@pytest.fixture
def machine_b(server: Nginx, key: SigningKey, tmp_path: Path, exported: Path) -> Path:
    """A fresh clone at another path, on a machine that has built nothing."""
    root = tmp_path / "home" / "colleague" / "deep" / "clone"
    UserProject.create(root, exported, None)  # type: ignore[arg-type]
    return root


def build_on(root: Path, url: str, key: SigningKey, store: Path) -> dict[str, Any]:
    """A build in a process of its own, as the command line makes it."""
    environment = {**os.environ, "TF2AIF_CACHE": str(store), "XDG_CONFIG_HOME": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(root), url, key.public],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_machine_b_runs_nothing_and_after_a_change_only_what_it_must(
    machine_b: Path, server: Nginx, key: SigningKey, tmp_path: Path
) -> None:
    store = tmp_path / "b-store"
    found = build_on(machine_b, server.url, key, store)
    assert set(found["done"].values()) == {"restored"}
    assert {name.partition("/")[2] for name in found["done"]} == EVERYTHING
    assert set(found["ahead"]) == set(found["done"])  # all was known before the first step
    assert found["taken"] == found["asked"] == len(EVERYTHING)
    assert not found["failures"] + found["warnings"]
    assert not found["refused"]
    assert not found["tensorflow"]
    assert found["children_mb"] == 0  # no process was started

    path = machine_b / "recipes" / "calibration.npy"
    samples = np.load(path)
    samples[3] *= 3
    np.save(path, samples)
    found = build_on(machine_b, server.url, key, store)
    ran = {name.partition("/")[2] for name, done in found["done"].items() if done == "ran"}
    assert ran == {"calibration", *INT8}
    assert not found["failures"] + found["warnings"]


def test_only_what_was_asked_for_is_fetched(
    machine_b: Path, server: Nginx, key: SigningKey, tmp_path: Path, exported: Path
) -> None:
    """Of three variants one is wanted: the bytes of the others stay where they are."""
    recipe = UserProject.recipe(targets={"arm": {"precisions": ["fp32"]}})
    UserProject(machine_b, exported, None).write(recipe)  # type: ignore[arg-type]
    found = build_on(machine_b, server.url, key, tmp_path / "b-store")
    names = {name.partition("/")[2] for name in found["ahead"]}
    assert names == {"import", "evaluation", "reference", "tflite-fp32", "check-arm-fp32"}


# The command line.


@pytest.fixture
def clone(machine_b: Path, server: Nginx, key: SigningKey) -> SharedProject:
    """Machine B with the shared cache and the trusted key in its configuration."""
    (machine_b / "tf2aif.yaml").write_text(
        f"cache:\n  remotes:\n  - url: {server.url}\n  trusted: ['{key.public}']\n"
    )
    return SharedProject(machine_b, machine_b, None)  # type: ignore[arg-type]


def words(project: UserProject, *more: str, **environment: str) -> Any:
    done = project.cli("cache", *more, "--json", **environment)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def test_pull_then_build_without_the_network(
    clone: SharedProject, server: Nginx, tmp_path: Path
) -> None:
    here = {"TF2AIF_CACHE": str(tmp_path / "b-store"), "XDG_CONFIG_HOME": str(tmp_path)}
    would = words(clone, "pull", "--dry-run", **here)
    assert len(would["would_take"]) == would["taken"] == len(EVERYTHING)
    assert words(clone, "info", **here)["records"] == 0
    found = words(clone, "pull", **here)
    assert set(found["steps"]) == set(would["would_take"])
    # Two actions with the same bytes may both be fetching them: more, never less.
    assert found["taken_bytes"] >= would["taken_bytes"] > 10_000
    server.kill()
    plan = json.loads(clone.cli("plan", "--json", **here).stdout)["steps"]
    assert {step["state"] for step in plan.values()} == {"stored"}
    failed = clone.cli("cache", "pull", **here)  # all is here: nothing is asked for
    assert failed.returncode == 0, failed.stderr


def test_push_to_another_cache(clone: SharedProject, tmp_path: Path) -> None:
    """What was taken from one is given to another, under one's own signature."""
    here = {"TF2AIF_CACHE": str(tmp_path / "b-store"), "XDG_CONFIG_HOME": str(tmp_path)}
    words(clone, "pull", **here)
    unsigned = clone.cli("cache", "push", "--remote", "archive", **here)
    assert unsigned.returncode == 1
    assert "there is no signing key" in unsigned.stderr
    public = words(clone, "keygen", **here)["public"]
    assert clone.cli("cache", "keygen", **here).returncode == 1  # never over another
    nowhere = clone.cli("cache", "push", **here)
    assert "no shared cache that may be written" in nowhere.stderr
    assert words(clone, "push", "--dry-run", "--remote", "archive", **here)["would_give"] == 10
    assert not (clone.root / "archive").exists()
    assert words(clone, "push", "--remote", "archive", **here)["given"] == 10
    assert words(clone, "push", "--all", "--remote", "archive", **here)["given"] == 0
    listed = [path for path in (clone.root / "archive" / "ac").rglob("*") if path.is_file()]
    assert len(listed) == 10
    kept = words(clone, "gc", "--remote", "archive", "--max-size", "10G", "--dry-run", **here)
    assert (kept["records"], kept["dry_run"]) == (0, True)
    assert words(clone, "gc", "--remote", "archive", "--max-size", "0", **here)["records"] == 10
    assert public.startswith("ed25519:")


def test_a_dead_remote_fails_a_pull_and_says_why(
    clone: SharedProject, server: Nginx, tmp_path: Path
) -> None:
    """A build goes on without it; who asks for the remote itself is told."""
    server.kill()
    here = {"TF2AIF_CACHE": str(tmp_path / "b-store"), "XDG_CONFIG_HOME": str(tmp_path)}
    done = clone.cli("cache", "pull", **here)
    assert done.returncode == 1
    assert "not asked any more in this build: cannot reach the remote" in done.stderr


def test_a_pull_of_which_nothing_is_believed_has_failed(
    clone: SharedProject, server: Nginx, tmp_path: Path
) -> None:
    stranger = new_key(tmp_path).public
    (clone.root / "tf2aif.yaml").write_text(
        f"cache:\n  remotes:\n  - url: {server.url}\n  trusted: ['{stranger}']\n"
    )
    here = {"TF2AIF_CACHE": str(tmp_path / "b-store"), "XDG_CONFIG_HOME": str(tmp_path)}
    done = clone.cli("cache", "pull", **here)
    assert done.returncode == 1
    assert "refused" in done.stdout
    assert "not signed by a trusted key" in done.stdout
    assert words(clone, "info", **here)["records"] == 0


def test_nothing_to_do_lasts_a_while_where_a_shared_cache_may_get_more(
    built: SharedProject, key: SigningKey
) -> None:
    """What cannot be made here may be given by who can; a stamp must not hide it for ever."""
    build, words = built.last, ["recipes"]
    assert build is not None
    private = str(build.workspace.private)

    def stamp() -> dict[str, Any]:
        write_stamp(build, words, [str(built.root / "recipes")], {"ran": 0})
        found: dict[str, Any] = json.loads(Path(stamp_path(private, words)).read_text())
        return found

    assert stamp()["made"] is None  # all was made: nobody is asked, however old it is
    build.missing["digits/other"] = Missing("a compiler", "get one")
    lasting = stamp()
    assert nothing_to_do(private, words) == {"ran": 0}
    for made in (lasting["made"] - ASK_AGAIN_S, lasting["made"] + 3600):
        Path(stamp_path(private, words)).write_text(json.dumps({**lasting, "made": made}))
        assert nothing_to_do(private, words) is None
    stamp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_REMOTE", "another")
        assert nothing_to_do(private, words) is None
    assert nothing_to_do(private, words) == {"ran": 0}
    forget(private)
    assert nothing_to_do(private, words) is None
