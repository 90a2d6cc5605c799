"""A call in a process of its own, whose memory lies the same every time.

Some compilers let the addresses of their objects decide an order: the same input gives other bytes
in every process, because the kernel places memory at random and what ran before moved the heap.
Here the kernel is told not to, and the work is done on a new thread, which has a heap of its own.
So it lies where it lay for the same call; one with a longer argument may find it moved.

Where the kernel may not be told (Docker's default seccomp profile forbids it) the call is made all
the same; `Answer.still` says so.

Source: Linux, personality(2), ADDR_NO_RANDOMIZE.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import StepFailed

_START = """
import ctypes, os, sys
ctypes.CDLL(None).personality(0x0040000)
os.execv(sys.executable, [sys.executable, "-P", "-m", "tf2aif.steps.still", *sys.argv[1:]])
"""
_NO_RANDOMIZE = 0x0040000
_ASK = 0xFFFFFFFF


class Request(Struct, frozen=True):
    """A function by its module and name, and its one argument, which JSON can hold."""

    module: str
    function: str
    argument: dict[str, Any]


class Answer(Struct, frozen=True, kw_only=True):
    """What the function returned, or the StepFailed that it raised."""

    result: dict[str, Any] = {}
    message: str = ""
    at: str = ""
    hint: str = ""
    still: bool = False  # the kernel did not place memory at random


def call_still(module: str, function: str, argument: dict[str, Any]) -> Answer:
    """Call it in a new process; what it prints goes where ours goes.

    Raises the StepFailed that it raises, and one for a process that ends in another way.
    """
    request = Request(module, function, argument)
    with tempfile.TemporaryDirectory(prefix="tf2aif-still-") as folder:
        asked, told = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_bytes(msgspec.json.encode(request))
        command = [sys.executable, "-P", "-c", _START, str(asked), str(told)]
        code = subprocess.run(command, env=_environment(), check=False).returncode
        if code or not told.exists():
            raise StepFailed(f"the compiler's process {_ended(code)}", hint="see the step's log")
        answer = msgspec.json.decode(told.read_bytes(), type=Answer)
    if answer.message:
        raise StepFailed(answer.message, at=answer.at, hint=answer.hint)
    return answer


def _environment() -> dict[str, str]:
    """Ours, with what keeps Python's own memory the same, and the folder that tf2aif is in."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path)),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _ended(code: int) -> str:
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"


def main() -> None:
    """The process: read the request, call on a new thread, write the answer."""
    import ctypes

    asked, told = sys.argv[1:]
    request = msgspec.json.decode(Path(asked).read_bytes(), type=Request)
    still = bool(ctypes.CDLL(None).personality(ctypes.c_ulong(_ASK)) & _NO_RANDOMIZE)
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(_answer(request, still)))
    thread.start()
    thread.join()
    if not answers:
        sys.exit(1)  # its traceback is printed already
    Path(told).write_bytes(msgspec.json.encode(answers[0]))


def _answer(request: Request, still: bool) -> Answer:
    function = getattr(importlib.import_module(request.module), request.function)
    try:
        return Answer(result=dict(function(request.argument)), still=still)
    except StepFailed as error:
        fault = error.faults[0]
        return Answer(message=fault.message, at=fault.at, hint=fault.hint, still=still)


if __name__ == "__main__":
    main()
