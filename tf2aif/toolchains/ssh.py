"""The kind of toolchain that is on another machine: each step runs there, over ssh.

What it is, is asked there, once a build: Python, the versions of its roots, the device. Where the
machine does not answer, the toolchain is missing.
"""

from __future__ import annotations

import shlex
import shutil

from ..errors import StepFailed, Tf2aifError
from . import Identity, Missing, Toolchain
from .connection import NEEDS, Connection, loader_command
from .places import Place

ASK_S = 60.0
_ALIVE = ("ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4", "LogLevel=ERROR")


def identity(toolchain: Toolchain) -> Identity | Missing:
    """What the machine says of the toolchain; what is lacking there, or that it does not answer."""
    from ..offload import ask

    place = _place(toolchain)
    if shutil.which("ssh") is None:
        return Missing("ssh", "install an ssh client")
    try:
        told = ask(connection(toolchain), toolchain.name, ASK_S)
    except StepFailed as error:
        fault = error.faults[0]
        return Missing(f"host {place.ssh}", f"{fault.message}; {fault.hint}")
    if lacking := told.get("missing"):
        return Missing(f"{lacking['what']} on {place.ssh}", f"there: {lacking['hint']}")
    about = told["about"]
    return Identity("ssh", about["python"], about["platform"], told["versions"], told["further"])


def connection(toolchain: Toolchain) -> Connection:
    """The `ssh` of this machine, with its configuration and keys; it never asks for a password."""
    place = _place(toolchain)
    # Of options that are given twice, ssh takes the first: the user's.
    options = [*place.options, *(word for one in _ALIVE for word in ("-o", one))]
    there = shlex.join(loader_command(place.python))
    return Connection(
        ("ssh", "-T", "-o", "BatchMode=yes", *options, "--", place.ssh or "", there),
        where=f"on {place.ssh}",
        every_variable=False,
        in_turn=True,
        codes={
            255: (
                f"the connection to {place.ssh} failed",
                f"`ssh {shlex.join([*place.options, place.ssh or ''])} true` must work without a "
                "password",
            ),
            127: (f"there is no '{place.python}' on {place.ssh}", f"the host needs {NEEDS}"),
        },
    )


def _place(toolchain: Toolchain) -> Place:
    if toolchain.place is None:
        raise Tf2aifError("kind 'ssh' needs a host", hint="name it in tf2aif.yaml")
    return toolchain.place
