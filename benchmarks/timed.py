"""Whole commands, timed by the operating system's own accounting."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Times(NamedTuple):
    """One run of a command: seconds, and MiB of its largest process."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def timed(command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None) -> Times:
    """Run a command to its end; it must succeed. CPU time is that of all its processes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.decode(errors='replace')}")
    return Times(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(runs: Sequence[Times]) -> Times:
    """The median of each figure."""
    return Times(*(statistics.median(values) for values in zip(*runs, strict=True)))


def machine() -> str:
    """The machine in one line, for the head of a table."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{model}, {cores} cores, Python {platform.python_version()}, load {load:.1f}"
