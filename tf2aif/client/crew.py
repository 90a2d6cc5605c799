"""Threads that ask, each with a connection of its own, and what went wrong on them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np

from .load import Asker, Connect, Load, Pace, generator_of


class Crew:
    """`size` threads. Asking on the caller's own thread, as a single stream does, starts none."""

    def __init__(self, connect: Connect, samples: int, size: int, rows: int) -> None:
        self.samples = samples
        self.rows = rows
        self.size = size
        self._connect = connect
        self._askers: list[Asker] = []
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[tuple[Sequence[int], Callable[[], None]] | None] = SimpleQueue()
        self._failures: Counter[str] = Counter()
        self._raised: BaseException | None = None
        self._lock = threading.Lock()

    def ask(self, indices: Sequence[int]) -> None:
        """Ask in one request, on the caller's thread."""
        self._ask(self._asker(0), indices)

    def put(self, indices: Sequence[int], done: Callable[[], None]) -> None:
        """Ask in one request, on the next thread that is free; it calls `done` afterwards."""
        if not self._threads:
            self._start_threads()
        self._queue.put((indices, done))

    def each(self, work: Callable[[Callable[[Sequence[int]], None]], None]) -> None:
        """Run `work` on every thread at once, with its own function to ask, and wait for all."""
        raised: list[BaseException] = []

        def run(asker: Asker) -> None:
            try:
                work(lambda indices: self._ask(asker, indices))
            except BaseException as error:  # raised again on the caller's thread
                raised.append(error)

        askers = [self._asker(index) for index in range(self.size)]
        threads = [threading.Thread(target=run, args=(asker,), daemon=True) for asker in askers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]

    def take_failures(self) -> dict[str, int]:
        """What went wrong since this was last asked, and how often.

        Raises what an asker raised, on whichever thread that was.
        """
        with self._lock:
            found, self._failures = dict(self._failures), Counter()
            raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        return found

    def close(self) -> None:
        """End the threads and close the connections."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for asker in self._askers:
            asker.close()
        self._askers.clear()

    def _ask(self, asker: Asker, indices: Sequence[int]) -> None:
        error = asker.ask(indices)
        if error is not None:
            with self._lock:
                self._failures[error] += 1

    def _asker(self, index: int) -> Asker:
        while len(self._askers) <= index:
            self._askers.append(self._connect())
        return self._askers[index]

    def _start_threads(self) -> None:
        askers = [self._asker(index) for index in range(self.size)]
        self._threads = [
            threading.Thread(target=self._work, args=(asker,), daemon=True) for asker in askers
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, asker: Asker) -> None:
        while (task := self._queue.get()) is not None:
            indices, done = task
            try:
                self._ask(asker, indices)
            except BaseException as error:  # raised again by `take_failures`
                self._raised = error
            done()


def warm_up(crew: Crew, load: Load) -> Pace:
    """Ask on every thread until the time is over, and see how fast that goes."""
    times: list[float] = []
    start = time.perf_counter()
    end = start + load.warmup_s

    def work(ask: Callable[[Sequence[int]], None]) -> None:
        drawn = generator_of(load.seed, 0).integers(0, crew.samples, (64, crew.rows)).tolist()
        turn = 0
        while turn == 0 or time.perf_counter() < end:
            asked = time.perf_counter()
            ask(drawn[turn % len(drawn)])
            times.append(time.perf_counter() - asked)
            turn += 1

    if crew.size == 1:
        work(crew.ask)
    else:
        crew.each(work)
    taken = time.perf_counter() - start
    return Pace(request_s=float(np.median(times)), throughput=len(times) * crew.rows / taken)
