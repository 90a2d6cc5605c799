"""A user's code: loaded from its source alone, and watched while it runs.

Python trusts a `.pyc` whose source has the same size and time stamp, so an edit that restores both
would go unseen. Here every module of the user is compiled from the bytes that were read, and those
bytes are what its digest is of.
"""

from __future__ import annotations

import difflib
import importlib.machinery
import os
import sys
import traceback
from collections.abc import Callable, Sequence
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
from .facts import ABSENT
from .observed import file_value
from .watch import active_watch, is_library


def load_module(path: Path) -> ModuleType:
    """The user's file as a module, executed once for each content that it has.

    Raises StepFailed where it cannot be read or, with file and line, where executing it raises.
    """
    return _load(os.path.abspath(path))


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function of that name in a user's file; modules beside the file can be imported.

    The file is executed once for each content that it has. Raises StepFailed where there is no
    such file or function, and, with file and line, where executing the file raises.
    """
    module = load_module(path)
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
        elif isinstance(spec.loader, SourcelessFileLoader | ExtensionFileLoader):
            _note(origin, file_value(origin))
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
    _note(path, digest_bytes(data))
    return data


def _note(path: str, digest: str) -> None:
    if watch := active_watch():
        watch.note_module(path, digest)


def _note_absent(name: str, origin: str | None) -> None:
    """A module of that name beside the code would be taken instead of the one that was found."""
    for root in _roots:
        for path in (os.path.join(root, name, "__init__.py"), os.path.join(root, f"{name}.py")):
            if path == origin:
                return
            _note(path, ABSENT)


def _asked_by_user() -> bool:
    """Whether the import statement that is at work stands in the user's code."""
    frame = sys._getframe(2)
    while frame and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]
    return bool(frame) and frame.f_code.co_filename in _sources


def _own_functions(module: ModuleType) -> list[str]:
    named = ((n, v) for n, v in sorted(vars(module).items()) if callable(v))
    return [n for n, value in named if getattr(value, "__module__", "") == module.__name__]


def _install() -> None:
    """Put our finder before all others."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        importlib.invalidate_caches()
