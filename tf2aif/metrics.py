"""Metrics: one number for how well outputs agree with labels.

Each takes outputs and labels with the samples along axis 0, and returns a float. Where a set has
no labels, `truth_of` turns the source model's outputs into them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import StepFailed

Array = NDArray[Any]
Scorer = Callable[[Array, Array], float]

VOID = 255  # the label of pixels that do not count, as in PASCAL VOC and Cityscapes


def score(metric: str, outputs: Array, labels: Array) -> float:
    """One of the named metrics: top-1, top-5, mean-iou, mse, cosine, auc.

    Labels are class indices or one-hot, or real values for mse and cosine. Raises StepFailed
    where there is no sample, shapes do not go together, or a value is NaN or infinite.

    >>> score("top-1", np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    return float(scorer(metric)(outputs, labels))


def scorer(metric: str, code: Path | None = None) -> Scorer:
    """The function of a metric. `file.py:function` is loaded from `code`, the file's path."""
    if metric in _METRICS:
        return _checked(metric, _METRICS[metric])
    if code is None or ":" not in metric:
        hint = f"there are: {', '.join(_METRICS)}, or file.py:function"
        raise StepFailed(f"unknown metric '{metric}'", hint=hint)
    from .usercode import load_function

    return _checked(metric, load_function(code, metric.rsplit(":", 1)[1]))


def higher_is_better(metric: str, function: Scorer | None = None) -> bool:
    """Whether a larger value is a better one.

    For a user's function it is, unless the function has the attribute `higher_is_better = False`.
    """
    if metric in _METRICS:
        return metric != "mse"
    return bool(getattr(function, "higher_is_better", True))


def truth_of(metric: str, outputs: Array) -> Array:
    """The source model's outputs as labels: its classes where the metric counts classes.

    A user's function, mse and cosine get the outputs themselves.
    """
    if metric in ("top-1", "top-5") or (metric == "mean-iou" and outputs.ndim >= 4):
        return outputs if outputs.shape[-1] == 1 else np.asarray(outputs.argmax(-1))
    if metric == "auc":
        scores = _columns(outputs)
        if scores.shape[1] > 1:
            return np.asarray(scores.argmax(1))
        # A probability is told from a logit by its range.
        probabilities = scores.min() >= 0 and scores.max() <= 1
        return np.asarray(scores[:, 0] >= (0.5 if probabilities else 0.0))
    return outputs


def _checked(metric: str, function: Scorer) -> Scorer:
    def run(outputs: Array, labels: Array) -> float:
        if len(outputs) != len(labels) or not len(outputs):
            raise StepFailed(f"{metric}: {len(outputs)} outputs for {len(labels)} labels")
        for what, values in (("outputs", outputs), ("labels", labels)):
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise StepFailed(f"{metric}: NaN or infinity in the {what}")
        value = np.asarray(function(outputs, labels))
        if value.size != 1 or value.dtype.kind not in "fiub" or not np.isfinite(value).all():
            raise StepFailed(f"{metric}: the metric returned {value!r}, not one finite number")
        return float(value.reshape(()))

    run.__dict__.update(getattr(function, "__dict__", {}))
    return run


def _top_1(outputs: Array, labels: Array) -> float:
    return float(np.mean(_ranks(outputs, labels, "top-1") < 1))


def _top_5(outputs: Array, labels: Array) -> float:
    if outputs.shape[-1] <= 5:
        message = f"top-5: of {outputs.shape[-1]} classes the right one is always among the first 5"
        raise StepFailed(message, hint="use top-1")
    return float(np.mean(_ranks(outputs, labels, "top-5") < 5))


def _ranks(outputs: Array, labels: Array, metric: str) -> Array:
    """How many classes come before the right one; of equal scores the lower index is first."""
    scores, classes = _scores_and_classes(outputs, labels, metric)
    right = np.take_along_axis(scores, classes[:, np.newaxis], axis=1)
    before = np.arange(scores.shape[1]) < classes[:, np.newaxis]
    ahead = (scores > right) | ((scores == right) & before)
    return np.asarray(np.count_nonzero(ahead, axis=1))


def _scores_and_classes(outputs: Array, labels: Array, metric: str) -> tuple[Array, Array]:
    """Outputs as (n, classes) and labels as (n,); one-hot labels become indices."""
    count = outputs.shape[-1] if outputs.ndim > 1 else 1
    if count < 2:
        hint = "use auc, or file.py:function, for a model with one score"
        raise StepFailed(
            f"{metric}: outputs of shape {outputs.shape} are not one score a class", hint=hint
        )
    scores = outputs.reshape(-1, count)
    if labels.size == scores.size and labels.shape[-1] == count:
        return scores, labels.reshape(-1, count).argmax(1)
    if labels.size != len(scores):
        raise StepFailed(f"{metric}: {_shapes(outputs, labels)}")
    return scores, _indices(labels.reshape(-1), count, metric)


def _indices(labels: Array, count: int, metric: str) -> Array:
    classes = _whole(labels, metric, "labels")
    if classes.min() < 0 or classes.max() >= count:
        raise StepFailed(
            f"{metric}: labels from {classes.min()} to {classes.max()} for {count} classes",
            hint="classes are counted from 0, in the order of the model's output",
        )
    return classes


def _whole(values: Array, metric: str, what: str) -> Array:
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise StepFailed(f"{metric}: {what} are not whole numbers")
    return whole


def _shapes(outputs: Array, labels: Array) -> str:
    return f"outputs of shape {outputs.shape} do not go with labels of shape {labels.shape}"


def _mean_iou(outputs: Array, labels: Array) -> float:
    """Mean over the classes in either of intersection over union; label 255 is left out."""
    found, truth, count = _class_maps(outputs, labels)
    kept = truth != VOID if count is None or count <= VOID else np.ones(truth.shape, np.bool_)
    if not kept.any():
        raise StepFailed(f"mean-iou: every pixel is labelled {VOID}, which is left out")
    found, truth = found[kept], truth[kept]
    if count is not None:
        _indices(truth, count, "mean-iou")
    classes, numbers = np.unique(np.concatenate([found, truth]), return_inverse=True)
    found, truth = numbers[: len(found)], numbers[len(found) :]
    both = np.bincount(found[found == truth], minlength=len(classes))
    each = np.bincount(found, minlength=len(classes)) + np.bincount(truth, minlength=len(classes))
    return float(np.mean(both / (each - both)))


def _class_maps(outputs: Array, labels: Array) -> tuple[Array, Array, int | None]:
    """Both as flat class indices, and the number of classes where the outputs are scores.

    Outputs are scores (n, ..., classes), or a class map (n, ...) or (n, ..., 1).
    """
    classes = outputs.shape[-1]
    map_shapes = (outputs.shape[:-1], (*outputs.shape[:-1], 1))
    scored = classes > 1 and (outputs.ndim >= 4 or labels.shape in map_shapes)
    if not scored:
        if outputs.size != labels.size:
            raise StepFailed(f"mean-iou: {_shapes(outputs, labels)}")
        found = _whole(outputs.reshape(-1), "mean-iou", "outputs of a class map")
        return found, _whole(labels.reshape(-1), "mean-iou", "labels"), None
    if labels.shape == outputs.shape:
        labels = labels.argmax(-1)
    elif labels.shape not in map_shapes:
        raise StepFailed(f"mean-iou: {_shapes(outputs, labels)}")
    return outputs.argmax(-1).reshape(-1), _whole(labels.reshape(-1), "mean-iou", "labels"), classes


def _mse(outputs: Array, labels: Array) -> float:
    found, truth = _pair(outputs, labels, "mse")
    return float(np.mean((found - truth) ** 2))


def _cosine(outputs: Array, labels: Array) -> float:
    found, truth = _pair(outputs, labels, "cosine")
    return float(np.mean(cosine_each(found, truth)))


def cosine_each(first: Array, second: Array) -> Array:
    """Cosine similarity of each sample, shape (n,): 1 where both are zero, 0 where one is."""
    a = np.asarray(first, np.float64).reshape(len(first), -1)
    b = np.asarray(second, np.float64).reshape(len(second), -1)
    a, b = _unit(a), _unit(b)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, np.clip(np.sum(a * b, axis=1), -1, 1))


def _unit(rows: Array) -> Array:
    # Divided by the largest value first: squares of tiny or huge values leave float64's range.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    length = np.sqrt(np.sum(scaled**2, axis=1, keepdims=True))
    return np.asarray(np.divide(scaled, length, out=scaled, where=length > 0))


def _pair(outputs: Array, labels: Array, metric: str) -> tuple[Array, Array]:
    if _squeezed(outputs.shape) != _squeezed(labels.shape):
        raise StepFailed(f"{metric}: {_shapes(outputs, labels)}")
    return outputs.astype(np.float64), labels.astype(np.float64).reshape(outputs.shape)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + tuple(size for size in shape[1:] if size != 1)


def _auc(outputs: Array, labels: Array) -> float:
    """Area under the ROC curve: of the positive class, or the mean of each class against the rest.

    One column of scores is that of the positive class, and of two columns the second is. Of three
    or more, classes that no sample (or every sample) has are left out of the mean.
    """
    scores = _columns(outputs)
    truth = _indicators(scores, labels, outputs.shape)
    if truth.shape[1] == 2 and (truth.sum(axis=1) == 1).all():
        scores, truth = scores[:, 1:], truth[:, 1:]
    mixed = [c for c in range(truth.shape[1]) if truth[:, c].any() and not truth[:, c].all()]
    if not mixed:
        raise StepFailed("auc: all labels are of one class")
    return float(np.mean([_area(scores[:, c], truth[:, c]) for c in mixed]))


def _columns(outputs: Array) -> Array:
    return outputs.reshape(len(outputs), -1)


def _indicators(scores: Array, labels: Array, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Labels as (n, columns) of bool."""
    count = scores.shape[1]
    flat = labels.reshape(len(labels), -1)
    if flat.shape == scores.shape:
        if not np.isin(flat, (0, 1)).all():
            raise StepFailed("auc: labels of one column a class are not all 0 or 1")
        return np.asarray(flat, np.bool_)
    if flat.shape[1] != 1:
        raise StepFailed(f"auc: outputs of shape {shape} do not go with labels {labels.shape}")
    # One column of scores is that of class 1.
    classes = np.arange(count) if count > 1 else np.array([1])
    truth = _indices(flat[:, 0], max(count, 2), "auc")
    return np.asarray(truth[:, np.newaxis] == classes)


def _area(scores: Array, positive: NDArray[np.bool_]) -> float:
    """Exact area from ranks (Mann-Whitney U); equal scores share their mean rank."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    doubled = (2 * last - counts + 1)[place]  # twice the mean rank, so that it stays whole
    positives = int(positive.sum())
    above = int(doubled[positive].sum()) - positives * (positives + 1)
    return above / (2 * positives * (len(scores) - positives))


_METRICS: dict[str, Scorer] = {
    "top-1": _top_1,
    "top-5": _top_5,
    "mean-iou": _mean_iou,
    "mse": _mse,
    "cosine": _cosine,
    "auc": _auc,
}
