"""Processes that we start: their memory, from `/proc`, and that none of them outlives us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .capacity import memory_mb

_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
_TICKS = os.sysconf("SC_CLK_TCK")

# Runs a command in a group with a small process that kills the group once the pipe at descriptor 0
# closes. The kernel closes our end of it however we end, by SIGKILL too.
_GUARD = """exec 3<&0 </dev/null
{ trap '' TERM INT HUP; read _ <&3; kill -KILL 0; } >/dev/null 2>&1 &
exec "$@" 3<&-"""


def run_guarded(
    argv: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
    poll_s: float = 0.05,
) -> int | None:
    """Run a command, its output added to `log`, and end it with all that it started.

    Its return code, as `subprocess` gives it; None where it was ended: past `timeout_s` seconds,
    or because `stopped` says so.
    """
    reading, writing = os.pipe()
    try:
        with open(log, "ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", *argv],
                env=environment,
                cwd="/",
                stdin=reading,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    until = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            if stopped() or (until is not None and time.monotonic() > until):
                return None
            time.sleep(poll_s)
        return process.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(writing)
        process.wait()


def machine_memory_mb() -> int:
    """MiB that we may use of this machine's."""
    return memory_mb()


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process, its descendants, and those of them that ended; 0 if it is gone."""
    # `proc(5)`: utime, stime, cutime, cstime stand behind the name, which may hold spaces.
    stats = (_read(f"/proc/{each}/stat").rpartition(")")[2].split() for each in _tree(pid))
    return sum(sum(map(int, fields[11:15])) for fields in stats) / _TICKS


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
