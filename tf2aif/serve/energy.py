"""Energy counters of this machine, and its GPUs' memory: RAPL for x86 packages, NVML for GPUs.

They count what the whole package or device uses, other processes included.

Source: Linux, Documentation/power/powercap/powercap.rst; NVML, nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Protocol

from ..engines.nvidia import NVML, Nvml

RAPL = Path("/sys/class/powercap")


class Source(Protocol):
    """A counter of energy."""

    name: str

    def joules(self) -> float:
        """What was used since the last call (first call: since the source was made)."""


class Rapl:
    """One RAPL domain, `intel-rapl:0`; the counter wraps around at its stated range."""

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._last_uj = int(self._counter.read_text())
        self.name = f"rapl:{(folder / 'name').read_text().strip()}"

    def joules(self) -> float:
        now = int(self._counter.read_text())
        used = now - self._last_uj if now >= self._last_uj else now - self._last_uj + self._range_uj
        self._last_uj = now
        return used / 1e6


class Gpu:
    """One GPU's own counter, in millijoules since its driver was loaded."""

    def __init__(self, nvml: Nvml, index: int) -> None:
        self._nvml = nvml
        self._handle = nvml.handle(index)
        self.name = f"nvml:{index}"
        self._last_mj = nvml.energy_mj(self._handle)

    def joules(self) -> float:
        now = self._nvml.energy_mj(self._handle)
        used, self._last_mj = now - self._last_mj, now
        return used / 1e3


def find_sources(rapl: Path = RAPL, nvml: str = NVML) -> list[Source]:
    """The counters that this process may read; none on most virtual machines."""
    return [*_find_rapl(rapl), *_find_nvml(nvml)]


def _find_rapl(root: Path) -> list[Source]:
    """Packages only (`intel-rapl:0`): their parts (`intel-rapl:0:1`) would count twice."""
    found: list[Source] = []
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:
            _keep(found, partial(Rapl, folder))
    return found


def find_gpu_memory(nvml: str = NVML) -> dict[str, Callable[[], float]]:
    """For each GPU that tells it, a function that reads the bytes in use, by `nvml:NUMBER`."""
    found: dict[str, Callable[[], float]] = {}
    with suppress(OSError):
        library = Nvml(nvml)
        for index in range(library.count()):
            read = partial(_memory_used, library, library.handle(index))
            if not isnan(read()):
                found[f"nvml:{index}"] = read
    return found


def _memory_used(nvml: Nvml, handle: ctypes.c_void_p) -> float:
    """Bytes; NaN while the driver does not answer, which must not cost all other metrics."""
    try:
        return nvml.memory(handle)[1]
    except OSError:
        return nan


def _find_nvml(name: str) -> list[Source]:
    found: list[Source] = []
    with suppress(OSError):
        nvml = Nvml(name)
        for index in range(nvml.count()):
            _keep(found, partial(Gpu, nvml, index))
    return found


def _keep(found: list[Source], make: Callable[[], Source]) -> None:
    """Add the source, unless it cannot be read: RAPL is root's on most machines."""
    with suppress(OSError, ValueError):
        found.append(make())
