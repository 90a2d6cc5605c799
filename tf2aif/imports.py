"""What a bundle made on another machine, taken into the store of this one.

It is taken only where it was made from the very inputs, options and step versions of now. Which
machine and toolchain made it goes into the record as `made_by`, and is never a fact of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .build import Build
from .bundle import MANIFEST, RESULTS, Results, StepResult, read
from .digest import list_tree
from .errors import Tf2aifError
from .execute import bring_up_to_date
from .facts import explain, key
from .freshness import TO_RUN, assess, declared, here
from .graph import Step
from .records import artifact_digest

_OF_PLACE = ("toolchain.", "environment.", "machine.", "device.")
_AGAIN = "build again, and run the bundle's run.sh of now"
_BRING = "bring the whole folder again"


def take_bundle(folder: Path, build: Build) -> str:
    """Take the results in a folder that a bundle's run.sh has written; the variant's id.

    Raises Tf2aifError where they are damaged, of another state of the project, or of a variant
    that it does not have: then nothing is taken.
    """
    results: Results = read(folder / RESULTS, Results, hint=_hint(folder))
    if results.variant not in build.graph.variants:
        known = ", ".join(build.graph.variants)
        raise Tf2aifError(
            f"no recipe has the variant {results.variant}", at=str(folder), hint=f"there: {known}"
        )
    for result in results.steps:
        _step(result, build)  # before the files are looked at
    _prepare(results, build)
    for step, result in _wanted(results, folder, build):
        _take(step, result, _artifact(folder, result), build)
    return results.variant


def _hint(folder: Path) -> str:
    if (folder / MANIFEST).is_file():
        return "this is the bundle itself: name the folder that its run.sh has written"
    return "name the folder that run.sh of a bundle has written"


def _wanted(results: Results, folder: Path, build: Build) -> list[tuple[Step, StepResult]]:
    """What is taken of the results, after all of them were looked at."""
    made = {result.id: result.artifact for result in results.steps}
    checked = []
    for result in results.steps:
        step = _step(result, build)
        if not build.workspace.lacks(step):  # the next build runs it here
            break
        _check(step, result, _artifact(folder, result), made, build)
        checked.append((step, result))
    return checked


def _artifact(folder: Path, result: StepResult) -> Path:
    return folder / result.id.partition("/")[2]


def _step(result: StepResult, build: Build) -> Step:
    step = build.graph.steps.get(result.id)
    if step is None:
        raise Tf2aifError(f"the recipe has no step {result.id} any more", hint=_AGAIN)
    return step


def _prepare(results: Results, build: Build) -> None:
    """What the steps read must stand in `build/`."""
    packed = {result.id for result in results.steps}
    for name in build.graph.needs(packed):
        step = build.graph.steps[name]
        if name in packed:
            continue
        if assess(step, build.workspace).state in TO_RUN:
            raise Tf2aifError(f"{name} is not up to date", hint="'tf2aif build' first")
        bring_up_to_date(step, build.workspace, build.workers)


def _check(
    step: Step, result: StepResult, artifact: Path, made: Mapping[str, str], build: Build
) -> None:
    """Raises Tf2aifError where it was made from something else, or is not whole.

    `made` are the digests of what the steps of the bundle made, by step.
    """
    read_by = set(step.inputs.values())
    inputs = {other: made.get(other) or here(other, build.workspace) for other in read_by}
    facts = declared(step, build.workspace, inputs)
    own = {name: value for name, value in facts.items() if not name.startswith(_OF_PLACE)}
    if changes := explain(result.facts, own):
        words = "; ".join(change.render() for change in changes)
        raise Tf2aifError(f"{step.id} was made from something else: {words}", hint=_AGAIN)
    try:
        found = artifact_digest(list_tree(artifact))
    except OSError as error:
        raise Tf2aifError(f"not there: {error.strerror}", at=str(artifact), hint=_BRING) from error
    if found != result.artifact:
        raise Tf2aifError(f"what {step.id} made is damaged", at=str(artifact), hint=_BRING)


def _take(step: Step, result: StepResult, artifact: Path, build: Build) -> None:
    facts = declared(step, build.workspace)
    build.workspace.store.add(
        key(facts),
        artifact,
        step=step.id,
        kind=step.kind,
        facts=facts,
        observed={},
        result=result.result,
        timing=result.timing,
        made_by=result.made_by,
    )
    bring_up_to_date(step, build.workspace, build.workers)
