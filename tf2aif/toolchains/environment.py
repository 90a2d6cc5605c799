"""The kind of toolchain that is in this Python environment: its distributions are importable."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path

from . import Identity, Making, Missing, Root, Toolchain
from .installed import installed

PACKAGE = Path(__file__).resolve().parents[1]


def identity(toolchain: Toolchain) -> Identity | Missing:
    """Versions of its root distributions, or the first one that is lacking."""
    versions = root_versions(toolchain, installed())
    if isinstance(versions, Missing):
        return versions
    return Identity(toolchain.kind, this_python(), this_platform(), versions)


def root_versions(toolchain: Toolchain, here: Mapping[str, str]) -> dict[str, str] | Missing:
    """Versions of its root distributions among those that are `here`, or the first that lacks.

    All that are there of a root count: with both `tensorflow` and `tensorflow-cpu` installed,
    their files overwrite each other and nobody knows which one runs.
    """
    versions: dict[str, str] = {}
    for root in toolchain.roots:
        present = _present(root, here)
        if not present and not root.optional:
            return Missing(root.distributions[0], _hint(toolchain))
        versions.update(present)
    return versions


def this_python() -> str:
    """Our interpreter's version, such as `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def this_platform() -> str:
    """This machine's kernel and architecture, such as `linux-x86_64`."""
    system = os.uname()
    return f"{system.sysname.lower()}-{system.machine}"


def prepare(toolchain: Toolchain, making: Making) -> None:
    """Nothing is to be made: `pip install` has done it."""


def command(toolchain: Toolchain) -> list[str]:  # noqa: ARG001
    """This interpreter; `-P` keeps the folder it starts in off `sys.path`."""
    return [sys.executable, "-P", "-m", "tf2aif.worker"]


def search_path(toolchain: Toolchain) -> tuple[str, ...]:  # noqa: ARG001
    """The folder of a checkout that is not installed."""
    folder = str(PACKAGE.parent)
    installed_in = (*site.getsitepackages(), site.getusersitepackages())
    return () if folder in installed_in else (folder,)


def _present(root: Root, here: Mapping[str, str]) -> dict[str, str]:
    return {name: here[name] for name in root.distributions if name in here}


def _hint(toolchain: Toolchain) -> str:
    return f"pip install 'tf2aif[{toolchain.extra}]'" if toolchain.extra else "pip install tf2aif"
