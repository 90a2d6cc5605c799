"""The one thread that runs the engine, and the queue before it.

Requests that wait are put together along axis 0 into one run, up to `max_rows()`. A run that fails
is done again request by request, so that only the one at fault fails.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
from msgspec import Struct

from ..engines import Array

Run = Callable[[Mapping[str, Array], int], dict[str, Array]]


class Outcome(Struct, frozen=True):
    """How one request's inference ended: its outputs, or what was raised."""

    outputs: dict[str, Array] | None
    error: BaseException | None
    queue_s: float  # from `put` to the start of its run


class Entry(Struct, eq=False):
    """A request that waits; two are never equal."""

    feeds: dict[str, Array]
    rows: int
    deliver: Callable[[Outcome], None]
    queued_at: float

    def fits(self, other: Entry) -> bool:
        """Whether both can be in one run: equal but for the number of rows."""
        return all(
            array.shape[1:] == other.feeds[name].shape[1:]
            and array.dtype == other.feeds[name].dtype
            for name, array in self.feeds.items()
        )


class Batcher:
    """Runs what is put into its queue, in order, on a thread of its own.

    `run` is called from one thread at a time. So are `deliver` and `on_run` (rows and seconds of
    each run), which must return at once.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_rows: Callable[[], int] = lambda: 1,
        max_delay_s: float = 0.0,
        on_run: Callable[[int, float], None] | None = None,
    ) -> None:
        self._run = run
        self._on_run = on_run
        self._max_rows = max_rows
        self._max_delay_s = max_delay_s
        self._waiting: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._engine = threading.Lock()
        self._closed = False
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="tf2aif-engine", daemon=True)
        self._thread.start()

    def put(self, feeds: dict[str, Array], rows: int, deliver: Callable[[Outcome], None]) -> Entry:
        """Queue a request; its outcome goes to `deliver`."""
        entry = Entry(feeds, rows, deliver, time.perf_counter())
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(entry)
            self._changed.notify()
        return entry

    def run_now(self, feeds: dict[str, Array], rows: int) -> Outcome | None:
        """Run on the caller's own thread; None where the engine is busy or a request waits.

        For runs shorter than it takes to wake another thread twice.
        """
        if self._waiting or not self._engine.acquire(blocking=False):
            return None
        try:
            outcomes: list[Outcome] = []
            self._run_batch([Entry(feeds, rows, outcomes.append, time.perf_counter())])
            return outcomes[0]
        finally:
            self._engine.release()

    def drop(self, entry: Entry) -> None:
        """Forget a request that nobody waits for any more; too late where its run has begun."""
        with self._changed, suppress(ValueError):
            self._waiting.remove(entry)

    def running_s(self) -> float:
        """How long the run that is under way has taken; 0 where there is none."""
        since = self._running_since
        return 0.0 if since is None else time.perf_counter() - since

    def close(self, timeout_s: float) -> bool:
        """Run what waits, then end the thread; False where that took longer than `timeout_s`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                return
            with self._engine:
                self._running_since = time.perf_counter()
                self._run_batch(batch)
                self._running_since = None

    def _take(self) -> list[Entry]:
        """The next run's requests; none: the queue is closed and empty."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            batch = [self._waiting.popleft()]
            rows = batch[0].rows
            until = time.perf_counter() + self._max_delay_s
            most = self._max_rows()
            while rows < most and self._wait_for_more(until):
                following = self._waiting[0]
                if rows + following.rows > most or not following.fits(batch[0]):
                    break
                rows += following.rows
                batch.append(self._waiting.popleft())
            return batch

    def _wait_for_more(self, until: float) -> bool:
        """Whether another request is there, or comes before that time."""
        while not self._waiting:
            left_s = until - time.perf_counter()
            if self._closed or left_s <= 0:
                return False
            self._changed.wait(left_s)
        return True

    def _run_batch(self, batch: list[Entry]) -> None:
        rows = sum(entry.rows for entry in batch)
        start = time.perf_counter()
        try:
            outputs = self._run(_joined(batch), rows)
        except (Exception, SystemExit) as error:  # an engine may raise anything: one request fails
            self._run_failed(batch, error, start)
            return
        if self._on_run is not None:
            self._on_run(rows, time.perf_counter() - start)
        first = 0
        for entry in batch:
            own = outputs
            if len(batch) > 1:
                own = {name: array[first : first + entry.rows] for name, array in outputs.items()}
            first += entry.rows
            entry.deliver(Outcome(own, None, start - entry.queued_at))

    def _run_failed(self, batch: list[Entry], error: BaseException, start: float) -> None:
        """Tell the one request at fault, after finding it among several."""
        if len(batch) == 1:
            batch[0].deliver(Outcome(None, error, start - batch[0].queued_at))
            return
        for entry in batch:
            self._run_batch([entry])


def _joined(batch: list[Entry]) -> dict[str, Array]:
    if len(batch) == 1:
        return batch[0].feeds
    return {name: np.concatenate([entry.feeds[name] for entry in batch]) for name in batch[0].feeds}
