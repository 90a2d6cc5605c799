"""Ready hooks for classifiers: the k best labels.

from tf2aif.serve.labels import read_labels, top_k

postprocess = top_k(5, labels=read_labels("labels.txt"), output="probabilities")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import Array


def read_labels(path: str | Path) -> tuple[str, ...]:
    """The labels of a text file, one a line; empty lines at the end do not count."""
    return tuple(Path(path).read_text("utf-8").rstrip().splitlines())


def top_k(
    k: int, *, labels: Sequence[str] = (), output: str | None = None, softmax: bool = False
) -> Callable[[dict[str, Array]], list[list[dict[str, Any]]]]:
    """A `postprocess` hook: for each sample its k best classes, best first.

    Of `output`, shape (n, classes), by default the only output. Each is {"class", "score"} and,
    where `labels` are given, "label". Of equal scores the lower class is first. `softmax` makes
    probabilities of logits.

    >>> top_k(1, labels=["no", "yes"])({"y": np.array([[0.2, 0.8]])})
    [[{'class': 1, 'score': 0.8, 'label': 'yes'}]]
    """

    def postprocess(outputs: dict[str, Array]) -> list[list[dict[str, Any]]]:
        name = output if output is not None else _only(outputs)
        scores = _softmax(outputs[name]) if softmax else outputs[name]
        return [_best(row, k, labels) for row in scores]

    return postprocess


def _only(outputs: dict[str, Array]) -> str:
    if len(outputs) != 1:
        raise LookupError(f"top_k needs `output`, one of: {', '.join(outputs)}")
    return next(iter(outputs))


def _best(row: Array, k: int, labels: Sequence[str]) -> list[dict[str, Any]]:
    order = np.argsort(-row.astype(np.float64), kind="stable")[:k]
    best: list[dict[str, Any]] = [{"class": int(at), "score": float(row[at])} for at in order]
    for each in best:
        if labels:
            each["label"] = labels[each["class"]]
    return best


def _softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float32)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    scaled: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return scaled
