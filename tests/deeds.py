"""A step for the tests of workers: it does what its option `do` says, mostly something bad."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tf2aif.errors import StepFailed
from tf2aif.steps import Job


def run(job: Job) -> Mapping[str, Any] | None:
    """Do one deed; its other options are arguments."""
    arguments = {name: value for name, value in job.options.items() if name != "do"}
    return DEEDS[job.options["do"]](job, **arguments)


def tell(job: Job) -> dict[str, Any]:
    """Where and as what this runs."""
    (job.out / "done").write_text("done")
    return {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "tmp": os.environ["TMPDIR"],
        "environment": dict(os.environ),
        "session": os.getsid(0),
    }


def draw(job: Job) -> dict[str, Any]:
    """Random numbers of every kind that a step may draw."""
    import random

    import numpy as np

    return {"random": random.random(), "numpy": float(np.random.rand())}


def print_all(job: Job, text: str, times: int = 1) -> None:
    """Print from Python, from a child process and from C."""
    print(text * times)
    print(text, file=sys.stderr)
    subprocess.run(["echo", f"child {text}"], check=True)
    ctypes.CDLL(None).printf(b"native %s\n", text.encode())


def refuse(job: Job) -> None:
    """What a step says of an operator that it cannot convert."""
    raise StepFailed("operator 'Foo' is not supported", at="model: Foo", hint="use Bar")


def fail(job: Job) -> None:
    """An exception that nobody expected."""
    print("about to divide")
    raise ZeroDivisionError("division by zero\nwith a second line")


def exhaust(job: Job) -> None:
    """What numpy does with a shape that cannot be."""
    import numpy as np

    np.ones((1 << 20, 1 << 20, 16))


def vendor_exit(job: Job) -> None:
    """A vendor's `exit`."""
    print("no licence found")
    sys.exit(3)


def hard_exit(job: Job, code: int) -> None:
    """An exit that no Python can catch."""
    print("leaving")
    os._exit(code)


def abort(job: Job) -> None:
    """A failed check in native code."""
    os.abort()


def crash(job: Job) -> None:
    """Native code reads address zero."""
    ctypes.string_at(0)


def kill(job: Job, number: int = signal.SIGKILL) -> None:
    """A signal from outside."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def sleep(job: Job, seconds: float = 60.0, mark: str = "") -> dict[str, Any]:
    """Take time; `mark` is a file to write one's process ids to, a child's included."""
    child = subprocess.Popen(["sleep", str(seconds)])
    if mark:
        Path(mark + ".part").write_text(f"{os.getpid()} {child.pid}")
        os.replace(mark + ".part", mark)
    child.wait()
    return {"pid": os.getpid()}


def hold_lock(job: Job, mark: str) -> None:
    """Native code that never gives Python's lock back."""
    Path(mark + ".part").write_text(str(os.getpid()))
    os.replace(mark + ".part", mark)
    ctypes.PyDLL(None).sleep(60)


def allocate(job: Job, mb: int, in_child: bool = False) -> None:
    """Use memory and keep it for a while."""
    if in_child:
        code = f"x = bytearray({mb} << 20); import time; time.sleep(60)"
        subprocess.run([sys.executable, "-c", code], check=True)
    held = bytearray(mb << 20)
    time.sleep(0.5)
    del held


def leak(job: Job, mb: int) -> dict[str, Any]:
    """Use memory and never give it back."""
    _leaked.append(bytearray(b"\x01") * (mb << 20))
    return {"pid": os.getpid()}


def load(job: Job, name: str) -> dict[str, Any]:
    """Import another distribution."""
    __import__(name)
    return {"pid": os.getpid()}


def give(job: Job, value: Any = None, strange: bool = False) -> dict[str, Any]:
    """Return something."""
    return {"value": object() if strange else value}


def fork(job: Job) -> dict[str, Any]:
    """A child that comes back from the step too."""
    if os.fork():
        os.wait()
    return {"pid": os.getpid()}


def leave_child(job: Job, mark: str) -> None:
    """Die, and leave a child behind that holds all files open."""
    if pid := os.fork():
        Path(mark).write_text(str(pid))
        os._exit(4)
    time.sleep(60)


def close_all(job: Job) -> None:
    """Close what one does not own, and go on."""
    os.closerange(0, 64)
    time.sleep(60)


def call(job: Job, function: str, **arguments: Any) -> dict[str, Any]:
    """Call the user's function."""
    from tf2aif.usercode import load_function

    return {"value": load_function(job.inputs["code"], function)(**arguments), "pid": os.getpid()}


_leaked: list[bytearray] = []
DEEDS: dict[str, Callable[..., dict[str, Any] | None]] = {
    deed.__name__: deed
    for deed in (
        abort, allocate, call, close_all, crash, draw, exhaust, fail, fork, give, hard_exit,
        hold_lock, kill, leak, leave_child, load, print_all, refuse, sleep, tell, vendor_exit,
    )
}  # fmt: skip
