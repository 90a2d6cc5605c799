"""One machine of a farm: it does errands in warm worker processes of its own.

An errand is checked, its inputs are brought from the shared cache and verified, the step is run,
and what it made is given to the shared cache, signed with this machine's key. What was made before,
here or elsewhere, is not made again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ..devices import device_facts
from ..errors import StepFailed, Tf2aifError
from ..facts import Facts
from ..machine import machine_facts
from ..observed import current_value
from ..records import ActionRecord
from ..remotes.keys import SigningKey, Trusted
from ..remotes.remote import RemoteFailed
from ..remotes.trust import Refused as NotBelieved
from ..store import CorruptBlob, Store
from ..toolchains import Identity, identity
from ..worker import Failure, Reply
from ..workers import Workers
from .carriage import Carriage
from .errand import OUT, Errand, Refused, as_record, compare, read_errand, request_in
from .offer import Offer
from .source import has_changed
from .word import News, What, Word, cut

POLL_S = 0.3
NO_DISK_MB = 32
"""A step that failed with less than this left may do well elsewhere."""

logger = logging.getLogger(__name__)


class Host:
    """What this machine is to a farm. `answer` is called from as many threads as it has slots."""

    def __init__(
        self,
        offer: Offer,
        carriage: Carriage,
        store: Store,
        *,
        key: SigningKey,
        trusted: Trusted,
        scratch: Path | None = None,
        tell: Callable[[News], None] = lambda _: None,
    ) -> None:
        self.offer = offer
        self.carriage = carriage
        self.store = store
        self.key = key
        self.trusted = trusted
        self.scratch = scratch
        self.tell = tell
        self._closed = False
        self._lock = threading.Lock()
        self._idle: list[tuple[str, Workers]] = []  # toolchain that was last run, most recent last
        self._busy: dict[str, Workers | None] = {}
        self._gone: set[str] = set()  # errands that were cancelled before their step began

    def answer(self, text: str, key: str) -> str:
        """Do an errand; the word about it. `key` is dask's name of it."""
        word = self._do(text, key)
        with self._lock:
            self._gone.discard(key)
        if self._closed and word.what == "failed":  # the step has nothing to do with it
            failure = Failure(message="the machine was stopped", expected=True)
            word = Word(machine=word.machine, what="trouble", failure=failure)
        return msgspec.json.encode(word).decode()

    def abandon(self, key: str) -> None:
        """Nobody waits for it any more: end its processes."""
        with self._lock:
            workers = self._busy.get(key)
            if key in self._busy:
                self._busy[key] = None
            else:
                self._gone.add(key)
        if workers is not None:
            logger.info("%s was cancelled", key)
            workers.close()

    def abandon_all(self) -> None:
        """Nobody waits for anything any more: the scheduler has gone."""
        with self._lock:
            names = list(self._busy)
        for name in names:
            self.abandon(name)

    def close(self) -> None:
        """End all that runs here. Calling it twice is harmless."""
        self._closed = True
        self.carriage.stop()
        with self._lock:
            everyone = [workers for _, workers in self._idle]
            everyone += [workers for workers in self._busy.values() if workers]
            self._idle.clear()
        for workers in everyone:
            workers.close()

    def _do(self, text: str, key: str) -> Word:
        machine = self.offer.machine
        try:
            _check_source()
            errand = read_errand(text, self.offer)
            self.tell(News(key=key, machine=machine))
            return self._perform(errand, key)
        except Refused as error:
            logger.warning("refused: %s", error)
            return Word(machine=machine, what="refused", failure=_failure(error))
        except RemoteFailed as error:
            gone: What = "inputs-gone" if error.absent else "trouble"
            return Word(machine=machine, what=gone, failure=_failure(error))
        except StepFailed as error:
            return Word(machine=machine, what="failed", failure=_failure(error))
        except (Tf2aifError, NotBelieved) as error:  # its store is full, a cache is damaged
            logger.warning("%s: %s", key, error)
            return Word(machine=machine, what="trouble", failure=_failure(error))
        except OSError as error:
            logger.warning("%s: %s", key, error)
            failure = Failure(message=error.strerror or str(error), at=str(error.filename or ""))
            return Word(machine=machine, what="trouble", failure=failure)

    def _perform(self, errand: Errand, key: str) -> Word:
        with tempfile.TemporaryDirectory(
            prefix="tf2aif-", dir=self.scratch, ignore_cleanup_errors=True
        ) as folder:
            scratch = Path(os.path.realpath(folder))
            self._lay_out(errand, scratch)
            compare(errand, scratch, self._place(errand))
            if record := self._known(errand, scratch):
                self.carriage.give(record, self.key, self.trusted)
                return Word(machine=self.offer.machine, what="found")
            return self._run(errand, key, scratch)

    def _lay_out(self, errand: Errand, scratch: Path) -> None:
        """Bring the inputs, and put them where the step reads them."""
        for file, sha256 in zip(errand.files, errand.sha256, strict=True):
            self.carriage.fetch(file, sha256)
        self.store.restore(as_record(errand), scratch / "in")
        for path in sorted((scratch / "in").iterdir()):
            path.rename(scratch / path.name)
        (scratch / "in").rmdir()
        for name in ("home", OUT):
            (scratch / name).mkdir(exist_ok=True)

    def _place(self, errand: Errand) -> Facts:
        """What this machine is now; packages may have changed since it made its offer."""
        tool = identity(errand.toolchain)
        facts: Facts = {}
        if isinstance(tool, Identity):
            facts = {f"toolchain.{name}": value for name, value in tool.facts().items()}
        if errand.device:
            device = device_facts(errand.device)
            facts |= {f"device.{name}": value for name, value in device.items()}
        return facts | (machine_facts() if errand.machine else {})

    def _known(self, errand: Errand, scratch: Path) -> ActionRecord | None:
        """What was made of the very same before, as far as it holds for the inputs here."""

        def current(name: str) -> object:
            return current_value(name, scratch / "home")

        if record := self.store.find(errand.key, current):
            return record
        try:
            believed = self.carriage.take(
                errand.key,
                self.trusted,
                lambda one: all(current(n) == v for n, v in one.record.observed.items()),
            )
        except (NotBelieved, CorruptBlob):
            return None  # it is made again, and written over
        return believed.record if believed and self.store.adopt(believed.record) else None

    def _run(self, errand: Errand, key: str, scratch: Path) -> Word:
        log = scratch / "log.txt"
        log.touch()
        with self._workers(errand.toolchain, key) as workers, self._telling(log, key):
            with self.store.lock("machine", shared=not errand.alone):
                reply = workers.attempt(
                    request_in(errand, scratch),
                    log=log,
                    timeout_s=errand.timeout_s,
                    memory_mb=min(errand.memory_mb or self.offer.memory_mb, self.offer.memory_mb),
                )
        text = cut(log.read_text(encoding="utf-8", errors="replace"))
        if reply.failure is not None:
            what: What = "trouble" if self._no_disk(scratch) else "failed"
            return Word(
                machine=self.offer.machine, what=what, failure=reply.failure, log=text,
                peak_mb=reply.peak_mb,
            )  # fmt: skip
        _check_source()  # its process may have been started with another one
        record = self._keep(errand, scratch / OUT, reply)
        self.carriage.give(record, self.key, self.trusted)
        return Word(machine=self.offer.machine, what="ran", log=text, peak_mb=reply.peak_mb)

    def _keep(self, errand: Errand, out: Path, reply: Reply) -> ActionRecord:
        if not os.listdir(out):
            raise StepFailed(f"{errand.step} ended well but wrote nothing")
        timing = {"wall_s": reply.wall_s, "cpu_s": reply.cpu_s, "peak_mb": reply.peak_mb}
        return self.store.add(
            errand.key,
            out,
            step=errand.step,
            kind=errand.kind,
            facts=errand.facts,
            observed=reply.observed,
            result=reply.result,
            timing=timing,
            made_by=self._made_by(errand),
        )

    def _made_by(self, errand: Errand) -> Facts:
        """This machine's place in the record."""
        made: Facts = {"machine.name": self.offer.machine, **machine_facts()}
        made |= {n: v for n, v in errand.facts.items() if n.startswith("toolchain.")}
        for device, facts in self.offer.devices.items():
            made |= {f"device.{device}.{name}": value for name, value in facts.items()}
        return made

    def _no_disk(self, scratch: Path) -> bool:
        places = (scratch, self.store.root)
        return any(shutil.disk_usage(place).free < NO_DISK_MB << 20 for place in places)

    @contextlib.contextmanager
    def _workers(self, toolchain: str, key: str) -> Iterator[Workers]:
        """Worker processes for one step alone, so that it can be ended alone; warm if there are."""
        workers = self._take(toolchain)
        with self._lock:
            self._busy[key] = workers
            if key in self._gone:
                workers.close()  # it starts nothing any more
        try:
            yield workers
        finally:
            with self._lock:
                ended = self._busy.pop(key, None) is None
                if not ended:
                    self._idle.append((toolchain, workers))
            if ended:
                workers.close()

    def _take(self, toolchain: str) -> Workers:
        """Those that last ran with the toolchain; else new ones, in the place of the oldest."""
        old = None
        with self._lock:
            for index, (name, workers) in reversed(list(enumerate(self._idle))):
                if name == toolchain:
                    del self._idle[index]
                    return workers
            if self._idle and len(self._idle) + len(self._busy) >= self.offer.slots:
                old = self._idle.pop(0)[1]
        if old is not None:
            old.close()
        return Workers()

    @contextlib.contextmanager
    def _telling(self, log: Path, key: str) -> Iterator[None]:
        """Tell what the step prints, as it comes."""
        done = threading.Event()

        def follow() -> None:
            with open(log, encoding="utf-8", errors="replace") as file:
                last = False
                while not last:
                    last = done.wait(POLL_S)
                    while text := file.read(1 << 15):
                        self.tell(News(key=key, machine=self.offer.machine, what="log", text=text))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _check_source() -> None:
    """Raises Tf2aifError where tf2aif was upgraded or edited under this process."""
    if has_changed():
        raise Tf2aifError("tf2aif was changed on this machine", hint="start its worker again")


def _failure(error: Exception) -> Failure:
    if isinstance(error, Tf2aifError):
        fault = error.faults[0]
        return Failure(message=fault.message, at=fault.at, hint=fault.hint, expected=True)
    return Failure(message=f"a record in the shared cache is refused: {error}", expected=True)
