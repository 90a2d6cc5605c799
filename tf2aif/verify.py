"""Is a variant reproducible? Built again without any cache, elsewhere, and compared byte by byte.

Every step runs again: in new processes, from a copy of the sources at another path, on what the
steps before it made this time. A step's module may say, in COMPARE, how its artifacts are compared:

`bytes`     every file is the same; so it is where nothing is said
`outputs`   both artifacts are run over the evaluation samples, and their outputs agree within the
            step's option `tolerance`, else the module's TOLERANCE, else TOLERANCE here
`numbers`   its arrays (`.npy`) agree within that tolerance, every other file is the same
`nothing`   it measures times; so it is for every step that runs alone
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .build import Build
from .digest import digest_file
from .errors import StepFailed, Tf2aifError
from .facts import explain
from .file_differences import FileDifference, compare_files
from .graph import Graph, Step, Variant
from .oci.record import ImageRecord
from .record import read_record
from .records import ActionRecord, OutputFile, artifact_digest
from .second_build import SecondBuild
from .steps import step_module
from .verifiable import damage_of, variant_damage
from .verification import (
    FAULTY,
    UNVERIFIED,
    How,
    ImageCheck,
    LayerCheck,
    State,
    StepCheck,
    VariantCheck,
    Verification,
)
from .workers import Workers
from .workspace import Workspace

TOLERANCE = 0.01
"""Euclidean norm of the difference of two outputs, over that of the first."""

Listen = Callable[[str, StepCheck], None]


def verify(
    build: Build,
    folder: Path,
    *,
    in_place: bool = False,
    workers: Workers | None = None,
    listen: Listen = lambda *_: None,
) -> Verification:
    """Build all variants of a build again in an empty folder, and compare.

    They must be as their project is now: see `tf2aif.verifiable.choose`. With `in_place` steps
    read the project's sources where they are. `workers` are new ones, unless some are given that
    are still warm: these are not closed. `listen` is told of each step.
    """
    space = build.workspace
    damaged = {name: found for name in build.graph.steps if (found := damage_of(space, name))}
    second = SecondBuild(build.graph, space, folder, in_place=in_place, workers=workers)
    try:
        again = _Again(build, second, listen)
        again.look_at(build.graph.steps)
        variants = {
            name: again.variant(variant, set(damaged))
            for name, variant in build.graph.variants.items()
        }
    finally:
        second.close()
    steps = {name: again.steps[name] for name in build.graph.steps}
    return Verification(variants=variants, steps=steps, damaged=damaged)


class _Again:
    """Running the steps once more, one after the other."""

    def __init__(self, build: Build, second: SecondBuild, listen: Listen) -> None:
        self.graph: Graph = build.graph
        self.first: Workspace = build.workspace
        self.second = second
        self.listen = listen
        self.steps: dict[str, StepCheck] = {}

    def look_at(self, names: Iterable[str]) -> None:
        """Run and compare these steps, each once; in an order in which they can run."""
        for name in names:
            if name not in self.steps:
                self.steps[name] = self._look(name)
                self.listen(name, self.steps[name])

    def _look(self, name: str) -> StepCheck:
        """Run a step and compare what it made."""
        step = self.graph.steps[name]
        how = compared_by(step)
        if tool := self.first.lacks(step):
            return StepCheck(state="elsewhere", compared=how, message=f"needs {tool.what}")
        if stopped := self._before(step, ("failed", *UNVERIFIED)):
            return StepCheck(state="untried", compared=how, after=stopped)
        made = self.first.made(name)
        if made is None:  # a bundle's step that was not made anywhere yet
            return StepCheck(state="untried", compared=how, message="was never made")
        try:
            second = self.second.run(name)
        except Tf2aifError as error:
            return _failed(how, error)
        if changed := _own_changes(made, second):
            return _failed(how, StepFailed(f"its facts changed since: {changed}"))
        return self._compare(step, how, made, second)

    def _before(self, step: Step, states: Iterable[State]) -> tuple[str, ...]:
        wanted = frozenset(states)
        inputs = dict.fromkeys(step.inputs.values())
        return tuple(name for name in inputs if self.steps[name].state in wanted)

    def _compare(self, step: Step, how: How, made: ActionRecord, second: ActionRecord) -> StepCheck:
        if how == "nothing":
            return StepCheck(state="measured", compared=how)
        if artifact_digest(made.outputs) == artifact_digest(second.outputs):
            return StepCheck(state="same", compared=how)
        files = compare_files(
            made.outputs, second.outputs, self._find(step.id), self._find_second(step.id)
        )
        after = tuple(
            name
            for name in dict.fromkeys(step.inputs.values())
            if _digest(self.first, name) != _digest(self.second.workspace, name)
        )
        excused = all(self.steps[name].excused for name in after)
        if how == "numbers" and excused:
            return self._compare_numbers(step, files, after)
        if how == "outputs" and excused:
            return self._compare_outputs(step, files, after)
        if after:
            return StepCheck(
                state="follows", compared=how, after=after, files=files, excused=excused
            )
        return StepCheck(
            state="differs",
            compared=how,
            files=files,
            message=_observed_changes(made, second),
            excused=False,
        )

    def _compare_outputs(
        self, step: Step, files: tuple[FileDifference, ...], after: tuple[str, ...]
    ) -> StepCheck:
        """Other bytes are no fault where the outputs agree."""

        def told(state: State, message: str) -> StepCheck:
            return StepCheck(
                state=state,
                compared="outputs",
                after=after,
                files=files,
                message=message,
                excused=state == "agrees",
            )

        check = _check_of(self.graph, step.id)
        if check is None:
            return told("differs", "no engine of this variant runs it, so outputs say nothing")
        if damage_of(self.first, step.id):
            return told("differs", "the first artifact is damaged, so it cannot be run")
        samples = self.graph.steps[check].inputs["evaluation"]
        self.look_at(self.graph.needs([samples]))  # it may stand behind this step
        if self.steps[samples].state in ("failed", *UNVERIFIED):
            return told("differs", f"{samples} did not run again, so outputs say nothing")
        try:
            found = self.second.compare_outputs(step.id, check)
        except Tf2aifError as error:
            return _failed("outputs", error)
        name, worst = max(found.items(), key=lambda item: item[1].relative)
        tolerance = tolerance_of(step)
        words = f"output '{name}' is {worst.relative:.2g} off, {tolerance:.2g} is allowed"
        # Not `>`: what is no number does not agree.
        return told("agrees" if worst.relative <= tolerance else "differs", words)

    def _compare_numbers(
        self, step: Step, files: tuple[FileDifference, ...], after: tuple[str, ...]
    ) -> StepCheck:
        """Other last bits are no fault where the arrays agree."""
        first, second = self.first.artifact(step.id), self.second.workspace.artifact(step.id)
        damaged = damage_of(self.first, step.id)
        worst = math.inf if damaged else max(_apart(first, second, file.path) for file in files)
        agrees = worst <= tolerance_of(step)  # no number does not
        return StepCheck(
            state="agrees" if agrees else "differs",
            compared="numbers",
            after=after,
            files=files,
            message=f"the numbers are {worst:.2g} off, {tolerance_of(step):.2g} is allowed",
            excused=agrees,
        )

    def _find(self, name: str) -> Callable[[OutputFile], Path | None]:
        """Where the first build's bytes of a file are: in `build/`, else in the store."""

        def find(file: OutputFile) -> Path | None:
            here = self.first.artifact(name) / file.path
            for path in (here, self.first.store.path_of(file)):
                if path.is_file() and digest_file(path) == file.digest:
                    return path
            return None

        return find

    def _find_second(self, name: str) -> Callable[[OutputFile], Path | None]:
        return lambda file: self.second.workspace.artifact(name) / file.path

    # Variants.

    def variant(self, variant: Variant, damaged: set[str]) -> VariantCheck:
        """What its steps, its folder and its image come to."""
        steps = self.graph.needs(variant.steps)
        checks = {name: self.steps[name] for name in steps}
        files = variant_damage(self.first, variant)
        first = next((name for name, c in checks.items() if c.state in FAULTY), None)
        unseen = any(check.state in UNVERIFIED for check in checks.values())
        image, message = None, ""
        if not unseen and all(check.state != "failed" for check in checks.values()):
            image, message = self._write(variant)
        other_image = image is not None and not image.excused
        faulty = first or files or message or damaged & set(steps) or other_image
        return VariantCheck(
            state="differs" if faulty else "partly" if unseen else "same",
            steps=steps,
            first=first,
            message=message,
            damaged=files,
            image=image,
        )

    def _write(self, variant: Variant) -> tuple[ImageCheck | None, str]:
        """Write the variant's folder too; its image, if it has one, and what went wrong."""
        first = read_record(self.first.variant(variant.id))
        try:
            second = self.second.write_variant(variant)
        except Tf2aifError as error:
            return None, error.faults[0].message
        if first is None or first.image is None or second.image is None:
            return None, ""
        return self._compare_images(variant, first.image, second.image), ""

    def _compare_images(
        self, variant: Variant, first: ImageRecord, second: ImageRecord
    ) -> ImageCheck:
        """Other digests are the steps' fault, unless all of them gave the same."""
        if second.digest == first.digest:
            return ImageCheck(state="same", first=first.digest, second=second.digest)
        steps = self.graph.needs(variant.steps)
        before = {layer.created_by: layer.digest for layer in first.layers}
        after = {layer.created_by: layer.digest for layer in second.layers}
        others = [self.steps[n] for n in steps if self.steps[n].state not in ("same", "measured")]
        return ImageCheck(
            state="follows" if others else "differs",
            first=first.digest,
            second=second.digest,
            layers=tuple(
                LayerCheck(created_by=name, first=before.get(name, ""), second=after.get(name, ""))
                for name in dict.fromkeys([*before, *after])
                if before.get(name) != after.get(name)
            ),
            excused=bool(others) and all(check.excused for check in others),
        )


def _apart(first: Path, second: Path, file: str) -> float:
    """How far two files of numbers are apart, relative to their norm; infinite for other files."""
    import numpy as np

    if not file.endswith(".npy") or not (first / file).is_file() or not (second / file).is_file():
        return math.inf
    one, other = np.load(first / file), np.load(second / file)
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    size = float(np.linalg.norm(one.astype(np.float64)))
    apart = float(np.linalg.norm(other.astype(np.float64) - one.astype(np.float64)))
    return apart / size if size else (math.inf if apart else 0.0)


def compared_by(step: Step) -> How:
    """How a step's artifacts are compared, as its module says."""
    how: How = getattr(step_module(step.kind), "COMPARE", "nothing" if step.alone else "bytes")
    return how


def tolerance_of(step: Step) -> float:
    """How far outputs may be off, relative to their norm, as the step's options or module say."""
    own = getattr(step_module(step.kind), "TOLERANCE", TOLERANCE)
    return float(step.options.get("tolerance", own))


def _check_of(graph: Graph, artifact: str) -> str | None:
    """A step that runs an artifact over the evaluation set."""
    for step in graph.steps.values():
        if step.kind == "check" and step.inputs["artifact"] == artifact:
            return step.id
    return None


def _digest(workspace: Workspace, name: str) -> str:
    made = workspace.made(name)
    return artifact_digest(made.outputs) if made else ""


def _own_changes(first: ActionRecord, second: ActionRecord) -> str:
    """What changed in the project while it was verified: of this step's facts, not its inputs'."""
    own = [_without_inputs(record.facts) for record in (first, second)]
    return "; ".join(change.render() for change in explain(*own))


def _without_inputs(facts: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if not name.startswith("input.")}


def _observed_changes(first: ActionRecord, second: ActionRecord) -> str:
    """What the user's code read this time and had not read before, if that is why."""
    changes = explain(first.observed, second.observed)
    return "; ".join(f"it read {change.render()}" for change in changes)


def _failed(how: How, error: Tf2aifError) -> StepCheck:
    message = error.faults[0].message.partition("\n")[0]  # the rest is the end of its log
    return StepCheck(state="failed", compared=how, message=message, excused=False)
