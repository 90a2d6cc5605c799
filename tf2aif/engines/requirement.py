"""`engine.json`: what a machine must be for a compiled engine, checked before it is loaded.

A TensorRT engine is machine code for one GPU, made by one version of the library. On another device
it fails deep inside the vendor's code, or is slow without a word.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..errors import Tf2aifError
from .signature import read_beside, write_beside

FILE = "engine.json"

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
_AMPERE = (8, 0)


class Requirement(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine was built for. What is empty or 0 may be anything."""

    library: Literal["tensorrt", "tensorrt-rtx"]
    version: str  # full, with its build number
    platform: str  # such as linux-x86_64
    compute_capabilities: tuple[str, ...] = ()  # such as 8.9
    gpu: str = ""
    multiprocessors: int = 0
    driver: str = ""  # what it was built with, for people
    cuda: str = ""  # the newest CUDA of that driver
    l4t: str = ""  # of a Jetson
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    stripped: bool = False  # its weights are beside it, in weights.onnx


class Here(Struct, frozen=True, kw_only=True):
    """What this machine is, as far as an engine asks."""

    library: str
    version: str
    platform: str
    compute_capability: str
    gpu: str
    multiprocessors: int
    cuda: str
    l4t: str = ""


def read_requirement(artifact: Path) -> Requirement:
    """What the artifact in that folder needs. Raises Tf2aifError where the file is not one."""
    return read_beside(artifact / FILE, Requirement, "what an engine needs")


def write_requirement(artifact: Path, requirement: Requirement) -> None:
    """Write `engine.json` into that folder; the same requirement gives the same bytes."""
    write_beside(artifact / FILE, requirement)


def check_machine(requirement: Requirement, here: Here, artifact: Path) -> None:
    """Raise one Tf2aifError with all that differs, if the engine is not for this machine."""
    wrong = differences(requirement, here)
    if wrong:
        raise Tf2aifError(
            f"this engine is for another machine: {'; '.join(wrong)}",
            at=str(artifact / FILE),
            hint="build the variant on this machine; or for more than one kind of machine: "
            "see 'hardware_compatibility' and 'version_compatible' of its step",
        )


def differences(wanted: Requirement, here: Here) -> list[str]:
    """What of this machine is not as the engine needs it, each in words.

    >>> ours = Here(library="tensorrt", version="10.16.1.11", platform="linux-x86_64",
    ...             compute_capability="9.0", gpu="H100", multiprocessors=132, cuda="13.0")
    >>> differences(Requirement(library="tensorrt", version="10.16.1.11", platform="linux-x86_64",
    ...                         compute_capabilities=("8.9",)), ours)
    ['it needs compute capability 8.9, the GPU (H100) has 9.0']
    """
    found = []
    if wanted.library != here.library:
        found.append(f"it needs {wanted.library}, here is {here.library}")
    elif not _version_fits(wanted, here.version):
        later = f" or a later {wanted.version.partition('.')[0]}.x" * wanted.version_compatible
        found.append(f"it needs {wanted.library} {wanted.version}{later}, here is {here.version}")
    if wanted.platform != here.platform:
        found.append(f"it needs {wanted.platform}, this is {here.platform}")
    found += _of_gpu(wanted, here)
    if wanted.cuda and _numbers(here.cuda)[:1] < _numbers(wanted.cuda)[:1]:
        found.append(f"it was built with CUDA {wanted.cuda}, the driver takes {here.cuda}")
    if wanted.l4t != here.l4t:
        told, ours = (f"L4T {each}" if each else "no Jetson" for each in (wanted.l4t, here.l4t))
        found.append(f"it needs {told}, this is {ours}")
    return found


def this_platform() -> str:
    """Operating system and architecture, such as linux-x86_64."""
    system = os.uname()
    return f"{system.sysname.lower()}-{system.machine}"


def _of_gpu(wanted: Requirement, here: Here) -> list[str]:
    """What the engine says of the GPU, by how far it was built to be moved."""
    ours = f"the GPU ({here.gpu}) has {here.compute_capability}"
    if wanted.hardware_compatibility == "ampere-plus":
        fits = _numbers(here.compute_capability) >= _AMPERE
        return [] if fits else [f"it needs compute capability 8.0 or later, {ours}"]
    capabilities = wanted.compute_capabilities
    if capabilities and here.compute_capability not in capabilities:
        return [f"it needs compute capability {' or '.join(capabilities)}, {ours}"]
    if wanted.hardware_compatibility == "same-compute-capability":
        return []
    if wanted.gpu and wanted.gpu != here.gpu:
        return [f"it was built on {wanted.gpu}, this is {here.gpu}"]
    counts = (wanted.multiprocessors, here.multiprocessors)
    if all(counts) and counts[0] != counts[1]:
        return [f"it was built for {counts[0]} multiprocessors, here are {counts[1]}"]
    return []


def _version_fits(wanted: Requirement, here: str) -> bool:
    """The same build; or where the engine is version-compatible, a later one of its major."""
    asked, ours = _numbers(wanted.version), _numbers(here)
    if wanted.version_compatible:
        return asked[:1] == ours[:1] and asked[:3] <= ours[:3]
    length = min(len(asked), len(ours))  # a library of Debian's may not tell its build number
    return length >= 3 and asked[:length] == ours[:length]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
