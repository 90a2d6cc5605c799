"""Threads that a build may leave behind: a remote that never answers must not hold up its end.

`concurrent.futures` waits for its threads when the interpreter ends, however long they take.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any, TypeVar

T = TypeVar("T")
_LOOK_S = 0.25


class Job(Future[T]):
    """What a call will give, and since when it is being made."""

    started: float | None = None

    def within(self, allowed_s: float, wanted: Callable[[], bool]) -> T:
        """Its result, if it comes within so many seconds of its start.

        Raises what the call raises, and `TookTooLong`: at once where the result is not `wanted` any
        more and the call has not begun.
        """
        while not self.done():
            wait_for([self], _LOOK_S)
            if self.done():
                break
            if self.started is None:
                if not wanted() and self.cancel():
                    raise TookTooLong
            elif time.monotonic() - self.started > allowed_s:
                raise TookTooLong
        return self.result()


class TookTooLong(Exception):
    """A call was given up."""


class Crew:
    """A few daemon threads, started when there is work."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[tuple[Job[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._open: set[Job[Any]] = set()

    def submit(self, call: Callable[[], T]) -> Job[T]:
        """Have it called in a thread."""
        future: Job[T] = Job()
        with self._lock:
            self._open.add(future)
            if len(self._threads) < min(self._size, len(self._open)):
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        future.add_done_callback(self._closed)
        self._work.put((future, call))
        return future

    def join(self, timeout_s: float) -> bool:
        """Wait until all that was submitted is done; False where time was up, and drop the rest."""
        until = time.monotonic() + timeout_s
        while True:
            with self._lock:
                pending = set(self._open)
            if not pending:
                return True
            left = until - time.monotonic()
            if left <= 0:
                for future in pending:
                    future.cancel()
                return False
            wait_for(pending, left)

    def close(self) -> None:
        """End the threads that have nothing to do, the others when they are done."""
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            future.started = time.monotonic()
            try:
                future.set_result(call())
            # A boundary: what a call raises is its caller's, who takes it out of the future.
            except BaseException as error:
                future.set_exception(error)

    def _closed(self, future: Future[Any]) -> None:
        with self._lock:
            self._open.difference_update((future,))
