"""The command line as a user meets it: words in, words and exit codes out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from project import UserProject

from tf2aif.measurements import add_lines
from tf2aif.store import default_root

VENDORS = ("tensorflow", "keras", "openvino", "nncf", "ai_edge_litert", "numpy", "doit", "rich")


@pytest.fixture
def built(project: UserProject) -> UserProject:
    """A small project after a build by the command line's own rules."""
    project.write(project.recipe(targets={"arm": {"precisions": ["fp32", "int8"]}}))
    project.build()
    return project


def test_build_prints_the_table(built: UserProject) -> None:
    run = built.cli("build")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].split()[:2] == ["variant", "state"]
    assert any(line.startswith("digits/arm-int8") and " built " in line for line in lines)
    assert lines[-1] == "0 steps ran, 0 restored, 8 up to date"


def test_build_json_has_the_documented_shape(built: UserProject) -> None:
    report = json.loads(built.cli("build", "--json").stdout)
    assert set(report) == {
        "variants", "failures", "missing", "left_out", "ran", "restored", "fresh", "seconds",
    }  # fmt: skip
    record = report["variants"]["digits/arm-int8"]
    assert record["state"] == "built"
    assert record["accuracy"]["metric"] == "top-1"
    assert record["steps"]["digits/tflite-int8"]["toolchain"]["toolchain.tensorflow"]


def test_list_after_an_edit_says_stale(built: UserProject) -> None:
    built.write(
        built.recipe(
            targets={"arm": {"precisions": ["fp32", "int8"]}},
            calibration={"data": "calibration.npy", "samples": 3},
        )
    )
    answer = json.loads(built.cli("list", "--json").stdout)
    assert answer["stale"] == ["digits/arm-int8"]
    assert "built (stale)" in built.cli("list").stdout


def test_targets_and_doctor(project: UserProject) -> None:
    assert "cpu-openvino" in project.cli("targets").stdout
    findings = json.loads(project.cli("doctor", "--json").stdout)
    assert findings["toolchains"]["tensorflow"].startswith("tensorflow")
    assert findings["targets"]["arm"] == "built here"


def test_init_writes_a_recipe_that_builds(project: UserProject) -> None:
    project.path("digits.yaml").unlink()
    assert project.cli("init", "recipes/model", "-o", "recipes/new.yaml").returncode == 0
    assert project.cli("check").returncode == 0
    again = project.cli("init", "recipes/model", "-o", "recipes/new.yaml")
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_faults_are_all_told_with_exit_code_2(project: UserProject) -> None:
    recipe = project.recipe(evalution={}, targets=["arn"])
    project.write(recipe)
    run = project.cli("build")
    assert run.returncode == 2
    assert "did you mean 'evaluation'" in run.stderr
    told = json.loads(project.cli("build", "--json").stdout)
    assert told["exit_code"] == 2
    assert told["error"][0]["at"].startswith("recipes/digits.yaml:")


def test_wrong_samples_are_found_before_tensorflow(project: UserProject) -> None:
    np.save(project.path("calibration.npy"), np.zeros((4, 5, 5, 1), np.float32))
    run = project.cli("build")
    assert run.returncode == 2
    assert "(5, 5, 1)" in run.stderr
    assert not (project.root / "build" / "digits").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "--target", "amr"], "did you mean 'arm'"),
        (["why", "digits/imprt"], "did you mean 'digits/import'"),
        (["build", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    project: UserProject, words: list[str], said: str
) -> None:
    run = project.cli(*words)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_cache_info_verify_and_gc(built: UserProject) -> None:
    info = json.loads(built.cli("cache", "info", "--json").stdout)
    assert info["records"] == 8
    assert built.cli("cache", "verify").returncode == 0
    would = json.loads(built.cli("cache", "gc", "--max-size", "0", "--dry-run", "--json").stdout)
    assert would["records"] == 8
    assert json.loads(built.cli("cache", "info", "--json").stdout)["records"] == 8
    assert built.cli("cache", "gc", "--older-than", "30d").returncode == 0
    assert json.loads(built.cli("cache", "info", "--json").stdout)["records"] == 8
    assert built.cli("cache", "gc", "--max-size", "0").returncode == 0
    assert json.loads(built.cli("cache", "info", "--json").stdout)["records"] == 0


def imported(project: UserProject, *words: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    code = (
        "import sys, json\n"
        "from tf2aif.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=project.root, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["build"], ["build", "--json"]])
def test_no_vendor_is_imported_where_nothing_is_to_do(built: UserProject, words: list[str]) -> None:
    built.cli("build")
    assert not imported(built, *words) & {*VENDORS, "msgspec", "yaml", "jsonschema"}


@pytest.mark.parametrize("words", [["plan"], ["why", "digits/import"], ["list"], ["targets"]])
def test_no_vendor_is_imported_while_planning(built: UserProject, words: list[str]) -> None:
    assert not imported(built, *words) & {*VENDORS, "jsonschema"}


def test_a_stamp_is_not_trusted_after_any_change(built: UserProject) -> None:
    assert built.cli("build").returncode == 0
    stamps = list((built.root / "build" / ".tf2aif").glob("noop-*.json"))
    assert len(stamps) == 1
    assert "msgspec" not in imported(built, "build")
    for change in (
        built.path("model") / "saved_model.pb",
        built.path("digits.yaml"),
        built.artifact("arm-int8") / "model.tflite",
        built.root / "build" / "digits" / ".steps" / "import" / "signature.json",
    ):
        change.touch()
        assert "msgspec" in imported(built, "build"), change
        built.cli("build")
    (built.root / "targets").mkdir()
    assert "msgspec" in imported(built, "build")


def test_environment_that_steps_see_is_part_of_the_stamp(built: UserProject) -> None:
    built.cli("build")
    report = json.loads(built.cli("plan", "--json", TF_ENABLE_ONEDNN_OPTS="0").stdout)
    assert report["steps"]["digits/import"]["state"] == "stale"
    quick = built.cli("build", UNRELATED="1")
    assert "0 steps ran" in quick.stdout


def test_output_into_a_closed_pipe(built: UserProject) -> None:
    command = f"{sys.executable} -m tf2aif list | head -n 1"
    run = subprocess.run(
        ["sh", "-c", command], cwd=built.root, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in run.stderr


def test_project_elsewhere(built: UserProject, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tf2aif", "-C", str(built.root), "list"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "digits/arm-int8" in run.stdout


def test_threads_of_an_engine_hold_for_check_and_latency(project: UserProject) -> None:
    project.write(
        project.recipe(targets={"cpu": {"precisions": ["fp32"], "engine": {"threads": 1}}})
    )
    project.build()
    assert project.last is not None
    assert not project.last.failures, project.last.failures
    record = project.last.records()["digits/cpu-fp32"]
    assert record is not None
    if record.latency is not None:  # where this machine is of the target's kind
        assert record.latency["threads"] == 1


def test_a_value_that_an_engine_option_cannot_have(project: UserProject) -> None:
    project.write(project.recipe(targets={"cpu": {"engine": {"threads": "lots"}}}))
    run = project.cli("check")
    assert run.returncode == 2
    assert "option 'threads' of engine litert" in run.stderr


@pytest.mark.parametrize("command", ["serve", "client"])
def test_server_and_client_have_their_own_words(project: UserProject, command: str) -> None:
    run = project.cli(command, "--help")
    assert run.returncode == 0
    assert f"tf2aif.{command}" in run.stdout


def test_serve_of_a_variant_that_is_not_built(project: UserProject) -> None:
    run = project.cli("serve", "digits/arm-fp32")
    assert run.returncode == 2
    assert "tf2aif build" in run.stderr


def test_measurements_stay_with_their_artifact(built: UserProject) -> None:
    folder = built.artifact("arm-fp32").parent
    artifact = json.loads((folder / "variant.json").read_text())["artifact"]
    line, foreign = (
        json.dumps({"recipe": "digits", "variant": "arm-fp32", "artifact": each})
        for each in (artifact, "0" * 32)
    )
    add_lines(folder, default_root(), [line.encode()])
    with (folder / "bench.jsonl").open("a") as file:
        file.write(foreign + "\n")
    assert built.build() == set()
    built.write(built.recipe(gate={"drop": 0.2}, targets={"arm": {"precisions": ["fp32", "int8"]}}))
    built.build()  # writes the folder again, around the same artifact
    assert json.loads((folder / "variant.json").read_text())["accuracy"]["allowed_drop"] == 0.2
    assert (folder / "bench.jsonl").read_text() == line + "\n"
    shutil.rmtree(built.root / "build")
    built.build()
    assert (folder / "bench.jsonl").read_text() == line + "\n"
    assert not (built.artifact("arm-int8").parent / "bench.jsonl").exists()
