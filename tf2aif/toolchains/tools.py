"""Tools on PATH: where they are, and what tells one version from another without starting them.

A no-op build asks for these at each start, and a vendor's tool takes seconds to say its version:
files tell it at once.
"""

from __future__ import annotations

import os
import re
import shutil
from functools import cache
from pathlib import Path

from ..digest import digest_bytes, digest_file

_RELEASE = re.compile(r"^(20\d\d\.\d+(?:\.\d+)?)$")
_COMPILER = re.compile(rb"\x00(\d{1,2}\.\d+\.\d+)\x00")


def find_tool(*names: str) -> Path | None:
    """The first of these tools that is on PATH, its links followed."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return Path(os.path.realpath(path))
    return None


def vendor_version(tool: Path) -> str:
    """The release that a tool of AMD belongs to: its installation has it as a folder's name.

    `/tools/Xilinx/Vitis/2024.1/bin/vitis-run` is 2024.1. Elsewhere, the digest of the tool itself.
    """
    for folder in tool.parents:
        if _RELEASE.match(folder.name):
            return folder.name
    return f"digest {digest_file(tool)}"


def compiler_version(tool: Path) -> str:
    """The version of a GNU compiler, as its driver has it inside, and the driver's digest.

    Distributions patch a version without raising it: the digest tells those apart.
    """
    status = tool.stat()
    return _compiler_version(str(tool), status.st_size, status.st_mtime_ns)


@cache
def _compiler_version(path: str, size: int, mtime_ns: int) -> str:  # noqa: ARG001
    content = Path(path).read_bytes()
    found = _COMPILER.search(content)
    return f"{found[1].decode() if found else 'unknown'} {digest_bytes(content)[:12]}"
