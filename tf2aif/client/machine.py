"""The machine that figures were measured on, as far as it says."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from ..engines.nvidia import read_machine


class Machine(Struct, frozen=True, kw_only=True):
    """What a figure depends on besides what was measured."""

    cpu: Annotated[str, Meta(description="the processor's name, or its board's")]
    architecture: Annotated[str, Meta(description="such as x86_64 or aarch64")]
    cores: Annotated[int, Meta(description="that the process may use")]
    governor: Annotated[
        str | None, Meta(description="of the processor's frequency; null: not to be read there")
    ]
    gpu: Annotated[
        str | None, Meta(description="the one that a process uses by itself; null: none is seen")
    ] = None
    driver: Annotated[str | None, Meta(description="of the GPU")] = None
    power_mode: Annotated[str | None, Meta(description="of a Jetson, as nvpmodel has it")] = None
    memory_bytes: Annotated[int, Meta(description="of the whole machine")]
    system: Annotated[str, Meta(description="the operating system")]
    kernel: Annotated[str, Meta(description="its version")]
    python: Annotated[str, Meta(description="its version")]
    load_average: Annotated[
        tuple[float, float, float],
        Meta(description="of 1, 5 and 15 minutes, when it was looked at"),
    ]


def this_machine() -> Machine:
    """The machine that this runs on, and its load now."""
    nvidia = read_machine()
    return Machine(
        cpu=_cpu(),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        governor=_first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        gpu=nvidia.gpu.name if nvidia.gpu else None,
        driver=nvidia.driver or None,
        power_mode=(nvidia.jetson.power_mode or None) if nvidia.jetson else None,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=_system(),
        kernel=platform.release(),
        python=platform.python_version(),
        load_average=os.getloadavg(),
    )


def describe(machine: Machine) -> str:
    """The machine in one line."""
    governor = f", governor {machine.governor}" if machine.governor else ""
    gpu = f", {machine.gpu}" if machine.gpu else ""
    memory = f"{machine.memory_bytes / 2**30:.1f} GiB, {machine.system}"
    load = f"load {machine.load_average[0]:.2f}"
    return f"{machine.cpu}, {machine.cores} cores{governor}{gpu}, {memory}, {load}"


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
