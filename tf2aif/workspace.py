"""Where a build keeps things: the project's `build/` folder, the store, and what it has looked at.

build/<recipe>/<variant>/            what a user wants: artifact/, variant.json, log.txt
build/<recipe>/.steps/<step>/        the artifact of a step
build/<recipe>/.steps/<step>.json    what made it: its key, facts and result
build/<recipe>/.steps/<step>.log     what it printed
build/.tf2aif/                       the stat cache, scratch folders, locks, doit's database
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import msgspec

from .digest import StatCache
from .graph import Step
from .store import ActionRecord, Store


class Made(msgspec.Struct, frozen=True):
    """What a step's artifact in `build/` was made from."""

    key: str
    record: ActionRecord


_decode = msgspec.json.Decoder(Made).decode


class Workspace:
    """The folders of one project."""

    def __init__(self, project: Path, build: Path | None = None) -> None:
        self.project = project.resolve()
        self.build = (build or self.project / "build").absolute()
        self.private = self.build / ".tf2aif"

    @cached_property
    def stats(self) -> StatCache:
        """The digests of files that have not changed since they were hashed."""
        return StatCache.load(self.private / "stats.msgpack")

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

    def made(self, step: Step | str) -> Made | None:
        """What the step's artifact here was made from; None where that is not known."""
        try:
            return _decode(self._state(step).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None

    def note(self, step: Step | str, made: Made) -> None:
        """Remember what the step's artifact was made from."""
        write_atomically(self._state(step), msgspec.json.encode(made))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A fresh folder beside what it will become; gone afterwards, whatever happened."""
        parent = self.private / "scratch"
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """One holder at a time in this tree (or any number of shared ones), over all processes."""
        folder = self.private / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / name.replace("/", "%"), shared=shared):
            yield

    def _state(self, step: Step | str) -> Path:
        return self.artifact(step).with_name(f"{_split(step)[1]}.json")


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it when the process ends, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
