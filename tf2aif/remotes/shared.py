"""What a build has of its remotes: take what others made, give what was made here.

A remote may fail in any way, and no build fails of it: whatever goes wrong, the step runs here. The
first failure of a remote ends its use for the rest of the build, with one warning, so that a dead
one costs its time-out once. What is fetched is verified before anything uses it; what is refused is
counted by its reason.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import msgspec

from ..errors import Tf2aifError
from ..facts import Value
from ..graph import Step
from ..records import ActionRecord, OutputFile, fits
from ..store import CorruptBlob, Store
from .crew import Crew, Job, TookTooLong
from .keys import SigningKey, Trusted
from .remote import Blob, Remote, RemoteFailed, action_name
from .transfer import SLOWEST, allowed_s, fetch_blob, holds, keep_content, upload_action
from .trust import Believed, Bundle, Refused, check_record, decode_bundle, read_envelope

Current = Callable[[str], Value]
DAMAGED = "with damaged bytes"
T = TypeVar("T")
_FETCHES, _LOOKS, _PUSHES = 16, 16, 8  # threads
_GRACE_S = 1.0  # after a transfer's own time-out, which knows better what is wrong


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the remotes in one build."""

    taken: int = 0
    """Actions that others made."""
    taken_bytes: int = 0
    """That came over the network, or from the folder: what was here already is not among them."""
    given: int = 0
    given_bytes: int = 0
    refused: dict[str, int] = {}
    """Reason -> records that were not believed, or whose bytes were not theirs."""
    unfound: tuple[str, ...] = ()
    """Toolchains that are not here, of steps that were asked for in vain."""
    warnings: tuple[str, ...] = ()
    """One for each remote that was left alone, and why."""

    def render(self) -> str:
        """One line for people, without the warnings; empty where there is nothing to say."""
        parts = []
        if self.taken:
            parts.append(f"{self.taken} taken ({self.taken_bytes / 1e6:.1f} MB)")
        if self.given:
            parts.append(f"{self.given} given ({self.given_bytes / 1e6:.1f} MB)")
        if self.refused:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.refused.items()))
            parts.append(f"{sum(self.refused.values())} refused ({why})")
        if self.unfound:
            parts.append(
                f"nothing for steps that need {', '.join(self.unfound)}, not here: what others "
                "made with it is kept by its version"
            )
        return f"shared cache: {', '.join(parts)}" if parts else ""


class Line:
    """One remote as a build uses it."""

    def __init__(self, remote: Remote, *, write: bool) -> None:
        self.remote = remote
        self.reads = True
        self.writes = write
        self.bundles: dict[str, Bundle | None] = {}
        """What was found under a name, so that it need not be asked for again."""
        self.damaged: set[str] = set()
        """SHA-256 of blobs that came with other bytes: to be written again."""


class Shared:
    """The remotes of one build. Its methods may be called from several threads."""

    def __init__(
        self,
        remotes: Iterable[tuple[Remote, bool]],
        *,
        trusted: Trusted,
        key: SigningKey | None = None,
        timeout_s: float = 10.0,
        warnings: Iterable[str] = (),
    ) -> None:
        """Remotes in the order in which they are asked, each with the right to write to it.

        `warnings`: what is known to be wrong with them already.
        """
        self.lines = [Line(remote, write=write) for remote, write in remotes]
        self.trusted = trusted
        self.key = key
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._taken, self._given, self._refused = Counter[str](), Counter[str](), Counter[str]()
        self._warnings = list(warnings)
        self._looks = Crew(_LOOKS, "tf2aif-look")
        self._fetches = Crew(_FETCHES, "tf2aif-fetch")
        self._pushes = Crew(_PUSHES, "tf2aif-push")
        self._to_push = 0  # bytes
        self._unfound: tuple[str, ...] = ()
        self._promised: set[tuple[str, int]] = set()  # what a dry run would have brought
        if not trusted.keys and self.lines:
            self._warn("no key is trusted: nothing is taken from shared caches (cache.trusted)")
        if key is None and any(line.writes for line in self.lines):
            self._warn("there is no signing key: nothing is given (tf2aif cache keygen)")

    # Take.

    def take(self, step: Step, key: str, current: Current, store: Store) -> ActionRecord | None:
        """What a step makes of the facts of this key, brought into the store; None: make it here.

        `current` gives the present value of an observed fact, as `Store.find` wants it. It takes
        no longer than the transfers that it needs may take: see `transfer.SLOWEST`.
        """
        if not self.trusted.keys:
            return None
        for line in self.lines:
            try:
                found = self._look(line, step, key, current)
                if found and self._fetch(line, *found, store):
                    line.bundles.pop(action_name(key), None)  # it may hold small outputs
                    return found[0].record
            except RemoteFailed as error:
                self._fail(line, error)
            except Refused as error:
                self._count_refused(error)
            except Tf2aifError as error:  # the store here is full: running the step will say so
                self._warn(error.faults[0].message)
        return None

    def begin_taking(
        self, step: Step, key: str, current: Current, store: Store
    ) -> Future[ActionRecord | None]:
        """The same in the background."""
        return self._looks.submit(lambda: self.take(step, key, current, store))

    def begin_looking(
        self, step: Step, key: str, current: Current, store: Store
    ) -> Future[ActionRecord | None]:
        """What would be taken, in the background; nothing is fetched but records."""

        def call() -> ActionRecord | None:
            for line in self.lines if self.trusted.keys else ():
                try:
                    if found := self._look(line, step, key, current):
                        self._note_taken(found[0].record.outputs, store)
                        return found[0].record
                except RemoteFailed as error:
                    self._fail(line, error)
            return None

        return self._looks.submit(call)

    def _note_taken(self, outputs: Iterable[OutputFile], store: Store) -> None:
        lacking = {(f.digest, f.size) for f in outputs if not store.has(f)}
        with self._lock:
            self._taken.update(actions=1, size=sum(size for _, size in lacking - self._promised))
            self._promised |= lacking

    def note_unfound(self, toolchains: Iterable[str]) -> None:
        """Toolchains that are not here, of steps that were asked for in vain."""
        asked = bool(self.trusted.keys) and any(line.reads for line in self.lines)
        with self._lock:
            self._unfound = tuple(sorted(set(toolchains))) if asked else ()

    def _look(
        self, line: Line, step: Step, key: str, current: Current
    ) -> tuple[Believed, Bundle] | None:
        """The newest believed record that fits the facts of now."""
        if not line.reads:
            return None
        bundle = self._ask(line, lambda: self._read_bundle(line, key), self.timeout_s)
        found: list[Believed] = []
        for envelope in bundle.records if bundle else ():
            try:
                believed = read_envelope(envelope, self.trusted)
                check_record(believed.record, step, key)
            except Refused as error:
                self._count_refused(error)
                continue
            if fits(believed.record, current):
                found.append(believed)
        best = max(found, key=lambda one: one.record.created, default=None)
        return (best, bundle) if best and bundle else None

    def _read_bundle(self, line: Line, key: str) -> Bundle | None:
        """What stands under the key now, kept for when we write there; None for no bundle."""
        name = action_name(key)
        line.bundles[name] = None
        data = line.remote.get_action(name)
        if data is not None:
            try:
                line.bundles[name] = decode_bundle(data)
            except Refused as error:
                self._count_refused(error)
        return line.bundles[name]

    def _fetch(self, line: Line, believed: Believed, bundle: Bundle, store: Store) -> bool:
        """Bring all bytes that are not here, side by side; then the record."""
        lacking = {
            (file.digest, file.size): (file, Blob(name, file.size))
            for file, name in zip(believed.record.outputs, believed.sha256, strict=True)
            if not store.has(file)
        }
        jobs = []
        for file, blob in lacking.values():
            content = bundle.contents.get(blob.sha256)
            if content is not None:  # it came with the record
                _as_refusal(line, blob, partial(keep_content, content, blob, file, store))
            else:
                call = partial(fetch_blob, line.remote, blob, file, store, self.timeout_s)
                jobs.append((blob, self._fetches.submit(call)))
        for blob, job in jobs:
            allowed = allowed_s(blob.size, self.timeout_s)
            _as_refusal(line, blob, partial(self._wait, line, job, allowed))
        if not store.adopt(believed.record):
            return False  # somebody made room in the store meanwhile
        with self._lock:
            self._taken.update(actions=1, size=sum(file.size for file, _ in lacking.values()))
        return True

    def _ask(self, line: Line, call: Callable[[], T], allowed_s: float) -> T:
        return self._wait(line, self._fetches.submit(call), allowed_s)

    def _wait(self, line: Line, job: Job[T], allowed_s: float) -> T:
        try:
            return job.within(allowed_s + _GRACE_S, lambda: line.reads)
        except TookTooLong:
            raise RemoteFailed(f"no answer within {allowed_s:.0f} s", at=line.remote.url) from None

    # Give.

    def give(self, record: ActionRecord, store: Store) -> None:
        """Have what was made here pushed, in the background, where we may write."""
        if self.key is None:
            return
        size = sum(file.size for file in record.outputs)
        for line in self.lines:
            if line.writes:
                with self._lock:
                    self._to_push += size
                self._pushes.submit(partial(self._push, line, record, store, size))

    def lacks(self, record: ActionRecord) -> bool:
        """Whether a remote that we may write to has not got this very record."""
        return any(self._lacks(line, record) for line in self.lines if line.writes)

    def _lacks(self, line: Line, record: ActionRecord) -> bool:
        try:
            bundle = self._read_bundle(line, record.key)
        except RemoteFailed as error:
            self._fail(line, error)
            return False
        return not holds(bundle, record, self.trusted)

    def _push(self, line: Line, record: ActionRecord, store: Store, size: int) -> None:
        if not line.writes or self.key is None:
            return
        try:
            name = action_name(record.key)
            if name not in line.bundles:
                self._read_bundle(line, record.key)
            sent = upload_action(
                line.remote,
                record,
                store,
                key=self.key,
                trusted=self.trusted,
                present=line.bundles[name],
                damaged=line.damaged,
            )
        except RemoteFailed as error:
            self._fail(line, error, writing=True)
        except (CorruptBlob, FileNotFoundError):  # gone from the store meanwhile
            pass
        else:
            if sent is not None:
                line.bundles.pop(name, None)
                with self._lock:
                    self._given.update(actions=1, size=sent)
        finally:
            with self._lock:
                self._to_push -= size

    def finish(self) -> Report:
        """Wait for what is being given, with a bound, close the connections, and say what was."""
        with self._lock:
            allowed = self.timeout_s + self._to_push / SLOWEST
        if not self._pushes.join(allowed):
            self._warn(f"not all was given: the shared cache took more than {allowed:.0f} s")
        for crew in (self._looks, self._fetches, self._pushes):
            crew.close()
        for line in self.lines:
            line.remote.close()
        return self.report()

    def report(self) -> Report:
        """What came of the remotes so far."""
        with self._lock:
            return Report(
                taken=self._taken["actions"],
                taken_bytes=self._taken["size"],
                given=self._given["actions"],
                given_bytes=self._given["size"],
                refused=dict(self._refused),
                unfound=self._unfound,
                warnings=tuple(self._warnings),
            )

    # What goes wrong.

    def _fail(self, line: Line, error: RemoteFailed, *, writing: bool = False) -> None:
        with self._lock:
            again = not line.writes if writing else not line.reads
            if writing:
                line.writes = False
            if not writing or not error.refused:
                line.reads = line.writes = False
        if not again:
            fault = error.faults[0]
            what = "not written any more" if writing and error.refused else "not asked any more"
            hint = f" ({fault.hint})" if fault.hint else ""
            self._warn(f"{line.remote.url} is {what} in this build: {fault.message}{hint}")

    def _warn(self, text: str) -> None:
        with self._lock:
            if text not in self._warnings:
                self._warnings.append(text)

    def _count_refused(self, error: Refused) -> None:
        with self._lock:
            self._refused[str(error)] += 1


def _as_refusal(line: Line, blob: Blob, call: Callable[[], None]) -> None:
    """Bytes that are wrong or gone: the record is of no use, the remote is well."""
    try:
        call()
    except (Refused, CorruptBlob) as error:
        line.damaged.add(blob.sha256)
        raise Refused(DAMAGED) from error
    except RemoteFailed as error:
        if not error.absent:
            raise
        line.damaged.add(blob.sha256)
        raise Refused("whose bytes are gone") from error
