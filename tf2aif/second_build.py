"""A build that shares nothing with the first: other folders, an empty store, new processes.

DIR/project/   the project's sources, as they are now: steps read them there
DIR/build/     what the steps make
DIR/store/     a store of its own, empty at the start

A file that records the path at which it was made, or read, differs in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .agreement import Options as AgreementOptions
from .execute import bring_up_to_date, request_for
from .folders import fresh_folder
from .graph import Graph, Step, Variant
from .observed import is_below
from .record import VariantRecord, write_variant
from .records import ActionRecord
from .steps.check import Difference
from .store import Store
from .workers import Workers
from .workspace import Workspace

COPIED_BYTES = 1 << 20
"""A larger file is linked to: what it says does not depend on where it lies."""

_NOT_SOURCES = frozenset((".git", ".hg", ".svn", "__pycache__", "node_modules"))
_CACHE_TAG = "CACHEDIR.TAG"  # bford.info/cachedir


class SecondBuild:
    """The graph of a first build, moved to another folder."""

    def __init__(
        self,
        graph: Graph,
        first: Workspace,
        folder: Path,
        *,
        in_place: bool = False,
        workers: Workers | None = None,
    ) -> None:
        """`in_place`: the project's sources are read where they are.

        Raises OSError where the folder cannot be written.
        """
        self.first = first
        project = first.project
        if not in_place:
            project = folder.resolve() / "project"
            copy_sources(first.project, project, leave=(first.build, folder.resolve()))
        self.graph = moved(graph, first.project, project)
        self.workspace = Workspace(project, build=folder.resolve() / "build")
        self.workspace.store = Store(folder.resolve() / "store")
        self.workspace.places = first.places  # the same toolchains, wherever they are
        assert self.workspace.shared is None  # noqa: S101  and no shared cache
        self.workers = workers or Workers()
        self._own_workers = workers is None

    def run(self, name: str) -> ActionRecord:
        """Run a step whose inputs have run here; what it made. Raises StepFailed."""
        step = self.graph.steps[name]
        # Who measures time is alone among the builds that share the first store, too.
        with self.first.store.lock("machine", shared=not step.alone):
            bring_up_to_date(step, self.workspace, self.workers, again=True)
        made = self.workspace.made(name)
        assert made is not None  # noqa: S101  it was noted just now
        return made

    def write_variant(self, variant: Variant) -> VariantRecord:
        """The variant's folder, with its image, from steps that have all run here.

        Raises GateFailed where it lost too much, and StepFailed where no image can be composed.
        """
        return write_variant(variant, self.graph, self.workspace, {})

    def compare_outputs(self, name: str, check: str) -> dict[str, Difference]:
        """How far the outputs of a step's artifact here are from those of the first build's.

        `check` is a step that runs the artifact: its engine and its samples are taken. Raises
        StepFailed where either artifact does not run.
        """
        step = self.graph.steps[check]
        place = self.workspace.build / ".agreement" / name
        with fresh_folder(place) as out:
            request = request_for(step, self.workspace, out)
            options = {key: step.options[key] for key in AgreementOptions.__struct_fields__}
            request = msgspec.structs.replace(
                request,
                step=name,
                kind="agreement",
                module="tf2aif.agreement",
                options=options,
                inputs={
                    "first": str(self.first.artifact(name)),
                    "second": str(self.workspace.artifact(name)),
                    "evaluation": str(self.workspace.artifact(step.inputs["evaluation"])),
                },
                code=None,
            )
            log = place.with_name(f"{place.name}.log")
            outcome = self.workers.run(request, log=log, timeout_s=step.limits.timeout_s)
        return msgspec.convert(outcome.result["outputs"], dict[str, Difference])

    def close(self) -> None:
        """End its own processes."""
        if self._own_workers:
            self.workers.close()


def moved(graph: Graph, project: Path, to: Path) -> Graph:
    """The same steps with their files at another place; what lies outside the project stays."""

    def place(path: str) -> str:
        if not is_below(path, str(project)):
            return path
        return os.path.normpath(to / os.path.relpath(path, project))

    def move(step: Step) -> Step:
        return msgspec.structs.replace(
            step,
            folder=place(step.folder),
            files={name: place(path) for name, path in step.files.items()},
            code=place(step.code) if step.code else None,
        )

    return Graph({name: move(step) for name, step in graph.steps.items()}, graph.variants)


def copy_sources(project: Path, to: Path, leave: tuple[Path, ...]) -> None:
    """Copy a project, but for the folders `leave`, caches, virtual environments and histories.

    Files over `COPIED_BYTES`, and such as cannot be copied, are linked to.
    """
    to.mkdir(parents=True)
    if (project / ".git").exists():
        (to / ".git").mkdir()  # a mark of where the tree begins: see tf2aif.observed
    for path in _sources(project, leave):
        _copy_one(path, to / path.relative_to(project), project)


def _sources(folder: Path, leave: tuple[Path, ...]) -> Iterator[Path]:
    """Everything to copy, folders before what is in them."""
    for path in sorted(folder.iterdir()):
        if path.name in _NOT_SOURCES or {path, path.resolve()} & set(leave):
            continue
        if path.is_symlink() or not path.is_dir():
            yield path
        elif not (path / _CACHE_TAG).is_file() and not (path / "pyvenv.cfg").is_file():
            yield path
            yield from _sources(path, leave)


def _copy_one(path: Path, to: Path, project: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        to.mkdir()
    elif path.is_dir():
        # Inside of the project it leads to the copy: then its digest is what it was.
        link = path.readlink()
        inside = not link.is_absolute() and is_below(str(path.resolve()), str(project))
        to.symlink_to(link if inside else path.resolve())
    elif path.is_file():
        try:
            small = path.stat().st_size <= COPIED_BYTES
            if small:
                shutil.copy(path, to)
        except PermissionError:
            small = False
        if not small:
            to.symlink_to(path.resolve())
