"""The kind of toolchain that is AMD's runtime on a board: its modules come with the board's image.

They are no distributions that pip knows, so they are looked for as files on `sys.path`.
"""

from __future__ import annotations

import os
import sys

from . import Identity, Missing, Toolchain, environment
from .installed import installed

prepare = environment.prepare
command = environment.command
search_path = environment.search_path

MODULES = ("vart", "xir")


def identity(toolchain: Toolchain) -> Identity | Missing:
    """The versions of its modules where something tells them, or the module that is lacking."""
    versions = {}
    for name in MODULES:
        file = _module_file(name)
        if file is None:
            return Missing(
                f"AMD's runtime VART (this Python has no module '{name}')",
                "check this variant on its board, in the Vitis AI runtime image",
            )
        versions[name] = installed().get(name, os.path.basename(file))
    return Identity(
        toolchain.kind, environment.this_python(), environment.this_platform(), versions
    )


def _module_file(name: str) -> str | None:
    """A module's file or folder, by the names that Python would import; nothing is imported."""
    for folder in dict.fromkeys(sys.path):
        try:
            entries = sorted(os.listdir(folder or "."))
        except OSError:  # a zip file, or not there
            continue
        for entry in entries:
            stem, _, rest = entry.partition(".")
            if stem == name and (not rest or rest.endswith(("py", "so"))):
                return os.path.join(folder, entry)
    return None
