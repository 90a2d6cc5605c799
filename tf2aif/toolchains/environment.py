"""The kind of toolchain that is in this Python environment: its distributions are importable."""

from __future__ import annotations

import os
import sys

from . import Identity, Missing, Root, Toolchain
from .installed import installed


def identity(toolchain: Toolchain) -> Identity | Missing:
    """Versions of its root distributions, or the first one that is lacking.

    All that are there of a root count: with both `tensorflow` and `tensorflow-cpu` installed,
    their files overwrite each other and nobody knows which one runs.
    """
    versions: dict[str, str] = {}
    for root in toolchain.roots:
        present = _present(root)
        if not present and not root.optional:
            return Missing(root.distributions[0], _hint(toolchain))
        versions.update(present)
    system = os.uname()
    return Identity(
        kind=toolchain.kind,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        platform=f"{system.sysname.lower()}-{system.machine}",
        versions=versions,
    )


def command(toolchain: Toolchain) -> list[str]:  # noqa: ARG001
    """This interpreter; `-P` keeps the folder it starts in off `sys.path`."""
    return [sys.executable, "-P", "-m", "tf2aif.worker"]


def warm_modules(toolchain: Toolchain) -> tuple[str, ...]:
    """The modules of those roots that are there, then the probes."""
    roots = (module for root in toolchain.roots if _present(root) for module in root.modules)
    return (*roots, *(name for name in toolchain.probes if name in installed()))


def _present(root: Root) -> dict[str, str]:
    here = installed()
    return {name: here[name] for name in root.distributions if name in here}


def _hint(toolchain: Toolchain) -> str:
    return f"pip install 'tf2aif[{toolchain.extra}]'" if toolchain.extra else "pip install tf2aif"
