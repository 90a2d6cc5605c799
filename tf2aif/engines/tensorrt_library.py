"""Finding TensorRT, and trying it in a child process before it is loaded in ours.

Without a usable driver TensorRT's `Runtime` does not fail, it crashes the process (SIGSEGV, seen
with 10.16). So a child asks first; what becomes of it is told in words.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

from ..errors import Tf2aifError

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-lean": ("tensorrt_lean", "tensorrt_lean_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Flavour -> its modules, best first. The second of each is what its wheels hold; the first, a
wrapper, is published as source only."""

_TIMEOUT_S = 120.0
_TAIL = 400
_SCRIPT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[2])
library = importlib.import_module(sys.argv[1])
logger = library.Logger(library.Logger.ERROR)
made = library.Runtime(logger)
print("\\n" + json.dumps({"version": library.__version__}))
"""


def find_library(flavours: Sequence[str]) -> str:
    """The name of the first module there is of these flavours.

    Raises Tf2aifError where there is none.
    """
    for flavour in flavours:
        for module in MODULES[flavour]:
            if find_spec(module) is not None:
                return module
    raise Tf2aifError(
        f"{flavours[0]} is not installed here",
        hint="its wheels are named in the engine's REQUIREMENTS; or take a base image that has it",
    )


def import_library(flavours: Sequence[str]) -> ModuleType:
    """Load the first of these flavours. Raises Tf2aifError where its libraries do not load."""
    name = find_library(flavours)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise Tf2aifError(f"{name} cannot be loaded: {error}") from error


def probe(module: str) -> str:
    """The full version of a module, after a child process has made its runtime and lived.

    Raises Tf2aifError with what became of the child.
    """
    command = [sys.executable, "-c", _SCRIPT, module, json.dumps(sys.path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Tf2aifError(f"{module} does not start: no answer in {_TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return str(json.loads(done.stdout.strip().splitlines()[-1])["version"])
    how = f"it exits with {done.returncode}"
    if done.returncode < 0:
        how = f"it crashes ({signal.Signals(-done.returncode).name})"
    words = " ".join((done.stderr or done.stdout).split())[-_TAIL:]
    raise Tf2aifError(
        f"{module} does not work here: {how}{': ' if words else ''}{words}",
        hint="it was tried in a process of its own; a driver that is too old, or none, is the "
        "usual cause: see `nvidia-smi`",
    )
