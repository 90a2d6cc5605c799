"""NVIDIA GPUs and Jetson boards, and the TensorRT that is installed beside them.

An engine holds for the very GPU, driver and TensorRT build that it was made with, so these are the
facts of the steps that make one. They are read from files and from NVML, in milliseconds: CUDA is
not started, and TensorRT's own libraries, which crash without a driver, are not loaded.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from ..engines.nvidia import ROOT, Machine, read_machine
from ..toolchains.installed import installed

FLAVOURS = {
    "tensorrt": ("tensorrt-cu13-libs", "tensorrt-cu12-libs", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-lean": ("tensorrt-lean-cu13-libs", "tensorrt-lean-cu12-libs"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu12-libs", "tensorrt-rtx-cu13"),
}
"""Flavour of TensorRT -> the wheels that bring its libraries."""

_CUDA = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
_DEBIAN = {"tensorrt": ("libnvinfer11", "libnvinfer10"), "jetpack": ("nvidia-jetpack",)}
_GIB = 1 << 30


def facts() -> dict[str, str]:
    """What an engine depends on, by name; empty where there is no GPU."""
    machine = read()
    if not machine.present:
        return {}
    told = {**_of_gpus(machine), **_of_jetson(machine), **_of_software()}
    told |= {"driver": machine.driver, "cuda-driver": machine.cuda}
    return {name: told[name] for name in sorted(told) if told[name]}


def describe() -> dict[str, str]:
    """GPUs, driver, flavours of TensorRT, JetPack: each in a line of words."""
    machine = read()
    lines = {f"gpu {i}": _words(machine, i) for i in range(len(machine.gpus))}
    if not lines:
        lines["gpu"] = "no NVIDIA GPU: no driver answers"
    if machine.jetson is not None:
        packs = debian_version("jetpack")
        jetpack = f", JetPack {packs}" if packs else ""
        lines["jetson"] = f"{machine.jetson.model}, L4T {machine.jetson.l4t}{jetpack}"
    found = [f"{name} {version}" for name in FLAVOURS if (version := tensorrt_version(name))]
    lines["tensorrt"] = ", ".join(found) or "none installed"
    return lines


@cache
def read() -> Machine:
    """This machine, read once a process."""
    return read_machine()


def tensorrt_version(flavour: str = "tensorrt") -> str:
    """The full version, with its build number, of what is installed of that flavour; or "".

    Wheels tell it in their name. The packages of Debian, Ubuntu and JetPack do not tell it in
    Python's own records, so dpkg's are read.
    """
    here = installed()
    wheel = next((here[name] for name in FLAVOURS[flavour] if name in here), "")
    if wheel or flavour != "tensorrt":
        return wheel
    return debian_version("tensorrt") or here.get("tensorrt", "")


def debian_version(what: str, root: Path = ROOT) -> str:
    """The version of an installed Debian package, without its epoch and suffix; or ""."""
    try:
        status = (root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for package in _DEBIAN[what]:
        found = re.search(rf"^Package: {package}\n(?:.+\n)*?Version: (\S+)", status, re.MULTILINE)
        if found:
            return found[1].rpartition(":")[2].partition("+")[0]
    return ""


def _of_gpus(machine: Machine) -> dict[str, str]:
    """Facts of all GPUs that CUDA may use here; alike ones are told once."""
    alike = sorted(
        {
            f"{gpu.name}, compute capability {gpu.compute_capability}, "
            f"{gpu.multiprocessors} multiprocessors, {gpu.memory_bytes} bytes"
            for gpu in machine.gpus
        }
    )
    return {"gpu": "; ".join(alike)}


def _of_jetson(machine: Machine) -> dict[str, str]:
    if machine.jetson is None:
        return {}
    return {
        "jetson": machine.jetson.model,
        "l4t": machine.jetson.l4t,
        "power-mode": machine.jetson.power_mode,
        "jetpack": debian_version("jetpack"),
    }


def _of_software() -> dict[str, str]:
    """TensorRT and whose build of it, the CUDA runtime, and the platform."""
    system = os.uname()
    here = installed()
    version = tensorrt_version()
    wheel = next((name for name in FLAVOURS["tensorrt"] if name in here), "system")
    return {
        "tensorrt": version,
        "tensorrt-from": wheel if version else "",
        "cuda-runtime": next((here[name] for name in _CUDA if name in here), _cuda_folder()),
        "platform": f"{system.sysname.lower()}-{system.machine}",
    }


def _cuda_folder(root: Path = ROOT) -> str:
    """The toolkit's version, of `/usr/local/cuda/version.json`."""
    try:
        text = (root / "usr/local/cuda/version.json").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', text)
    return found[1] if found else ""


def _words(machine: Machine, index: int) -> str:
    gpu = machine.gpus[index]
    size = f"{gpu.memory_bytes / _GIB:.0f} GiB"
    driver = f", driver {machine.driver} (CUDA {machine.cuda})" if machine.driver else ""
    return f"{gpu.name}, compute capability {gpu.compute_capability}, {size}{driver}"
