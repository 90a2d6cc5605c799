"""The zoo: its recipes are right, their functions give what they say, and a recipe that lacks
something is left out of a build, or told, where it was named."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from tf2aif.build import Build
from tf2aif.errors import FilesError
from tf2aif.graph import Graph, plan
from tf2aif.noop import watched
from tf2aif.oci.planning import find_inputs
from tf2aif.snapshot import snapshot, unchanged
from tf2aif.spec.check import check
from tf2aif.spec.load import LoadedRecipe, Project, load_project
from tf2aif.spec.recipe import Calibration, Evaluation

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
FOUR = ("digits", "mobilenet-v2", "resnet50", "inception-v3")
FIVE = {"cpu", "cpu-openvino", "cpu-tf", "arm", "arm-tf"}
LACKING = "needs: [../beside/data]\nmodel: {path: model}\ntargets: [cpu-tf]\n"
WHOLE = "model: {function: model.py:build}\ntargets: [cpu-tf]\n"


@pytest.fixture(scope="module")
def zoo() -> Project:
    """The recipes as a build of the folder takes them."""
    return load_project([RECIPES], ROOT)


@pytest.fixture(scope="module")
def graph(zoo: Project) -> Graph:
    """All steps, images included."""
    return plan(zoo.recipes, zoo.targets, platform="linux/amd64", images=find_inputs(ROOT))


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[None]:
    """The modules beside the recipes can be imported, as in a step that runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        yield


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


# The recipes.


def test_the_zoo_has_no_faults() -> None:
    assert check([RECIPES], ROOT) == []


def test_four_models_for_five_targets_are_twenty_variants_with_images(graph: Graph) -> None:
    chosen = [v for v in graph.variants.values() if v.recipe in FOUR and v.target in FIVE]
    assert {(v.recipe, v.target) for v in chosen} == {(r, t) for r in FOUR for t in FIVE}
    assert len(chosen) >= 20
    assert all(v.image for v in chosen)


def test_every_model_is_for_five_targets_and_is_gated(zoo: Project, graph: Graph) -> None:
    assert {*FOUR, "unet"} <= {one.name for one in zoo.recipes}
    for loaded in zoo.recipes:
        variants = [v for v in graph.variants.values() if v.recipe == loaded.name]
        assert {v.target for v in variants} >= FIVE, loaded.name
        assert all(0 < v.allowed_drop < 0.1 for v in variants), loaded.name
        assert loaded.recipe.evaluation is not None
        assert loaded.recipe.evaluation.labels


def test_keyword_spotting_is_there_where_its_folder_is(zoo: Project) -> None:
    beside = (ROOT.parent / "shared" / "kws").exists()
    assert ("kws" in {one.name for one in zoo.recipes}) == beside
    assert ("kws" in {one.name for one in zoo.left_out}) != beside


def test_a_recipe_says_that_its_weights_are_random(zoo: Project) -> None:
    for loaded in zoo.recipes:
        code = loaded.recipe.model.function
        text = (RECIPES / code.partition(":")[0]).read_text(encoding="utf-8") if code else ""
        drawn = "random_features" in text
        assert drawn == ("random weights" in loaded.recipe.description), loaded.name


# Their data.


def samples(loaded: LoadedRecipe, spec: Calibration | Evaluation, what: str = "data") -> Any:
    """What the recipe's own function gives, with the recipe's own arguments."""
    data = getattr(spec, what)
    function, arguments = (data, {}) if isinstance(data, str) else (data.function, data.arguments)
    file, _, name = function.partition(":")
    return getattr(module(file.removesuffix(".py")), name)(**arguments)


@pytest.mark.parametrize("name", [*FOUR, "unet"])
def test_sets_go_together(zoo: Project, name: str) -> None:
    loaded = next(one for one in zoo.recipes if one.name == name)
    calibration, evaluation = loaded.recipe.calibration, loaded.recipe.evaluation
    assert isinstance(calibration, Calibration)
    assert evaluation is not None
    x, y = samples(loaded, evaluation), samples(loaded, evaluation, "labels")
    ranges = samples(loaded, calibration)
    assert x.dtype == ranges.dtype == np.float32
    assert x.shape[1:] == ranges.shape[1:]
    assert len(x) == len(y)
    assert y.dtype.kind in "iu"
    assert set(np.unique(y)) >= set(range(10)), "a class has no sample"
    low = -1 if x.shape[-1] == 3 else 0
    assert low <= x.min() < x.max() <= 1
    # Nothing is judged on what gave the ranges.
    assert not {each.tobytes() for each in x} & {each.tobytes() for each in ranges}


def test_images_are_resized_between_the_centres_of_pixels() -> None:
    resized = module("scaled_digits").resized
    images = module("scaled_digits").digits()[0][:3]
    assert np.array_equal(resized(images, 8), images)
    assert np.allclose(resized(np.full((1, 8, 8), 0.25, np.float32), 30), 0.25)
    ramp = np.tile(np.arange(8, dtype=np.float32), (1, 8, 1))
    twice = resized(ramp, 16)[0, 0]
    assert twice[:4].tolist() == [0.0, 0.25, 0.75, 1.25]
    assert twice[-1] == 7.0


def test_pages_label_the_ink_of_their_digits() -> None:
    unet = module("unet")
    pages, labels = unet.held_out(6), unet.held_out_labels(6)
    assert pages.shape == (6, 64, 64, 1)
    assert labels.shape == (6, 64, 64)
    assert np.array_equal(pages, unet.held_out(6)), "pages are drawn anew at each call"
    written = labels != unet.BACKGROUND
    assert 0.02 < written.mean() < 0.4
    assert pages[..., 0][written].min() > unet.INK
    # Strokes are as dark as digits: brightness alone does not tell.
    assert (pages[..., 0][~written] > unet.INK).mean() > 0.01


def test_the_last_layer_is_fitted_by_ridge_regression() -> None:
    features = np.random.default_rng(0).normal(3, 2, (40, 200))
    wanted = np.eye(4)[np.arange(40) % 4]
    weights, bias = module("random_features").ridge(features, wanted)
    found = features @ weights + bias
    assert (found.argmax(1) == wanted.argmax(1)).all()
    # The normal equations of the penalised problem hold.
    centred = features - features.mean(0)
    penalty = module("random_features").RIDGE * np.trace(centred @ centred.T) / 40
    left = centred.T @ (centred @ weights - (wanted - wanted.mean(0))) + penalty * weights
    assert np.abs(left).max() < 1e-8


# What the benchmarks change and reckon.


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    """The modules of `benchmarks/` can be imported, as from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("name", FOUR)
def test_an_edit_of_the_benchmark_changes_one_thing(tmp_path: Path, name: str) -> None:
    zoo = module("zoo")
    recipe = zoo.copy_recipes(tmp_path, [name])[name]

    def steps() -> dict[str, Any]:
        loaded = load_project([recipe], tmp_path)
        return plan(loaded.recipes, loaded.targets, platform="linux/amd64").steps

    before = steps()
    zoo.one_sample_less(recipe)
    calibrated = steps()
    zoo.trained_anew(recipe)
    trained = steps()
    assert before.keys() == calibrated.keys() == trained.keys()
    changed = {n for n in before if before[n].options != calibrated[n].options}
    assert changed == {f"{name}/calibration"}
    assert calibrated[f"{name}/calibration"].options["samples"] > 20
    changed = {n for n in before if calibrated[n].options != trained[n].options}
    assert changed == {f"{name}/model"}


@pytest.mark.usefixtures("benchmarks")
def test_metadata_of_another_version_are_found_first(tmp_path: Path) -> None:
    folder = module("zoo").shadow(tmp_path / "shadow", "msgspec")
    code = "from tf2aif.toolchains.installed import installed; print(installed()['msgspec'])"
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == f"{msgspec.__version__}.post1"


@pytest.mark.usefixtures("benchmarks")
def test_tables_take_the_place_of_older_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- zoo -->\nold\n<!-- /zoo -->\nb\n<!-- other -->\n<!-- /other -->\n")
    module("zoo").put_between(page, "zoo", "| new |")
    assert page.read_text().startswith("a\n<!-- zoo -->\n| new |\n<!-- /zoo -->\nb\n<!-- other")
    with pytest.raises(SystemExit, match="has no <!-- speed -->"):
        module("zoo").put_between(page, "speed", "")


@pytest.mark.usefixtures("benchmarks")
def test_the_mean_of_speed_ups_has_an_interval_around_it() -> None:
    speedup = module("speedup")
    rounds = np.array([4.0, 5.0, 6.0, 5.5, 4.5])
    drawn = speedup.resampled(rounds, 0)
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert 4.0 < low < speedup.geometric(rounds) < high < 6.0
    assert speedup.geometric(np.array([2.0, 8.0])) == pytest.approx(4.0)
    assert speedup.interval(np.full(10, 3.0)) == "3.00 to 3.00"


# What a recipe cannot do without.


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a recipe that is whole and one that lacks something."""
    folder = tmp_path / "project" / "recipes"
    folder.mkdir(parents=True)
    (folder / "lacking.yaml").write_text(LACKING)
    (folder / "whole.yaml").write_text(WHOLE)
    (folder / "model.py").write_text("def build():\n    return None\n")
    return tmp_path / "project"


def names(recipes: tuple[LoadedRecipe, ...]) -> list[str]:
    return [one.name for one in recipes]


def test_a_recipe_of_a_folder_is_left_out_where_it_lacks_something(project: Path) -> None:
    loaded = load_project([project / "recipes"], project)
    assert names(loaded.recipes) == ["whole"]
    assert names(loaded.left_out) == ["lacking"]
    assert loaded.left_out[0].lacking() == ("../beside/data",)
    assert check([], project) == []


def test_a_plan_says_in_a_line_what_was_left_out(project: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tf2aif", "plan"],
        cwd=project, env={**os.environ, "TF2AIF_CACHE": str(project / "cache")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stderr == "lacking is left out: it needs ../beside/data, not there\n"
    assert "whole/native" in told.stdout
    assert "lacking" not in told.stdout


def test_it_is_built_once_that_is_there(project: Path) -> None:
    (project / "beside" / "data").mkdir(parents=True)
    loaded = load_project([project / "recipes"], project)
    assert names(loaded.recipes) == ["lacking", "whole"]
    assert not loaded.left_out
    assert "no file or folder 'model'" in check([], project)[0].message  # it is looked at, too


def test_who_names_the_recipe_is_told_what_it_lacks(project: Path) -> None:
    named = project / "recipes" / "lacking.yaml"
    with pytest.raises(FilesError) as caught:
        load_project([project / "recipes", named], project)
    (fault,) = caught.value.faults
    assert fault.message == "recipe 'lacking' needs '../beside/data', which is not there"
    assert fault.at == "recipes/lacking.yaml:1: needs[0]"
    assert check([named], project) == [fault]


def test_a_build_with_nothing_to_do_looks_whether_it_has_come(project: Path) -> None:
    build = Build.load([project / "recipes"], project)
    assert names(build.left_out) == ["lacking"]
    paths = watched(build, [str(project / "recipes")])
    before = snapshot(p for p in paths if p.startswith(str(project / "beside")))
    build.close()
    assert msgspec.json.decode(msgspec.json.encode(before)) == [
        [str(project / "beside" / "data"), []]
    ]
    assert unchanged(before)
    (project / "beside" / "data").mkdir(parents=True)
    assert not unchanged(before)


def test_a_fault_in_a_recipe_that_is_left_out_is_told_all_the_same(project: Path) -> None:
    (project / "recipes" / "lacking.yaml").write_text(LACKING + "gate: {dorp: 1}\n")
    with pytest.raises(FilesError, match="unknown key 'dorp'"):
        load_project([project / "recipes"], project)
