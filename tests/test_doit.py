"""`doit` in a user's repository with a two-line dodo.py, and each row that stock doit gets wrong.

The rows are those of doit 0.37 run by itself; each is reproduced here with our tasks.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from project import UserProject

from tf2aif.build import Build
from tf2aif.errors import StepFailed
from tf2aif.execute import bring_up_to_date

DODO = """from tf2aif.tasks import configure
DOIT_CONFIG, task_tf2aif = configure(__file__)
"""


@pytest.fixture
def repository(project: UserProject) -> UserProject:
    """A user's repository: small, so that a doit without warm workers is quick."""
    (project.root / "dodo.py").write_text(DODO)
    project.write(project.recipe(targets={"arm": {"precisions": ["fp32"]}}))
    return project


@pytest.fixture
def built(repository: UserProject) -> UserProject:
    """The repository after its first build."""
    repository.build()
    assert doit(repository) == []
    return repository


def doit(project: UserProject, *words: str, code: int = 0) -> list[str]:
    """Run doit; the tasks that it executed."""
    run = subprocess.run(
        [sys.executable, "-m", "doit", *words],
        cwd=project.root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == code, run.stdout + run.stderr
    return [line[3:] for line in run.stdout.splitlines() if line.startswith(".  ")]


def output(project: UserProject, *words: str) -> str:
    """What a doit command prints."""
    return subprocess.run(
        [sys.executable, "-m", "doit", *words],
        cwd=project.root, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip


def test_builds_in_a_repository_with_a_dodo_of_two_lines(repository: UserProject) -> None:
    ran = doit(repository, "-n", "2")
    assert {"digits/import", "digits/tflite-fp32", "digits/arm-fp32"} <= set(ran)
    assert (repository.artifact("arm-fp32") / "model.tflite").stat().st_size > 1000
    assert doit(repository) == []


def test_list_shows_variants_and_with_all_the_steps(built: UserProject) -> None:
    names = {line.split()[0] for line in output(built, "list").splitlines()}
    assert names == {"digits", "digits/arm-fp32"}
    everything = {line.split()[0] for line in output(built, "list", "--all").splitlines()}
    assert {"digits/import", "digits/check-arm-fp32"} <= everything


def test_info_names_what_a_step_reads(built: UserProject) -> None:
    text = output(built, "info", "digits/import")
    assert "up-to-date" in text
    assert "recipes/model" in text


def test_one_variant_by_name(built: UserProject) -> None:
    (built.artifact("arm-fp32") / "model.tflite").unlink()
    assert doit(built, "digits/arm-fp32") == ["digits/arm-fp32"]


def test_clean_removes_a_variant_and_the_next_run_makes_it_again(built: UserProject) -> None:
    output(built, "clean", "digits/arm-fp32")
    assert not built.artifact("arm-fp32").exists()
    output(built, "clean", "digits/tflite-fp32")
    assert set(doit(built)) == {"digits/tflite-fp32", "digits/arm-fp32"}
    assert built.artifact("arm-fp32").exists()


def test_forget_really_runs_the_step_again(built: UserProject) -> None:
    log = built.root / "build" / "digits" / ".steps" / "tflite-fp32.log"
    before = log.stat().st_mtime_ns
    assert doit(built) == []
    output(built, "forget", "digits/tflite-fp32")
    assert doit(built) == ["digits/tflite-fp32"]
    assert log.stat().st_mtime_ns > before  # it ran: the store had it
    assert doit(built) == []


def test_row_half_written_output(built: UserProject) -> None:
    """Output deleted, the run killed half way: the next run does not take what was left."""
    step = built.root / "build" / "digits" / ".steps" / "tflite-fp32"
    right = (step / "model.tflite").read_bytes()
    shutil.rmtree(step)
    step.mkdir()
    (step / "model.tflite").write_bytes(right[: len(right) // 2])
    doit(built)
    assert (step / "model.tflite").read_bytes() == right


def test_row_replaced_with_the_same_time(built: UserProject) -> None:
    path = built.path("evaluation.npz")
    before = path.stat()
    data = dict(np.load(path))
    data["x"] = data["x"][:, ::-1]
    np.savez(path, **data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "digits/evaluation" in doit(built)


def test_row_options_changed(built: UserProject) -> None:
    evaluation = {**built.recipe()["evaluation"], "samples": 20}
    built.write(built.recipe(evaluation=evaluation, targets={"arm": {"precisions": ["fp32"]}}))
    assert "digits/evaluation" in doit(built)


def test_row_exits_well_without_output(
    built: UserProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that writes nothing fails, and fails again."""
    (tmp_path / "writes_nothing.py").write_text("def run(job):\n    return {}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    build = Build.load([built.root / "recipes"], built.root)
    step = build.graph.steps["digits/tflite-fp32"]
    broken = msgspec.structs.replace(step, module="writes_nothing", version=-1)
    with build.workers:
        for _ in range(2):
            with pytest.raises(StepFailed, match="wrote nothing"):
                bring_up_to_date(broken, build.workspace, build.workers)


def test_row_touched_files_are_hashed_once(
    built: UserProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a touch one no-op hashes the files, and the next one reads none of them."""
    from tf2aif import statcache

    read: list[str] = []
    hash_file = statcache.hash_file
    monkeypatch.setattr(
        statcache, "hash_file", lambda path: (read.append(str(path)), hash_file(path))[1]
    )
    for path in (built.root / "recipes").rglob("*"):
        os.utime(path)
    time.sleep(0.2)  # until the new time stamps are old enough to be trusted
    built.build()
    assert str(built.path("evaluation.npz")) in read
    read.clear()
    assert built.build() == set()
    assert read == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_row_killed_run_keeps_what_was_done(repository: UserProject, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "doit"],
        cwd=repository.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "evaluation" in line or "tflite" in line:
            break
    process.send_signal(number)
    process.stdout.close()
    process.wait(timeout=30)
    database = repository.root / "build" / ".tf2aif" / "doit.db"
    with sqlite3.connect(database) as connection:
        known = {row[0] for row in connection.execute("select task_id from doit")}
    connection.close()
    assert "digits/import" in known
    ran = doit(repository)
    assert "digits/import" not in ran
    assert "digits/arm-fp32" in ran


def test_row_output_of_parallel_steps_is_not_mixed(repository: UserProject) -> None:
    code = (
        "import numpy as np\n"
        "def samples():\n"
        "    print('{0}' * 1000)\n"
        "    return np.load(__file__.replace('{0}.py', 'calibration.npy'))\n"
    )
    for name in ("first", "second"):
        repository.path(f"{name}.py").write_text(code.format(name))
        repository.write(
            repository.recipe(
                evaluation={"data": f"{name}.py:samples", "metric": "cosine"},
                targets={"arm": {"precisions": ["fp32"]}},
            ),
            name,
        )
    doit(repository, "-n", "2")
    for name in ("first", "second"):
        log = (repository.root / "build" / name / ".steps" / "evaluation.log").read_text()
        assert name * 1000 in log
        assert {"first": "second", "second": "first"}[name] not in log


def test_two_doits_at_once(repository: UserProject) -> None:
    """Both end well, and each step ran once."""
    command = [sys.executable, "-m", "doit", "-n", "2"]
    runs = [
        subprocess.Popen(command, cwd=repository.root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    logs = (repository.root / "build" / "digits" / ".steps").glob("*.log")
    assert {log.stem for log in logs} >= {"import", "tflite-fp32", "check-arm-fp32"}
    store = repository.root.parent / "cache" / "v1" / "ac"
    records = list(store.rglob("*.json"))
    assert len(records) == len({path.parent for path in records})  # no action was stored twice


def test_a_wrong_recipe_is_said_without_a_traceback(repository: UserProject) -> None:
    repository.path("digits.yaml").write_text("modle: {path: model}\ntargets: [arm]\n")
    run = subprocess.run(
        [sys.executable, "-m", "doit"], cwd=repository.root, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "did you mean 'model'" in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
