"""The record of a variant: what it is, as facts, in `build/<recipe>/<variant>/variant.json`.

artifact/      the files that ship
hooks/         the recipe's hooks, where it has some
variant.json   this record
log.txt        what its steps printed
bench.jsonl    what was measured of it; see tf2aif.measurements
rerun/         each step as a request, and rerun.sh that runs them again by hand
image/         the container image as an OCI layout, with its SBOM and provenance
bundle/        where a toolchain is missing: what it needs, and run.sh; see tf2aif.bundle
"""

from __future__ import annotations

import platform as host
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from .bundle import copy
from .digest import digest_tree, list_tree
from .errors import GateFailed
from .facts import Facts, key
from .folders import fresh_folder
from .graph import Emulated, Graph, Step, Variant
from .machine import oci_platform
from .measurements import FILE as BENCH
from .measurements import restore_lines
from .oci.record import ImageRecord, write_image
from .records import ActionRecord, OutputFile, artifact_digest
from .rerun import pretty, write_bundle_folder, write_rerun
from .steps.check import Result as CheckResult
from .steps.check import scored
from .toolchains import Missing
from .workspace import Workspace

SCHEMA = 1

State = Literal["built", "emulated", "bundled", "verified-on-device", "failed"]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """The metric on the evaluation set, of the source model and of the variant."""

    metric: str
    source: float
    variant: float
    drop: float  # positive: the variant is worse
    allowed_drop: float
    samples: int
    labels: bool  # False: the source model's own answers were the truth
    measured_on: str  # the machine's architecture
    engine: str = ""  # which one ran the variant


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step that went into the variant."""

    key: str
    artifact: str
    toolchain: dict[str, Any]
    timing: dict[str, float]


class VariantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a variant. A file with other keys than these is of another version."""

    schema: int
    recipe: str
    variant: str
    target: str
    precision: str
    platform: str
    state: State
    reason: str = ""
    engine: dict[str, Any]
    emulates: str | None = None  # the device's engine, or target, that the engine stands in for
    batch: int | Literal["free", "none"] = 1
    hooks: str | None = None  # the hooks file, relative to the variant's folder
    baseline: bool = False
    calibration: str = "none"  # none, data, random
    artifact: str = ""
    size_bytes: int = 0
    files: tuple[OutputFile, ...] = ()
    accuracy: Accuracy | None = None
    outputs: dict[str, Any] = {}
    latency: dict[str, Any] | None = None
    compiler: dict[str, Any] = {}  # what the device's compiler told, such as resources
    labels: dict[str, str] = {}
    image: ImageRecord | None = None
    steps: dict[str, StepRecord] = {}


MissingSteps = Mapping[str, Missing]  # step -> the toolchain that it lacks here


def variant_facts(
    variant: Variant, graph: Graph, workspace: Workspace, missing: MissingSteps
) -> Facts | None:
    """What decides whether a variant's folder is up to date; None where a step has not run."""
    facts: Facts = {"schema": SCHEMA, "machine": host.machine()}
    # Where the hooks lie is no fact (a checkout may move), what is in them is.
    places = msgspec.structs.replace(variant, hook_files=dict.fromkeys(variant.hook_files, ""))
    facts["variant"] = msgspec.to_builtins(places)
    for name, path in variant.hook_files.items():
        facts[f"hooks.{name}"] = digest_tree(Path(path), workspace.stats)
    for name in graph.needs(variant.steps):
        if name in missing:
            facts[f"step.{name}"] = _missing_facts(graph.steps[name], missing[name], workspace)
            continue
        made = workspace.made(name)
        if made is None:
            return None
        facts[f"step.{name}"] = [made.key, artifact_digest(made.outputs)]
    return facts


def _missing_facts(step: Step, tool: Missing, workspace: Workspace) -> Facts:
    """What a bundle packs of a step that cannot run here."""
    files = {n: digest_tree(Path(p), workspace.stats) for n, p in step.files.items()}
    return {"what": tool.what, "version": step.version, "options": step.options, "files": files}


def is_current(variant: Variant, graph: Graph, workspace: Workspace, missing: MissingSteps) -> bool:
    """Whether the folder is what its steps make now, and nobody edited it."""
    facts = variant_facts(variant, graph, workspace, missing)
    made = workspace.made(sidecar(variant))
    if facts is None or made is None or made.key != key(facts):
        return False
    try:
        return _files(variant, workspace) == made.outputs
    except FileNotFoundError:
        return False


def _files(variant: Variant, workspace: Workspace) -> tuple[OutputFile, ...]:
    """What stands in the variant's folder, but for what `tf2aif bench` left beside it."""
    found = list_tree(workspace.variant(variant.id), workspace.stats)
    return tuple(file for file in found if file.path != BENCH)


def write_variant(
    variant: Variant, graph: Graph, workspace: Workspace, missing: MissingSteps
) -> VariantRecord:
    """Make the variant's folder from its steps. Raises GateFailed where it lost too much."""
    there = [name for name in graph.needs(variant.steps) if name not in missing]
    record = _record(variant, {name: made for name in there if (made := workspace.made(name))})
    if record.state == "failed":
        write_failure(variant, workspace, record.reason, record)
        raise GateFailed(
            f"{variant.id}: {record.reason}",
            at=str(workspace.variant(variant.id) / "variant.json"),
            hint="raise the gate in the recipe if that is acceptable, give more calibration "
            "samples, or choose another precision",
        )
    record = _write_folder(variant, graph, workspace, record)
    _note(variant, graph, workspace, missing)
    return record


def _note(variant: Variant, graph: Graph, workspace: Workspace, missing: MissingSteps) -> None:
    """Remember what the folder was made from, and its bytes."""
    facts = variant_facts(variant, graph, workspace, missing) or {}
    record = ActionRecord(
        key=key(facts),
        step=variant.id,
        kind="variant",
        facts=facts,
        outputs=_files(variant, workspace),
    )
    workspace.note(sidecar(variant), record)


def write_failure(
    variant: Variant, workspace: Workspace, reason: str, record: VariantRecord | None = None
) -> None:
    """Say that the variant failed; the artifact of an earlier build does not stay behind."""
    record = record or _bare(variant, "failed", reason)
    with fresh_folder(workspace.variant(variant.id)) as out:
        (out / "variant.json").write_bytes(pretty(record))


def variant_folders(build: Path) -> list[Path]:
    """Where the variants of a build folder stand, sorted; hidden folders are being written."""
    found = (path.parent for path in build.glob("*/*/variant.json"))
    return sorted(
        folder
        for folder in found
        if not folder.name.startswith(".") and not folder.parent.name.startswith(".")
    )


def read_record(folder: Path) -> VariantRecord | None:
    """The record in a variant's folder; None where there is none that we can read."""
    try:
        return msgspec.json.decode((folder / "variant.json").read_bytes(), type=VariantRecord)
    except (OSError, msgspec.DecodeError):
        return None


def write_bundle(
    variant: Variant, graph: Graph, workspace: Workspace, missing: MissingSteps
) -> VariantRecord:
    """Pack what the missing toolchain needs, and the command that runs it elsewhere.

    Where the target has an emulation, what it ran is there too, with the accuracy that it showed.
    """
    steps = [name for name in graph.needs(variant.device_steps) if name in missing]
    tool = missing[steps[0]]
    record = _bare(variant, "bundled", f"{tool.what} is not here: {tool.hint}")
    if variant.emulation and not set(graph.needs(variant.emulated_steps)) & set(missing):
        record = _unchecked(variant, variant.emulation, graph, workspace, missing, record)
    with fresh_folder(workspace.variant(variant.id)) as out:
        if record.artifact:
            _fill(variant, graph, workspace, record, out)
        if variant.image and not set(graph.needs(variant.image.steps)) & set(missing):
            image = write_image(variant, variant.image, graph, workspace, out / "image")
            record = msgspec.structs.replace(record, image=image)
        write_bundle_folder(out / "bundle", variant.id, graph, workspace, steps)
        (out / "variant.json").write_bytes(pretty(record))
    _note(variant, graph, workspace, missing)
    return record


def _unchecked(
    variant: Variant,
    how: Emulated,
    graph: Graph,
    workspace: Workspace,
    missing: MissingSteps,
    record: VariantRecord,
) -> VariantRecord:
    """The record of what could be made and measured without the device.

    Where the device's compiler was here, its artifact ships; else what the emulation ran stands in.
    """
    there = [name for name in graph.needs(variant.steps) if name not in missing]
    made = {name: one for name in there if (one := workspace.made(name))}
    compiled = variant.artifact in made
    artifact, check = made[variant.artifact if compiled else how.artifact], made[how.check].result
    state: State = "built" if compiled else "emulated" if how.exact else "bundled"
    if not compiled and how.engine != variant.engine:
        engine = {"name": how.engine, "options": how.engine_options}
        record = msgspec.structs.replace(record, engine=engine, emulates=variant.engine)
    return msgspec.structs.replace(
        record,
        state=state,
        artifact=artifact_digest(artifact.outputs),
        size_bytes=sum(o.size for o in artifact.outputs),
        files=artifact.outputs,
        accuracy=_accuracy(variant, check, how.engine),
        outputs=check["outputs"],
        compiler=_told(variant, made),
        steps={name: _step_record(m) for name, m in made.items()},
    )


def _record(variant: Variant, made: dict[str, ActionRecord]) -> VariantRecord:
    artifact = made[variant.artifact]
    check = made[variant.check].result
    accuracy = _accuracy(variant, check, variant.engine)
    lost = scored(msgspec.convert(check, CheckResult)).lost(variant.allowed_drop)
    return msgspec.structs.replace(
        _bare(variant, "failed" if lost else _state(variant, made[variant.check]), lost),
        artifact=artifact_digest(artifact.outputs),
        size_bytes=sum(o.size for o in artifact.outputs),
        files=artifact.outputs,
        accuracy=accuracy,
        outputs=check["outputs"],
        latency=made[variant.latency].result if variant.latency in made else None,
        compiler=_told(variant, made),
        steps={name: _step_record(m) for name, m in made.items()},
    )


def _told(variant: Variant, made: Mapping[str, ActionRecord]) -> dict[str, Any]:
    """The report of the device's compiler, where the target has one and it has run."""
    how = variant.emulation
    compiled = how and how.artifact != variant.artifact and variant.artifact in made
    return made[variant.artifact].result if compiled else {}


def _accuracy(variant: Variant, check: Mapping[str, Any], engine: str) -> Accuracy:
    result = msgspec.convert(check, CheckResult)
    score = scored(result)
    return Accuracy(
        metric=score.metric,
        source=score.source,
        variant=score.variant,
        drop=score.drop,
        allowed_drop=variant.allowed_drop,
        samples=result.samples,
        labels=result.labels,
        measured_on=host.machine(),
        engine=engine,
    )


def _bare(variant: Variant, state: State, reason: str) -> VariantRecord:
    calibration = "none"
    if variant.calibration:
        calibration = "random" if variant.random_calibration else "data"
    return VariantRecord(
        schema=SCHEMA,
        recipe=variant.recipe,
        variant=variant.name,
        target=variant.target,
        precision=variant.precision,
        platform=variant.platform,
        state=state,
        reason=reason,
        engine={"name": variant.engine, "options": variant.engine_options},
        emulates=variant.target if variant.runs_emulated else None,
        batch=variant.batch,
        hooks=f"hooks/{variant.hooks}" if variant.hooks else None,
        baseline=variant.baseline,
        calibration=calibration,
        labels=variant.labels,
    )


def _state(variant: Variant, check: ActionRecord) -> State:
    """A check by the device's own engine, on the kind of machine that the target names."""
    if variant.runs_emulated:
        return "built"
    facts = check.made_by or check.facts
    system, _, machine = str(facts.get("toolchain.platform", "")).partition("-")
    there = oci_platform(system, machine) == variant.platform
    return "verified-on-device" if there else "built"


def _step_record(record: ActionRecord) -> StepRecord:
    prefixes = ("toolchain.", "environment.", "machine.")
    tool = {n: v for n, v in record.facts.items() if n.startswith(prefixes)}
    tool |= record.made_by or {}
    return StepRecord(
        key=record.key,
        artifact=artifact_digest(record.outputs),
        toolchain={**tool, **record.observed},
        timing=record.timing,
    )


def _write_folder(
    variant: Variant, graph: Graph, workspace: Workspace, record: VariantRecord
) -> VariantRecord:
    with fresh_folder(workspace.variant(variant.id)) as out:
        _fill(variant, graph, workspace, record, out)
        if variant.image:
            image = write_image(variant, variant.image, graph, workspace, out / "image")
            record = msgspec.structs.replace(record, image=image)
        (out / "variant.json").write_bytes(pretty(record))
    return record


def _fill(
    variant: Variant, graph: Graph, workspace: Workspace, record: VariantRecord, out: Path
) -> None:
    """What ships, and what tells how it was made."""
    steps = tuple(name for name in graph.needs(variant.steps) if name in record.steps)
    how = variant.emulation
    compiled = how is None or variant.artifact in record.steps
    artifact = variant.artifact if compiled or how is None else how.artifact
    shutil.copytree(workspace.artifact(artifact), out / "artifact")
    for name, path in variant.hook_files.items():
        copy(Path(path), out / "hooks" / name)
    restore_lines(
        workspace.variant(variant.id),
        out,
        workspace.store.root,
        recipe=record.recipe,
        variant=record.variant,
        artifact=record.artifact,
    )
    (out / "log.txt").write_text(_logs(steps, workspace), encoding="utf-8")
    write_rerun(out / "rerun", steps, graph, workspace)


def _logs(steps: Iterable[str], workspace: Workspace) -> str:
    parts = []
    for name in steps:
        log = workspace.log(name)
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        parts.append(f"== {name}\n{text}")
    return "\n".join(parts)


def sidecar(variant: Variant) -> str:
    """What the record of a variant's folder is noted under."""
    return f"{variant.recipe}/@{variant.name}"
