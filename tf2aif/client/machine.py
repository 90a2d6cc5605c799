"""The machine that figures were measured on, as far as it says."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct


class Machine(Struct, frozen=True, kw_only=True):
    """What a figure depends on besides what was measured."""

    cpu: str
    architecture: str
    cores: int  # that this process may use
    governor: str | None  # of the processor's frequency; None: not to be read here
    memory_bytes: int
    system: str
    kernel: str
    python: str
    load_average: tuple[float, float, float]  # of 1, 5 and 15 minutes, when it was looked at


def this_machine() -> Machine:
    """The machine that this runs on, and its load now."""
    return Machine(
        cpu=_cpu(),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        governor=_first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=_system(),
        kernel=platform.release(),
        python=platform.python_version(),
        load_average=os.getloadavg(),
    )


def describe(machine: Machine) -> str:
    """The machine in one line."""
    governor = f", governor {machine.governor}" if machine.governor else ""
    return (
        f"{machine.cpu}, {machine.cores} cores{governor}, {machine.memory_bytes / 2**30:.1f} GiB, "
        f"{machine.system}, load {machine.load_average[0]:.2f}"
    )


def _cpu() -> str:
    """The processor's name; on ARM, where the kernel has none, its board's."""
    for key, text in _fields(Path("/proc/cpuinfo")):
        if key in ("model name", "Model", "Hardware") and text:
            return text
    board = _first_line(Path("/sys/firmware/devicetree/base/model"))
    return board or platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _fields(path: Path) -> Iterable[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
