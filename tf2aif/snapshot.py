"""Whether anything changed since, told from stats alone: what the no-op build asks first.

Imports a few small modules of the standard library only, so that asking costs no more than
the stats. The order makes it sound: take the snapshot first, look at the contents after, keep the
snapshot only if the contents were as wanted. A change after the snapshot then gives another stat,
and a file too young for its time stamps to say so is never reported as unchanged.

What no stat can show: a page of a mapped file (`mmap`) written again before it reached the disk,
and an edit on another client of a network file system until that system's own cache expires.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable

FINE_NS = 100_000_000
"""Time stamps come from the kernel's tick (1 to 10 ms): ten of the slowest, for safety."""
COARSE_NS = 2_100_000_000
"""FAT counts in two seconds, old ext3 in one; a file server has a clock of its own."""

# Their time stamps come from this machine's own clock and are kept to the tick.
_LOCAL = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
)

Signature = tuple[int, int, int, int, int]
"""Device, inode, size in bytes, mtime and ctime in nanoseconds since the epoch."""
Entry = tuple[str, list[int] | None]
"""Absolute path and what its stat said: [] where nothing was there, None where it may not count.

A link has ten numbers: its own five, and those of what it points to. JSON gives lists back for
tuples; `unchanged` takes both.
"""

_local_devices: dict[int, bool] = {}


def signature_of(status: os.stat_result) -> Signature:
    """What changes in a file's stat whenever its content may have."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def settled(signature: Iterable[int], read_ns: int) -> bool:
    """Whether any write after `read_ns` (epoch) must give a signature other than this one.

    Git's racy rule: a file that was modified in the very tick in which it was read can be modified
    once more in that tick, and look the same.
    """
    return _unsettled_ns(signature, read_ns) <= 0


def _unsettled_ns(signature: Iterable[int], read_ns: int) -> int:
    """How much later than `read_ns` the file could be read and be settled; at most 0: it is."""
    device, _, _, mtime_ns, ctime_ns = signature
    coarse_ns = max(mtime_ns, ctime_ns) + COARSE_NS + 1 - read_ns
    # The list of mounts is read only where it decides.
    if coarse_ns > 0 and ctime_ns % 1_000_000_000 and _is_local(device):
        # Anybody can set an mtime, even to next year; the ctime is the kernel's own.
        return ctime_ns + FINE_NS + 1 - read_ns
    return coarse_ns


def wait_until_settled(signature: Iterable[int], limit_ns: int = FINE_NS) -> None:
    """Sleep until the file would count as settled, if that is at most `limit_ns` away."""
    missing_ns = _unsettled_ns(signature, time.time_ns())
    if 0 < missing_ns <= limit_ns + 1:
        time.sleep(missing_ns / 1e9)


def _is_local(device: int) -> bool:
    if device not in _local_devices:
        name = f"{os.major(device)}:{os.minor(device)}"
        _local_devices[device] = _mounted_types().get(name) in _LOCAL
    return _local_devices[device]


def _mounted_types() -> dict[str, str]:
    """Device (major:minor) -> type of its file system; see proc(5), mountinfo."""
    types = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                types[before.split()[2]] = after.split()[0]
    except OSError:  # not Linux, or no /proc: nothing is known to be local
        return {}
    return types


def snapshot(paths: Iterable[str | os.PathLike[str]], settle_s: float = 0.0) -> list[Entry]:
    """The state of these files and, recursively, folders, sorted by path, each path once.

    A path where nothing is counts too: it is unchanged while nothing is there. With `settle_s`,
    files just written are given up to that many seconds to come of age; right where the caller
    wrote them, since a file that is only read must be looked at after its snapshot.
    """
    roots = [os.path.abspath(path) for path in paths]
    entries, missing_ns = _stat_all(roots)
    if 0 < missing_ns <= settle_s * 1e9:
        time.sleep(missing_ns / 1e9)
        entries, _ = _stat_all(roots)
    return entries


def _stat_all(roots: list[str]) -> tuple[list[Entry], int]:
    """Every entry, and for how many nanoseconds the youngest is still unsettled."""
    now_ns = time.time_ns()
    found: dict[str, list[int] | None] = {}
    folders: set[tuple[int, int]] = set()
    pending, missing_ns = list(roots), 0
    while pending:
        path = pending.pop()
        if path in found:
            continue
        numbers, is_folder = _look(path)
        for start in range(0, len(numbers or ()), 5):
            missing_ns = max(missing_ns, _unsettled_ns((numbers or [])[start : start + 5], now_ns))
            if not settled((numbers or [])[start : start + 5], now_ns):
                found[path] = None
        found.setdefault(path, numbers)
        # Links can make loops: every real folder is walked once.
        if is_folder and numbers and (here := (numbers[-5], numbers[-4])) not in folders:
            folders.add(here)
            try:
                with os.scandir(path) as inside:
                    pending.extend(entry.path for entry in inside)
            except OSError:
                found[path] = None
    return sorted(found.items()), missing_ns


def _look(path: str) -> tuple[list[int] | None, bool]:
    """The numbers of one path, and whether it is a folder or a link to one."""
    try:
        status = os.lstat(path)
        numbers = list(signature_of(status))
        if stat.S_ISLNK(status.st_mode):
            status = os.stat(path)
            numbers += signature_of(status)
    except (FileNotFoundError, NotADirectoryError):
        return ([] if not os.path.lexists(path) else None), False
    except OSError:
        return None, False
    return numbers, stat.S_ISDIR(status.st_mode)


def unchanged(entries: Iterable[tuple[str, list[int] | None] | list[object]]) -> bool:
    """Whether every path of a snapshot is as it was; an empty snapshot says nothing: False.

    Reads no file and lists no folder: a name that came or went shows in its folder's stat.
    """
    seen = False
    for path, before in entries:
        seen = True
        try:
            status = os.lstat(path)  # type: ignore[arg-type]
        except (FileNotFoundError, NotADirectoryError):
            if before != []:
                return False
            continue
        except OSError:
            return False
        now = [
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ]
        if now != before and not _same_link(path, now, before):
            return False
    return seen


def _same_link(path: object, now: list[int], before: object) -> bool:
    if not isinstance(before, list) or len(before) != 10 or before[:5] != now:
        return False
    try:
        return list(signature_of(os.stat(path))) == before[5:]  # type: ignore[arg-type]
    except OSError:
        return False
