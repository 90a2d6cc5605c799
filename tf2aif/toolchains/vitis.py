"""The kind of toolchain that is AMD Vitis AI, installed by the user: found, never brought.

It is its compiler `vai_c_tensorflow2` on PATH, and beside it the Python whose environment has the
quantiser. Versions are read from the names of files; nothing of it is started to look.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from . import Identity, Missing, Toolchain, environment
from .installed import normalize

# Our own worker runs in this Python: it starts the vendor's, which is too old for us.
prepare = environment.prepare
command = environment.command
search_path = environment.search_path

COMPILER = "vai_c_tensorflow2"
QUANTISER = "tensorflow_model_optimization/quantization/keras"
# What decides the bytes of a compiled model, of what conda or pip have in that environment.
PARTS = ("vai-q-tensorflow2", "xcompiler", "xir", "target-factory", "unilog", "tensorflow", "vart")
VERSIONED = ("xcompiler", "vai-q-tensorflow2", "xir")
HINT = (
    "start the build in Vitis AI's image or conda environment 'vitis-ai-tensorflow2', with "
    f"{COMPILER} on PATH"
)


class Installation(NamedTuple):
    """Vitis AI as it is on this machine."""

    compiler: Path
    python: Path
    versions: dict[str, str]
    """Distribution -> version, of those that decide what comes out."""

    @property
    def version(self) -> str:
        """Vitis AI's own version, such as `3.5`, as its parts bear it; empty where none does."""
        told = next((self.versions[name] for name in VERSIONED if name in self.versions), "")
        return ".".join(told.split(".")[:2])


def find() -> Installation | Missing:
    """Vitis AI on PATH, or what is lacking."""
    compiler = shutil.which(COMPILER)
    if compiler is None:
        return Missing(f"AMD Vitis AI ({COMPILER} is not on PATH)", HINT)
    for python in _pythons(Path(compiler)):
        packages = _packages(python)
        if packages is not None and any((packages / QUANTISER).glob("vitis*")):
            prefix = python.parent.parent
            versions = _versions(_conda(prefix) | _pip(packages))
            return Installation(Path(compiler), python, versions)
    return Missing(
        f"AMD Vitis AI's quantiser (no Python beside {compiler} has vitis_quantize)", HINT
    )


def identity(toolchain: Toolchain) -> Identity | Missing:
    """The versions of its parts, or what is lacking."""
    found = find()
    if isinstance(found, Missing):
        return found
    versions = found.versions or {COMPILER: _digest(found.compiler)}
    return Identity(
        toolchain.kind, environment.this_python(), environment.this_platform(), versions
    )


def _pythons(compiler: Path) -> list[Path]:
    """Those beside the compiler, then the one on PATH."""
    beside = [compiler.parent / name for name in ("python", "python3")]
    beside += [compiler.resolve().parent / name for name in ("python", "python3")]
    on_path = shutil.which("python3")
    found = [*beside, *([Path(on_path)] if on_path else [])]
    return [path for path in dict.fromkeys(found) if os.access(path, os.X_OK)]


def _packages(python: Path) -> Path | None:
    """The site-packages of a Python, by the layout of an environment."""
    found = sorted((python.parent.parent / "lib").glob("python3.*/site-packages"))
    return found[-1] if found else None


def _conda(prefix: Path) -> dict[str, str]:
    """What conda installed: `NAME-VERSION-BUILD.json`."""
    found = {}
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        told = re.fullmatch(r"(.+)-([^-]+)-[^-]+", path.stem)
        if told:
            found[normalize(told[1])] = told[2]
    return found


def _pip(packages: Path) -> dict[str, str]:
    """What pip installed: `NAME-VERSION.dist-info`."""
    found = {}
    for path in sorted(packages.glob("*.dist-info")):
        name, _, version = path.stem.rpartition("-")
        found[normalize(name)] = version
    return found


def _versions(found: dict[str, str]) -> dict[str, str]:
    return {name: found[name] for name in PARTS if name in found}


def _digest(path: Path) -> str:
    from ..digest import digest_file

    return digest_file(path)
