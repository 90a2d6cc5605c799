"""A build's side of a farm: which machines there are, and one errand from start to end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..errors import StepFailed, Tf2aifError
from .address import Address, need_distributed, security
from .offer import Offer
from .pickles import AnswerUnpickler, restrict
from .scheduler import SETTINGS
from .word import TOPIC, News, Word
from .worker import METADATA

POLL_S = 1.0
GRACE_S = 60.0
"""So much longer than a step may take, its inputs and outputs may be on their way."""
PATIENCE_S = 60.0
"""How long a scheduler may be away in the middle of a build."""
MACHINES = 3
"""On so many machines a step is tried that are in trouble themselves."""
DEATHS = 2
"""A step under which so many machines died is tried no more."""


_LOST = (OSError, AttributeError, RuntimeError, UnboundLocalError)
"""What dask raises in a thread that asks while another closes the connection that was lost."""


class Gone(Exception):
    """The scheduler has left us: the connection to it, and why."""

    def __init__(self, client: Any, why: object) -> None:
        super().__init__(str(why))
        self.client = client


class Farm:
    """A connection to a scheduler. Its methods may be called from several threads."""

    def __init__(self, address: Address, *, patience_s: float = PATIENCE_S) -> None:
        """Connect; from then on this process takes no pickles of dask's but those of a farm.

        Raises Tf2aifError where nobody answers, or does not accept us.
        """
        need_distributed()
        restrict(AnswerUnpickler)
        self.address = address
        self.patience_s = patience_s
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._closed = False
        self._client: Any = None
        self._news: dict[str, Callable[[News], None]] = {}
        self._seen: tuple[float, dict[str, Offer]] = (0.0, {})
        self._client = self._connect()

    # Who is there.

    def offers(self, *, young_s: float = 0.0) -> dict[str, Offer]:
        """What the machines that are there now offer, by name; asked anew after `young_s`."""
        with self._lock:
            since, found = self._seen
            if time.monotonic() - since < young_s:
                return found
            client = self._client
        try:
            identity = client.sync(client.scheduler.identity)
            told = client.sync(client.scheduler.get_metadata, keys=[METADATA], default={})
        except _LOST as error:
            raise Gone(client, error) from error
        names = {str(worker["name"]) for worker in identity["workers"].values()}
        found = {name: offer for name in names if (offer := _read_offer(told.get(name)))}
        with self._lock:
            self._seen = time.monotonic(), found
        return found

    # One errand.

    def perform(
        self,
        key: str,
        text: str,
        resources: Mapping[str, float],
        *,
        step: str,
        timeout_s: float,
        listen: Callable[[News], None] = lambda _: None,
    ) -> Word:
        """Have an errand done, on another machine where one is in trouble; the word about it.

        `key` is the step's: of two builds that ask for the same, one has it run. Raises StepFailed
        where no machine can do it, none did, or the scheduler has left.
        """
        troubles: dict[str, str] = {}
        starts: list[str] = []

        def note(news: News) -> None:
            if news.what == "start":
                starts.append(news.machine)
            listen(news)

        while True:
            self._fail_if_closed(step)
            wanted = f"tf-{key}" + (f"-{len(troubles) + 1}" if troubles else "")
            try:
                self._fail_without_machines(step, resources, troubles)
                word = self._once(wanted, text, resources, troubles, step, timeout_s, starts, note)
            except Gone as error:
                self._come_back(step, error)
                continue
            if word is None:  # machines died under it, or under another step that they had
                if len(starts) >= DEATHS:
                    raise StepFailed(
                        f"{step}: the machines that ran it died: {', '.join(starts)}",
                        hint="it is not tried on others; look at their own logs, and at how much "
                        "memory the step takes",
                    )
            elif word.what != "trouble":
                return word
            else:
                troubles[word.machine] = word.failure.message if word.failure else "trouble"

    def _once(
        self,
        key: str,
        text: str,
        resources: Mapping[str, float],
        troubles: Mapping[str, str],
        step: str,
        timeout_s: float,
        starts: list[str],
        note: Callable[[News], None],
    ) -> Word | None:
        """Submit and wait; None where the machine died."""
        from .attempt import run_remote

        able = self._able(resources, troubles)
        client = self._client
        self._news[key] = note
        try:
            future = client.submit(
                run_remote,
                text,
                key=key,
                resources=dict(resources),
                workers=sorted(able) if troubles else None,
                retries=2,
                pure=False,
            )
        except _LOST as error:
            raise Gone(client, error) from error
        try:
            answer = self._wait(client, future, resources, troubles, step, timeout_s, starts)
        finally:
            self._news.pop(key, None)
            with contextlib.suppress(Exception):  # dask raises what it likes once it is closed
                future.release()
        return None if answer is None else _read_word(answer, step)

    def _wait(
        self,
        client: Any,
        future: Any,
        resources: Mapping[str, float],
        troubles: Mapping[str, str],
        step: str,
        timeout_s: float,
        starts: list[str],
    ) -> str | None:
        from distributed import CancelledError, KilledWorker

        over = threading.Event()
        future.add_done_callback(lambda _: over.set())
        since: tuple[int, float] = (len(starts), time.monotonic())
        while True:
            self._fail_if_closed(step)
            try:
                if over.wait(POLL_S):
                    return str(future.result(timeout=10))
                self._fail_without_machines(step, resources, troubles)
            except KilledWorker:
                return None
            except (CancelledError, *_LOST) as error:
                raise Gone(client, error) from error
            if since[0] != len(starts):
                since = len(starts), time.monotonic()
            if starts and time.monotonic() - since[1] > timeout_s + GRACE_S:
                raise StepFailed(
                    f"{step}: nothing was heard from {starts[-1]} for "
                    f"{timeout_s + GRACE_S:.0f} s, longer than it may take"
                )

    def _able(
        self, resources: Mapping[str, float], troubles: Mapping[str, str]
    ) -> dict[str, Offer]:
        """The machines that are there, offer all that it takes, and had no trouble with it."""
        return {
            name: offer
            for name, offer in self.offers(young_s=POLL_S).items()
            if name not in troubles and can(offer, resources)
        }

    def _fail_if_closed(self, step: str) -> None:
        """Nobody waits for it any more. Raises StepFailed."""
        if self._closed:
            raise StepFailed(f"{step}: stopped before it was done")

    def _fail_without_machines(
        self, step: str, resources: Mapping[str, float], troubles: Mapping[str, str]
    ) -> None:
        """It would wait for ever. Raises StepFailed that says which machines there are."""
        if len(troubles) < MACHINES and self._able(resources, troubles):
            return
        if troubles:
            words = "; ".join(f"{name}: {what}" for name, what in troubles.items())
            raise StepFailed(
                f"{step}: no machine could do it: {words}",
                hint="look after these machines, then build again: what is done is kept",
            )
        raise StepFailed(
            f"{step}: no machine of the farm offers {', '.join(sorted(resources))}",
            at=self.address.url,
            hint=_seen(self.offers(young_s=POLL_S)),
        )

    # The connection.

    def close(self) -> None:
        """Cancel what runs for us, and leave. Calling it twice is harmless."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and self._client is not None:
            with contextlib.suppress(Exception):  # dask raises what it likes while it closes
                self._client.close(timeout=3)

    def _connect(self) -> Any:
        import dask
        import distributed
        from distributed.versions import VersionMismatchWarning

        make: Callable[..., Any] = distributed.Client
        dask.config.set(SETTINGS)
        _silence()
        # Machines differ, and labels say how; what is sent is text.
        warnings.simplefilter("ignore", VersionMismatchWarning)
        try:
            # dask would go on asking where nobody listens until its time is over.
            socket.create_connection((self.address.host, self.address.port), timeout=10).close()
            client = make(
                self.address.url,
                security=security(self.address.tls),
                timeout=10,
                set_as_default=False,
                name="tf2aif",
            )
        except (OSError, TimeoutError) as error:
            raise Tf2aifError(
                f"no scheduler of a farm answers, or it does not accept us: {_first(error)}",
                at=self.address.url,
                hint="start one: tf2aif farm scheduler; look at the certificates: --tls",
            ) from error
        client.subscribe_topic(TOPIC, self._hear)
        return client

    def _hear(self, event: tuple[float, Any]) -> None:
        """News of some step; called in dask's own thread."""
        try:
            news = msgspec.convert(event[1], News)
        except msgspec.ValidationError:
            return
        if note := self._news.get(news.key):
            note(news)

    def _come_back(self, step: str, gone: Gone) -> None:
        """Connect again to a scheduler that was started anew. Raises StepFailed."""
        with self._connecting:
            if self._client is not gone.client or self._closed:
                return  # another step has done it
            until = time.monotonic() + self.patience_s
            with contextlib.suppress(Exception):  # as in `close`
                self._client.close(timeout=1)
            while not self._closed:
                try:
                    self._client = self._connect()
                    self._seen = (0.0, {})
                    break
                except Tf2aifError as error:
                    if time.monotonic() > until:
                        raise StepFailed(
                            f"{step}: the scheduler of the farm has gone: {gone}",
                            at=self.address.url,
                            hint="start it, then build again: what is done is kept",
                        ) from error
                time.sleep(POLL_S)
            self.wait_for(1, within_s=10.0)  # they come back a moment after it

    def wait_for(self, machines: int, within_s: float = 60.0) -> None:
        """Wait until so many machines have joined, or the time is over."""
        until = time.monotonic() + within_s
        while not self._closed and time.monotonic() < until:
            with contextlib.suppress(Gone):
                if len(self.offers()) >= machines:
                    return
            time.sleep(POLL_S / 5)


def can(offer: Offer, resources: Mapping[str, float]) -> bool:
    """Whether a machine has so much of everything."""
    has = offer.resources()
    return all(has.get(name, 0.0) >= amount for name, amount in resources.items())


def _seen(offers: Mapping[str, Offer]) -> str:
    words = [f"{n} ({', '.join(o.labels) or 'nothing'})" for n, o in sorted(offers.items())]
    return f"machines seen: {'; '.join(words) or 'none'}"


def _read_offer(told: Any) -> Offer | None:
    try:
        return msgspec.convert(told, Offer)
    except msgspec.ValidationError:
        return None  # of another version of tf2aif


def _read_word(answer: str, step: str) -> Word:
    try:
        return msgspec.json.decode(answer, type=Word)
    except msgspec.DecodeError as error:
        raise StepFailed(f"{step}: the farm answered something else: {error}") from error


def _first(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _silence() -> None:
    import logging

    for name in ("distributed", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
