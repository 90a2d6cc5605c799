"""Where a build keeps things: the project's `build/` folder, the store, and what it has looked at.

build/<recipe>/<variant>/            what a user wants: artifact/, variant.json, log.txt
build/<recipe>/.steps/<step>/        the artifact of a step
build/<recipe>/.steps/<step>.json    what made it: its key, facts and result
build/<recipe>/.steps/<step>.log     what it printed
build/.tf2aif/                       the stat cache, scratch folders, locks, doit's database
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .digest import StatCache
from .graph import Step
from .locks import locked
from .records import ActionRecord, decode, encode
from .spec.config import Config, load_config
from .store import Store
from .toolchains import Missing
from .toolchains.places import Places

if TYPE_CHECKING:
    from .admission import Admission
    from .farm.plan import FarmPlan
    from .farm.seats import Seat
    from .remotes.shared import Shared


class Workspace:
    """The folders of one project."""

    def __init__(self, project: Path, build: Path | None = None) -> None:
        self.project = project.resolve()
        self.build = (build or self.project / "build").absolute()
        self.private = self.build / ".tf2aif"
        self.shared: Shared | None = None
        """The shared caches of this build, where it has some."""
        self.admission: Admission | None = None
        """Who says when a step may run; without it, at once."""
        self.farm: FarmPlan | None = None
        """The farm that runs the steps it can run, where this build has one."""

    @cached_property
    def stats(self) -> StatCache:
        """The digests of files that have not changed since they were hashed."""
        return StatCache.load(self.private / "stats.msgpack")

    @cached_property
    def config(self) -> Config:
        """The project's own settings. Raises FilesError where they are wrong."""
        return load_config(self.project)

    @cached_property
    def places(self) -> Places:
        """Where toolchains run, and what they are there."""
        return Places(self.config.toolchains)

    def lacks(self, step: Step) -> Missing | None:
        """The toolchain that the step cannot do without and that is nowhere to be had, if any."""
        if self.farm:
            return None if self.farm.seat(step) else self.farm.missing(step)
        tools = (self.places.identity(name) for name in (step.toolchain, *step.engines))
        return next((tool for tool in tools if isinstance(tool, Missing)), None)

    def seat(self, step: Step) -> Seat | None:
        """Where the step runs in the build's farm; None: as without one."""
        return self.farm.seat(step) if self.farm else None

    @cached_property
    def store(self) -> Store:
        """The store on this machine."""
        return Store()

    def artifact(self, step: Step | str) -> Path:
        """The folder that a step's artifact is put in."""
        recipe, name = _split(step)
        return self.build / recipe / ".steps" / name

    def log(self, step: Step | str) -> Path:
        """What the step printed when it last ran."""
        return self.artifact(step).with_name(f"{_split(step)[1]}.log")

    def variant(self, variant: str) -> Path:
        """The folder of a variant, by its id `recipe/variant`."""
        return self.build / variant

    def made(self, step: Step | str) -> ActionRecord | None:
        """What the step's artifact here was made from; None where that is not known."""
        try:
            return decode(self._state(step).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None

    def note(self, step: Step | str, record: ActionRecord) -> None:
        """Remember what the step's artifact was made from."""
        write_atomically(self._state(step), encode(record))

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One holder of a step at a time in this tree, over all processes."""
        with locked(self._lock_file(name), waiting=partial(self.note_locked, name)):
            yield

    @contextmanager
    def lock_variant(self, name: str) -> Iterator[None]:
        """One writer of a variant's folder at a time in this tree, over all processes."""
        with locked(self._lock_file(f"{name}/variant")):
            yield

    def _lock_file(self, name: str) -> Path:
        return self.private / "locks" / name.replace("/", "%")

    def turn(self, step: Step) -> AbstractContextManager[None]:
        """The step's turn: it begins when there are cores, memory and devices for it."""
        return self.admission.turn(step.id) if self.admission else nullcontext()

    def note_locked(self, step: str) -> None:
        """Tell that the step waits for a lock."""
        if self.admission:
            self.admission.locked(step)

    def _state(self, step: Step | str) -> Path:
        return self.artifact(step).with_name(f"{_split(step)[1]}.json")


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file, then put it in place: a reader sees the old or the new bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _split(step: Step | str) -> tuple[str, str]:
    recipe, _, name = (step if isinstance(step, str) else step.id).partition("/")
    return recipe, name
