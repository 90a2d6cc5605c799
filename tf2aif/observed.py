"""Observed facts: what a step turned out to read, which nobody could declare beforehand.

`dist.NAME`    version of a distribution of which a module was loaded
`module.PATH`  digest of the source of a user's module, as it was executed
`file.PATH`    digest of a file that user code opened for reading
`folder.PATH`  digest of the names in a folder that user code listed

PATH is relative to the recipe's folder inside the user's own tree, so that a moved checkout makes
nothing stale, and absolute elsewhere. What was looked for and not found is a fact too: `ABSENT`.
"""

from __future__ import annotations

import os
from pathlib import Path

from .digest import ChangedWhileReading, StatCache, digest_file, digest_value
from .facts import ABSENT, Value
from .toolchains.installed import installed

TREE_MARKS = (".git", "pyproject.toml", "dodo.py")


def current_value(name: str, folder: Path, cache: StatCache | None = None) -> Value:
    """What an observed fact is now, ABSENT where nothing is there; `folder` is the recipe's."""
    kind, _, rest = name.partition(".")
    if kind == "dist":
        return installed().get(rest, ABSENT)
    path = os.path.join(folder, rest)
    return list_digest(path) if kind == "folder" else file_value(path, cache)


def file_value(path: str, cache: StatCache | None = None) -> str:
    """The digest of a regular file, else ABSENT."""
    try:
        return digest_file(path, cache) if os.path.isfile(path) else ABSENT
    except (OSError, ChangedWhileReading):
        return ABSENT


def list_digest(path: str) -> str:
    """The digest of the sorted names in a folder, else ABSENT. Hidden names do not count."""
    try:
        names = os.listdir(path)
    except OSError:
        return ABSENT
    return digest_value(sorted(name for name in names if _counts(name)))


def _counts(name: str) -> bool:
    """Editors' swap files, `__pycache__` and the like come and go without meaning anything."""
    return not name.startswith(".") and name != "__pycache__"


def path_name(path: str, folder: str) -> str:
    """How a path is called in a fact: relative inside the tree that the recipe stands in."""
    for base in dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))):
        if is_below(path, tree_root(base)):
            return os.path.relpath(path, base).replace(os.sep, "/")
    return path


def tree_root(folder: str) -> str:
    """The nearest folder, from here upwards, that looks like a checkout; else the folder itself."""
    for above in (Path(folder), *Path(folder).parents):
        if any((above / mark).exists() for mark in TREE_MARKS):
            return str(above)
    return folder


def is_below(path: str, folder: str) -> bool:
    """Whether a path is the folder, or anything in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
