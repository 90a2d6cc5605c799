"""`tf2aif verify` tells what can be made again from what cannot, and which step is at fault."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from built import digits as digits
from hypothesis import given
from hypothesis import strategies as st
from project import UserProject
from serving import TARGET
from test_images_build import prepared as prepared

from tf2aif import steps
from tf2aif.build import Build
from tf2aif.cli_verify import _lines
from tf2aif.digest import digest_tree, list_tree
from tf2aif.errors import FilesError
from tf2aif.file_differences import CHUNK, compare_files, first_difference
from tf2aif.graph import Graph, Step
from tf2aif.record import read_record
from tf2aif.second_build import COPIED_BYTES, copy_sources, moved
from tf2aif.store import Store
from tf2aif.toolchains import TOOLCHAINS, Root, Toolchain
from tf2aif.verifiable import choose, damage_of
from tf2aif.verification import Verification
from tf2aif.verify import verify
from tf2aif.workers import Workers

HERE = Path(__file__).parent
INT8 = f"digits/{TARGET}-int8"

# Its bias is drawn from the system's generator: no seed reaches that.
NOISY_MODEL = """
import os
import numpy as np


def make():
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1), name="image"), layers.Flatten(), layers.Dense(10, name="digit")]
    )
    kernel, bias = model.layers[-1].get_weights()
    bias[:] = np.frombuffer(os.urandom(10), np.uint8) / 255
    model.layers[-1].set_weights([kernel, bias])
    return model
"""

NOISY_SAMPLES = """
import os
import numpy as np


def samples():
    return np.frombuffer(os.urandom(8 * 64 * 4), np.uint32).reshape(8, 8, 8, 1) / np.float32(2**32)
"""

# What it reads lies beside the project's sources, but is none of them.
SAMPLES_OF_FILE = """
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent


def samples():
    path = HERE / {path!r}
    return np.load(path) if path.exists() else np.zeros((8, 8, 8, 1), np.float32)
"""


class Again(NamedTuple):
    """A second build: what was found, where it is, and which steps were told of."""

    found: Verification
    folder: Path
    told: list[str]


def again(project: UserProject, folder: Path, *words: str, in_place: bool = False) -> Again:
    """Verify variants, by default all, with processes that are warm."""
    build = choose(words or ["digits"], [project.root / "recipes"], project.root)
    told: list[str] = []
    found = verify(
        build,
        folder,
        in_place=in_place,
        workers=project.workers,
        listen=lambda name, _: told.append(name),
    )
    return Again(found, folder, told)


def states(found: Verification) -> dict[str, str]:
    """Step, without its recipe -> state."""
    return {name.partition("/")[2]: check.state for name, check in found.steps.items()}


def flip(path: Path, offset: int) -> None:
    """Change one byte in place."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))


def text(found: Verification) -> str:
    """What people read."""
    return "\n".join(_lines(found))


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "second"
    folder.mkdir()
    return folder


@pytest.fixture
def copied(
    digits: Path, tmp_path: Path, warm: Workers, monkeypatch: pytest.MonkeyPatch
) -> UserProject:
    """The session's project with all that was built, at another path."""
    original = digits.parents[1]
    monkeypatch.setenv("TF2AIF_CACHE", str(original.parent / "cache"))
    shutil.copytree(original, tmp_path / "copied")
    return UserProject(tmp_path / "copied", original, warm)


# A project that can be made again.


@pytest.fixture(scope="module")
def same(digits: Path, warm: Workers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Again]:
    """Two variants for this machine, built again."""
    root = digits.parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(root.parent / "cache"))
        project = UserProject(root, root, warm)
        folder = tmp_path_factory.mktemp("same")
        yield again(project, folder, INT8, f"digits/{TARGET}-fp32")


def test_what_can_be_made_again_is_the_same(same: Again) -> None:
    assert same.found.same
    assert not same.found.partial
    assert [variant.state for variant in same.found.variants.values()] == ["same", "same"]
    assert set(states(same.found).values()) == {"same", "measured"}
    assert f"{INT8}: the same" in text(same.found).splitlines()


def test_a_time_is_named_and_not_compared(same: Again) -> None:
    measured = {name for name, state in states(same.found).items() if state == "measured"}
    assert measured == {f"latency-{TARGET}-fp32", f"latency-{TARGET}-int8"}
    line = f"  digits/latency-{TARGET}-int8: measures times, which are not compared"
    assert line in text(same.found).splitlines()


def test_every_step_really_ran_and_each_once(same: Again, digits: Path) -> None:
    assert sorted(same.told) == sorted(same.found.steps)
    assert len(set(same.told)) == len(same.told)
    assert {"import", "tflite-int8"} <= set(states(same.found))
    first = {record.step: record for record in Store(digits.parents[2] / "cache").all_records()}
    second = {record.step: record for record in Store(same.folder / "store").all_records()}
    assert set(second) == set(same.told)
    assert all(second[name].created > first[name].created for name in same.told)


def test_the_second_build_is_laid_out_as_the_first(same: Again, digits: Path) -> None:
    variant = same.folder / "build" / INT8
    assert list_tree(variant / "artifact") == list_tree(digits.parent / INT8 / "artifact")
    record = read_record(variant)
    assert record is not None
    assert record.state == "verified-on-device"
    request = json.loads((variant / "rerun" / "00-import.json").read_text())
    source = (variant / "rerun" / request["inputs"]["source"]).resolve()
    assert source == (same.folder / "project" / "recipes" / "model").resolve()


# What is no fault of a step.


def test_files_that_somebody_changed_are_told(copied: UserProject, tmp_path: Path) -> None:
    """The command itself, with processes of its own."""
    artifact = copied.root / "build" / INT8 / "artifact" / "model.tflite"
    size = artifact.stat().st_size
    flip(artifact, 1000)
    step = copied.root / "build" / "digits" / ".steps" / "tflite-int8"
    (step / "notes.txt").write_text("mine")
    done = copied.cli("verify", INT8, "--json", "--keep", str(tmp_path / "kept"))
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert not told["same"]
    assert told["variants"][INT8]["state"] == "differs"
    assert told["variants"][INT8]["first"] is None
    changed = {"what": "changed", "first_bytes": size, "second_bytes": size, "offset": 1000}
    assert told["variants"][INT8]["damaged"] == [{"path": "artifact/model.tflite", **changed}]
    assert [f["path"] for f in told["damaged"]["digits/tflite-int8"]] == ["notes.txt"]
    assert {check["state"] for check in told["steps"].values()} == {"same", "measured"}
    assert (Path(told["kept"]) / "build" / INT8 / "artifact" / "model.tflite").is_file()
    section = (HERE.parent / "docs" / "cli.md").read_text().partition("## tf2aif verify")[2]
    for each in (told, told["variants"][INT8], told["steps"]["digits/import"]):
        for name in each:
            assert f"`{name}`" in section.partition("\n## ")[0] or "/" in name, name


def test_what_was_removed_is_told(copied: UserProject) -> None:
    build = choose([INT8], [copied.root / "recipes"], copied.root)
    shutil.rmtree(build.workspace.artifact("digits/tflite-int8"))
    damage = damage_of(build.workspace, "digits/tflite-int8")
    assert {(file.path, file.what) for file in damage} >= {("model.tflite", "removed")}


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda root: flip(root / "recipes" / "calibration.npy", 500), "file.data"),
        (lambda root: (root / "recipes" / "evaluation.npz").unlink(), "evaluation.npz is missing"),
        (
            lambda root: change(root, gate={"drop": 0.5}),
            f"{INT8}: variant.allowed_drop: 0.05 -> 0.5",
        ),
        (lambda root: change(root, calibration={"data": "calibration.npy"}), "option.samples: 32"),
    ],
    ids=["sample", "removed", "gate", "option"],
)
def test_a_stale_variant_is_refused_with_what_changed(
    copied: UserProject, edit: Callable[[Path], None], word: str
) -> None:
    edit(copied.root)
    done = copied.cli("verify", INT8)
    assert done.returncode == 2
    assert f"error: {INT8} is stale" in done.stderr
    assert word in done.stderr
    assert "tf2aif build" in done.stderr


def change(root: Path, **changes: object) -> None:
    """Change keys of the recipe."""
    path = root / "recipes" / "digits.yaml"
    recipe = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**recipe, **changes}, sort_keys=False))


def test_all_that_cannot_be_verified_is_told_at_once(copied: UserProject) -> None:
    shutil.rmtree(copied.root / "build" / INT8)
    flip(copied.root / "recipes" / "evaluation.npz", 3000)
    (copied.root / "build" / "digits" / f".steps/@{TARGET}-int8.json").unlink()
    with pytest.raises(FilesError) as error:
        choose(["digits"], [copied.root / "recipes"], copied.root)
    said = error.value.render()
    assert f"{INT8} was never built here" in said
    assert f"digits/{TARGET}-fp32 is stale" in said
    assert f"digits/{TARGET}-tf-fp32 is stale" in said


def test_an_unknown_name_is_refused_with_the_nearest(copied: UserProject) -> None:
    done = copied.cli("verify", INT8 + "6", "--json")
    assert done.returncode == 2
    assert INT8 in json.loads(done.stdout)["error"][0]["hint"]


def test_a_folder_that_is_not_empty_is_refused(copied: UserProject) -> None:
    done = copied.cli("verify", INT8, "--keep", "recipes")
    assert done.returncode == 1
    assert "the folder is not empty" in done.stderr
    assert (copied.root / "recipes" / "digits.yaml").is_file()


def test_a_project_that_changes_meanwhile_is_told(copied: UserProject, second: Path) -> None:
    build = choose([INT8], [copied.root / "recipes"], copied.root)
    flip(copied.root / "recipes" / "calibration.npy", 500)
    found = verify(build, second, workers=copied.workers)
    told = found.steps["digits/calibration"]
    assert told.state == "failed"
    assert "its facts changed since: file.data" in told.message
    assert found.steps["digits/tflite-int8"].state == "untried"
    assert found.steps["digits/reference"].state == "same"
    assert found.variants[INT8].first == "digits/calibration"
    assert "digits/tflite-int8: rests on a step that did not run again" in text(found)


# Steps that are at fault.


def test_a_model_with_noise_is_found_as_the_first_that_differs(
    project: UserProject, second: Path
) -> None:
    project.path("model.py").write_text(NOISY_MODEL)
    targets = {"arm": {"precisions": ["fp32"]}}
    project.write(project.recipe(model={"function": "model.py:make"}, targets=targets))
    project.build()
    found, *_ = again(project, second)
    assert not found.same
    variant = found.variants["digits/arm-fp32"]
    assert (variant.state, variant.first) == ("differs", "digits/model")
    assert states(found) == {
        "model": "differs",
        "import": "follows",
        "evaluation": "same",
        "reference": "follows",
        "tflite-fp32": "follows",
        "check-arm-fp32": "follows",
    }
    assert found.steps["digits/tflite-fp32"].after == ("digits/import",)
    (file,) = [f for f in found.steps["digits/tflite-fp32"].files if f.path == "model.tflite"]
    bytes_of = [
        (folder / "digits" / ".steps" / "tflite-fp32" / "model.tflite").read_bytes()
        for folder in (project.root / "build", second / "build")
    ]
    assert file.offset is not None
    assert bytes_of[0][: file.offset] == bytes_of[1][: file.offset]
    assert bytes_of[0][file.offset] != bytes_of[1][file.offset]
    lines = text(found).splitlines()
    assert lines[0] == "digits/arm-fp32: differs"
    assert lines[1] == "  first: digits/model: other bytes from the same inputs"
    assert re.search(r"^    \S+: \d+ bytes, then \d+, from byte \d+ on$", lines[2])
    assert "  digits/import: differs after a step that differs: digits/model" in lines


def test_only_the_steps_that_read_noise_differ(project: UserProject, second: Path) -> None:
    project.path("noise.py").write_text(NOISY_SAMPLES)
    targets = {"arm": {"precisions": ["fp32"]}}
    evaluation = {"data": "noise.py:samples"}
    project.write(project.recipe(evaluation=evaluation, targets=targets))
    project.build()
    found, *_ = again(project, second)
    assert found.variants["digits/arm-fp32"].first == "digits/evaluation"
    assert states(found) == {
        "import": "same",
        "evaluation": "differs",
        "reference": "follows",
        "tflite-fp32": "same",
        "check-arm-fp32": "follows",
    }


def test_what_code_reads_in_build_is_named_as_the_reason(
    project: UserProject, second: Path
) -> None:
    (project.root / "dodo.py").touch()  # here the user's tree begins
    (project.root / "build").mkdir()
    np.save(project.root / "build" / "extra.npy", np.ones((8, 8, 8, 1), np.float32))
    project.path("extra.py").write_text(SAMPLES_OF_FILE.format(path="../build/extra.npy"))
    targets = {"arm": {"precisions": ["fp32"]}}
    project.write(project.recipe(evaluation={"data": "extra.py:samples"}, targets=targets))
    project.build()
    found, *_ = again(project, second)
    told = found.steps["digits/evaluation"]
    assert told.state == "differs"
    assert re.search(r"it read file\.\.\./build/extra\.npy: \w{32} -> \(absent\)", told.message)


def test_code_that_reaches_out_of_the_project_runs_in_place(
    project: UserProject, tmp_path: Path
) -> None:
    np.save(tmp_path / "outside.npy", np.ones((8, 8, 8, 1), np.float32))
    code = SAMPLES_OF_FILE.format(path="../../outside.npy").replace("if path.exists()", "if True")
    project.path("outside.py").write_text(code)
    targets = {"arm": {"precisions": ["fp32"]}}
    project.write(project.recipe(evaluation={"data": "outside.py:samples"}, targets=targets))
    project.build()
    found, *_ = again(project, tmp_path / "elsewhere" / "second")
    assert found.variants["digits/arm-fp32"].first == "digits/evaluation"
    told = found.steps["digits/evaluation"]
    assert told.state == "failed"
    assert "outside.npy" in told.message
    assert found.steps["digits/reference"].state == "untried"
    found, *_ = again(project, tmp_path / "in-place", in_place=True)
    assert found.same


# Steps whose bytes may differ.


@pytest.fixture
def timed(project: UserProject, monkeypatch: pytest.MonkeyPatch) -> UserProject:
    """A project whose converter gives other bytes each time, and says so."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setitem(steps.STEPS, "tflite", "noisy_tflite")
    project.write(project.recipe(targets={"arm": {"precisions": ["fp32"]}}))
    project.build()
    return project


def test_engines_with_timing_are_compared_by_their_outputs(
    timed: UserProject, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, *_ = again(timed, second)
    told = found.steps["digits/tflite-fp32"]
    assert (told.state, told.compared) == ("agrees", "outputs"), told.message
    assert [file.path for file in told.files] == ["model.tflite"]
    off = re.fullmatch(r"output '\w+' is (\S+) off, 0\.01 is allowed", told.message)
    assert off, told.message
    assert 0 < float(off[1]) < 1e-3
    assert found.same
    after = found.steps["digits/check-arm-fp32"]
    assert after.state == "same" or (after.state, after.excused) == ("follows", True)
    assert "other bytes, and outputs that agree (output '" in text(found)

    import noisy_tflite

    monkeypatch.setattr(noisy_tflite, "TOLERANCE", 1e-12, raising=False)
    found, *_ = again(timed, tmp_path / "strict")
    assert found.steps["digits/tflite-fp32"].state == "differs"
    assert found.variants["digits/arm-fp32"].first == "digits/tflite-fp32"


def test_what_cannot_run_here_is_named(
    project: UserProject, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Toolchain("environment", (Root(("no-such-vendor",)),))
    monkeypatch.setitem(TOOLCHAINS, "openvino", lacking)
    (project.root / "targets").mkdir()
    pipeline = {"fp32": [{"step": "openvino", "precision": "fp32"}]}
    board = {"platform": "linux/amd64", "engine": {"name": "openvino"}, "precisions": pipeline}
    (project.root / "targets" / "board.yaml").write_text(yaml.safe_dump(board))
    project.write(project.recipe(targets={"board": None}))
    project.build()
    record = read_record(project.root / "build" / "digits" / "board-fp32")
    assert record is not None
    assert record.state == "bundled"
    found, *_ = again(project, second)
    assert found.variants["digits/board-fp32"].state == "partly"
    assert found.same
    assert found.partial
    got = states(found)
    assert {name for name, state in got.items() if state == "same"} == {
        "import", "evaluation", "reference",
    }  # fmt: skip
    assert got["openvino-fp32"] == "elsewhere"
    assert "no-such-vendor" in found.steps["digits/openvino-fp32"].message
    assert "the same, as far as this machine can tell" in text(found)


# Images.


def test_images_are_composed_again_and_compared(
    prepared: Callable[[str], UserProject], second: Path
) -> None:
    """Two variants; as if the second one's image were another one, its record says so."""
    project = prepared("project")
    target = project.root / "targets" / "small.yaml"
    int8 = "int8: [{step: tflite, precision: int8}]"
    target.write_text(target.read_text().replace("{fp32:", "{" + int8 + ", fp32:"))
    project.build(images=True)
    record = read_record(project.root / "build" / "digits" / "small-fp32")
    assert record is not None
    assert record.image is not None
    path = project.root / "build" / "digits" / "small-int8" / "variant.json"
    told = json.loads(path.read_text())
    layer = told["image"]["layers"][-1]
    was, layer["digest"] = layer["digest"], "sha256:" + "0" * 64
    told["image"]["digest"] = "sha256:" + "1" * 64
    path.write_text(json.dumps(told))

    found, *_ = again(project, second)
    assert set(states(found).values()) <= {"same", "measured"}
    assert {"image-packages-small", "image-model-small-fp32"} <= set(states(found))
    image = found.variants["digits/small-fp32"].image
    assert image is not None
    assert (image.state, image.first, image.second) == ("same", *[record.image.digest] * 2)
    other = found.variants["digits/small-int8"]
    assert other.image is not None
    assert (other.state, other.image.state) == ("differs", "differs")
    assert [(one.first, one.second) for one in other.image.layers] == [(layer["digest"], was)]
    assert [file.path for file in other.damaged] == ["variant.json"]
    assert "  image: differs from the same steps: it was sha256:111" in text(found)


# The copy of the sources.


def test_a_copy_has_the_sources_and_nothing_else(tmp_path: Path) -> None:
    project, to = tmp_path / "project", tmp_path / "copy"
    for name in (".git/config", "build/x", "cache/x", "venv/x", "code/__pycache__/x.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    (project / "cache" / "CACHEDIR.TAG").touch()
    (project / "venv" / "pyvenv.cfg").touch()
    (project / "code" / "run.sh").write_text("#!/bin/sh\n")
    (project / "code" / "run.sh").chmod(0o755)
    (project / "code" / "empty").mkdir()
    (project / "large.bin").write_bytes(bytes(COPIED_BYTES + 1))
    (project / "linked").symlink_to("code")
    (tmp_path / "shared").mkdir()
    (project / "outside").symlink_to("../shared")
    (project / "gone").symlink_to("nowhere")
    copy_sources(project, to, (project / "build",))
    assert sorted(path.relative_to(to).as_posix() for path in to.rglob("*")) == [
        ".git", "code", "code/empty", "code/run.sh", "large.bin", "linked", "outside",
    ]  # fmt: skip
    assert not (to / "code" / "run.sh").is_symlink()
    assert (to / "large.bin").readlink() == project / "large.bin"
    assert (to / "linked").resolve() == to / "code"
    assert (to / "outside").resolve() == tmp_path / "shared"
    assert digest_tree(to / "code") != digest_tree(project / "code")  # but for the bytecode
    shutil.rmtree(project / "code" / "__pycache__")
    assert digest_tree(to / "code") == digest_tree(project / "code")


def test_steps_move_with_the_project_and_what_is_outside_stays() -> None:
    step = Step(
        id="a/b",
        kind="model",
        recipe="a",
        folder="/p/recipes",
        module="m",
        version=1,
        toolchain="python",
        files={"code": "/p/recipes/m.py", "data": "/data/x", "near": "/project/x"},
        code="/p/recipes/m.py",
    )
    there = moved(Graph({"a/b": step}, {}), Path("/p"), Path("/q/r")).steps["a/b"]
    assert there.folder == "/q/r/recipes"
    assert there.code == "/q/r/recipes/m.py"
    assert there.files == {"code": "/q/r/recipes/m.py", "data": "/data/x", "near": "/project/x"}


# How files differ.


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_the_first_difference_is_where_the_bytes_part(
    tmp_path_factory: pytest.TempPathFactory, one: bytes, other: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    left, right = folder / "left", folder / "right"
    left.write_bytes(one)
    right.write_bytes(other)
    found = first_difference(left, right)
    assert (found is None) == (one == other)
    if found is not None:
        assert one[:found] == other[:found]
        assert one[found : found + 1] != other[found : found + 1]


def test_a_difference_behind_the_first_chunk_is_found(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    data = bytes(CHUNK + 100)
    left.write_bytes(data)
    right.write_bytes(data[:-7] + b"x" + data[-6:])
    assert first_difference(left, right) == CHUNK + 93


def test_every_kind_of_difference_has_its_word(tmp_path: Path) -> None:
    for side in ("first", "second"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "same").write_text("same")
        (tmp_path / side / "tool").write_text("tool")
        (tmp_path / side / "text").write_text(f"text {side}")
    (tmp_path / "first" / "tool").chmod(0o755)
    (tmp_path / "first" / "left").write_text("left")
    (tmp_path / "second" / "new").write_text("new!!")
    folders = [tmp_path / side for side in ("first", "second")]
    found = compare_files(
        *map(list_tree, folders),
        lambda file: folders[0] / file.path,
        lambda file: folders[1] / file.path,
    )
    assert [(f.path, f.what, f.first_bytes, f.second_bytes, f.offset) for f in found] == [
        ("left", "removed", 4, None, None),
        ("new", "added", None, 5, None),
        ("text", "changed", 10, 11, 5),
        ("tool", "mode", 4, 4, None),
    ]


def test_choosing_a_recipe_means_all_its_variants(copied: UserProject) -> None:
    build = choose(["digits"], [copied.root / "recipes"], copied.root)
    assert isinstance(build, Build)
    assert len(build.graph.variants) == 3
    assert list(choose([INT8, INT8], [copied.root / "recipes"], copied.root).graph.variants) == [
        INT8
    ]
