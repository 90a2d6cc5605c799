"""Is a step up to date? The ladder from its facts to the answer, and the reasons for it.

1. *fresh*: what stands in `build/` was made from the very facts of now, and nobody edited it.
2. *stored*: the store has what these facts make; it only has to be put in place.
3. *stale*: it must run.
4. *waiting*: a step that it reads must run first; whether it must run itself depends on the bytes.
5. *missing*: its toolchain, or that of a step that it reads, is not on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from .devices import device_facts
from .digest import digest_tree, list_tree
from .facts import Facts, Value, explain, key, step_facts
from .graph import Graph, Step
from .machine import machine_facts
from .observed import current_value
from .records import artifact_digest
from .store import ActionRecord
from .toolchains import Missing, as_facts, environment_facts
from .workspace import Workspace

ELSEWHERE = "elsewhere"  # the toolchain of a step that can only be run on another machine

Current = Callable[[str], Value]  # the present value of an observed fact, by its name
State = Literal["fresh", "stored", "stale", "waiting", "missing"]
TO_RUN: tuple[State, ...] = ("stale", "waiting")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What must be done for a step, and why."""

    state: State
    reasons: tuple[str, ...] = ()
    key: str = ""
    facts: Facts = {}
    record: ActionRecord | None = None
    missing: Missing | None = None

    @property
    def artifact(self) -> str | None:
        """The digest of what the step makes, where that is known before it runs."""
        known = self.state in ("fresh", "stored") and self.record
        return artifact_digest(self.record.outputs) if known and self.record else None


def survey(graph: Graph, workspace: Workspace) -> dict[str, Verdict]:
    """The verdict on every step, looking through steps whose result is known beforehand."""
    verdicts: dict[str, Verdict] = {}
    for step in graph.steps.values():
        verdicts[step.id] = _look(step, workspace, verdicts)
    return verdicts


def _look(step: Step, workspace: Workspace, before: Mapping[str, Verdict]) -> Verdict:
    for name in step.inputs.values():
        if before[name].state == "missing":
            return Verdict(
                state="missing", reasons=(f"needs {name}",), missing=before[name].missing
            )
    known = {name: before[name].artifact for name in step.inputs.values()}
    waits = tuple(name for name, digest in known.items() if digest is None)
    lacking = workspace.lacks(step)
    if waits and lacking is None:
        return Verdict(state="waiting", reasons=tuple(f"{name} must run first" for name in waits))
    if not waits:
        verdict = assess(step, workspace, {name: digest or "" for name, digest in known.items()})
        if lacking is None or verdict.state not in TO_RUN:
            return verdict
    what = lacking.what if lacking else "a toolchain"
    return Verdict(state="missing", reasons=(f"{what} is not here",), missing=lacking)


def assess(step: Step, workspace: Workspace, artifacts: Mapping[str, str] | None = None) -> Verdict:
    """The verdict on one step.

    `artifacts` gives the digests of what the steps it reads have made, by step id; without it they
    are taken from `build/` as it stands.
    """
    made = workspace.made(step)
    try:
        facts = declared(step, workspace, artifacts)
    except FileNotFoundError as error:
        return Verdict(state="stale", reasons=(f"{error.filename or error} is missing",))
    base = key(facts)

    def current(name: str) -> Value:
        return current_value(name, Path(step.folder), workspace.stats)

    if made and made.key == base and not explain(made.observed, _observed(made, current)):
        if _stands(workspace.artifact(step), made, workspace):
            return Verdict(state="fresh", key=base, facts=facts, record=made)
        reasons: tuple[str, ...] = ("its output was changed or removed",)
    else:
        reasons = _reasons(made, facts, current)
    record = workspace.store.find(base, current)
    state: State = "stored" if record else "stale"
    return Verdict(state=state, reasons=reasons, key=base, facts=facts, record=record)


def declared(step: Step, workspace: Workspace, artifacts: Mapping[str, str] | None = None) -> Facts:
    """All that is known before a step runs and can change what it makes.

    Raises FileNotFoundError where a file that it reads, or the artifact of a step, is not there.
    """
    files = {
        name: digest_tree(Path(path), workspace.stats) for name, path in sorted(step.files.items())
    }
    inputs = {
        name: artifacts[other] if artifacts else here(other, workspace)
        for name, other in sorted(step.inputs.items())
    }
    facts = step_facts(
        step.kind, step.version, step.options, files=files, inputs=inputs, seed=step.seed
    )
    return facts | place_facts(step, workspace)


def here(step: str, workspace: Workspace) -> str:
    """The digest of a step's artifact as it stands in `build/`."""
    return artifact_digest(list_tree(workspace.artifact(step), workspace.stats))


def place_facts(step: Step, workspace: Workspace) -> Facts:
    """Where the step runs: its toolchain, variables that can change results, machine and device.

    Of a step whose toolchain is not here nothing is known but that it runs elsewhere: what was
    made there and brought here by `tf2aif import-bundle` stands under these facts. Of a step that a
    farm does they are those of its machines.
    """
    variables = as_facts(environment_facts(step.environment))
    if seat := workspace.seat(step):
        return seat.facts | variables
    tool = workspace.places.identity(step.toolchain)
    if isinstance(tool, Missing):
        return {"toolchain.kind": ELSEWHERE}
    facts: Facts = {f"toolchain.{name}": version for name, version in tool.facts().items()}
    facts |= variables
    if step.device and workspace.places.place(step.toolchain) is None:
        facts |= {f"device.{name}": value for name, value in device_facts(step.device).items()}
    there = workspace.places.asks(step.toolchain)  # its identity names the machine
    return facts | (machine_facts() if step.machine and not there else {})


def _observed(record: ActionRecord, current: Current) -> Facts:
    return {name: current(name) for name in record.observed}


def _stands(folder: Path, record: ActionRecord, workspace: Workspace) -> bool:
    try:
        same = list_tree(folder, workspace.stats) == record.outputs
    except FileNotFoundError:
        return False
    return same and all((folder / name).is_dir() for name in record.folders)


def _reasons(before: ActionRecord | None, facts: Facts, current: Current) -> tuple[str, ...]:
    if before is None:
        return ("it has not run here yet",)
    after = {**facts, **_observed(before, current)}
    changes = explain({**before.facts, **before.observed}, after)
    return tuple(change.render() for change in changes)
