"""Step `onnx-mixed`: the search for layers that must not be int8, and what it leaves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import array_set, content, run_step
from onnx import helper
from onnx_made import digits, labelled_set, run_module
from test_onnx_graph import answers, model_of, spec

from tf2aif.engines.signature import Signature
from tf2aif.errors import StepFailed
from tf2aif.steps import onnx_mixed
from tf2aif.steps.onnx_graph import canonical_form, read_model
from tf2aif.steps.onnx_mixed import relative_error
from tf2aif.steps.onnx_search import Found, Kept, Search, groups

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def trials_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF2AIF_TRIALS", str(tmp_path / "trials"))


# The search, over layers whose drops add up


def searched(drops: list[float], limit: float, trials: int) -> tuple[Found, dict[str, float]]:
    costs = {f"layer_{i}": drop for i, drop in enumerate(drops)}
    search = Search(
        list(costs),
        lambda kept: sum(cost for name, cost in costs.items() if name not in kept),
        lambda chosen: (sum(costs[n] for n in chosen), sum(costs[n] for n in chosen)),
        limit=limit,
        grain=0.0,
        trials=trials,
    )
    return search.run(), costs


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_holds_and_nothing_of_it_is_needless(drops: list[int], limit: int) -> None:
    found, costs = searched([float(drop) for drop in drops], limit, 1000)
    left = sum(cost for name, cost in costs.items() if name not in found.kept)
    assert found.finished
    assert left <= limit or len(found.kept) == len(costs)
    if sum(costs.values()) > limit:
        assert all(left + costs[name] > limit for name in found.kept)
    assert [cost.drop for cost in found.costs] == sorted(map(float, drops), reverse=True)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=90), st.integers(8, 60))
@settings(max_examples=40, deadline=None)
def test_a_search_is_bounded_and_what_it_ends_with_holds(drops: list[int], trials: int) -> None:
    found, costs = searched([float(drop) for drop in drops], 10, trials)
    assert found.trials <= trials
    assert sum(cost for name, cost in costs.items() if name not in found.kept) <= 10
    assert frozenset(name for cost in found.costs for name in cost.layers) <= set(costs)


def test_the_metric_ranks_where_it_is_more_than_chance() -> None:
    probes = {"a": (0.001, 0.9), "b": (0.002, 0.1), "c": (0.2, 0.05)}

    def probe(chosen: Kept) -> tuple[float, float]:
        return probes[next(iter(chosen))]

    search = Search("abc", lambda kept: 1 - len(kept), probe, limit=-1, grain=0.01, trials=50)
    found = search.run()
    assert [cost.layers for cost in found.costs] == [("c",), ("a",), ("b",)]
    assert found.costs[1].sqnr_db == pytest.approx(-20 * math.log10(0.9))
    assert search.widen(frozenset("c")) == {"a", "c"}
    assert search.widen(frozenset("abc")) == {"a", "b", "c"}


def test_groups_are_few_and_hold_every_layer_once() -> None:
    for count in range(1, 12):
        made = groups([f"l{i}" for i in range(10)], count)
        assert len(made) <= count
        assert [name for group in made for name in group] == [f"l{i}" for i in range(10)]


# The step


@pytest.fixture
def outlying(tmp_path: Path) -> dict[str, Path]:
    """Three layers; the second reads a tensor of which one channel is ten thousand times as large.

    One scale for the whole tensor leaves nothing of its other channels, which decide the class.
    """
    rng = np.random.default_rng(5)
    signature = Signature(inputs=(spec("x", None, 8),), outputs=(spec("y", None, 8),))
    scale, undo = np.ones(8, np.float32), np.ones(8, np.float32)
    scale[0], undo[0] = 1e4, 1e-4
    constants = {
        "w1": np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32),
        "w2": (undo[:, None] * np.linalg.qr(rng.standard_normal((8, 8)))[0]).astype(np.float32),
        "w3": np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32),
        "scale": scale,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("MatMul", ["c", "w3"], ["y"]),
    ]
    model = canonical_form(model_of(nodes, signature, constants), signature)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "signature.json").write_bytes(msgspec.json.encode(signature))
    samples = rng.standard_normal((300, 8)).astype(np.float32)
    truth = answers(model, samples)[0]
    reference = tmp_path / "reference"
    reference.mkdir()
    np.save(reference / "y0.npy", truth)
    (reference / "outputs.json").write_text('{"outputs": ["y"]}')
    return {
        "model": folder,
        "calibration": array_set(tmp_path / "calibration", x=samples[:100]),
        "evaluation": labelled_set(tmp_path / "set", samples, truth.argmax(1), "x"),
        "reference": reference,
    }


SCORED = {"metric": "top-1", "allowed_drop": 0.06}


@pytest.mark.parametrize("rest", ["fp16", "fp32"])
def test_the_one_layer_that_int8_breaks_is_kept(
    outlying: dict[str, Path], tmp_path: Path, rest: str
) -> None:
    result = run_module(onnx_mixed, tmp_path / "out", outlying, rest=rest, **SCORED)
    assert result["kept"] == ["MatMul_1"]
    assert (result["layers"], result["int8_layers"]) == (3, 2)
    assert result["all_int8"]["drop"] > 0.3
    assert result["mixed"]["drop"] <= 0.06
    costliest = result["costs"][0]
    assert (costliest["layers"], costliest["kept"]) == (["MatMul_1"], True)
    assert costliest["drop"] > 0.3
    model = read_model(tmp_path / "out")
    assert (tmp_path / "out" / "check.onnx").exists() == (rest == "fp16")
    makers = {tensor: node.op_type for node in model.graph.node for tensor in node.output}
    fed = [makers.get(node.input[0]) for node in model.graph.node if node.op_type == "MatMul"]
    assert fed == ["DequantizeLinear", "Mul", "DequantizeLinear"]


def test_the_step_says_what_check_says_of_its_artifact(
    outlying: dict[str, Path], tmp_path: Path
) -> None:
    result = run_module(onnx_mixed, tmp_path / "out", outlying, rest="fp32", **SCORED)
    given = {"artifact": tmp_path / "out", **{k: outlying[k] for k in ("evaluation", "reference")}}
    options = {"engine": "onnxruntime", "metric": "top-1"}
    checked = run_step("check", tmp_path / "check", given, **options)
    assert result["mixed"] == {"score": checked["variant"], "drop": checked["drop"]}
    assert result["source"] == checked["source"]


def test_a_search_is_the_same_again_and_takes_up_earlier_trials(
    outlying: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = run_module(onnx_mixed, tmp_path / "a", outlying, **SCORED)
    assert len(list((tmp_path / "trials").rglob("*.json"))) > 3
    again = run_module(onnx_mixed, tmp_path / "b", outlying, **SCORED)
    assert first == again
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert "MatMul_1 alone in int8: drop" in capfd.readouterr().out


def test_where_all_layers_hold_nothing_is_searched(tmp_path: Path, exported: Path) -> None:
    home = digits(exported)
    given = {name: home / name for name in ("calibration", "evaluation", "reference")}
    given["model"] = home / "onnx"
    result = run_module(onnx_mixed, tmp_path / "out", given, allowed_drop=0.05, metric="top-1")
    assert (result["int8_layers"], result["kept"], result["trials"]) == (2, [], 0)
    assert result["mixed"] == result["all_int8"]


def test_without_a_metric_the_cosine_is_held(outlying: dict[str, Path], tmp_path: Path) -> None:
    result = run_module(onnx_mixed, tmp_path / "out", outlying, allowed_drop=0.01)
    assert result["metric"] == "cosine"
    assert result["kept"] == ["MatMul_1"]


def test_gates_that_cannot_hold(outlying: dict[str, Path], tmp_path: Path) -> None:
    asked = {"metric": "top-1", "allowed_drop": -0.1}
    with pytest.raises(StepFailed, match="without any int8 layer, top-1 fell"):
        run_module(onnx_mixed, tmp_path / "a", outlying, **asked)
    asked["allowed_drop"] = 0.0
    with pytest.raises(StepFailed, match="does not hold with any int8 layer"):
        run_module(onnx_mixed, tmp_path / "b", outlying, rest="fp32", **asked)


def test_errors_are_relative_to_all_outputs() -> None:
    exact: dict[str, Any] = {"a": np.array([3.0, 0.0]), "b": np.array([4.0])}
    assert relative_error(exact, exact) == 0.0
    assert relative_error({"a": np.array([3.0, 0.5]), "b": np.array([4.0])}, exact) == 0.1
