"""The machine that a step runs on, as facts of what it makes there."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from .facts import Facts

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7"}


def oci_platform(system: str, machine: str) -> str:
    """A system and machine, as `os.uname` names them, in OCI's words.

    >>> oci_platform("Linux", "aarch64")
    'linux/arm64'
    """
    return f"{system.lower()}/{ARCHITECTURES.get(machine, machine)}"


def this_platform() -> str:
    """This machine as OCI names it, such as `linux/amd64`."""
    return oci_platform("linux", platform.machine())


@cache
def machine_facts() -> Facts:
    """What a measured time depends on: the processor and how many of them we may use."""
    cpu = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu
    )
    return {"machine.cpu": model, "machine.cores": len(os.sched_getaffinity(0))}
