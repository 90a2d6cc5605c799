"""The server's core: it knows messages, hooks and the model, and no protocol that carries them.

A request passes: admission (ready? room?), decoding and checking, the queue, the engine, and
encoding, all before its deadline. Whatever goes wrong is a RequestFailed of one request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..engines import Array
from ..errors import Tf2aifError
from .batcher import Batcher, Outcome
from .codec import Request, Response, decode_request, encode_response
from .config import Config
from .energy import Source
from .failures import Kind, RequestFailed, invalid
from .hook_threads import HookThreads
from .hooks import HookFailed, Hooks
from .metrics import Metrics, timed
from .model import Model

LOG = logging.getLogger("tf2aif.serve")
OFF_LOOP_BYTES = 256 * 2**10  # decoding more than this would hold up the event loop
HERE_S = 0.001  # a run that is shorter is done on the event loop: waking a thread costs as much
TURN_S = 0.002  # how long requests may be held up by being run together, batch axis fixed
ENERGY_EVERY_S = 10.0  # RAPL's counter wraps around after some minutes

T = TypeVar("T")


class DataPlane:
    """One model, from messages to answers. Made and used on one event loop."""

    def __init__(
        self,
        model: Model,
        hooks: Hooks,
        config: Config,
        metrics: Metrics,
        sources: list[Source] | None = None,
    ) -> None:
        self.model = model
        self.metrics = metrics
        self._hooks = hooks
        self._config = config
        self._sources = sources or []
        self._threads = HookThreads(config.hook_threads)
        self._batcher = Batcher(
            model.run,
            max_rows=self._rows_at_once,
            max_delay_s=config.batching.max_delay_ms / 1e3,
            on_run=self._record_run,
        )
        self._row_s = 0.0  # of a row in the latest run
        self._in_flight = 0
        self._accepted = 0
        self._loaded = False
        self._draining = False
        self._energy: asyncio.Task[None] | None = None
        metrics.watch_in_flight(lambda: self._in_flight)

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warm, and the server is not stopping."""
        return self._loaded and not self._draining

    @property
    def draining(self) -> bool:
        """Whether the server is stopping; what still comes is served."""
        return self._draining

    @property
    def live(self) -> bool:
        """Whether the engine and the hooks get on: False where one hangs."""
        longest_s = max(self._batcher.running_s(), self._threads.running_s())
        return longest_s < self._config.limits.stall_s

    @property
    def _answered(self) -> int:
        return self._accepted - self._in_flight

    async def start(self) -> None:
        """Load the model and run it with zeros until it is warm. Raises Tf2aifError."""
        start = time.perf_counter()
        await self._threads.call(self.model.load, self._config.threads)
        self.metrics.load_s.set(time.perf_counter() - start)
        start = time.perf_counter()
        await self._threads.call(self._warm_up)
        self.metrics.warmup_s.set(time.perf_counter() - start)
        self._loaded = True
        self.metrics.ready.set(1)
        if self._sources:
            self._energy = asyncio.create_task(self._watch_energy())

    def _warm_up(self) -> None:
        rows_wanted = {1, self._config.batching.max_size} if self.model.batched else {1}
        for _ in range(self._config.warmup_runs):
            for rows in sorted(rows_wanted):
                outcome = self._batcher.run_now(self.model.zeros(rows), rows)
                if outcome is not None and outcome.error is not None:
                    raise Tf2aifError(
                        f"the model loads, and cannot be run: {outcome.error}",
                        at=str(self.model.artifact),
                    ) from outcome.error

    def drain(self) -> None:
        """Be not ready from now on, and serve what still comes."""
        self._draining = True
        self.metrics.ready.set(0)

    def stop(self) -> None:
        """End the engine's thread and give its memory back; a run that hangs is left alone."""
        if self._energy is not None:
            self._energy.cancel()
        if self._batcher.close(timeout_s=1.0):
            self.model.close()
        LOG.info("served %d requests, of them answered: %d", self._accepted, self._answered)

    async def infer(self, body: bytes, json_length: int | None = None) -> tuple[bytes, int | None]:
        """Answer one inference message of the protocol; see `codec` for both. RequestFailed."""
        with self._admitted("infer"):
            async with Deadline(self._config.limits.deadline_s) as deadline:
                with timed(self.metrics.preprocess_s):
                    decoded = await self._near(len(body), self._decode, body, json_length)
                    request, feeds, rows = decoded
                if request.timeout_s is not None:
                    _bring_forward(deadline, request.timeout_s)
                outputs = await self._infer(feeds, rows)
                with timed(self.metrics.postprocess_s):
                    return await self._near(_size_of(outputs), self._encode, request, outputs)

    async def predict(self, body: bytes, content_type: str) -> tuple[bytes, str]:
        """Answer a raw payload through the hooks, with bytes and their type. RequestFailed."""
        with self._admitted("predict"):
            async with Deadline(self._config.limits.deadline_s):
                with timed(self.metrics.preprocess_s):
                    feeds, rows = await self._threads.call(self._prepare, body, content_type)
                outputs = await self._infer(feeds, rows)
                with timed(self.metrics.postprocess_s):
                    answer: tuple[bytes, str] = await self._threads.call(self._answer, outputs)
                    return answer

    def render_metrics(self) -> bytes:
        """The metrics, the energy used up to now among them."""
        self._read_energy()
        return self.metrics.render()

    @contextmanager
    def _admitted(self, door: str) -> Iterator[None]:
        """Let one request in, or refuse it; count how it ends and how long it took."""
        start = time.perf_counter()
        outcome = "ok"
        try:
            self._refuse()
            self._in_flight += 1
            self._accepted += 1
            try:
                yield
            finally:
                self._in_flight -= 1
        except RequestFailed as failure:
            outcome = failure.kind.value
            raise
        finally:
            self.metrics.count(door, outcome)
            self.metrics.request_s.observe(time.perf_counter() - start)

    def _refuse(self) -> None:
        if not self._loaded:
            raise RequestFailed(Kind.NOT_READY, "the model is not ready yet", retry_after_s=1)
        if self._in_flight >= self._config.limits.queue:
            wait_s = max(1, math.ceil(self._in_flight * self._row_s))
            raise RequestFailed(
                Kind.BUSY, f"{self._in_flight} requests wait already", retry_after_s=wait_s
            )

    async def _near(self, size_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
        """Call it here where that is quick, on a thread where it would hold up the loop."""
        if size_bytes <= OFF_LOOP_BYTES:
            return function(*arguments)
        result: T = await self._threads.call(function, *arguments)
        return result

    def _decode(
        self, body: bytes, json_length: int | None
    ) -> tuple[Request, dict[str, Array], int]:
        request = decode_request(body, json_length)
        known = {spec.name for spec in self.model.outputs}
        for wanted in request.outputs:
            if wanted.name not in known:
                raise invalid(f"there is no output '{wanted.name}'; there are: {sorted(known)}")
        return request, *self.model.check(request.inputs)

    def _encode(self, request: Request, outputs: dict[str, Array]) -> tuple[bytes, int | None]:
        response = Response(
            model_name=self.model.name,
            model_version=self.model.version,
            id=request.id,
            outputs=outputs,
        )
        try:
            return encode_response(response, request.outputs, binary=request.binary)
        except RequestFailed as failure:  # what was asked for is right: our answer is at fault
            raise RequestFailed(Kind.FAILED, f"the answer: {failure.message}") from failure

    def _prepare(self, body: bytes, content_type: str) -> tuple[dict[str, Array], int]:
        names = tuple(spec.name for spec in self.model.inputs)
        try:
            inputs = self._hooks.inputs_of(body, content_type, names)
        except HookFailed as error:
            raise _hook_failure(error) from error
        return self.model.check(self.model.adapt(inputs))

    def _answer(self, outputs: dict[str, Array]) -> tuple[bytes, str]:
        try:
            return self._hooks.answer_of(outputs)
        except HookFailed as error:
            raise _hook_failure(error) from error

    async def _infer(self, feeds: dict[str, Array], rows: int) -> dict[str, Array]:
        outcome = self._batcher.run_now(feeds, rows) if self._is_short(rows) else None
        if outcome is None:
            outcome = await self._queue(feeds, rows)
        self.metrics.queue_s.observe(outcome.queue_s)
        if outcome.outputs is None:
            LOG.error("the engine failed", exc_info=outcome.error)
            raise RequestFailed(Kind.FAILED, f"the engine failed: {outcome.error}")
        return outcome.outputs

    async def _queue(self, feeds: dict[str, Array], rows: int) -> Outcome:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def deliver(outcome: Outcome) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(_settle, future, outcome)

        entry = self._batcher.put(feeds, rows, deliver)
        try:
            return await future
        except asyncio.CancelledError:
            self._batcher.drop(entry)
            raise

    def _is_short(self, rows: int) -> bool:
        """Whether a run is known to be short, and nobody asked to wait for others."""
        return 0 < self._row_s * rows < HERE_S and not self._config.batching.max_delay_ms

    def _rows_at_once(self) -> int:
        """Rows given to the engine at once.

        With a fixed batch they are several runs all the same, but the event loop and the engine's
        thread change places less often: twice the throughput where a run is shorter than that
        change. Where runs are longer, each is answered as soon as it is done.
        """
        most = self._config.batching.max_size
        batch = self.model.batch
        if batch is None:
            return most
        return max(1, batch, min(most, int(TURN_S / self._row_s) if self._row_s else 1))

    def _record_run(self, rows: int, taken_s: float) -> None:
        self._row_s = taken_s / rows
        self.metrics.inference_s.observe(taken_s)
        self.metrics.batch_rows.observe(rows)

    def _read_energy(self) -> None:
        for source in self._sources:
            self.metrics.add_energy(source.name, source.joules())

    async def _watch_energy(self) -> None:
        while True:
            self._read_energy()
            await asyncio.sleep(ENERGY_EVERY_S)


class Deadline:
    """`asyncio.timeout` whose end is a RequestFailed that says how long was waited."""

    def __init__(self, seconds: float) -> None:
        self._start = time.perf_counter()
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> asyncio.Timeout:
        return await self._timeout.__aenter__()

    async def __aexit__(self, *exception: Any) -> None:
        try:
            await self._timeout.__aexit__(*exception)
        except TimeoutError:
            waited_s = time.perf_counter() - self._start
            raise RequestFailed(Kind.DEADLINE, f"no answer within {waited_s:.3f} s") from None


def _bring_forward(deadline: asyncio.Timeout, seconds: float) -> None:
    """Let the deadline end in that many seconds, unless it does sooner."""
    asked = asyncio.get_running_loop().time() + seconds
    end = deadline.when()
    deadline.reschedule(asked if end is None else min(end, asked))


def _settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


def _size_of(outputs: dict[str, Array]) -> int:
    return sum(array.nbytes for array in outputs.values())


def _hook_failure(error: HookFailed) -> RequestFailed:
    if error.of_sender:
        return invalid(str(error))
    LOG.error("%s", error, exc_info=error.__cause__)
    return RequestFailed(Kind.FAILED, str(error))
