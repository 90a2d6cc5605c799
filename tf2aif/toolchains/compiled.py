"""The kind of toolchain that is a virtual environment of its own with a C++ compiler beside it."""

from __future__ import annotations

from . import Identity, Missing, Toolchain, venv
from .tools import compiler_version, find_tool

prepare = venv.prepare
command = venv.command
search_path = venv.search_path

COMPILER = "g++"


def identity(toolchain: Toolchain) -> Identity | Missing:
    """What the environment is, and the compiler's version: it decides what is compiled."""
    found = venv.identity(toolchain)
    if isinstance(found, Missing):
        return found
    compiler = find_tool(COMPILER)
    if compiler is None:
        return Missing(COMPILER, "install it (Debian and Ubuntu: apt-get install g++)")
    further = {**found.further, COMPILER: compiler_version(compiler)}
    return found._replace(kind=toolchain.kind, further=further)
