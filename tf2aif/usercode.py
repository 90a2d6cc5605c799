"""A user's code: loaded from its source alone, and watched while it runs.

Python trusts a `.pyc` whose source has the same size and time stamp, so an edit that restores both
would go unseen. Here every module of the user is compiled from the bytes that were read, and those
bytes are what its digest is of. An audit hook notes which files the code opens. It does not see
what native libraries (HDF5, TensorFlow's own readers) or other processes open: such files are
named in the recipe, under `files`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.machinery
import os
import site
import stat
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import (
    ExtensionFileLoader,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import ModuleType
from typing import Any

from .digest import digest_bytes
from .errors import Fault, StepFailed
from .facts import ABSENT, Facts
from .observed import file_value, is_below, list_digest, path_name

_Stat = tuple[int, int, int, int, int]


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function of that name in a user's file; modules beside the file can be imported.

    The file is executed once for each content that it has. Raises StepFailed where there is no
    such file or function, and, with file and line, where executing the file raises.
    """
    module = _load(os.path.abspath(path))
    found = getattr(module, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    if found is not None:
        raise StepFailed(f"'{name}' is no function", at=f"{path}: {name}")
    names = _own_functions(module)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names) or 'none'}"
    raise StepFailed(f"there is no function '{name}'", at=str(path), hint=hint)


def fault_of(error: BaseException) -> Fault:
    """An exception as one fault: its first line, and the innermost line of the user's own code."""
    words = " ".join(str(error).strip().split("\n")[0].split())
    message = f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename in _sources:
        return Fault(message, at=f"{error.filename}:{error.lineno}")
    frames = traceback.extract_tb(error.__traceback__, limit=-200)
    own = [frame for frame in frames if frame.filename in _sources]
    at = f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""
    return Fault(message, at, _advice(error) if own else "")


def _advice(error: BaseException) -> str:
    name = error.filename if isinstance(error, FileNotFoundError) else None
    if isinstance(name, str) and not Path(name).is_absolute():
        return "steps run in a scratch folder: start paths from Path(__file__).parent"
    return ""


def own_modules() -> set[str]:
    """The names in `sys.modules` of what was loaded as a user's code."""
    modules = list(sys.modules.items())
    return {name for name, module in modules if getattr(module, "__file__", None) in _sources}


@contextlib.contextmanager
def watching(folder: Path, ignore: Iterable[Path] = ()) -> Iterator[Watch]:
    """Note what is read until the end of the block, apart from Python itself and `ignore`.

    `folder` is the recipe's: names are relative to it. One watch at a time in a process.
    """
    global _watch
    _install()
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
    folders |= {*site.getsitepackages(), site.getusersitepackages(), os.path.dirname(__file__)}
    folders |= {
        "/proc",
        "/sys",
        "/dev",
        "/etc",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/local/lib",
        "/usr/share",
    }
    folders |= {sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local"}  # theirs alone
    folders |= {os.path.realpath(folder) for folder in folders}
    return tuple(sorted(folder.rstrip(os.sep) + os.sep for folder in folders))


class _Loader(SourceFileLoader):
    """Compiles what it reads, always."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(_read_source(path), path)


class _Finder(MetaPathFinder):
    """Finds what the other finders find; a user's module comes with our loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = self._ask_others(fullname, path, target)
        origin = spec.origin if spec and spec.has_location else None
        if path is None and _asked_by_user():
            _note_absent(fullname, origin)
        if spec is None or origin is None or is_library(origin):
            return spec
        if type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(fullname, origin)
        elif isinstance(spec.loader, SourcelessFileLoader | ExtensionFileLoader) and _watch:
            _watch.note_module(origin, file_value(origin))
        return spec

    def _ask_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                return spec
        return None


_finder = _Finder()
_loaded: dict[tuple[str, str], ModuleType] = {}
_sources: set[str] = set()  # paths of the user's modules, to find their lines in a traceback
_roots: list[str] = []  # folders of the files that functions were loaded from
_watch: Watch | None = None
_hooked = False
_busy = threading.local()
_EVENTS = frozenset({"open", "os.listdir", "os.rename", "os.scandir"})


def _load(path: str) -> ModuleType:
    _install()
    folder = os.path.dirname(path)
    if folder not in _roots:
        _roots.insert(0, folder)
        sys.path.insert(0, folder)
    try:
        source = _read_source(path)
    except OSError as error:
        raise StepFailed(f"cannot be read: {error.strerror or error}", at=path) from error
    module = _loaded.get((path, digest_bytes(source)))
    if module is None:
        module = _loaded[path, digest_bytes(source)] = _execute(path, source)
    return module


def _execute(path: str, source: bytes) -> ModuleType:
    module = ModuleType(_module_name(path))
    module.__file__ = path
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # dataclasses and pickle look it up there
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        if before is None:
            del sys.modules[module.__name__]
        fault = fault_of(error)
        raise StepFailed(fault.message, at=fault.at or path, hint=fault.hint) from error
    return module


def _module_name(path: str) -> str:
    """The file's own name, unless a library or the standard library already has it."""
    stem = Path(path).stem
    taken = stem in sys.stdlib_module_names or (
        stem in sys.modules and getattr(sys.modules[stem], "__file__", None) != path
    )
    return f"recipe_{stem}" if taken else stem


def _read_source(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read()
    _sources.add(path)
    if _watch:
        _watch.note_module(path, digest_bytes(data))
    return data


def _note_absent(name: str, origin: str | None) -> None:
    """A module of that name beside the code would be taken instead of the one that was found."""
    for root in _roots if _watch else ():
        for path in (os.path.join(root, name, "__init__.py"), os.path.join(root, f"{name}.py")):
            if path == origin:
                return
            if _watch:
                _watch.note_module(path, ABSENT)


def _asked_by_user() -> bool:
    """Whether the import statement that is at work stands in the user's code."""
    frame = sys._getframe(2)
    while frame and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]
    return bool(frame) and frame.f_code.co_filename in _sources


def _own_functions(module: ModuleType) -> list[str]:
    named = sorted(vars(module).items())
    return [
        n
        for n, value in named
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]


def _install() -> None:
    """Put the finder first, and the audit hook in; the hook stays as long as the process."""
    global _hooked
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        importlib.invalidate_caches()
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is None or event not in _EVENTS or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        if event == "open":
            _watch.note_open(*arguments)
        elif event == "os.rename":
            _watch.note_rename(arguments[1])
        elif "importlib" not in sys._getframe(1).f_code.co_filename:
            _watch.note_listing(arguments[0])
    finally:
        _busy.now = False
