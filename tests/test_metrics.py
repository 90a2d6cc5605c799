"""Metrics against scikit-learn where it has them, and against their definitions elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from tf2aif.errors import StepFailed
from tf2aif.metrics import cosine_each, higher_is_better, score, scorer, truth_of

NAMES = ("top-1", "top-5", "mean-iou", "mse", "cosine", "auc")


@st.composite
def scored(draw: Any, least: int = 2, most: int = 9, ties: bool = True) -> tuple[Any, Any]:
    """Scores (n, classes) and class indices (n,); few different values, so that many are equal."""
    count, classes = draw(st.integers(1, 40)), draw(st.integers(least, most))
    values = st.integers(-4, 4) if ties else st.integers(-10_000, 10_000)
    scores = draw(hnp.arrays(np.float32, (count, classes), elements=values, unique=not ties))
    labels = draw(hnp.arrays(np.int32, count, elements=st.integers(0, classes - 1)))
    return scores, labels


@given(scored())
def test_top_1_is_the_accuracy_of_argmax(case: tuple[Any, Any]) -> None:
    scores, labels = case
    expected = sk.accuracy_score(labels, scores.argmax(1))
    assert score("top-1", scores, labels) == pytest.approx(expected, abs=1e-12)
    one_hot = np.eye(scores.shape[1], dtype=np.float32)[labels]
    assert score("top-1", scores, one_hot) == score("top-1", scores, labels[:, np.newaxis])


@given(scored(least=6, ties=False))
def test_top_5_is_that_of_scikit_learn(case: tuple[Any, Any]) -> None:
    scores, labels = case
    classes = np.arange(scores.shape[1])
    expected = sk.top_k_accuracy_score(labels, scores, k=5, labels=classes)
    assert score("top-5", scores, labels) == pytest.approx(expected, abs=1e-12)


def test_of_equal_scores_the_first_counts_as_argmax_does() -> None:
    scores = np.zeros((1, 8))
    assert [score("top-1", scores, np.array([c])) for c in range(8)] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert [score("top-5", scores, np.array([c])) for c in range(8)] == [1, 1, 1, 1, 1, 0, 0, 0]


def test_top_1_of_sequences_and_of_outputs_with_axes_of_one() -> None:
    scores = np.array([[[0.1, 0.9], [0.8, 0.2]]])
    assert score("top-1", scores, np.array([[1, 1]])) == 0.5
    assert score("top-1", np.array([[[[0.1, 0.9]]]]), np.array([1])) == 1.0


@given(scored(least=2, most=2))
def test_auc_of_two_classes_is_that_of_scikit_learn(case: tuple[Any, Any]) -> None:
    scores, labels = case
    if len(set(labels)) < 2:
        with pytest.raises(StepFailed, match="one class"):
            score("auc", scores[:, 1], labels)
        return
    expected = sk.roc_auc_score(labels, scores[:, 1])
    assert score("auc", scores[:, 1], labels) == pytest.approx(expected, abs=1e-12)
    assert score("auc", scores[:, 1:], labels[:, np.newaxis]) == pytest.approx(expected, abs=1e-12)
    assert score("auc", scores, labels) == pytest.approx(expected, abs=1e-12)
    assert score("auc", scores, np.eye(2)[labels]) == pytest.approx(expected, abs=1e-12)


@given(scored(least=3, most=5), st.data())
def test_auc_of_many_classes_is_the_macro_mean_of_scikit_learn(
    case: tuple[Any, Any], data: st.DataObject
) -> None:
    scores, labels = case
    classes = scores.shape[1]
    extra = data.draw(hnp.arrays(np.float32, (classes, classes), elements=st.integers(-4, 4)))
    scores, labels = np.concatenate([scores, extra]), np.concatenate([labels, np.arange(classes)])
    indicators = np.eye(classes, dtype=np.int32)[labels]
    expected = sk.roc_auc_score(indicators, scores, average="macro")
    assert score("auc", scores, labels) == pytest.approx(expected, abs=1e-12)
    assert score("auc", scores, indicators) == pytest.approx(expected, abs=1e-12)


@given(hnp.arrays(np.int32, (30, 3), elements=st.integers(0, 1)), st.integers(0, 2**31))
def test_auc_of_several_labels_a_sample(indicators: Any, seed: int) -> None:
    indicators[0], indicators[1] = 0, 1  # every column has both
    scores = np.random.default_rng(seed).integers(0, 6, indicators.shape).astype(np.float32)
    expected = sk.roc_auc_score(indicators, scores, average="macro")
    assert score("auc", scores, indicators) == pytest.approx(expected, abs=1e-12)


def test_auc_leaves_out_a_class_that_no_sample_has() -> None:
    scores = np.array([[3.0, 0, 9], [1, 2, 8], [2, 1, 7]])
    assert score("auc", scores, np.array([0, 1, 1])) == 1.0


@given(st.integers(0, 2**31), st.integers(1, 6))
def test_mean_iou_is_the_macro_jaccard_score(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    truth, found = generator.integers(0, classes, (2, 3, 4, 5))
    expected = sk.jaccard_score(truth.ravel(), found.ravel(), average="macro", zero_division=0)
    assert score("mean-iou", found, truth) == pytest.approx(expected, abs=1e-12)
    logits = np.eye(max(classes, 2), dtype=np.float32)[found]
    one_hot = np.eye(max(classes, 2), dtype=np.float32)[truth]
    for labels in (truth, truth[..., np.newaxis], one_hot):
        assert score("mean-iou", logits, labels) == pytest.approx(expected, abs=1e-12)


def test_mean_iou_leaves_out_void_pixels_and_takes_maps_with_a_channel() -> None:
    found = np.array([[[0.0], [1.0], [1.0], [0.0]]])
    assert score("mean-iou", found, np.array([[0, 1, 1, 255]])) == 1.0
    with pytest.raises(StepFailed, match="every pixel"):
        score("mean-iou", found, np.full((1, 4), 255))
    with pytest.raises(StepFailed, match="whole numbers"):
        score("mean-iou", found + 0.5, np.array([[0, 1, 1, 0]]))
    with pytest.raises(StepFailed, match="labels from 0 to 7 for 2 classes"):
        score("mean-iou", np.zeros((1, 2, 2, 2)), np.array([[[0, 1], [7, 0]]]))


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_mse_and_cosine_follow_their_definitions(seed: int, factor: float) -> None:
    first, second = np.random.default_rng(seed).standard_normal((2, 7, 5))
    expected = sk.mean_squared_error(second, first * factor)
    assert score("mse", first * factor, second) == pytest.approx(expected)
    expected = np.diag(sk.pairwise.cosine_similarity(first * factor, second)).mean()
    assert score("cosine", first * factor, second) == pytest.approx(expected, abs=1e-12)


def test_cosine_of_zero_tiny_and_huge_vectors() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [1e-200, 0.0], [1e200, 1e200]])
    others = np.array([[0.0, 0.0], [1.0, 0.0], [1e200, 0.0], [1.0, 1.0]])
    assert cosine_each(rows, others) == pytest.approx([1, 0, 1, 1])


@settings(max_examples=30)
@given(scored(least=6, ties=False), st.sampled_from(["top-1", "top-5", "mean-iou", "cosine"]))
def test_the_source_agrees_wholly_with_its_own_truth(case: tuple[Any, Any], metric: str) -> None:
    scores = case[0]
    outputs = scores[:, np.newaxis, np.newaxis, :] if metric == "mean-iou" else scores
    assert score(metric, outputs, truth_of(metric, outputs)) == pytest.approx(1.0)
    assert score("mse", outputs, truth_of("mse", outputs)) == 0.0


@pytest.mark.parametrize(
    ("outputs", "truth"),
    [
        ([[0.2], [0.7]], [0, 1]),
        ([[-3.0], [0.1]], [0, 1]),
        ([[0.1, 0.9], [0.8, 0.2]], [1, 0]),
    ],
    ids=["probabilities", "logits", "columns"],
)
def test_the_truth_of_auc_is_the_likelier_class(outputs: Any, truth: Any) -> None:
    values = np.array(outputs)
    assert truth_of("auc", values).tolist() == truth
    assert score("auc", values, truth_of("auc", values)) == 1.0


@pytest.mark.parametrize("metric", NAMES)
def test_nothing_broken_gets_a_score(metric: str) -> None:
    good = np.ones((4, 6), np.float32)
    labels = good if metric in ("mse", "cosine") else np.array([0, 1, 2, 3])
    broken = good.copy()
    broken[1, 2] = np.nan
    with pytest.raises(StepFailed, match="NaN or infinity in the outputs"):
        score(metric, broken, labels)
    with pytest.raises(StepFailed, match="0 outputs for 0 labels"):
        score(metric, good[:0], labels[:0])
    with pytest.raises(StepFailed, match="4 outputs for 3 labels"):
        score(metric, good, labels[:3])
    with pytest.raises(StepFailed, match=metric):
        score(metric, good, np.ones((4, 7), np.float32))


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "message"),
    [
        ("top-1", np.zeros((2, 3)), np.array([0, 3]), "labels from 0 to 3 for 3 classes"),
        ("top-1", np.zeros((2, 3)), np.array([0.5, 1]), "not whole numbers"),
        ("top-1", np.zeros((2, 1)), np.array([0, 1]), "not one score a class"),
        ("top-1", np.zeros(2), np.array([0, 1]), "not one score a class"),
        ("top-5", np.zeros((2, 5)), np.array([0, 1]), "always among the first 5"),
        ("auc", np.zeros((2, 1)), np.array([0, 2]), "not all 0 or 1"),
        ("auc", np.zeros((2, 3)), np.full((2, 3), 2), "not all 0 or 1"),
        ("auc", np.zeros((2, 3)), np.zeros((2, 3), np.int32), "one class"),
        ("accuracy", np.zeros((2, 3)), np.array([0, 1]), "unknown metric 'accuracy'"),
    ],
)
def test_what_cannot_be_scored_is_said(
    metric: str, outputs: Any, labels: Any, message: str
) -> None:
    with pytest.raises(StepFailed, match=message):
        score(metric, outputs, labels)


def test_only_mse_is_better_when_lower() -> None:
    assert [name for name in NAMES if not higher_is_better(name)] == ["mse"]


def test_a_function_is_a_metric(tmp_path: Any) -> None:
    code = tmp_path / "loss.py"
    code.write_text(
        "import numpy as np\n"
        "def worst(outputs, labels):\n"
        "    return np.abs(outputs - labels).max()\n"
        "worst.higher_is_better = False\n"
        "def broken(outputs, labels):\n"
        "    return outputs\n"
    )
    worst = scorer("loss.py:worst", code)
    assert worst(np.array([1.0, 5.0]), np.array([1.0, 2.0])) == 3.0
    assert not higher_is_better("loss.py:worst", worst)
    with pytest.raises(StepFailed, match="not one finite number"):
        scorer("function:broken", code)(np.zeros(2), np.zeros(2))
