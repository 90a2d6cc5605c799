"""Compile a tree of Python files ahead: a read-only container cannot keep what it compiles.

The `.pyc` files hold no time and no path of this machine, and are never checked against their
source at run time, so what they are depends on the sources and the compiler alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import StepFailed

_TIMEOUT_S = 900.0

# Run by the interpreter of the image's version, in a process of its own: what a .pyc is depends
# on which constants its process has seen. A file that is no Python 3 (a template, a test of bad
# syntax) has no .pyc, as with every installer.
_COMPILE = """
import os, py_compile, sys
root, shown = sys.argv[1:]
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for folder, folders, files in os.walk(root):
    folders.sort()
    for name in sorted(files):
        if name.endswith(".py"):
            path = os.path.join(folder, name)
            final = os.path.join(shown, os.path.relpath(path, root))
            try:
                py_compile.compile(path, dfile=final, doraise=True, invalidation_mode=mode)
            except (py_compile.PyCompileError, UnicodeDecodeError, ValueError):
                pass
"""


def compile_tree(root: Path, shown: str, python: str) -> bool:
    """Write `__pycache__` beside every `.py` below `root`, which is `shown` in the image.

    `python` is the image's version, such as `3.11`. False where no interpreter of that version is
    here: then nothing is compiled, and containers start more slowly.
    """
    interpreter = find_interpreter(python)
    if interpreter is None:
        return False
    command = [interpreter, "-I", "-S", "-c", _COMPILE, str(root), shown]
    environment = {"PYTHONHASHSEED": "0", "PATH": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise StepFailed(f"compiling ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return True


def find_interpreter(python: str) -> str | None:
    """An interpreter of that version: this one, one on PATH, or one that uv knows."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == python:
        return sys.executable
    if (found := shutil.which(f"python{python}")) and _answers(found, python):
        return found
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        return None
    done = subprocess.run(
        [uv, "python", "find", "--offline", "--no-project", python],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    return done.stdout.strip() or None


def _answers(interpreter: str, python: str) -> bool:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run(
        [interpreter, "-I", "-c", code], capture_output=True, text=True, timeout=60.0, check=False
    )
    return done.stdout.strip() == python
