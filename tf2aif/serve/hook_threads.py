"""Threads that run hooks beside the event loop.

They are daemon threads: a hook that never returns cannot keep the process from ending. A hook's
thread is taken again only when the hook has returned, so hooks that hang use up no more than
the threads there are.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any


class HookThreads:
    """A fixed number of threads, to be used from one event loop."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._started: dict[int, float] = {}
        for number in range(count):
            name = f"tf2aif-hook-{number}"
            threading.Thread(target=self._work, args=(number,), name=name, daemon=True).start()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns or raises, from one of the threads.

        A caller that is cancelled while it waits for a thread leaves nothing behind; one that is
        cancelled later leaves the function to run to its end.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def job() -> None:
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as raised:  # it is the caller's, not this thread's
                error = raised
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(self._finish, future, result, error)

        self._jobs.put(job)
        return await future

    def running_s(self) -> float:
        """How long the oldest call that is under way has taken; 0 where there is none."""
        starts = list(self._started.values())
        return time.perf_counter() - min(starts) if starts else 0.0

    def _work(self, number: int) -> None:
        while True:
            job = self._jobs.get()
            self._started[number] = time.perf_counter()
            job()
            del self._started[number]

    def _finish(
        self, future: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        self._free.release()
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
