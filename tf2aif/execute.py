"""Bring one step up to date: look, restore from the store, or run it in a worker and store it.

Nothing that a step writes is visible before it has succeeded: it writes into a scratch folder,
which goes to the store first and then, in one rename, into `build/`.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Literal

import msgspec

from .errors import StepFailed
from .facts import Facts, explain
from .freshness import Verdict, assess, declared
from .graph import Step
from .store import ActionRecord, CorruptBlob
from .workers import Request, Workers
from .workspace import Made, Workspace

Done = Literal["fresh", "restored", "ran"]


class Result(msgspec.Struct, frozen=True):
    """What was done to bring a step up to date, and the wall time that it took in seconds."""

    done: Done
    wall_s: float
    reasons: tuple[str, ...] = ()


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
        if again or verdict.state != "fresh":
            with workspace.store.lock(verdict.key or step.id):
                done = _make(step, workspace, workers, again=again)
    return Result(done, time.monotonic() - start, verdict.reasons)


def _make(step: Step, workspace: Workspace, workers: Workers, *, again: bool) -> Done:
    """Restore the step or run it; what the store has is looked up again under its lock."""
    verdict = assess(step, workspace)
    if verdict.record is not None and not again:
        try:
            _restore(step, verdict.key, verdict.record, workspace)
        except CorruptBlob:
            return _make(step, workspace, workers, again=False)  # the store has dropped it
        return "restored"
    _run(step, verdict, workspace, workers)
    return "ran"


def _restore(step: Step, key: str, record: ActionRecord, workspace: Workspace) -> None:
    workspace.store.restore(record, workspace.artifact(step))
    workspace.note(step, Made(key, record))


def _run(step: Step, verdict: Verdict, workspace: Workspace, workers: Workers) -> None:
    facts = declared(step, workspace)  # hashed before the step reads them
    with workspace.scratch() as scratch:
        out = scratch / "out"
        out.mkdir()
        request = request_for(step, workspace, out)
        log = workspace.log(step)
        log.parent.mkdir(parents=True, exist_ok=True)
        with machine_lock(workspace, alone=step.alone):
            outcome = workers.run(
                request,
                log=log,
                timeout_s=step.limits.timeout_s,
                memory_mb=step.limits.memory_mb,
            )
        _look_again(step, facts, workspace)
        if not any(out.iterdir()):
            raise StepFailed(f"{step.id} ended well but wrote nothing", at=str(log))
        timing = {
            "wall_s": outcome.wall_s,
            "cpu_s": outcome.cpu_s,
            "peak_mb": outcome.peak_mb,
        }
        record = workspace.store.add(
            verdict.key,
            out,
            step=step.id,
            kind=step.kind,
            facts=facts,
            observed=outcome.observed,
            result=outcome.result,
            timing=timing,
        )
        place(out, workspace.artifact(step), scratch)
        workspace.note(step, Made(verdict.key, record))


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
    )


def machine_lock(workspace: Workspace, *, alone: bool):  # type: ignore[no-untyped-def]
    """Held by every step that runs; a step that measures time holds it alone."""
    return workspace.store.lock("machine", shared=not alone)


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


def place(out: Path, dest: Path, scratch: Path) -> None:
    """Put a folder in place of an old one. Between the two renames it is missing, never mixed."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(dest):
        os.replace(dest, scratch / "old")
    os.replace(out, dest)
    shutil.rmtree(scratch / "old", ignore_errors=True)
