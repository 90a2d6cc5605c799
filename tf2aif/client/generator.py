"""The four scenarios on a generator of our own, for machines that LoadGen has no wheel for.

It measures what LoadGen measures: a test holds the two against each other.

Source: MLPerf Inference Rules, "Scenarios"; the LoadGen of MLCommons.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from .crew import Crew
from .load import Load, Nanoseconds, Pace, Window, generator_of, target_qps

Ask = Callable[[Sequence[int]], None]
T = TypeVar("T")


def run(crew: Crew, load: Load, pace: Pace, number: int) -> Window:
    """Run one window of the load's scenario."""
    crew.take_failures()
    if load.scenario == "server":
        latencies, duration_s = _server(crew, load, target_qps(load, pace), number)
        samples = len(latencies)
    elif load.scenario == "offline":
        samples = offline_samples(load, pace)
        latencies, duration_s = _offline(crew, samples, load, number)
    else:
        per_query = load.samples_per_query if load.scenario == "multi-stream" else 1
        latencies, duration_s = _streams(crew, load, per_query, number)
        samples = len(latencies) * per_query
    return Window(
        latencies_ns=latencies,
        samples=samples,
        duration_s=duration_s,
        failures=crew.take_failures(),
    )


def offline_samples(load: Load, pace: Pace) -> int:
    """How many samples fill a window, as fast as the warm-up was; LoadGen adds a tenth, too."""
    return max(load.min_queries, int(1.1 * pace.throughput * load.window_s))


def arrivals(
    qps: float, window_s: float, least: int, generator: np.random.Generator
) -> list[float]:
    """When queries are due, seconds from the start: a Poisson process, at least `least` of them."""
    expected = int(qps * window_s)
    count = max(least, expected + 6 * int(expected**0.5) + 6)
    due = np.cumsum(generator.exponential(1 / qps, count))
    kept: list[float] = due[: max(least, int(np.searchsorted(due, window_s)))].tolist()
    return kept


def _streams(crew: Crew, load: Load, per_query: int, number: int) -> tuple[Nanoseconds, float]:
    """One query after the other, each when the one before is answered."""
    generator = generator_of(load.seed, number)
    latencies: list[int] = []
    start = time.perf_counter_ns()
    end = start + int(load.window_s * 1e9)
    done = start
    while done < end or len(latencies) < load.min_queries:
        block = generator.integers(0, crew.samples, (256, per_query)).tolist()
        for indices in block:
            asked = time.perf_counter_ns()
            _ask_query(crew, indices)
            done = time.perf_counter_ns()
            latencies.append(done - asked)
            if done >= end and len(latencies) >= load.min_queries:
                break
    return np.asarray(latencies, np.int64), (done - start) / 1e9


def _ask_query(crew: Crew, indices: Sequence[int]) -> None:
    """All of a query's requests; where there are several they are under way at once."""
    if len(indices) <= crew.rows:
        crew.ask(indices)
        return
    parts = cut(indices, crew.rows)
    left = threading.Semaphore(0)
    for part in parts:
        crew.put(part, left.release)
    for _ in parts:
        left.acquire()


def _server(crew: Crew, load: Load, qps: float, number: int) -> tuple[Nanoseconds, float]:
    """Queries of one sample at times that do not depend on answers.

    Latency counts from when a query was due: time that it waits for a free thread is in it.
    """
    generator = generator_of(load.seed, number)
    due = arrivals(qps, load.window_s, load.min_queries, generator)
    drawn = generator.integers(0, crew.samples, len(due)).tolist()
    finished = [0.0] * len(due)
    left = threading.Semaphore(0)
    start = time.perf_counter()

    def finish(turn: int) -> None:
        finished[turn] = time.perf_counter() - start
        left.release()

    for turn, due_s in enumerate(due):
        wait_s = start + due_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        crew.put([drawn[turn]], partial(finish, turn))
    for _ in due:
        left.acquire()
    latencies = (np.asarray(finished) - np.asarray(due)) * 1e9
    return latencies.astype(np.int64), max(finished) - due[0]


def _offline(crew: Crew, samples: int, load: Load, number: int) -> tuple[Nanoseconds, float]:
    """All samples in one query, which ends with its last answer."""
    generator = generator_of(load.seed, number)
    rounds = -(-samples // crew.samples)
    order = np.concatenate([generator.permutation(crew.samples) for _ in range(rounds)])
    parts = cut(order[:samples].tolist(), crew.rows)
    turns = itertools.count()

    def work(ask: Ask) -> None:
        while (turn := next(turns)) < len(parts):
            ask(parts[turn])

    start = time.perf_counter_ns()
    crew.each(work)
    taken_ns = time.perf_counter_ns() - start
    return np.asarray([taken_ns], np.int64), taken_ns / 1e9


def cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Pieces of at most `size`, in order."""
    return [items[start : start + size] for start in range(0, len(items), size)]
