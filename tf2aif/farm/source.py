"""Which tf2aif this is, as the machines of a farm tell one from another."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from .. import __version__
from ..digest import digest_bytes

PACKAGE = Path(__file__).parent.parent


def version(package: Path = PACKAGE) -> str:
    """The version, and the digest of all modules as this process found them: `0.1.0+5f0c21aa`.

    Two checkouts may say the same version and make different things: a step's own version is in
    its key, an edit that was not meant to change what it makes is not.
    """
    return _found(package)[0]


def has_changed(package: Path = PACKAGE) -> bool:
    """Whether other modules lie there now: a new process would be another tf2aif than this one."""
    found, stats = _found(package)
    try:
        return _stats(package) != stats and _digest(package) != found
    except FileNotFoundError:  # it is being replaced
        return True


@cache
def _found(package: Path) -> tuple[str, dict[str, tuple[int, int]]]:
    stats = _stats(package)  # first: what changes while we read is seen as a change
    return _digest(package), stats


def _stats(package: Path) -> dict[str, tuple[int, int]]:
    """Each module's time of change, in nanoseconds, and its size."""
    found, folders = {}, [os.fspath(package)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    stat = entry.stat()
                    found[entry.path] = stat.st_mtime_ns, stat.st_size
                elif "." not in entry.name and entry.name != "__pycache__" and entry.is_dir():
                    folders.append(entry.path)
    return found


def _digest(package: Path) -> str:
    content = bytearray()
    for path in sorted(package.rglob("*.py")):
        data = path.read_bytes()
        content += f"{path.relative_to(package)} {len(data)}\n".encode() + data
    return f"{__version__}+{digest_bytes(bytes(content))[:8]}"
