"""Another machine's side of a step: it was started there by `tf2aif.offload`, out of a parcel.

The parcel came on standard input, which stays open: its end means that nobody waits any more, and
ends the step. What the step prints goes to standard error as it comes; the answer goes to standard
output. What is needed there is Python with msgspec, numpy and xxhash, and the toolchain itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .errors import StepFailed, Tf2aifError
from .parcel import Answer, Errand, open_parcel, reply_with
from .processes import machine_memory_mb
from .toolchains import Missing, identity
from .worker import Request, failed_reply
from .workers import Workers

POLL_S = 0.2


def main(home: str) -> None:
    """Do the errand of the parcel that was unpacked in that folder, and write the answer."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever else prints does not spoil the answer
    errand = open_parcel(Path(home))
    answer, out = (
        (Answer(identity=_identify(errand.toolchain)), None)
        if errand.request is None
        else _run(errand, errand.request, Path(home))
    )
    with open(answers, "wb") as file:
        reply_with(file, answer, out)


def _identify(toolchain: str) -> dict[str, dict[str, str]]:
    """What the toolchain and the devices of this machine are."""
    from .devices import DEVICES, device_facts

    tool = identity(toolchain)
    if isinstance(tool, Missing):
        return {"missing": {"what": tool.what, "hint": tool.hint}}
    further = {
        f"device.{device}.{name}": value
        for device in DEVICES
        for name, value in device_facts(device).items()
    }
    about = {"python": tool.python, "platform": tool.platform}
    return {"about": about, "versions": dict(tool.versions), "further": further}


def _run(errand: Errand, request: Request, home: Path) -> tuple[Answer, Path | None]:
    """Run the step as at home: in a worker of its toolchain, within its limits."""
    os.environ.update(errand.variables)
    if errand.every_variable:
        request = msgspec.structs.replace(request, environment=tuple(sorted(os.environ)))
    log = home / "log.txt"
    log.touch()
    with Workers() as workers, _ending_with_stdin(workers) as gone, _telling(log):
        try:
            with _in_turn(gone) if errand.in_turn else contextlib.nullcontext():
                reply = workers.attempt(
                    request,
                    log=log,
                    timeout_s=errand.timeout_s,
                    memory_mb=_memory_limit(errand.memory_mb),
                )
        except Tf2aifError as error:
            reply = failed_reply(error)
    return Answer(reply=reply), None if reply.failure else Path(request.out)


def _memory_limit(wanted_mb: float | None) -> float:
    """MiB; at most what this machine can give."""
    here = machine_memory_mb() * 0.9
    return here if wanted_mb is None else min(wanted_mb, here)


@contextlib.contextmanager
def _ending_with_stdin(workers: Workers) -> Iterator[threading.Event]:
    """End the step once standard input does: who waited for it has gone, the event says."""
    gone = threading.Event()

    def wait() -> None:
        while os.read(0, 1 << 12):
            pass
        gone.set()
        workers.close()

    threading.Thread(target=wait, daemon=True).start()
    yield gone


@contextlib.contextmanager
def _telling(log: Path) -> Iterator[None]:
    """Copy the step's log to standard error as it grows."""
    done = threading.Event()

    def tell() -> None:
        with open(log, "rb") as file:
            last = False
            while not last:
                last = done.wait(POLL_S)
                while data := file.read(1 << 16):
                    _say(data)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _say(data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more
        view = memoryview(data)
        while view:
            view = view[os.write(2, view) :]


@contextlib.contextmanager
def _in_turn(gone: threading.Event) -> Iterator[None]:
    """One step at a time on this machine: a compiler that measures kernels needs it alone."""
    path = Path(tempfile.gettempdir(), f"tf2aif-{os.getuid()}.lock")
    # Anybody may write into that folder: no link of somebody else's is followed.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "r+") as file:
        waited = 0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % 30 == 0:
                    print("waiting: another step runs on this machine", file=sys.stderr, flush=True)
                waited += 1
                if gone.wait(1):
                    raise StepFailed("nobody waits for this step any more") from None
        yield
