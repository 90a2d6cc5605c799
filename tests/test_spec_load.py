"""Reading recipes and targets: names, folders, overriding, speed, and what is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tf2aif.errors import FilesError
from tf2aif.spec.load import (
    load_project,
    load_recipe,
    load_target,
    load_targets,
    packaged_targets,
    pipeline,
)
from tf2aif.spec.references import target_faults
from tf2aif.spec.target import StepUse

RECIPE = "model: {function: model.py:build}\ntargets: [cpu-tf]\n"
TARGET = "platform: linux/arm64\nengine: {name: tensorflow}\nprecisions: {fp32: [{step: native}]}\n"
TARGETS = sorted(packaged_targets().glob("*.yaml"), key=lambda path: path.stem)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_every_target_file_is_right(path: Path) -> None:
    loaded = load_target(path)
    assert not list(target_faults(loaded))
    assert loaded.target.description
    assert loaded.target.labels["kubernetes.io/arch"] in loaded.target.platform
    for precision in loaded.target.precisions:
        assert pipeline(loaded.target, precision)


def test_the_targets_that_come_with_us() -> None:
    ours = [path.stem for path in TARGETS]
    assert {"arm", "cpu", "cpu-openvino", "gpu", "gpu-rtx", "agx"} <= set(ours)
    assert {"alveo-u280", "zynq-zcu102", "versal-vck190", "zynq-zcu102-hls"} <= set(ours)


def test_arm_is_made_by_the_steps_of_cpu(tmp_path: Path) -> None:
    targets = load_targets(tmp_path)
    assert targets["arm"].precisions == targets["cpu"].precisions
    assert targets["arm"].engine == targets["cpu"].engine
    baselines = [name for name, one in targets.items() if one.baseline]
    assert baselines == ["agx-tf", "arm-tf", "cpu-tf", "gpu-tf"]


def test_a_pipeline_is_steps_with_their_options(tmp_path: Path) -> None:
    cpu = load_targets(tmp_path)["cpu"]
    options = {"precision": "int8", "inputs": "int8", "outputs": "int8"}
    assert pipeline(cpu, "int8-io") == (StepUse(step="tflite", options=options),)


def test_a_projects_targets_add_and_override(tmp_path: Path) -> None:
    write(tmp_path / "targets" / "board.yaml", TARGET)
    write(tmp_path / "targets" / "cpu.yml", TARGET)
    targets = load_targets(tmp_path)
    assert targets["board"] == targets["cpu"]
    assert "arm" in targets
    assert load_targets(tmp_path / "elsewhere").keys() == targets.keys() - {"board"}


def test_recipes_of_files_and_folders_come_once_and_sorted(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    for name in ("b", "a", "sub/c", ".hidden/d"):
        write(folder / f"{name}.yaml", RECIPE)
    write(folder / "notes.txt", "not a recipe")
    project = load_project([folder / "b.yaml", folder], tmp_path)
    assert [one.name for one in project.recipes] == ["b", "a", "c"]
    assert project.recipes[2].folder == folder / "sub"
    assert project.recipes[2].document.shown == "recipes/sub/c.yaml"


def test_a_recipe_is_named_by_its_file_or_by_itself(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path / "kws.v2.yaml", RECIPE)).name == "kws.v2"
    assert load_recipe(write(tmp_path / "KWS.yaml", "name: kws\n" + RECIPE)).name == "kws"


def test_the_faults_of_all_files_come_at_once(tmp_path: Path) -> None:
    write(tmp_path / "targets" / "board.yaml", "platform: 1\n")
    one = write(tmp_path / "one.yaml", "modle: 1\n")
    with pytest.raises(FilesError) as caught:
        load_project([one, tmp_path / "two.yaml"], tmp_path)
    shown = {fault.at.partition(":")[0] for fault in caught.value.faults}
    assert shown == {"targets/board.yaml", "one.yaml", "two.yaml"}
    assert caught.value.exit_code == 2


def test_what_does_not_fit_between_files_stops_a_build(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="unknown target 'cpu-ft'") as caught:
        load_project([write(tmp_path / "a.yaml", RECIPE.replace("cpu-tf", "cpu-ft"))], tmp_path)
    assert caught.value.faults[0].hint == "did you mean 'cpu-tf'?"


def test_folder_without_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="no recipe in this folder"):
        load_project([tmp_path], tmp_path)


def test_the_good_path_loads_nothing_heavy(tmp_path: Path) -> None:
    write(
        tmp_path / "recipes" / "kws.yaml",
        RECIPE.replace("cpu-tf", "cpu, cpu-openvino, arm") + "calibration: random\n",
    )
    code = (
        "import sys; from pathlib import Path; from tf2aif.spec.load import load_project;"
        f"load_project([Path({str(tmp_path / 'recipes')!r})], Path({str(tmp_path)!r}));"
        "heavy = {'jsonschema', 'tensorflow', 'keras', 'openvino', 'ai_edge_litert', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_thousand_recipes_and_targets_load(tmp_path: Path) -> None:
    for index in range(1000):
        write(tmp_path / "recipes" / f"r{index}.yaml", RECIPE + "gate: {drop: 0.01}\n")
        write(tmp_path / "targets" / f"t{index}.yaml", TARGET)
    project = load_project([tmp_path / "recipes"], tmp_path)
    assert len(project.recipes) == 1000
    assert set(project.targets) >= {f"t{index}" for index in range(1000)}


def test_a_new_target_costs_one_file(tmp_path: Path) -> None:
    board = "platform: linux/arm/v7\nengine: {name: litert, options: {threads: 1}}\nprecisions:\n"
    write(
        tmp_path / "targets" / "board.yaml",
        board + "  tiny: [{step: tflite, precision: dynamic}]\n",
    )
    recipe = write(tmp_path / "a.yaml", RECIPE.replace("cpu-tf", "board"))
    target = load_project([recipe], tmp_path).targets["board"]
    assert pipeline(target, "tiny") == (StepUse(step="tflite", options={"precision": "dynamic"}),)
