"""Bring one step up to date: restore it from the store or a remote, or run it and store it.

Nothing that a step writes is visible before it has succeeded: it writes into a fresh folder, which
goes to the store first and then, by renaming, into its place in `build/`.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from .errors import StepFailed, ToolchainMissing
from .facts import Facts, explain, key
from .folders import fresh_folder
from .freshness import assess, declared
from .graph import Step
from .observed import current_value
from .processes import machine_memory_mb
from .records import ActionRecord
from .store import CorruptBlob
from .worker import Request
from .workers import Workers
from .workspace import Workspace

if TYPE_CHECKING:
    from .farm.plan import FarmPlan
    from .farm.seats import Seat

Done = Literal["fresh", "restored", "ran"]


class Result(msgspec.Struct, frozen=True):
    """What was done to bring a step up to date, and the wall time that it took in seconds."""

    done: Done
    wall_s: float
    reasons: tuple[str, ...] = ()
    machine: str = ""
    """The one of a farm that did it; empty: this one."""


def bring_up_to_date(
    step: Step, workspace: Workspace, workers: Workers, *, again: bool = False
) -> Result:
    """Make the step's artifact in `build/` what its facts say; `again` runs it in any case.

    Raises StepFailed where it ran and failed, ToolchainMissing where it cannot run here. Two
    builds that want the same step wait for each other: it runs once.
    """
    start = time.monotonic()
    with workspace.lock(step.id):
        verdict = assess(step, workspace)
        done: Done = "fresh"
        machine = ""
        if again or verdict.state != "fresh":
            waiting = partial(workspace.note_locked, step.id)
            with workspace.store.lock(verdict.key or step.id, waiting=waiting):
                done, machine = _make(step, workspace, workers, again=again)
    return Result(done, time.monotonic() - start, verdict.reasons, machine)


def _make(step: Step, workspace: Workspace, workers: Workers, *, again: bool) -> tuple[Done, str]:
    """Restore the step or run it; what the store has is looked up again under its lock.

    What was done, and which machine of a farm did it.
    """
    verdict = assess(step, workspace)
    record = verdict.record
    if record is None and verdict.key and not again and workspace.shared:
        current = partial(current_value, folder=Path(step.folder), cache=workspace.stats)
        record = workspace.shared.take(step, verdict.key, current, workspace.store)
    if record is not None and not again:
        try:
            _restore(step, record, workspace)
        except CorruptBlob:
            return _make(step, workspace, workers, again=False)  # the store has dropped it
        return "restored", ""
    farm = workspace.farm
    if farm and (seat := farm.seat(step)):
        return _run_in_farm(step, farm, seat, workspace)
    with workspace.turn(step):
        _run(step, workspace, workers)
    return "ran", ""


def _run_in_farm(step: Step, farm: FarmPlan, seat: Seat, workspace: Workspace) -> tuple[Done, str]:
    """Have a machine of the farm run it; its artifact is put in place here."""
    facts = declared(step, workspace)
    where = workspace.admission.afar(step.id, seat.label) if workspace.admission else nullcontext()
    with where:
        done = farm.run(step, seat)
    _look_again(step, facts, workspace)
    _restore(step, done.record, workspace)
    return "ran" if done.ran else "restored", done.machine


def _restore(step: Step, record: ActionRecord, workspace: Workspace) -> None:
    workspace.store.restore(record, workspace.artifact(step))
    workspace.note(step, record)


def _run(step: Step, workspace: Workspace, workers: Workers) -> None:
    if tool := workspace.lacks(step):
        raise ToolchainMissing(f"{step.id} needs {tool.what}, which is not here", hint=tool.hint)
    facts = declared(step, workspace)  # hashed before the step reads them
    log = workspace.log(step)
    with fresh_folder(workspace.artifact(step)) as out:
        alone = step.alone and not _is_far(step, workspace)  # who measures is
        with workspace.store.lock("machine", shared=not alone):
            outcome = workers.run(
                request_for(step, workspace, out),
                log=log,
                timeout_s=step.limits.timeout_s,
                memory_mb=step.limits.memory_mb or _default_memory_mb(step, workspace),
            )
        _look_again(step, facts, workspace)
        if not os.listdir(out):
            raise StepFailed(f"{step.id} ended well but wrote nothing", at=str(log))
        record = workspace.store.add(
            key(facts),
            out,
            step=step.id,
            kind=step.kind,
            facts=facts,
            observed=outcome.observed,
            result=outcome.result,
            timing={
                "wall_s": outcome.wall_s,
                "cpu_s": outcome.cpu_s,
                "peak_mb": outcome.peak_mb,
            },
        )
    workspace.note(step, record)
    if workspace.shared:
        workspace.shared.give(record, workspace.store)


def _default_memory_mb(step: Step, workspace: Workspace) -> int | None:
    """What the machine bears that the step runs on; another one knows it for itself."""
    return None if _is_far(step, workspace) else machine_limit_mb()


def _is_far(step: Step, workspace: Workspace) -> bool:
    """Whether it runs on another machine."""
    place = workspace.places.place(step.toolchain)
    return place is not None and place.kind == "ssh"


@cache
def machine_limit_mb() -> int:
    """What a step may use where its target says nothing: 90% of what we may use here, MiB.

    Ending one step, and saying why, is better than leaving the choice to the kernel.
    """
    return machine_memory_mb() * 9 // 10


def request_for(step: Step, workspace: Workspace, out: Path) -> Request:
    """What a worker is told about the step."""
    artifacts = {name: str(workspace.artifact(other)) for name, other in step.inputs.items()}
    return Request(
        step=step.id,
        kind=step.kind,
        module=step.module,
        toolchain=step.toolchain,
        options=step.options,
        inputs={**step.files, **artifacts},
        out=str(out),
        folder=step.folder,
        code=step.code,
        environment=step.environment,
        seed=step.seed,
        threads=step.threads,
        place=workspace.places.place(step.toolchain),
    )


def _look_again(step: Step, before: Facts, workspace: Workspace) -> None:
    """An input that changed while the step read it: nobody knows what it made."""
    try:
        changes = explain(before, declared(step, workspace))
    except FileNotFoundError as error:
        raise StepFailed(f"{step.id}: an input vanished while it ran: {error}") from error
    if changes:
        raise StepFailed(
            f"{step.id}: an input changed while it ran, so nothing was stored",
            at="; ".join(change.render() for change in changes),
            hint="build again",
        )
