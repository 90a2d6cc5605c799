"""What this Python environment has: its distributions, and which module belongs to which.

Versions are read from the names of `*.dist-info` and `*.egg-info` on `sys.path`, as pip leaves
them: opening each one, as `importlib.metadata.distribution` does, costs a hundred times as much,
and this runs on every no-op build. Nothing heavy is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from types import ModuleType

from .variables import environment_facts

__all__ = ["environment_facts", "installed", "loaded", "locked", "look_again", "normalize"]

VENV_MARK = "tf2aif.json"
"""In the folder of an environment that was made from a toolchain's lock, and is complete."""


def normalize(name: str) -> str:
    """A distribution's name as PEP 503 compares it.

    >>> normalize("AI_Edge--LiteRT")
    'ai-edge-litert'
    """
    parts = name.lower().replace("_", "-").replace(".", "-").split("-")
    return "-".join(part for part in parts if part)


@cache
def installed() -> Mapping[str, str]:
    """Every distribution here -> its version, by normalised name; read once a process.

    Where two folders of `sys.path` have the same distribution, the first one counts, as it does
    when it is imported. `look_again` forgets what was read.
    """
    return {name: version for name, (version, _) in _metadata().items()}


@cache
def locked() -> frozenset[str]:
    """Distributions of which a toolchain's lock fixes the version: none, but in its environment."""
    if not os.path.isfile(os.path.join(sys.prefix, VENV_MARK)):
        return frozenset()
    own = sys.prefix.rstrip(os.sep) + os.sep
    return frozenset(name for name, (_, path) in _metadata().items() if path.startswith(own))


def look_again() -> None:
    """Forget what was read of `sys.path`, which has changed."""
    for cached in (installed, locked, _metadata, _owners):
        cached.cache_clear()


def loaded(modules: Mapping[str, ModuleType], own: Collection[str] = ()) -> dict[str, str]:
    """Distributions of which a module is loaded -> version, sorted by name.

    `modules` is `sys.modules`; names in `own` are a user's modules and belong to no distribution.
    Where several distributions share a top-level name (`google`), only those count whose own files
    are loaded. The first call in a process reads the metadata: 20 to 60 ms.
    """
    owners = _owners()
    names: set[str] = set()
    for top in {name.partition(".")[0] for name in modules if name not in own}:
        candidates = owners.get(top, ())
        names.update(candidates if len(candidates) < 2 else _sharers(top, candidates, modules))
    versions = installed()
    return {name: versions[name] for name in sorted(names)}


@cache
def _metadata() -> dict[str, tuple[str, str]]:
    """Distribution -> its version and the path of its metadata."""
    found: dict[str, tuple[str, str]] = {}
    for folder in dict.fromkeys(sys.path):
        try:
            entries = sorted(os.listdir(folder or "."))
        except OSError:  # a zip file, or not there
            continue
        for entry in entries:
            if entry.endswith((".dist-info", ".egg-info")) and entry[0] != "~":
                path = os.path.join(folder, entry)
                name, version = _name_version(path)
                found.setdefault(normalize(name), (version, path))
    return found


def _name_version(path: str) -> tuple[str, str]:
    stem, kind = os.path.splitext(os.path.basename(path))
    if kind == ".egg-info":
        stem = stem.partition("-py")[0]
    name, dash, version = stem.rpartition("-")
    return (name, version) if dash else (stem, _pkg_info_version(path))


def _pkg_info_version(path: str) -> str:
    """The version of what `setup.py develop` left: its folder's name does not tell it."""
    try:
        with open(os.path.join(path, "PKG-INFO"), encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if line.startswith("Version:")]
    except OSError:
        lines = []
    return lines[0].partition(":")[2].strip() if lines else "unknown"


@cache
def _owners() -> dict[str, tuple[str, ...]]:
    """Top-level module name -> the distributions that have it."""
    owners: dict[str, list[str]] = {}
    for name, (_, path) in _metadata().items():
        for top in _top_levels(path):
            owners.setdefault(top, []).append(name)
    return {top: tuple(names) for top, names in owners.items()}


def _top_levels(metadata: str) -> set[str]:
    """Top-level module names of a distribution: as it says itself, else from its files."""
    said = _read(os.path.join(metadata, "top_level.txt")).decode("utf-8", "replace").split()
    if said:
        return {name.partition("/")[0] for name in said}
    paths = (line.partition(b",")[0].decode("utf-8", "replace") for line in _record(metadata))
    return set(_module_names(paths))


def _module_names(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        top, slash, _ = path.partition("/")
        if slash:
            if top.isidentifier():
                yield top
        elif top.endswith((".py", ".so", ".pyd")):
            yield top.partition(".")[0]


def _sharers(
    top: str, candidates: Iterable[str], modules: Mapping[str, ModuleType]
) -> Iterable[str]:
    """Which of the distributions that share a top-level name have a file that is loaded."""
    files = _files_below(top, modules)
    metadata = _metadata()
    sharers = [name for name in candidates if _has_one(metadata[name][1], files)]
    return sharers or candidates


def _files_below(top: str, modules: Mapping[str, ModuleType]) -> set[str]:
    prefix = top + "."
    below = (m for name, m in list(modules.items()) if name == top or name.startswith(prefix))
    return {file for module in below if isinstance(file := getattr(module, "__file__", None), str)}


def _has_one(metadata: str, files: Iterable[str]) -> bool:
    root = os.path.dirname(metadata) + os.sep
    wanted = {f.removeprefix(root).encode() for f in files if f.startswith(root)}
    return any(line.partition(b",")[0] in wanted for line in _record(metadata))


def _record(metadata: str) -> list[bytes]:
    return _read(os.path.join(metadata, "RECORD")).splitlines()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
