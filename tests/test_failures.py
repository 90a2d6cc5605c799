"""What goes wrong in a build, through the real command line: what is said, and what is left.

One project with a recipe for each accident is built in one go, so that each is seen beside others
that must not suffer; then kills, Ctrl-C, full disks, two builds at once and absent toolchains.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from processes import is_running, until
from project import UserProject

from tf2aif.build import Build
from tf2aif.workers import Workers

ACCIDENTS = Path(__file__).with_name("accidents.py")
TARGETS: Mapping[str, dict[str, Any]] = {
    "small": {
        "limits": {"memory_mb": 350},
        "engine": {"name": "litert", "options": {"threads": 1}},
    },
    "hasty": {"limits": {"timeout_s": 6}, "engine": {"name": "litert", "options": {"threads": 1}}},
}
DEATHS = {
    "segv": "its process was killed by SIGSEGV (a segmentation fault in native code)",
    "abort": "its process was killed by SIGABRT",
    "kill": "its process was killed by SIGKILL",
    "exit": "its process ended with exit code 7",
    "sys-exit": "something in it called exit(9)",
    "memory": "ran out of memory",
    "raise": "RuntimeError: the sensor is off",
}


def board(**changes: Any) -> dict[str, Any]:
    """A target with one precision that runs on no machine of the tests, so nothing is timed."""
    return {
        "platform": "linux/arm64" if platform.machine() == "x86_64" else "linux/amd64",
        "engine": {"name": "litert"},
        "precisions": {"fp32": [{"step": "tflite", "precision": "fp32"}]},
        **changes,
    }


def write_targets(project: UserProject, targets: Mapping[str, dict[str, Any]]) -> None:
    """The project's own target files."""
    folder = project.root / "targets"
    folder.mkdir(exist_ok=True)
    for name, changes in targets.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(board(**changes)))


def scored(function: str) -> dict[str, Any]:
    """An evaluation set with a metric of `accidents.py`."""
    return {
        "data": "evaluation.npz#x",
        "labels": "evaluation.npz#y",
        "metric": f"accidents.py:{function}",
    }


def record(project: UserProject, variant: str) -> dict[str, Any]:
    """What `variant.json` says."""
    content: dict[str, Any] = json.loads(
        (project.root / "build" / variant / "variant.json").read_bytes()
    )
    return content


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of all that a build makes, without logs, measured times and what it notes down."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        passing = (".tf2aif/" in name, "rerun/" in name, name.endswith((".log", "log.txt")))
        passing += (name == "catalogue.json",)  # the command writes it, with times
        if path.is_file() and not any(passing) and not name.endswith(".request.json"):
            kept[name] = plain(path)
    return kept


def plain(path: Path) -> bytes:
    """A file's bytes; those of a record without its times."""
    if path.name != "variant.json" and path.parent.name != ".steps":
        return path.read_bytes()
    content = json.loads(path.read_bytes())
    for timed in (content, *content.get("steps", {}).values()):
        timed.pop("created", None)
        timed.pop("timing", None)
    if content.get("kind") == "variant":
        content.pop("outputs")  # logs and times are among them
    return json.dumps(content, sort_keys=True, indent=1).encode()


def assert_same(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> None:
    """Two trees are equal; where they are not, the first lines that differ are shown."""
    assert one.keys() == other.keys()
    for name in one:
        if one[name] != other[name]:
            assert one[name].splitlines() == other[name].splitlines(), name


# A store in which the slow steps are there already.


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory, exported: Path, warm: Workers) -> Path:
    """A project that was built, and its store: what needs TensorFlow need not run again."""
    folder = tmp_path_factory.mktemp("seed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(folder / "cache"))
        project = UserProject.create(folder / "project", exported, warm)
        shutil.copy(ACCIDENTS, project.path("accidents.py"))
        project.build()
        assert project.last is not None
        assert not project.last.failures
    return folder


@pytest.fixture
def seeded(
    seed: Path, tmp_path: Path, warm: Workers, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> UserProject:
    """A copy of that project without its `build/`, and of its store."""
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "cache"))
    return copy_of(seed, tmp_path, exported, warm)


def copy_of(seed: Path, folder: Path, exported: Path, warm: Workers) -> UserProject:
    shutil.copytree(seed / "cache", folder / "cache")
    ignore = shutil.ignore_patterns("build")
    shutil.copytree(seed / "project", folder / "project", ignore=ignore)
    return UserProject(folder / "project", exported, warm)


# Steps that die.


class Wreck:
    """The project of accidents after its second build, in which all of them happened."""

    def __init__(self, project: UserProject, run: subprocess.CompletedProcess[str]) -> None:
        self.project = project
        self.run = run

    def message(self, step: str) -> str:
        """What was said of a step, from its first line to the empty line after it."""
        found = re.search(
            rf"^error: {re.escape(step)}: .*?(?=\n\n|\Z)", self.run.stderr, re.S | re.M
        )
        assert found, self.run.stderr
        return found.group()


@pytest.fixture(scope="module")
def wreck(
    seed: Path, tmp_path_factory: pytest.TempPathFactory, exported: Path, warm: Workers
) -> Iterator[Wreck]:
    """Everything was built once; then the code and the limits change, and it is built again."""
    folder = tmp_path_factory.mktemp("wreck")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(folder / "cache"))
        project = copy_of(seed, folder, exported, warm)
        write_targets(project, {name: {**t, "limits": {}} for name, t in TARGETS.items()})
        write_recipes(project, dict.fromkeys(DEATHS, "none"))
        project.build()
        assert project.last is not None
        assert not project.last.failures
        write_targets(project, TARGETS)
        write_recipes(project, {name: name for name in DEATHS})
        project.write(
            {
                "model": {"function": "accidents.py:unknown_operator"},
                "targets": {"arm": {"precisions": ["fp32", "dynamic"]}, "arm-tf": None},
            },
            "operator",
        )
        project.write(
            {"model": {"function": "accidents.py:crashing_model"}, "targets": ["arm-tf"]}, "model"
        )
        with project.path("accidents.py").open("a") as code:
            code.write("\n# an edit, so that everything that runs it runs again\n")
        yield Wreck(project, project.cli("build", "-n", "2", NAP_S="12"))


def write_recipes(project: UserProject, deaths: Mapping[str, str]) -> None:
    """A recipe for each death, and those of the limits; `digits` stays as it is."""
    for name, death in deaths.items():
        data = {"function": "accidents.py:samples", "arguments": {"death": death}}
        targets = {"arm": {"precisions": ["fp32", "int8"]}}
        project.write(project.recipe(calibration={"data": data}, targets=targets), name)
    few = {"arm": {"precisions": ["fp32"]}}
    environment = ["NAP_S"]
    project.write(
        project.recipe(evaluation=scored("hungry"), targets={"small": None, **few}), "hungry"
    )
    targets = {"hasty": None, **few}
    project.write(
        project.recipe(evaluation=scored("slow"), targets=targets, environment=environment), "slow"
    )


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_is_one_failed_variant(wreck: Wreck, death: str) -> None:
    message = wreck.message(f"{death}/calibration")
    assert DEATHS[death] in message.splitlines()[0]
    assert_failed(wreck.project, f"{death}/arm-int8", DEATHS[death])
    assert record(wreck.project, f"{death}/arm-fp32")["state"] == "built"


def assert_failed(project: UserProject, variant: str, reason: str) -> None:
    """The folder says that it failed and why, and holds nothing of an earlier build."""
    found = record(project, variant)
    assert found["state"] == "failed"
    assert reason in found["reason"]
    assert found["artifact"] == ""
    assert os.listdir(project.root / "build" / variant) == ["variant.json"]


def test_what_a_dying_step_printed_is_told_and_kept(wreck: Wreck) -> None:
    for death in DEATHS:
        message = wreck.message(f"{death}/calibration")
        log = Path(re.findall(r"^  log: (.*)$", message, re.M)[0])
        assert f"about to die of {death}\n" in log.read_text()
        if death != "raise":
            assert f"     | about to die of {death}" in message


def test_the_command_that_is_told_runs_the_step_again(wreck: Wreck, tmp_path: Path) -> None:
    message = wreck.message("segv/calibration")
    command = re.findall(r"^again: (.*)$", message, re.M)[0]
    run = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=60)
    assert run.returncode in (-signal.SIGSEGV, 128 + signal.SIGSEGV)
    code = wreck.project.path("accidents.py")
    before = code.read_text()
    code.write_text(before.replace("ctypes.string_at(0)", "pass"))
    out = tmp_path / "out"
    run = subprocess.run(["sh", "-c", f"{command} --out {out}"], capture_output=True, timeout=60)
    code.write_text(before)
    assert run.returncode == 0, run.stderr.decode()
    said, _, result = run.stdout.decode().partition("\n")
    assert said == "about to die of segv"
    assert json.loads(result) == {"samples": 64, "random": False, "labels": False}
    made = wreck.project.root / "build" / "digits" / ".steps" / "calibration" / "x0.npy"
    assert np.array_equal(np.load(out / "x0.npy")[:32], np.load(made))


def test_a_step_past_its_memory_is_one_failed_variant(wreck: Wreck) -> None:
    first = wreck.message("hungry/check-small-fp32").splitlines()[0]
    assert re.search(r"over its memory limit: \d+ MiB used, 350 allowed", first)
    assert_failed(wreck.project, "hungry/small-fp32", "over its memory limit")
    assert record(wreck.project, "hungry/arm-fp32")["state"] == "built"


def test_a_shared_step_may_take_what_the_most_generous_target_allows(wreck: Wreck) -> None:
    project = wreck.project
    graph = Build.load([project.root / "recipes"], project.root).graph
    assert graph.steps["hungry/check-small-fp32"].limits.memory_mb == 350
    shared = graph.steps["hungry/tflite-fp32"]  # the target `small` comes first in the recipe
    assert shared.limits.memory_mb is None


def test_a_step_past_its_time_is_one_failed_variant(wreck: Wreck) -> None:
    assert "over its time limit of 6 s" in wreck.message("slow/check-hasty-fp32").splitlines()[0]
    assert_failed(wreck.project, "slow/hasty-fp32", "over its time limit of 6 s")
    assert record(wreck.project, "slow/arm-fp32")["state"] == "built"


def test_an_operator_without_a_translation_is_named(wreck: Wreck) -> None:
    for precision in ("fp32", "dynamic"):
        message = wreck.message(f"operator/tflite-{precision}")
        assert "TensorFlow Lite does not support: Digamma" in message.splitlines()[0]
        assert " hint: build the model from other operators" in message
        assert_failed(wreck.project, f"operator/arm-{precision}", "does not support: Digamma")
    assert record(wreck.project, "operator/arm-tf-fp32")["state"] == "built"


def test_a_model_function_that_crashes_is_told_with_its_stack(wreck: Wreck) -> None:
    message = wreck.message("model/model")
    assert "killed by SIGSEGV" in message.splitlines()[0]
    assert "in crashing_model" in message  # the line of the user's file, from faulthandler
    assert_failed(wreck.project, "model/arm-tf-fp32", "killed by SIGSEGV")


def test_the_others_are_built_and_the_exit_code_is_1(wreck: Wreck) -> None:
    assert wreck.run.returncode == 1
    states = {
        path.parent.relative_to(wreck.project.root / "build").as_posix(): json.loads(
            path.read_bytes()
        )["state"]
        for path in (wreck.project.root / "build").glob("*/*/variant.json")
    }
    failed = {name for name, state in states.items() if state == "failed"}
    assert failed == {
        *(f"{death}/arm-int8" for death in DEATHS),
        *("hungry/small-fp32", "slow/hasty-fp32", "model/arm-tf-fp32"),
        *("operator/arm-fp32", "operator/arm-dynamic"),
    }
    assert {state for name, state in states.items() if name not in failed} == {"built"}
    assert f"{len(failed)} failed" in wreck.run.stdout
    assert "Traceback" not in wreck.run.stderr.replace("     | Traceback", "")


def test_the_list_shows_what_failed(wreck: Wreck) -> None:
    listed = json.loads(wreck.project.cli("list", "--json").stdout)["variants"]
    assert listed["kill/arm-int8"]["state"] == "failed"
    assert listed["kill/arm-fp32"]["state"] == "built"


# Gates and toolchains.


def test_a_failed_gate_is_exit_code_4(seeded: UserProject) -> None:
    samples = np.load(seeded.path("calibration.npy"))
    np.save(seeded.path("calibration.npy"), samples * np.float32(0.02))
    assert "tflite-int8" in seeded.build()  # in warm workers
    for _ in range(2):  # the second time no step runs, and the answer is the same
        run = seeded.cli("build", "--json")
        assert run.returncode == 4
        report = json.loads(run.stdout)
        states = {name: found["state"] for name, found in report["variants"].items()}
        assert states == {
            "digits/arm-fp32": "built",
            "digits/arm-int8": "failed",
            "digits/arm-tf-fp32": "built",
        }
        assert "the gate allows 0.05" in report["failures"]["digits/arm-int8"]
    found = record(seeded, "digits/arm-int8")
    assert found["accuracy"]["drop"] > 0.05
    assert os.listdir(seeded.root / "build" / "digits" / "arm-int8") == ["variant.json"]


@pytest.fixture(scope="module")
def without_openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that has all that ours has, but OpenVINO."""
    home = tmp_path_factory.mktemp("environment")
    command = [sys.executable, "-m", "venv", "--without-pip", str(home)]
    subprocess.run(command, check=True, timeout=120)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    for name in ("purelib", "platlib"):
        for entry in Path(sysconfig.get_path(name)).iterdir():
            place = packages / entry.name
            if not entry.name.startswith(("openvino", "nncf")) and not place.exists():
                place.symlink_to(entry)
    return home / "bin" / "python"


def test_a_missing_toolchain_is_a_bundle_that_works_elsewhere(
    seeded: UserProject, without_openvino: Path
) -> None:
    pytest.importorskip("openvino")
    pipeline = {"fp32": [{"step": "openvino", "precision": "fp32"}]}
    write_targets(seeded, {"board": {"engine": {"name": "openvino"}, "precisions": pipeline}})
    seeded.write(seeded.recipe(targets={"board": None, "arm": {"precisions": ["fp32"]}}))
    command = [str(without_openvino), "-m", "tf2aif", "build"]
    run = subprocess.run(command, cwd=seeded.root, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = record(seeded, "digits/board-fp32")
    assert found["state"] == "bundled"
    assert "openvino is not here" in found["reason"]
    assert "pip install" in found["reason"]
    assert record(seeded, "digits/arm-fp32")["state"] == "built"
    strict = subprocess.run(
        [*command, "--strict"], cwd=seeded.root, capture_output=True, text=True, timeout=120
    )
    assert strict.returncode == 3
    assert "a toolchain is missing" in strict.stderr
    bundle = seeded.root.parent / "elsewhere"
    (seeded.root / "build" / "digits" / "board-fp32" / "bundle").rename(bundle)
    out = seeded.root.parent / "made"
    run_script(bundle / "run.sh", str(out))
    brought_back(seeded, str(without_openvino), out)
    seeded.build()  # where the toolchain is there
    assert record(seeded, "digits/board-fp32")["state"] == "built"
    for name in ("model.xml", "model.bin", "signature.json"):
        made = (out / "openvino-fp32" / name).read_bytes()
        assert made == (seeded.artifact("board-fp32") / name).read_bytes()
    checked = json.loads((out / "check-board-fp32" / "check.json").read_bytes())
    assert checked["source"] == checked["variant"]


def brought_back(project: UserProject, python: str, out: Path) -> None:
    """What was made elsewhere is taken, survives `rm -r build`, and goes when an input changes."""

    def tf2aif(*words: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "tf2aif", *words]
        return subprocess.run(
            command, cwd=project.root, capture_output=True, text=True, timeout=120
        )

    taken = tf2aif("import-bundle", str(out))
    assert taken.returncode == 0, taken.stderr
    found = record(project, "digits/board-fp32")
    assert found["state"] == "built"
    assert "openvino" in str(found["steps"]["digits/openvino-fp32"]["toolchain"])
    shutil.rmtree(project.root / "build")
    again = tf2aif("build")
    assert again.returncode == 0, again.stderr
    assert record(project, "digits/board-fp32")["state"] == "built"
    assert tf2aif("build", "--strict").returncode == 0
    damaged = out.with_name("damaged")
    shutil.copytree(out, damaged)
    (damaged / "openvino-fp32" / "model.bin").write_bytes(b"")
    refused = tf2aif("import-bundle", str(damaged))
    assert refused.returncode == 1
    assert "damaged" in refused.stderr
    results = (damaged / "results.json").read_text()
    (damaged / "results.json").write_text(results.replace('"step": "openvino"', '"step": "other"'))
    refused = tf2aif("import-bundle", str(damaged))
    assert "was made from something else" in refused.stderr


def run_script(script: Path, *words: str) -> None:
    """What a user does on the machine that has the toolchain."""
    run = subprocess.run(
        [script, *words],
        cwd="/",
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_steps_of_a_variant_run_again_by_hand(seeded: UserProject) -> None:
    seeded.write(seeded.recipe(targets={"arm": {"precisions": ["fp32"]}}))
    seeded.build()
    variant = seeded.root / "build" / "digits" / "arm-fp32"
    script = variant / "rerun" / "rerun.sh"
    lines = script.read_text().splitlines()
    slow = ("-import", "-tflite", "-reference")  # TensorFlow's; what they made is read as it is
    kept = [line for line in lines if not any(word in line for word in slow)]
    script.write_text("\n".join(kept))
    run_script(script)
    out = variant.with_name("arm-fp32-rerun")
    steps = seeded.root / "build" / "digits" / ".steps"
    for name in ("evaluation", "check-arm-fp32"):
        made = {p.name: p.read_bytes() for p in (out / name).iterdir()}
        assert made == {p.name: p.read_bytes() for p in (steps / name).iterdir()}
    script.write_text("\n".join(lines) + "\n")
    assert seeded.build() == set()
    assert out.is_dir()  # what took hours is not in a folder that a build replaces


# Many small steps that need no TensorFlow: kills and Ctrl-C at any moment.

MANY = 8


@pytest.fixture
def many(seeded: UserProject) -> UserProject:
    """The conversion is in the store; eight checks, each in a process of its own, are not."""
    threads = ({"name": "litert", "options": {"threads": i + 1}} for i in range(MANY))
    write_targets(seeded, {f"t{i}": {"engine": engine} for i, engine in enumerate(threads)})
    targets = {f"t{i}": None for i in range(MANY)}
    seeded.write(seeded.recipe(evaluation=scored("score"), targets=targets))
    return seeded


@contextlib.contextmanager
def started(project: UserProject, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process group of its own, as a shell starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tf2aif", *words],
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def descendants(pid: int) -> set[int]:
    """A process's children and theirs."""
    found = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
            for child in map(int, children):
                found |= {child} | descendants(child)
    return found


def wait_until_gone(pids: set[int], seconds: float = 10) -> None:
    """Fails where one of the processes is still running after so long."""
    end = time.monotonic() + seconds
    while left := {pid for pid in pids if is_running(pid)}:
        assert time.monotonic() < end, f"still running: {left}"
        time.sleep(0.02)


def test_killed_again_and_again_the_build_ends_right(many: UserProject) -> None:
    draw = random.Random(0)
    steps = 0
    for _ in range(12):
        with started(many, "build", "-n", "2") as process:
            time.sleep(draw.uniform(0.1, 2.5))
            workers = descendants(process.pid)
            process.kill()
            steps += process.wait() == -signal.SIGKILL and bool(workers)
            ended = process.returncode == 0
        wait_until_gone(workers)
        check_nothing_is_half_made(many)
        if ended:  # nothing is left to be killed: begin again
            forget(many)
    assert steps, "no kill met a step that ran"
    finished = many.cli("build", "-n", "2")
    assert finished.returncode == 0, finished.stderr
    left = tree(many.root / "build")
    assert len(left) > 5 * MANY
    clean_build(many)
    assert_same(tree(many.root / "build"), left)


def clean_build(project: UserProject) -> None:
    """Build without anything that was made before, but for what takes TensorFlow."""
    forget(project)
    assert {f"check-t{i}-fp32" for i in range(MANY)} <= project.build()


def forget(project: UserProject) -> None:
    """Drop what was made, but for what takes TensorFlow."""
    shutil.rmtree(project.root / "build")
    for path in Path(os.environ["TF2AIF_CACHE"]).glob("v1/ac/*/*/*.json"):
        if json.loads(path.read_bytes())["kind"] in ("check", "evaluation"):
            path.unlink()


def check_nothing_is_half_made(project: UserProject) -> None:
    """Whatever stands in `build/` is whole: each record has the files that it tells of."""
    for path in project.root.glob("build/digits/*/variant.json"):
        content = json.loads(path.read_bytes())
        for file in content["files"]:
            assert (path.parent / "artifact" / file["path"]).stat().st_size == file["size"]
        assert (path.parent / "rerun" / "rerun.sh").is_file() or content["state"] == "failed"
    for path in project.root.glob("build/digits/.steps/check-*/"):
        assert json.loads((path / "check.json").read_bytes())["samples"] == 200


@pytest.mark.parametrize("to", ["group", "build", "build by SIGTERM"])
def test_ctrl_c_ends_all_and_keeps_what_is_done(many: UserProject, to: str) -> None:
    with started(many, "build", "-n", "2") as process:
        wait_for_steps(many, 3)
        until(lambda: bool(descendants(process.pid)))  # between two steps there may be none
        workers = descendants(process.pid)
        if to == "group":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM if "SIGTERM" in to else signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    wait_until_gone(workers)
    check_nothing_is_half_made(many)
    states = [
        json.loads(p.read_bytes())["state"] for p in many.root.glob("build/digits/*/variant.json")
    ]
    assert "failed" not in states  # nothing went wrong: it was only stopped
    run = many.cli("build", "-n", "2", "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert 0 < report["ran"] <= MANY - 3
    assert {found["state"] for found in report["variants"].values()} == {"built"}


def wait_for_steps(project: UserProject, count: int) -> None:
    """Until so many checks are done."""
    steps = project.root / "build" / "digits" / ".steps"
    until(lambda: len(list(steps.glob("check-*-fp32.json"))) >= count)


def test_a_recipe_that_is_edited_after_a_kill(many: UserProject) -> None:
    with started(many, "build") as process:
        wait_for_steps(many, 2)
        process.kill()
        process.wait()
    targets = {f"t{i}": None for i in range(0, MANY, 2)}
    many.write(many.recipe(evaluation=scored("score"), targets=targets, gate={"drop": 0.04}))
    run = many.cli("build", "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["ran"] < len(targets)
    assert {found["accuracy"]["allowed_drop"] for found in report["variants"].values()} == {0.04}


def test_code_that_is_edited_while_it_runs(
    many: UserProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which text the step had read: nothing of it is stored."""
    monkeypatch.setenv("NAP_S", "2")
    recipe = many.recipe(evaluation=scored("slow"), targets={"t0": None}, environment=["NAP_S"])
    many.write(recipe)
    log = many.root / "build" / "digits" / ".steps" / "check-t0-fp32.log"
    with started(many, "build") as process:
        until(lambda: log.is_file() and "scoring" in log.read_text())
        code = many.path("accidents.py")
        code.write_text(code.read_text() + "# edited\n")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    # Said by who notices first: the step, of code that it has read, or the build, of any input.
    assert re.search(r"changed while (it|the step) ran, so nothing was stored", errors)
    assert " hint: build again" in errors
    assert json.loads(many.cli("build", "--json").stdout)["ran"] == 1
    assert json.loads(many.cli("build", "--json").stdout)["ran"] == 0


def test_two_builds_at_once_run_each_step_once(
    many: UserProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(many, "build", "-n", "2", "--json") as one:
        with started(many, "build", "-n", "2", "--json") as other:
            outputs = [process.communicate(timeout=120) for process in (one, other)]
    reports = [json.loads(output) for output, _ in outputs]
    assert [report["failures"] for report in reports] == [{}, {}], outputs
    assert [one.returncode, other.returncode] == [0, 0], outputs
    assert sum(report["ran"] for report in reports) == MANY
    assert all(
        {found["state"] for found in report["variants"].values()} == {"built"} for report in reports
    )
    left = tree(many.root / "build")
    clean_build(many)
    assert_same(tree(many.root / "build"), left)


# A full disk.


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """A file system that holds no more than this."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_kb", [0, 40, 200, 400])
def test_a_full_disk_under_the_build_folder(seeded: UserProject, free_kb: int) -> None:
    with small_disk(seeded.root / "build", free_kb + 4) as disk:
        run = seeded.cli("build")
        assert run.returncode == 1, run.stderr
        assert re.search("No space left on device|disk is full", run.stderr)
        assert " hint: " in run.stderr
        assert "Traceback" not in run.stderr
        check_nothing_is_half_made(seeded)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        run = seeded.cli("build", "--json")
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["ran"] == 0  # the store had it all


def test_a_full_disk_under_the_store(many: UserProject, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = many.root.parent / "disk"
    old = os.environ["TF2AIF_CACHE"]
    used_kb = sum(4 + path.stat().st_size // 1024 for path in Path(old).rglob("*"))
    with small_disk(cache, used_kb + 16) as disk:
        shutil.copytree(old, disk, dirs_exist_ok=True)
        monkeypatch.setenv("TF2AIF_CACHE", str(disk))
        with contextlib.suppress(OSError):
            (disk / "filler").write_bytes(bytes(1 << 24))
        run = many.cli("build", "-n", "2")
        assert run.returncode == 1
        assert "the cache cannot be written: No space left on device" in run.stderr
        assert "tf2aif cache gc --max-size" in run.stderr
        assert "Traceback" not in run.stderr
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert many.cli("build", "-n", "2").returncode == 0
