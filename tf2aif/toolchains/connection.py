"""How a step gets to another machine or into a container: a command with three streams.

The command starts a Python there that reads a parcel (see `tf2aif.parcel`) from standard input.
Nothing of ours need be installed there.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

NEEDS = "Python 3.11 or newer, with msgspec, numpy and xxhash"

# Unpacks the parcel and runs what is in it; whatever happens, the folder goes. It reads no byte
# beyond the archive: what follows there is silence, until we are gone.
_LOADER = """
import os, shutil, sys, tarfile, tempfile
if sys.version_info < (3, 11):
    sys.exit('tf2aif needs Python 3.11 or newer; this is ' + sys.version.split()[0])
sys.path[:] = [path for path in sys.path if path]
home = tempfile.mkdtemp(prefix='tf2aif-')
try:
    trusted = {'filter': 'fully_trusted'} if hasattr(tarfile, 'fully_trusted_filter') else {}
    with tarfile.open(fileobj=sys.stdin.buffer, mode='r|') as tar:
        tar.extractall(home, **trusted)
    sys.path.insert(0, home)
    from tf2aif.far import main
    main(home)
finally:
    shutil.rmtree(home, ignore_errors=True)
"""


class Connection(NamedTuple):
    """A way to a toolchain that is not here."""

    argv: tuple[str, ...]
    where: str
    """In words: `in the container`, `on jetson`."""
    every_variable: bool
    """A step sees the whole environment there."""
    in_turn: bool
    """One step at a time."""
    ended_by: tuple[str, ...] = ()
    """A command that makes sure that nothing of it runs any more."""
    codes: dict[int, tuple[str, str]] = {}  # noqa: RUF012 (never changed)
    """What an exit code of the command itself means: message, hint."""


def loader_command(python: str) -> tuple[str, ...]:
    """The command to run there. No character in it needs quoting but spaces and quotes."""
    code = base64.b64encode(_LOADER.encode()).decode()
    return (python, "-c", f"import base64; exec(base64.b64decode('{code}'))")
