"""The mutation matrix: for each change, what must run again, and nothing else.

Every row is a real change to a real project, built by real converters. The first column of
facts that a build cache can get wrong is its own; each row that some other tool got wrong is here.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from project import UserProject, write_model

from tf2aif.toolchains.installed import look_again

EVERYTHING = {
    "import",
    "calibration",
    "evaluation",
    "reference",
    "tflite-fp32",
    "tflite-int8",
    "native",
    "check-arm-fp32",
    "check-arm-int8",
    "check-arm-tf-fp32",
}
INT8 = {"tflite-int8", "check-arm-int8"}
CHECKS = {"check-arm-fp32", "check-arm-int8", "check-arm-tf-fp32"}

Project = UserProject


@pytest.fixture
def built(project: UserProject) -> UserProject:
    """The project after its first build, in which every step ran."""
    assert project.build() == EVERYTHING
    return project


def edit_bytes(path: Path, offset: int = -5) -> None:
    """Change one byte in place."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def test_nothing(built: Project) -> None:
    assert built.build() == set()


def test_touch_of_every_file(built: Project) -> None:
    for path in built.root.rglob("*"):
        if path.is_file() and ".tf2aif" not in path.parts:
            os.utime(path)
    assert built.build() == set()


def test_comments_and_order_of_the_recipe(built: Project) -> None:
    recipe = dict(reversed(built.recipe().items()))
    path = built.write(recipe)
    path.write_text("# a comment\n" + path.read_text() + "\n\n")
    assert built.build() == set()


def test_same_bytes_in_a_new_file(built: Project) -> None:
    path = built.path("calibration.npy")
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    os.utime(copy, (1, 1))
    os.replace(copy, path)
    assert built.build() == set()


def test_checkout_moved(built: Project, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    built.root.rename(moved)
    built.root = moved
    assert built.build() == set()
    assert built.did("restored") == set()


def test_checkout_moved_without_its_build_folder(built: Project, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(built.root, moved, ignore=shutil.ignore_patterns("build"))
    built.root = moved
    assert built.build() == set()
    assert built.did("restored") == EVERYTHING


def test_one_byte_of_the_calibration_set(built: Project) -> None:
    samples = np.load(built.path("calibration.npy"))
    samples[3] *= 3  # a new range
    np.save(built.path("calibration.npy"), samples)
    assert built.build() == {"calibration", *INT8}


def test_a_byte_of_the_calibration_file_that_is_not_chosen(built: Project) -> None:
    samples = np.load(built.path("calibration.npy"))
    samples[-1] *= 0.5  # the recipe takes the first 32 of 64
    np.save(built.path("calibration.npy"), samples)
    assert built.build() == {"calibration"}


def test_calibration_samples_swapped(built: Project) -> None:
    samples = np.load(built.path("calibration.npy"))
    np.save(built.path("calibration.npy"), samples[::-1])
    assert built.build() >= {"calibration", "tflite-int8"}


def test_another_recipe_is_left_alone(built: Project) -> None:
    shutil.copyfile(built.path("calibration.npy"), built.path("other.npy"))
    other = built.recipe(calibration={"data": "other.npy", "samples": 32})
    built.write(other, "second")
    assert built.build() == set()  # the same facts: all of it comes from the store
    samples = np.load(built.path("other.npy"))
    samples[0] *= 3
    np.save(built.path("other.npy"), samples)
    assert built.build() == {"calibration", *INT8}
    assert built.last is not None
    ran = {name for name, result in built.last.results.items() if result.done == "ran"}
    assert all(name.startswith("second/") for name in ran)


def test_the_loaders_code(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "loader.py:samples", "samples": 32}))
    assert built.build() == {"calibration"}  # the same samples: the rest is cut off early
    built.path("loader.py").write_text(built.path("loader.py").read_text() + "\n# a comment\n")
    assert built.build() == {"calibration"}
    code = built.path("loader.py").read_text().replace("* factor()", "* factor() * 0.5")
    built.path("loader.py").write_text(code)
    assert built.build() == {"calibration", *INT8}


def test_the_code_that_the_loader_imports(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "loader.py:samples", "samples": 32}))
    built.build()
    built.path("scaling.py").write_text("def factor():\n    return 2\n")
    assert built.build() == {"calibration", *INT8}


def test_a_file_that_the_loader_reads_without_saying_so(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "loader.py:samples", "samples": 32}))
    built.build()
    samples = np.load(built.path("calibration.npy"))
    np.save(built.path("calibration.npy"), samples * np.float32(0.5))
    assert built.build() == {"calibration", *INT8}


def test_imported_code_edited_with_its_old_time_and_size(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "loader.py:samples", "samples": 32}))
    built.build()
    path = built.path("scaling.py")
    before = path.stat()
    path.write_text("def factor():\n    return 3\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert built.build() == {"calibration", *INT8}


def test_one_weight_of_the_model(built: Project) -> None:
    write_model(built.path("model"), built.exported, nudge=0.01)
    assert built.build() == EVERYTHING


def test_model_exported_again_with_the_same_weights(built: Project) -> None:
    before = {p.name: p.read_bytes() for p in built.path("model").rglob("*") if p.is_file()}
    write_model(built.path("model"), built.exported)
    after = {p.name: p.read_bytes() for p in built.path("model").rglob("*") if p.is_file()}
    assert before != after  # else the row would show nothing
    assert built.build() == {"import"}


def test_a_recipe_value_that_one_step_reads(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "calibration.npy", "samples": 2}))
    assert built.build() == {"calibration", *INT8}


def test_a_recipe_value_that_is_only_for_people(built: Project) -> None:
    built.write(built.recipe(description="another text"))
    assert built.build() == set()


def test_the_gate(built: Project) -> None:
    """Measured figures stay; only the verdict on them is new."""
    built.write(built.recipe(gate={"drop": 0.04}))
    assert built.build() == set()
    assert built.last is not None
    record = built.last.records()["digits/arm-int8"]
    assert record is not None
    assert record.accuracy is not None
    assert record.accuracy.allowed_drop == 0.04


def test_the_metric(built: Project) -> None:
    evaluation = {**built.recipe()["evaluation"], "metric": "top-5"}
    built.write(built.recipe(evaluation=evaluation))
    assert built.build() == CHECKS


def test_a_recipe_key_removed(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "calibration.npy"}))
    assert built.build() == {"calibration", *INT8}
    built.write(built.recipe(calibration={"data": "calibration.npy", "choose": "first"}))
    assert built.build() == set()  # its default


def test_a_variant_removed_and_wanted_again(built: Project) -> None:
    built.write(built.recipe(targets=["arm-tf"]))
    assert built.build() == set()
    built.write(built.recipe())
    assert built.build() == set()


@pytest.fixture
def pretend_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make a distribution look as if it had another version: the first on sys.path counts."""

    def pretend(name: str, version: str) -> None:
        site = tmp_path / "site"
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(site))
        look_again()

    yield pretend
    monkeypatch.undo()
    look_again()


def test_version_of_the_engine(built: Project, pretend_version: Callable[[str, str], None]) -> None:
    pretend_version("ai_edge_litert", "99.0")
    assert built.build() == {"check-arm-fp32", "check-arm-int8"}


def test_version_of_the_converter(
    built: Project, pretend_version: Callable[[str, str], None]
) -> None:
    pretend_version("tensorflow", "99.0")
    ran = {"import", "reference", "tflite-fp32", "tflite-int8", "check-arm-tf-fp32"}
    assert built.build() == ran  # the native artifact is a copy of what is imported


def test_version_of_a_library_that_is_only_loaded(
    built: Project, pretend_version: Callable[[str, str], None]
) -> None:
    """No toolchain names flatbuffers; the steps that load it were seen to."""
    pretend_version("flatbuffers", "99.0")
    ran = built.build()
    assert "tflite-fp32" in ran
    assert "calibration" not in ran


def test_version_of_what_no_step_loads(
    built: Project, pretend_version: Callable[[str, str], None]
) -> None:
    pretend_version("docker", "99.0")
    assert built.build() == set()


def test_version_of_our_own_step(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from tf2aif.steps import tflite

    monkeypatch.setattr(tflite, "VERSION", tflite.VERSION + 1)
    assert built.build() == {"tflite-fp32", "tflite-int8"}  # the same bytes: checks are cut off


def test_a_variable_that_steps_may_see(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert built.build() >= {"import", "tflite-fp32"}
    monkeypatch.setenv("UNRELATED", "1")
    assert built.build() == set()


def test_a_targets_file(built: Project) -> None:
    shipped = (Path(__file__).parent.parent / "targets" / "arm.yaml").read_text()
    folder = built.root / "targets"
    folder.mkdir()
    (folder / "arm.yaml").write_text(shipped)
    assert built.build() == set()
    (folder / "arm.yaml").write_text(
        shipped.replace(
            "engine:\n  name: litert", "engine:\n  name: litert\n  options: {threads: 1}"
        )
    )
    assert built.build() == {"check-arm-fp32", "check-arm-int8"}


def test_edited_with_its_old_time_and_size(built: Project) -> None:
    path = built.path("calibration.npy")
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[200] ^= 0x10
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert "calibration" in built.build()


def test_edited_while_the_step_runs(built: Project) -> None:
    """The loader itself edits the data that the recipe declares: the step must not be stored."""
    built.path("loader.py").write_text(
        "import numpy as np, pathlib\n"
        "here = pathlib.Path(__file__).parent\n"
        "def samples():\n"
        "    x = np.load(here / 'calibration.npy')\n"
        "    np.save(here / 'calibration.npy', x * np.float32(0.9))\n"
        "    return x\n"
    )
    data = {"function": "loader.py:samples", "files": ["calibration.npy"]}
    built.write(built.recipe(calibration={"data": data, "samples": 32}))
    for _ in range(2):  # failures are not cached
        assert built.build() == set()
        assert built.last is not None
        assert "changed while" in built.last.failures["digits/calibration"].render()
        assert built.last.exit_code() == 1


@pytest.mark.parametrize("how", ["edited", "deleted", "added"])
def test_output_changed_by_hand(built: Project, how: str) -> None:
    path = built.artifact("arm-int8") / "model.tflite"
    right = path.read_bytes()
    step = built.root / "build" / "digits" / ".steps" / "tflite-int8" / "model.tflite"
    for file in (path, step):
        if how == "edited":
            file.chmod(0o644)
            edit_bytes(file)
        elif how == "deleted":
            file.unlink()
        else:
            (file.parent / "more.txt").write_text("mine")
    assert built.build() == set()
    assert built.did("restored") == {"tflite-int8"}
    assert path.read_bytes() == right
    assert not (path.parent / "more.txt").exists()


def test_stored_object_corrupted(built: Project, tmp_path: Path) -> None:
    right = (built.artifact("arm-int8") / "model.tflite").read_bytes()
    blobs = [
        p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size == len(right)
    ]
    hit = [p for p in blobs if p.read_bytes() == right]
    assert hit
    for path in hit:
        path.chmod(0o644)
        edit_bytes(path)
    shutil.rmtree(built.root / "build")
    assert built.build() == {"tflite-int8"}
    assert (built.artifact("arm-int8") / "model.tflite").read_bytes() == right


def test_build_folder_deleted(built: Project) -> None:
    shutil.rmtree(built.root / "build")
    assert built.build() == set()
    assert built.did("restored") == EVERYTHING


def test_store_deleted(built: Project, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")
    assert built.build() == set()  # all stands in build/


def test_both_deleted(built: Project, tmp_path: Path) -> None:
    before = (built.artifact("arm-int8") / "model.tflite").read_bytes()
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(built.root / "build")
    assert built.build() == EVERYTHING
    assert (built.artifact("arm-int8") / "model.tflite").read_bytes() == before


def test_changed_and_changed_back(built: Project) -> None:
    path = built.path("calibration.npy")
    original = path.read_bytes()
    np.save(path, np.load(path) * np.float32(0.5))
    assert built.build() == {"calibration", *INT8}
    path.write_bytes(original)
    assert built.build() == set()
    assert built.did("restored") == {"calibration", *INT8}


def test_two_checkouts_share_the_store(
    built: Project, make_project: Callable[..., UserProject]
) -> None:
    other = make_project("colleague")
    assert other.build() == set()
    assert other.did("restored") == EVERYTHING


def test_why_names_the_fact(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "calibration.npy", "samples": 16}))
    answer = json.loads(built.cli("why", "digits/calibration", "--json").stdout)
    assert answer["digits/calibration"]["reasons"] == ["option.samples: 32 -> 16"]


def test_plan_says_what_runs_and_runs_nothing(built: Project) -> None:
    built.write(built.recipe(calibration={"data": "calibration.npy", "samples": 16}))
    before = time.time()
    steps = json.loads(built.cli("plan", "--json").stdout)["steps"]
    states = {name: step["state"] for name, step in steps.items() if step["state"] != "fresh"}
    assert states == {
        "digits/calibration": "stale",
        "digits/tflite-int8": "waiting",
        "digits/check-arm-int8": "waiting",
    }
    logs = (built.root / "build" / "digits" / ".steps").glob("*.log")
    assert all(log.stat().st_mtime < before for log in logs)
