"""How much of this machine we may use: cores and memory, its control groups' limits respected.

A container, a CI job or a systemd unit often has less than the machine it runs on, and the kernel
ends who takes more. Both generations of control groups are read: `memory.max` and `cpu.max`, or
`memory.limit_in_bytes` and `cpu.cfs_quota_us`. A group's limit holds for the groups below it, so
all groups up to the root are looked at (Linux, Documentation/admin-guide/cgroup-v2.rst, cgroup-v1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def cores(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """How many cores we may keep busy: those we may run on, or fewer where a quota says so.

    A part of a core counts as one, as in the JVM and in Go: one step must be able to run.
    """
    usable = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _folders("cpu", proc, groups) if (quota := _quota(folder))]
    return max(1, min(usable, *(math.ceil(quota) for quota in quotas), usable))


def memory_mb(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """MiB that we may use at the very most: the machine's, or less where a limit says so."""
    limits = [limit for limit, _ in _limits(proc, groups)]
    return min(_meminfo(proc)["MemTotal"], *limits) if limits else _meminfo(proc)["MemTotal"]


def available_mb(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """MiB that nobody needs now: what the kernel would give without swapping (`proc(5)`)."""
    memory = _meminfo(proc)
    rooms = [max(0, limit - used) for limit, used in _limits(proc, groups)]
    return min(memory.get("MemAvailable", memory["MemTotal"]), *rooms, memory["MemTotal"])


def _meminfo(proc: Path) -> dict[str, int]:
    """The fields of `/proc/meminfo` in MiB."""
    found = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) >> 10
    return found


def _limits(proc: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """Of each group with a limit: the limit, and what is in use and cannot be dropped, in MiB."""
    for folder in _folders("memory", proc, groups):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            allowed = _number(folder / limit)
            if allowed is not None and allowed < 1 << 60:  # v1 writes "none" as a huge number
                in_use = (_number(folder / used) or 0) - _droppable(folder)
                yield allowed >> 20, max(0, in_use) >> 20


def _droppable(folder: Path) -> int:
    """Bytes of files that were read long ago: the kernel drops them before it ends anybody."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _quota(folder: Path) -> float | None:
    """Cores that a group may use on average, if it says so."""
    with suppress(OSError, ValueError):
        allowed, period = (folder / "cpu.max").read_text().split()
        return None if allowed == "max" else int(allowed) / int(period)
    quota, every = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / every if quota and every and quota > 0 else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max"
        return None


def _folders(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """The folders of our group and of those above it, in either generation.

    In a container our group's path may be the host's, which is not there: then its root counts.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = groups
        elif controller in controllers.split(","):
            root = groups / controllers
            root = root if root.is_dir() else groups / controller
        else:
            continue
        folder = root / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))
