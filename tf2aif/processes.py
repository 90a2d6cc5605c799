"""Resident memory of a process and of all that it started, from `/proc`."""

from __future__ import annotations

import os
from collections.abc import Iterator

_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def tree_memory_mb(pid: int, limit_mb: float | None = None) -> float:
    """MiB resident in a process and its descendants; 0 where it has gone.

    Pages that processes share are counted once for each of them, which is quick to read. Only a
    sum above `limit_mb` is looked at again with shared pages divided, before anybody acts on it.
    """
    pids = list(_tree(pid))
    total = sum(map(_resident_mb, pids))
    if limit_mb is not None and total > limit_mb and len(pids) > 1:
        return sum(map(_proportional_mb, pids))
    return total


def _tree(pid: int) -> Iterator[int]:
    """A process, then its descendants, as far as the kernel lists children."""
    yield pid
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        for child in _read(f"/proc/{pid}/task/{thread}/children").split():
            yield from _tree(int(child))


def _resident_mb(pid: int) -> float:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE_MIB if len(fields) > 1 else 0.0


def _proportional_mb(pid: int) -> float:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return _resident_mb(pid)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
