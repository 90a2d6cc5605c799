"""What user code reads while it runs, noticed through Python's audit events.

The events come from Python's own `open`, `os.listdir` and the like. What native libraries (HDF5,
TensorFlow's own readers) and other processes open is not among them: a recipe names such files
under `files`.
"""

from __future__ import annotations

import contextlib
import os
import site
import stat
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .errors import StepFailed
from .facts import Facts
from .observed import file_value, is_below, list_digest, path_name

_Stat = tuple[int, int, int, int, int]
_EVENTS = frozenset({"open", "os.listdir", "os.rename", "os.scandir"})
_SYSTEM = (
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/share",
)

_watch: Watch | None = None
_busy = threading.local()


def active_watch() -> Watch | None:
    """The watch that is kept just now, if any."""
    return _watch


@contextlib.contextmanager
def watching(folder: Path, ignore: Iterable[Path] = ()) -> Iterator[Watch]:
    """Note what is read until the end of the block, apart from Python itself and `ignore`.

    `folder` is the recipe's: names are relative to it. One watch at a time in a process.
    """
    global _watch
    _hook()
    watch = Watch(str(folder), tuple(os.path.abspath(path) for path in ignore))
    before, _watch = _watch, watch
    try:
        yield watch
    finally:
        _watch = before


class Watch:
    """What the user's code reads: modules, files, folders, and what it looked for in vain."""

    def __init__(self, folder: str, ignore: tuple[str, ...]) -> None:
        self._folder = folder
        self._ignore = ignore
        self._modules: dict[str, str] = {}
        self._files: dict[str, _Stat | None] = {}
        self._folders: dict[str, str] = {}
        self._written: set[str] = set()

    def facts(self) -> Facts:
        """What was observed, by the names of `tf2aif.observed`, sorted; asked after the block.

        Raises StepFailed where something that was read has changed since.
        """
        facts: Facts = {f"module.{self._name(p)}": self._module(p) for p in self._modules}
        skip = self._modules.keys() | self._written
        for path, seen in self._files.items():
            if path not in skip and (value := self._file(path, seen)) is not None:
                facts[f"file.{self._name(path)}"] = value
        facts |= {f"folder.{self._name(p)}": self._listing(p) for p in self._folders}
        return dict(sorted(facts.items()))

    def note_module(self, path: str, digest: str) -> None:
        """A module's bytes were executed, or ABSENT: it was looked for here."""
        self._modules[path] = digest

    def note_open(self, path: object, mode: object, flags: object) -> None:
        """A file is about to be opened; whether that will succeed is not known."""
        if (name := self._outside(path)) is None:
            return
        if _writes_first(mode, flags):
            self._note_written(name)
        elif self._files.get(name) is None:
            self._files[name] = _stat_of(name)

    def note_rename(self, path: object) -> None:
        """A file takes another's place: the usual end of writing one."""
        if (name := self._outside(path)) is not None:
            self._note_written(name)

    def _note_written(self, name: str) -> None:
        if self._files.get(name) is None:  # else it was read before: that it changes is a fault
            self._written.add(name)

    def note_listing(self, path: object) -> None:
        """The names in a folder are about to be read."""
        name = self._outside("." if path is None else path)
        if name is not None and name not in self._folders:
            self._folders[name] = list_digest(name)

    def _outside(self, path: object) -> str | None:
        """The absolute path, where it is one of the user's own."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None  # a file descriptor: it was opened before
        name = os.path.abspath(os.fsdecode(path))
        if is_library(name) or any(is_below(name, folder) for folder in self._ignore):
            return None
        return name

    def _name(self, path: str) -> str:
        return path_name(path, self._folder)

    def _module(self, path: str) -> str:
        value = self._modules[path]
        self._same(path, value, file_value(path))
        return value

    def _listing(self, path: str) -> str:
        value = self._folders[path]
        self._same(path, value, list_digest(path))
        return value

    def _file(self, path: str, seen: _Stat | None) -> str | None:
        """Its digest; None for what is no regular file."""
        value = file_value(path)
        self._same(path, seen, _stat_of(path))  # after hashing: the hash is of what was opened
        regular = seen is None or stat.S_ISREG(seen[0])
        return value if regular else None

    @staticmethod
    def _same(path: str, before: object, after: object) -> None:
        if before != after:
            raise StepFailed(
                "a file that the code reads changed while the step ran, so nothing was stored",
                at=path,
                hint="build again; a file that the code itself writes belongs in the output",
            )


def _writes_first(mode: object, flags: object) -> bool:
    """Whether what is in the file before does not matter: it is emptied, or only written."""
    if isinstance(mode, str):
        return mode[:1] in ("w", "x", "a")
    return isinstance(flags, int) and (
        flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_TRUNC != 0
    )


def _stat_of(path: str) -> _Stat | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return (found.st_mode, 0, 0, 0, 0)
    return (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_library(path: str) -> bool:
    """Whether a path belongs to Python, to an installed distribution, to us, or to the system."""
    return path.startswith(_library_prefixes())


@cache
def _library_prefixes() -> tuple[str, ...]:
    """Folders whose content the versions of distributions stand for, or that hold no data."""
    scheme = sysconfig.get_paths()
    folders = {scheme[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {
        *_SYSTEM,
        *site.getsitepackages(),
        site.getusersitepackages(),
        os.path.dirname(__file__),
    }
    folders |= {sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local"}  # theirs alone
    folders |= {os.path.realpath(folder) for folder in folders}
    return tuple(sorted(folder.rstrip(os.sep) + os.sep for folder in folders))


@cache
def _hook() -> None:
    """Put the audit hook in, once: Python lets nobody take it out again."""
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _watch
    if watch is None or event not in _EVENTS or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        if event == "open":
            watch.note_open(*arguments)
        elif event == "os.rename":
            watch.note_rename(arguments[1])
        elif "importlib" not in sys._getframe(1).f_code.co_filename:
            watch.note_listing(arguments[0])
    finally:
        _busy.now = False
