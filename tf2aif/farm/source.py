"""Which tf2aif this is, as the machines of a farm tell one from another."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .. import __version__
from ..digest import digest_bytes

PACKAGE = Path(__file__).parent.parent


@cache
def version(package: Path = PACKAGE) -> str:
    """The version, and the digest of all modules: `0.1.0+5f0c21aa`.

    Two checkouts may say the same version and make different things: a step's own version is in
    its key, an edit that was not meant to change what it makes is not.
    """
    content = bytearray()
    for path in sorted(package.rglob("*.py")):
        data = path.read_bytes()
        content += f"{path.relative_to(package)} {len(data)}\n".encode() + data
    return f"{__version__}+{digest_bytes(bytes(content))[:8]}"
