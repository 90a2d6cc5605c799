"""Energy counters of this machine: RAPL for x86 packages, NVML for NVIDIA GPUs.

Both count what the whole package or device uses, other processes included.

Source: Linux, Documentation/power/powercap/powercap.rst; NVML, nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

RAPL = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


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


class Nvml:
    """One GPU's own counter, in millijoules since its driver was loaded."""

    def __init__(self, library: ctypes.CDLL, index: int) -> None:
        self._library = library
        self._device = ctypes.c_void_p()
        _must(library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device)))
        self.name = f"nvml:{index}"
        self._last_mj = self._read_mj()

    def joules(self) -> float:
        now = self._read_mj()
        used, self._last_mj = now - self._last_mj, now
        return used / 1e3

    def _read_mj(self) -> int:
        value = ctypes.c_ulonglong()
        _must(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(value)))
        return value.value


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


def _find_nvml(name: str) -> list[Source]:
    try:
        library = ctypes.CDLL(name)
        _must(library.nvmlInit_v2())
        count = ctypes.c_uint()
        _must(library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    except (OSError, AttributeError):
        return []
    found: list[Source] = []
    for index in range(count.value):
        _keep(found, partial(Nvml, library, index))
    return found


def _keep(found: list[Source], make: Callable[[], Source]) -> None:
    """Add the source, unless it cannot be read: RAPL is root's on most machines."""
    try:
        found.append(make())
    except (OSError, ValueError):
        return


def _must(status: int) -> None:
    if status != 0:
        raise OSError(status, "NVML refused")
