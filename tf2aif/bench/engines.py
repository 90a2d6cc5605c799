"""An engine alone, in a process of its own: two engines in one disturb each other.

The parent sends one JSON line for each thing to do and reads one for its answer. What the engine's
library prints goes to a log, not between the lines.

    python -m tf2aif.bench.engines FOLDER SAMPLES ENGINE OPTIONS THREADS
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..client.load import Load, Pace, Window
from ..client.measure import LocalSubject
from ..client.samples import read_samples
from ..engines import Engine, engine_module
from ..engines.batches import FREE_BATCH, batch_size, encode
from ..engines.versions import engine_version
from ..errors import Tf2aifError
from .baseline import Built

Array = NDArray[Any]

END_S = 10.0  # for a child to end by itself
TAIL_LINES = 5


class _WarmUp(Struct, tag=True):
    load: Load


class _RunWindow(Struct, tag=True):
    load: Load
    pace: Pace
    number: int


class _Ready(Struct, tag=True):
    version: str | None


class _Warm(Struct, tag=True):
    pace: Pace


class _Measured(Struct, tag=True):
    latencies: bytes  # int64, nanoseconds
    samples: int
    duration_s: float
    failures: dict[str, int]


class _Failed(Struct, tag=True):
    message: str
    at: str
    hint: str


_Task = _WarmUp | _RunWindow
_Answer = _Ready | _Warm | _Measured | _Failed
_read_task = msgspec.json.Decoder(_Task).decode
_read_answer = msgspec.json.Decoder(_Answer).decode


class EngineSubject:
    """A variant's engine without any server, as something that is measured."""

    def __init__(self, variant: Built, samples: Path, threads: int | None, log: Path) -> None:
        self.name = f"{variant.id} engine"
        self.version: str | None = None
        """Of the engine's library, when it is loaded; None where that does not tell."""
        self._log = log
        engine = variant.record.engine
        options = {**engine["options"], **({} if threads is None else {"threads": threads})}
        command = [sys.executable, "-m", __name__, str(variant.artifact), str(samples)]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, engine["name"], msgspec.json.encode(options).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def wait_ready(self) -> None:
        """Return when the engine is loaded. Raises Tf2aifError where it cannot be."""
        answer = self._receive()
        assert isinstance(answer, _Ready), answer  # noqa: S101 - the child is this module, too
        self.version = answer.version

    def warm_up(self, load: Load) -> Pace:
        """Run for `load.warmup_s`."""
        answer = self._ask(_WarmUp(alone(load)))
        assert isinstance(answer, _Warm), answer  # noqa: S101
        return answer.pace

    def run(self, load: Load, pace: Pace, number: int) -> Window:
        """Run one window."""
        answer = self._ask(_RunWindow(alone(load), pace, number))
        assert isinstance(answer, _Measured), answer  # noqa: S101
        return Window(
            latencies_ns=np.frombuffer(answer.latencies, np.int64),
            samples=answer.samples,
            duration_s=answer.duration_s,
            failures=answer.failures,
        )

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """End the process when it has done what it does."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _ask(self, task: _Task) -> _Answer:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                pipe.write(msgspec.json.encode(task) + b"\n")
                pipe.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._receive()

    def _receive(self) -> _Answer:
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise self._died()
        answer: _Answer = _read_answer(line)
        if isinstance(answer, _Failed):
            raise Tf2aifError(f"{self.name}: {answer.message}", at=answer.at, hint=answer.hint)
        return answer

    def _died(self) -> Tf2aifError:
        code = self._process.wait()
        return Tf2aifError(f"{self.name} ended with exit code {code}{tail(self._log)}")


def alone(load: Load) -> Load:
    """The load as an engine alone can take it: one run at a time."""
    return msgspec.structs.replace(load, connections=1)


def tail(log: Path) -> str:
    """The last lines of a log, to put behind a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines)


# The child's side.


class _EngineAsker:
    """Runs the engine on samples that are already as it takes them."""

    def __init__(self, engine: Engine, samples: dict[str, Array]) -> None:
        self._engine = engine
        size = batch_size(engine, samples)
        self._batched = size is not None
        fixed = {spec.shape[0] for spec in engine.inputs if self._batched} - {None}
        self._size = size if fixed else None
        self.rows = 1 if size is None else self._size
        self._stored = _as_stored(engine, samples, self._batched)
        self.count = len(next(iter(samples.values())))

    def ask(self, indices: Sequence[int]) -> str | None:
        """One run. What an engine raises ends the measurement."""
        if not self._batched:
            self._engine.run({name: array[indices[0]] for name, array in self._stored.items()})
            return None
        if self._size is not None and len(indices) < self._size:
            indices = [*indices, *[indices[-1]] * (self._size - len(indices))]
        if len(indices) == 1:  # a view: nothing is copied while the time runs
            first, last = indices[0], indices[0] + 1
            self._engine.run({name: array[first:last] for name, array in self._stored.items()})
        else:
            rows = list(indices)
            self._engine.run({name: array[rows] for name, array in self._stored.items()})
        return None

    def close(self) -> None:
        """Nothing: whoever loaded the engine closes it."""


def _as_stored(engine: Engine, samples: dict[str, Array], batched: bool) -> dict[str, Array]:
    """All samples quantised, where the engine wants them so, in pieces that fit its batch."""
    count = len(next(iter(samples.values())))
    if not batched:
        return encode(engine, samples, batched=False)
    pieces = [
        encode(engine, {n: np.asarray(a[i : i + FREE_BATCH]) for n, a in samples.items()})
        for i in range(0, count, FREE_BATCH)
    ]
    return {
        spec.name: np.concatenate([piece[spec.name] for piece in pieces])[:count]
        for spec in engine.inputs
    }


def _serve(arguments: Sequence[str], requests: IO[bytes], answers: IO[bytes]) -> None:
    for answer in _answers(arguments, requests):
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def _answers(arguments: Sequence[str], requests: IO[bytes]) -> Iterator[_Answer]:
    artifact, samples_at, name, options = arguments
    try:
        engine = engine_module(name).load(Path(artifact), **msgspec.json.decode(options))
        asker = _EngineAsker(engine, dict(read_samples(Path(samples_at)).inputs))
        subject = LocalSubject(name, lambda: asker, asker.count, asker.rows)
        yield _Ready(engine_version(name))
        for line in requests:
            yield _do(subject, _read_task(line))
    except Tf2aifError as error:
        fault = error.faults[0]
        yield _Failed(fault.message, fault.at, fault.hint)


def _do(subject: LocalSubject, task: _Task) -> _Answer:
    if isinstance(task, _WarmUp):
        return _Warm(subject.warm_up(task.load))
    window = subject.run(task.load, task.pace, task.number)
    return _Measured(
        window.latencies_ns.astype(np.int64).tobytes(),
        window.samples,
        window.duration_s,
        window.failures,
    )


def main() -> None:
    """The child: answers on what was its standard output, where nothing else then writes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.argv[1:], sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
