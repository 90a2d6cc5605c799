"""What a server answers, beside what the source model answered and what the labels say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..errors import Tf2aifError
from ..metrics import cosine_each, higher_is_better, score, truth_of
from ..serve.failures import RequestFailed
from .connection import Connection, ConnectionFailed, Reply
from .generator import cut
from .server import Messages, error_text, refusal

Array = NDArray[Any]

TRIES = 8  # for a request that a busy server refuses
LONGEST_WAIT_S = 5.0
TOLERANCE = 0.05  # of an output's spread: another batch rounds otherwise, another sample differs


class Agreement(Struct, frozen=True, kw_only=True):
    """How far one output is from the source model's, over all samples; as in the check step."""

    worst: float  # largest absolute difference
    mean: float  # mean absolute difference
    cosine: float  # mean over samples of the cosine similarity
    relative: float  # Euclidean norm of the difference over that of the reference


class Accuracy(Struct, frozen=True, kw_only=True):
    """The answers to all samples, scored and compared; None where there is nothing to go by."""

    samples: int
    metric: str | None = None
    served: float | None = None
    source: float | None = None  # of the source model's stored outputs
    drop: float | None = None  # positive: what is served is worse
    right: int | None = None  # samples, where the metric counts them
    labels: bool = False  # False: the source model's own answers were the truth
    outputs: dict[str, Agreement] = {}


def collect(
    messages: Messages, connect: Callable[[], Connection], *, connections: int, rows: int
) -> dict[str, Array]:
    """Ask for every sample once; outputs by name, in the order of the samples.

    Raises Tf2aifError where a request fails: an accuracy of some of the samples is none.
    """
    parts = cut(range(messages.count), rows)
    answers: list[Reply | None] = [None] * len(parts)
    failures: list[str] = []
    turns = iter(range(len(parts)))
    lock = threading.Lock()

    def work() -> None:
        connection = connect()
        while not failures:
            with lock:
                turn = next(turns, None)
            if turn is None:
                break
            reply = _ask_patiently(connection, messages.of(parts[turn]))
            if isinstance(reply, str):
                failures.append(reply)
            else:
                answers[turn] = reply
        connection.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Tf2aifError(f"a sample has no answer: {failures[0]}")
    return _joined(messages, parts, [each for each in answers if each is not None])


def judge(
    outputs: Mapping[str, Array],
    *,
    reference: Mapping[str, Array] | None = None,
    labels: Array | None = None,
    metric: str | None = None,
    output: str | None = None,
) -> Accuracy:
    """Score answers as the check step does. Raises Tf2aifError where shapes or names differ."""
    count = len(next(iter(outputs.values())))
    agreement = {} if reference is None else _agreement(outputs, reference)
    bare = Accuracy(samples=count, labels=labels is not None, outputs=agreement)
    if labels is None and (reference is None or metric is None):
        return bare
    metric = metric or "top-1"
    name = _scored(outputs, output)
    truth = labels if labels is not None else truth_of(metric, (reference or {})[name])
    served = score(metric, outputs[name], truth)
    source = None if reference is None else score(metric, reference[name], truth)
    better = 1 if higher_is_better(metric) else -1
    return Accuracy(
        samples=count,
        metric=metric,
        served=served,
        source=source,
        drop=None if source is None else better * (source - served),
        right=round(served * count) if metric in ("top-1", "top-5") else None,
        labels=labels is not None,
        outputs=agreement,
    )


def compare(found: Array, wanted: Array) -> Agreement:
    """How far outputs are from the reference; arrays of one shape, samples along axis 0."""
    truth = wanted.astype(np.float64)
    difference = np.abs(found.astype(np.float64) - truth)
    size, error = float(np.linalg.norm(truth)), float(np.linalg.norm(difference))
    return Agreement(
        worst=float(difference.max(initial=0.0)),
        mean=float(difference.mean()),
        cosine=float(cosine_each(found, truth).mean()),
        relative=error / size if size else float(error > 0),
    )


class Kept:
    """Answers that came under load, to be compared with those that came one by one."""

    def __init__(self, messages: Messages, expected: Mapping[str, Array], room: int) -> None:
        self._messages = messages
        self._expected = expected
        self._room = room
        self._kept: list[tuple[Sequence[int], Reply]] = []
        self._slack = {name: _slack(array) for name, array in expected.items()}

    def keep(self, indices: Sequence[int], reply: Reply) -> None:
        """Keep an answer, while there is room. Any thread may call it."""
        if self._room > 0:
            self._room -= len(reply.body)
            self._kept.append((indices, reply))

    def take_wrong(self) -> dict[str, int]:
        """What was wrong in the answers kept since this was last asked; room is made anew."""
        kept, self._kept = self._kept, []
        self._room += sum(len(reply.body) for _, reply in kept)
        wrong: dict[str, int] = {}
        for indices, reply in kept:
            fault = self._fault(indices, reply)
            if fault is not None:
                wrong[fault] = wrong.get(fault, 0) + 1
        return wrong

    def _fault(self, indices: Sequence[int], reply: Reply) -> str | None:
        try:
            outputs = self._messages.outputs(reply)
        except RequestFailed as error:
            return refusal(error)
        rows = list(indices)
        for name, expected in self._expected.items():
            found, wanted = outputs.get(name), expected[rows]
            if found is None or found.shape != wanted.shape:
                return f"output '{name}' is missing or has another shape under load"
            if not _close(found, wanted, self._slack[name]):
                return f"output '{name}' differs under load from what came one by one"
        return None


def _close(found: Array, wanted: Array, slack: float | None) -> bool:
    if slack is None:
        return bool(np.array_equal(found, wanted))
    return bool(np.allclose(found, wanted, rtol=1e-3, atol=slack, equal_nan=True))


def _slack(expected: Array) -> float | None:
    """By how much an output may differ; None: not at all."""
    if expected.dtype.kind != "f" or not expected.size:
        return None
    finite = expected[np.isfinite(expected)]
    return TOLERANCE * float(finite.max() - finite.min()) if finite.size else None


def _ask_patiently(connection: Connection, message: bytes) -> Reply | str:
    """An answer, or what went wrong; a server that is busy is asked again."""
    error = ""
    for _ in range(TRIES):
        try:
            reply = connection.exchange(message)
        except ConnectionFailed as failure:
            return str(failure)
        if reply.status == 200:
            return reply
        error = error_text(reply)
        if reply.status != 503:
            break
        wait = reply.headers.get("retry-after", "")
        time.sleep(min(float(wait) if wait.isdigit() else 0.2, LONGEST_WAIT_S))
    return error


def _joined(
    messages: Messages, parts: Sequence[Sequence[int]], replies: Sequence[Reply]
) -> dict[str, Array]:
    found: dict[str, list[Array]] = {}
    for part, reply in zip(parts, replies, strict=True):
        try:
            outputs = messages.outputs(reply)
        except RequestFailed as error:
            raise Tf2aifError(refusal(error)) from error
        for name, array in outputs.items():
            if not array.ndim or len(array) != len(part):
                shape = list(array.shape)
                raise Tf2aifError(f"output '{name}' of {len(part)} samples has shape {shape}")
            found.setdefault(name, []).append(array)
    try:
        return {name: np.concatenate(arrays) for name, arrays in found.items()}
    except ValueError as error:
        raise Tf2aifError(f"the answers do not go together: {error}") from error


def _agreement(
    outputs: Mapping[str, Array], reference: Mapping[str, Array]
) -> dict[str, Agreement]:
    if outputs.keys() != reference.keys():
        have, wanted = ", ".join(sorted(outputs)), ", ".join(sorted(reference))
        raise Tf2aifError(f"the server's outputs are {have}; the source model's are {wanted}")
    for name, array in outputs.items():
        if array.shape != reference[name].shape:
            shapes = f"{list(array.shape)}, the source model's {list(reference[name].shape)}"
            raise Tf2aifError(f"output '{name}' has shape {shapes}")
    return {name: compare(outputs[name], reference[name]) for name in reference}


def _scored(outputs: Mapping[str, Array], wanted: str | None) -> str:
    names = ", ".join(outputs)
    if wanted is None and len(outputs) > 1:
        raise Tf2aifError(f"one of the {len(outputs)} outputs is scored; which of {names}?")
    name = wanted or next(iter(outputs))
    if name not in outputs:
        raise Tf2aifError(f"there is no output '{name}'", hint=f"there are: {names}")
    return name
