"""Which variants can be verified: those that were built, from the project as it is now.

And what of them is not as it was built: files in `build/` that somebody changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from .build import Build
from .digest import list_tree
from .errors import Fault, FilesError
from .facts import Facts, explain, key
from .file_differences import FileDifference, compare_files
from .freshness import declared
from .graph import Graph, Step, Variant
from .measurements import FILE as BENCH
from .observed import current_value
from .record import read_record, sidecar, variant_facts
from .records import ActionRecord, OutputFile, artifact_digest
from .workspace import Workspace

SHOWN = 3  # changes of one variant; the first ones say why the others are


def choose(words: Iterable[str], recipes: Iterable[Path], project: Path) -> Build:
    """The part of a project that makes these variants; a recipe's name means all that it has.

    Images are planned for those that were built with one. Raises FilesError with every variant
    that there is not, that was not built, or whose facts changed since.
    """
    found = list(recipes)
    build = Build.load(found, project)
    names = _variants(words, build)
    if any(_has_image(build, name) for name in names):
        build = Build.load(found, project, images=True, workers=build.workers)
    graph = build.graph.only(names)
    plain = {
        name: variant if _has_image(build, name) else msgspec.structs.replace(variant, image=None)
        for name, variant in graph.variants.items()
    }
    graph = Graph(graph.steps, plain).only(names)
    chosen = Build(graph, build.workspace, build.recipes, build.workers)
    faults = [fault for variant in plain.values() if (fault := _fault(chosen, variant))]
    if faults:
        raise FilesError(faults)
    return chosen


def _variants(words: Iterable[str], build: Build) -> list[str]:
    """The variants that are meant, each once, in the order of the graph."""
    there = build.graph.variants
    recipes = {variant.recipe for variant in there.values()}
    wanted = set(words)
    if unknown := sorted(wanted - set(there) - recipes):
        from .spec.words import nearest  # slow to import

        known = [*there, *sorted(recipes)]
        raise FilesError(
            Fault(f"no variant or recipe is called '{word}'", hint=nearest(word, known))
            for word in unknown
        )
    return [n for n, variant in there.items() if n in wanted or variant.recipe in wanted]


def _has_image(build: Build, name: str) -> bool:
    record = read_record(build.workspace.variant(name))
    return record is not None and record.image is not None


def _fault(build: Build, variant: Variant) -> Fault | None:
    """Why a variant cannot be verified; None where it can."""
    space = build.workspace
    record, made = read_record(space.variant(variant.id)), space.made(sidecar(variant))
    if record and record.state == "failed":
        return Fault(f"{variant.id} was not built: {record.reason}", hint="'tf2aif build' first")
    if made is None or (record is None and not space.variant(variant.id).exists()):
        return Fault(f"{variant.id} was never built here", hint="'tf2aif build' first")
    changes = list(_changes(build, variant, made))
    if changes:
        more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        return Fault(
            f"{variant.id} is stale: it was built from something else",
            at="; ".join(changes[:SHOWN]) + more,
            hint="'tf2aif build' first",
        )
    return None


def _changes(build: Build, variant: Variant, made: ActionRecord) -> Iterator[str]:
    """Which facts changed since, by step; then those of the variant itself."""
    for name in build.graph.needs(variant.steps):
        before = build.workspace.made(name)
        if before is not None:
            step = build.graph.steps[name]
            yield from _step_changes(step, before, build)
        elif name not in build.missing:
            yield f"{name} has not run here"
    now = variant_facts(variant, build.graph, build.workspace, build.missing)
    if now is not None and key(now) != made.key:
        for change in explain(_flat(made.facts), _flat(now)):
            yield f"{variant.id}: {change.render()}"


def _step_changes(step: Step, before: ActionRecord, build: Build) -> Iterator[str]:
    """As if every step before it stood as it was made: so each change is told where it began."""
    space = build.workspace
    records = {name: space.made(name) for name in step.inputs.values()}
    artifacts = {n: artifact_digest(r.outputs) if r else "" for n, r in records.items()}
    try:
        now = declared(step, space, artifacts)
    except FileNotFoundError as error:
        yield f"{step.id}: {error.filename or error} is missing"
        return
    folder = Path(step.folder)
    seen = {name: current_value(name, folder, space.stats) for name in before.observed}
    for change in explain({**before.facts, **before.observed}, {**now, **seen}):
        yield f"{step.id}: {change.render()}"


def _flat(facts: Facts) -> Facts:
    """The facts of a variant with those of its own description one by one."""
    inner = facts.get("variant")
    rest = {name: value for name, value in facts.items() if name != "variant"}
    if not isinstance(inner, Mapping):
        return facts
    return {**rest, **{f"variant.{name}": value for name, value in inner.items()}}


# What somebody changed.


def damage_of(workspace: Workspace, step: str) -> tuple[FileDifference, ...]:
    """The files of a step's artifact in `build/` that are not what the step made."""
    made = workspace.made(step)
    if made is None:
        return ()
    return _compare(made, workspace.artifact(step), workspace, ())


def variant_damage(workspace: Workspace, variant: Variant) -> tuple[FileDifference, ...]:
    """The files of a variant's folder that are not what was written there."""
    made = workspace.made(sidecar(variant))
    if made is None:
        return ()
    return _compare(made, workspace.variant(variant.id), workspace, (BENCH,))


def _compare(
    made: ActionRecord, folder: Path, workspace: Workspace, leave: tuple[str, ...]
) -> tuple[FileDifference, ...]:
    try:
        there = list_tree(folder, workspace.stats)
    except FileNotFoundError:
        there = ()

    def stored(file: OutputFile) -> Path | None:
        path = workspace.store.path_of(file)
        return path if path.is_file() else None

    return compare_files(
        made.outputs,
        [file for file in there if file.path not in leave],
        stored,
        lambda file: folder / file.path,
    )
