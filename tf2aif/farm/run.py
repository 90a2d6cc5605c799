"""Steps of a build that the farm does: sent, followed in the log, and taken back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..errors import StepFailed, Tf2aifError
from ..facts import Facts, explain, key
from ..freshness import ELSEWHERE, declared
from ..graph import Step
from ..observed import current_value
from ..offload import our_own
from ..records import ActionRecord
from ..remotes.keys import Trusted
from ..remotes.remote import RemoteFailed
from ..remotes.trust import Believed, check_record
from ..remotes.trust import Refused as NotBelieved
from ..store import CorruptBlob
from ..toolchains import Missing
from ..worker import Failure, failed_reply
from ..workers import outcome_of
from ..workspace import Workspace
from .carriage import Carriage
from .errand import make_errand
from .farm import Farm
from .plan import Done, FarmPlan
from .seats import Seat
from .word import News, Word

if TYPE_CHECKING:
    from ..remotes.shared import Shared

TRIES = 3  # of an errand whose inputs went from the shared cache meanwhile


class FarmBuild(FarmPlan):
    """What a build has of its farm. Its methods may be called from several threads."""

    def __init__(
        self,
        farm: Farm,
        workspace: Workspace,
        shared: Shared,
        *,
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        """`chosen`: see `Seats`.

        Raises Tf2aifError where the build has no shared cache that it may write to.
        """
        line = next((line for line in shared.lines if line.writes), None)
        if line is None:
            raise Tf2aifError(
                "a farm needs a shared cache that this build may write to",
                hint="'write: true' at a remote of tf2aif.yaml, or TF2AIF_REMOTE_WRITE=yes",
            )
        super().__init__(workspace, farm.offers().values(), chosen)
        self.farm = farm
        self.trusted: Trusted = shared.trusted
        self.carriage = Carriage(
            line.remote,
            workspace.store,
            timeout_s=shared.timeout_s,
            names=workspace.private / "farm-names.json",
        )
        self._done: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, step: Step, seat: Seat) -> Done:
        """Have a step done; what it made is in the store then.

        Raises StepFailed with what went wrong, there or on the way.
        """
        space = self.workspace
        facts = declared(step, space)
        log = space.log(step)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        try:
            word = self._send(step, seat, facts, log)
            believed = self._bring(step, facts, word)
        except RemoteFailed as error:
            raise StepFailed(
                f"{step.id}: the shared cache of the farm: {error.faults[0].message}",
                at=error.faults[0].at,
                hint="look after it, then build again: what is done is kept",
            ) from error
        with self._lock:
            self._done[word.machine] += 1
        return Done(self._adopt(step, seat, believed), word.machine, word.what == "ran")

    def report(self) -> dict[str, int]:
        """Machine -> how many steps it did."""
        with self._lock:
            return dict(sorted(self._done.items()))

    def close(self) -> None:
        """Cancel what runs for us, and leave."""
        self.carriage.stop()
        self.farm.close()
        self.carriage.save()
        self.remember()

    def _send(self, step: Step, seat: Seat, facts: Facts, log: Path) -> Word:
        """Bring the inputs on their way, and have the errand done."""
        errand, luggage = make_errand(step, self.workspace, facts)
        for _ in range(TRIES):
            sha256 = self.carriage.send(luggage.files)
            text = msgspec.json.encode(msgspec.structs.replace(errand, sha256=sha256)).decode()
            word = self.farm.perform(
                errand.key,
                text,
                seat.resources,
                step=step.id,
                timeout_s=step.limits.timeout_s,
                listen=partial(_write_news, log),
            )
            if word.what != "inputs-gone":
                break
            self.carriage.forget()
        if word.log:
            log.write_text(word.log, encoding="utf-8")
        if word.failure is not None:
            self._fail(step, word, log)
        return word

    def _fail(self, step: Step, word: Word, log: Path) -> None:
        """As a step that failed here, and on which machine. Raises StepFailed."""
        from ..execute import request_for

        said = word.failure or Failure(message="it failed")
        failure = msgspec.structs.replace(said, message=f"{said.message} (on {word.machine})")
        reply = msgspec.structs.replace(failed_reply(StepFailed("")), failure=failure)
        outcome_of(request_for(step, self.workspace, Path("out")), log, reply)

    def _bring(self, step: Step, facts: Facts, word: Word) -> Believed:
        """What was made, verified: signed by whom we trust, of this action, every byte its own."""

        def fits(found: Believed) -> bool:
            try:
                check_record(found.record, step, key(facts))
            except NotBelieved:
                return False
            return self._fits(step, our_own(found.record.observed))

        try:
            believed = self.carriage.take(key(facts), self.trusted, fits)
        except (NotBelieved, CorruptBlob) as error:
            reason = error.faults[0].message if isinstance(error, Tf2aifError) else str(error)
            raise StepFailed(
                f"{step.id}: what {word.machine} made is refused: its bytes are not those that "
                f"it has signed ({reason})".rstrip(),
                hint=f"look after {word.machine} and the shared cache",
            ) from error
        if believed is None:
            raise StepFailed(
                f"{step.id}: {word.machine} has made it, but there is no record of it that counts",
                at=self.carriage.remote.url,
                hint=f"{word.machine} must use the same shared cache, and its public key must "
                "stand in 'cache.trusted' of tf2aif.yaml",
            )
        return believed

    def _fits(self, step: Step, observed: Facts) -> bool:
        """Whether the user's own files are still what the step read."""
        stats, folder = self.workspace.stats, Path(step.folder)
        return not any(
            explain({name: value}, {name: current_value(name, folder, stats)})
            for name, value in observed.items()
        )

    def _adopt(self, step: Step, seat: Seat, believed: Believed) -> ActionRecord:
        """Keep it in the store here; distributions of another machine are no facts of this one.

        Where the toolchain is not here, it is kept under that fact too, as what a bundle brings:
        so a build without the farm finds it.
        """
        space = self.workspace
        record = believed.record
        if not self._fits(step, record.observed):
            record = msgspec.structs.replace(record, observed=our_own(record.observed))
        if not space.store.adopt(record):
            raise StepFailed(f"{step.id}: what it made went from the store at once")
        if not seat.here and isinstance(self.look(step.toolchain), Missing):
            of_place = ("toolchain.", "environment.", "machine.", "device.")
            facts = {n: v for n, v in record.facts.items() if not n.startswith(of_place)}
            facts["toolchain.kind"] = ELSEWHERE
            space.store.adopt(msgspec.structs.replace(record, key=key(facts), facts=facts))
        return record


def _write_news(log: Path, news: News) -> None:
    """What the step prints there, as it comes."""
    text = f"on {news.machine}\n" if news.what == "start" else news.text
    with open(log, "a", encoding="utf-8") as file:
        file.write(text)
