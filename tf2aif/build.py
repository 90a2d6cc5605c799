"""One build: its graph, its workspace, its workers, and what came of each step and variant."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from .admission import Admission, open_admission
from .errors import Fault, FilesError, GateFailed, StepFailed, Tf2aifError, ToolchainMissing
from .estimates import Past, history_of
from .execute import Done, Result, bring_up_to_date
from .freshness import TO_RUN, Verdict, assess, survey
from .graph import Graph, Variant, plan
from .machine import this_platform
from .oci.planning import find_inputs
from .record import (
    VariantRecord,
    is_current,
    read_record,
    write_bundle,
    write_failure,
    write_variant,
)
from .spec.load import LoadedRecipe, load_project
from .timeline import Chronicle, write_last
from .toolchains import Missing, identity
from .workers import Workers
from .workspace import Workspace

if TYPE_CHECKING:
    from .farm.plan import FarmPlan


class Event(msgspec.Struct, frozen=True):
    """Something that a person who waits wants to see."""

    what: Literal["start", "locked", "waits", "runs", "over", "done", "failed"]
    name: str
    result: Result | None = None
    error: str = ""
    about: str = ""
    """What it waits for: a lock, or a resource that others use; or the machine that it runs on."""


class Build:
    """All that one build knows. Its methods may be called from several threads."""

    def __init__(
        self,
        graph: Graph,
        workspace: Workspace,
        recipes: Iterable[LoadedRecipe] = (),
        workers: Workers | None = None,
        left_out: Iterable[LoadedRecipe] = (),
    ) -> None:
        self.graph = graph
        self.recipes = tuple(recipes)
        self.left_out = tuple(left_out)
        self.workspace = workspace
        self.workers = workers or Workers()
        self.missing = self._missing()
        self.runnable = tuple(name for name in graph.steps if name not in self.missing)
        self.results: dict[str, Result] = {}
        self.failures: dict[str, Tf2aifError] = {}
        self.listen: Callable[[Event], None] = lambda _: None
        self.chronicle: Chronicle | None = None
        self._scheduling = threading.Lock()
        self._closed = False

    @classmethod
    def load(
        cls,
        recipes: Iterable[Path],
        project: Path,
        *,
        targets: Iterable[str] = (),
        workers: Workers | None = None,
        images: bool = False,
        farm: Callable[[Workspace], FarmPlan] | None = None,
    ) -> Build:
        """Read recipes and targets and plan. Raises FilesError with all that is wrong.

        With `images` each variant ends in a container image; what composes them must be here, or
        ToolchainMissing is raised.
        `workers` are taken from an earlier build, so that they are still warm.
        `farm` lets the workspace join a farm, which then runs what it can.
        """
        if images and isinstance(tool := identity("image"), Missing):
            raise ToolchainMissing(f"images need {tool.what}, which is not here", hint=tool.hint)
        loaded = load_project(list(recipes), project)
        only = tuple(targets)
        _known(only, loaded.targets)
        workspace = Workspace(project)
        farms = farm(workspace).seats.platforms if farm else ()
        graph = plan(
            loaded.recipes,
            loaded.targets,
            only_targets=only,
            platform=this_platform(),
            images=find_inputs(project) if images else None,
            farm=farms,
        )
        return cls(graph, workspace, loaded.recipes, workers, loaded.left_out)

    def check(self) -> None:
        """Look at the files of each recipe that has something to run, before TensorFlow is loaded.

        Raises FilesError with all that is wrong with models, samples and code.
        """
        if self.workspace.shared is not None:  # what others made may have come to the store
            self.__dict__.pop("verdicts", None)
        stale = {name.partition("/")[0] for name, v in self.verdicts.items() if v.state in TO_RUN}
        if stale:
            from .spec.check import recipe_file_faults  # slow to import

            todo = [loaded for loaded in self.recipes if loaded.name in stale]
            faults = [fault for loaded in todo for fault in recipe_file_faults(loaded)]
            if faults:
                raise FilesError(faults)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """What must be done for each step, as it was when that was first asked."""
        return survey(self.graph, self.workspace)

    def schedule(self, jobs: int | None) -> Admission:
        """From now on steps run within so many cores, and the memory that is free.

        None: who calls the steps sees to that himself, as `doit -n` does, and memory is kept to.
        """
        space = self.workspace
        with self._scheduling:
            if space.admission is not None:
                return space.admission
            verdicts = self.__dict__.get("verdicts", {})
            admission = open_admission(
                self.graph,
                space,
                jobs=jobs,
                at_hand={n for n, v in verdicts.items() if v.state in ("fresh", "stored")},
                missing=self.missing,
                tell=lambda what, name, about: self._tell(Event(what, name, about=about)),
            )
            self.workers.idle_room_mb = admission.idle_room_mb
            self.chronicle = Chronicle(
                jobs=admission.cores, memory_mb=admission.memory_mb, cpu_s=self.workers.cpu_s
            )
            for name in self.results:
                admission.finish(name, well=True)
            space.admission = admission
        return admission

    # What the tasks call.

    def is_fresh(self, name: str) -> bool:
        """Whether the step's artifact stands as its facts want it."""
        try:
            fresh = assess(self.graph.steps[name], self.workspace).state == "fresh"
        except (Tf2aifError, OSError):
            return False  # running it says what is wrong
        if fresh:
            self._done(name, Result("fresh", 0.0))
        return fresh

    def run_step(self, name: str, *, again: bool = False) -> None:
        """Bring a step up to date; `again` runs it whatever the store has."""
        self.schedule(None)
        self._tell(Event("start", name))
        step = self.graph.steps[name]
        try:
            result = bring_up_to_date(step, self.workspace, self.workers, again=again)
        except OSError as error:
            raise self._failed(name, _os_error(name, error)) from error
        except Tf2aifError as error:
            if step.kind == "gate" and isinstance(error, StepFailed):
                error = _gate_failed(error)
            raise self._failed(name, error) from error
        took_s = self.chronicle.took_s(name) if self.chronicle else result.wall_s
        self._done(name, msgspec.structs.replace(result, wall_s=took_s))

    def is_current(self, name: str) -> bool:
        """Whether the variant's folder is what its steps make now."""
        variant = self.graph.variants[name]
        try:
            return is_current(variant, self.graph, self.workspace, self.missing)
        except (Tf2aifError, OSError):
            return False

    def write_variant(self, name: str, *, again: bool = False) -> None:
        """Write the variant's folder, or its bundle where a toolchain is missing.

        Not where another build has just done it, unless it is to be written `again`.
        """
        variant = self.graph.variants[name]
        writing = self.chronicle.variant(name) if self.chronicle else contextlib.nullcontext()
        try:
            self._bring(variant)
            write = write_bundle if self.blocked(variant) else write_variant
            with writing, self.workspace.lock_variant(name):
                if not again and self.is_current(name):
                    return
                write(variant, self.graph, self.workspace, self.missing)
        except OSError as error:
            raise self._failed(name, _os_error(name, error)) from error
        except Tf2aifError as error:
            raise self._failed(name, error) from error

    def _bring(self, variant: Variant) -> None:
        """Take what was made elsewhere, where it turns out only now to be what is wanted.

        What a step before it makes is known when that has run, and the plan was made before.
        """
        for name in self.graph.needs(variant.steps):
            if name in self.missing:
                try:
                    bring_up_to_date(self.graph.steps[name], self.workspace, self.workers)
                except ToolchainMissing:
                    return
                del self.missing[name]

    def clean_step(self, name: str) -> None:
        """Remove a step's artifact and what is known of it."""
        folder = self.workspace.artifact(name)
        shutil.rmtree(folder, ignore_errors=True)
        for ending in (".json", ".log"):
            folder.with_name(folder.name + ending).unlink(missing_ok=True)

    def clean_variant(self, name: str) -> None:
        """Remove a variant's folder."""
        shutil.rmtree(self.workspace.variant(name), ignore_errors=True)

    def relative(self, path: str | Path) -> str:
        """A path as doit matches it: relative to the project, so that a checkout can move."""
        return os.path.relpath(path, self.workspace.project)

    def note_untried(self, name: str, message: str) -> None:
        """A task that was not even tried, because of what it depends on."""
        if name in self.failures or any(n in self.failures for n in self._needs(name)):
            return
        self._failed(name, StepFailed(f"{name}: {message}"))

    def close(self) -> None:
        """End the workers, and keep what was learnt about files and about steps."""
        if self.workspace.farm is not None:
            self.workspace.farm.close()
        self._closed = True
        if self.workspace.admission is not None:
            self.workspace.admission.close()
        self.workers.close()
        with contextlib.suppress(Tf2aifError):  # it saves time and nothing else
            self.workspace.stats.save()
        self._keep_times()

    def _keep_times(self) -> None:
        """What steps took here: for the next build's order, and for the report."""
        if self.chronicle is None:
            return
        last = self.chronicle.last()
        took = {
            s.name: Past(kind=s.kind, wall_s=s.seconds, cpu_s=s.cpu_s, peak_mb=s.peak_mb)
            for s in last.steps
            if s.done == "ran" and not s.where
        }
        if took:
            history_of(self.workspace).add(took)
        with contextlib.suppress(OSError):  # a full disk: the build is as good without it
            write_last(self.workspace.private, last)

    # What came of it.

    def blocked(self, variant: Variant) -> bool:
        """Whether the variant waits for a toolchain that is not on this machine."""
        return any(name in self.missing for name in self.graph.needs(variant.needed_steps))

    def records(self) -> dict[str, VariantRecord | None]:
        """The record of each variant as it stands."""
        return {n: read_record(self.workspace.variant(n)) for n in self.graph.variants}

    def count(self, done: Done) -> int:
        """How many steps were fresh, restored, or ran."""
        return sum(result.done == done for result in self.results.values())

    def exit_code(self, *, strict: bool = False) -> int:
        """0 all as asked; 1 a step failed; 3 a toolchain is missing, if strict; 4 a gate failed."""
        if any(not isinstance(error, GateFailed) for error in self.failures.values()):
            return 1
        if self.failures:
            return GateFailed.exit_code
        return ToolchainMissing.exit_code if strict and self.missing else 0

    def _done(self, name: str, result: Result) -> None:
        self.results[name] = result
        self._tell(Event("done", name, result))

    def _failed(self, name: str, error: Tf2aifError) -> Tf2aifError:
        """Note the failure, and say in each variant that rests on it that it failed.

        Of a build that is being ended nothing is noted: what its steps say then is no failure.
        """
        if self._closed:
            return error
        self.failures[name] = error
        self._tell(Event("failed", name, error=error.render()))
        if name not in self.graph.variants or not isinstance(error, GateFailed):
            reason = error.faults[0].message.partition("\n")[0]
            for variant in self.graph.variants.values():
                if name == variant.id or name in self.graph.needs(variant.steps):
                    self._write_failure(variant, reason)
        return error

    def _tell(self, event: Event) -> None:
        """Note what happens, let the next steps have their turn, and hand it on."""
        self._note(event)
        admission = self.workspace.admission
        if admission is not None and event.what in ("done", "failed"):
            admission.finish(event.name, well=event.what == "done")
        self.listen(event)

    def _note(self, event: Event) -> None:
        chronicle, step = self.chronicle, self.graph.steps.get(event.name)
        if chronicle is None or step is None:
            return
        if event.what == "start":
            chronicle.hand(step.id, step.kind)
        elif event.what == "runs":
            admission = self.workspace.admission
            needs = admission.needs(step.id) if admission and not event.about else {}
            chronicle.run(step.id, needs, event.about)
        elif event.what == "over":
            chronicle.leave(step.id)
        elif event.what == "failed":
            chronicle.end(step.id, "failed")
        elif event.result is not None:
            made = self.workspace.made(step) if event.result.done == "ran" else None
            timing = made.timing if made else {}
            chronicle.end(
                step.id,
                event.result.done,
                cpu_s=timing.get("cpu_s", 0.0),
                peak_mb=timing.get("peak_mb", 0.0),
                where=event.result.machine,
            )

    def _missing(self) -> dict[str, Missing]:
        """The steps that cannot run here and were not brought here, with what they lack."""
        if not any(self.workspace.lacks(step) for step in self.graph.steps.values()):
            return {}
        return {n: v.missing for n, v in self.verdicts.items() if v.missing is not None}

    def _write_failure(self, variant: Variant, reason: str) -> None:
        try:
            with self.workspace.lock_variant(variant.id):
                write_failure(variant, self.workspace, reason)
        except OSError:  # a full disk: at least nothing stale stays
            self.clean_variant(variant.id)

    def _needs(self, name: str) -> tuple[str, ...]:
        variant = self.graph.variants.get(name)
        return self.graph.needs(variant.steps if variant else [name])


def _known(wanted: Iterable[str], targets: Mapping[str, object]) -> None:
    unknown = [name for name in wanted if name not in targets]
    if unknown:
        from .spec.words import nearest  # slow to import

        raise FilesError(
            Fault(f"unknown target '{name}'", "--target", nearest(name, targets))
            for name in unknown
        )


def _gate_failed(error: StepFailed) -> GateFailed:
    fault = error.faults[0]
    return GateFailed(fault.message, at=fault.at, hint=fault.hint)


def _os_error(name: str, error: OSError) -> StepFailed:
    hints = {
        errno.ENOSPC: "the disk is full: free some space, or 'tf2aif cache gc --max-size 10G'",
        errno.EACCES: "look at the permissions",
        errno.EROFS: "the file system is read-only",
    }
    return StepFailed(
        f"{name}: {error.strerror or error}",
        at=str(error.filename or ""),
        hint=hints.get(error.errno or 0, ""),
    )
