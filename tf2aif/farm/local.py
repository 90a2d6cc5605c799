"""A farm on this machine: a scheduler and workers on 127.0.0.1, for as long as a build lasts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import Tf2aifError
from ..postmortem import last_lines
from .address import Address
from .offer import slots_here

START_S = 60.0
WORKERS = 2


@contextmanager
def local_farm(
    folder: Path,
    cache: str,
    *,
    workers: int = WORKERS,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Address]:
    """The address of a farm whose processes end with the block; their logs are in `folder`.

    `cache` is the shared cache that it works through. User code runs: it is this very user's.
    Raises Tf2aifError where it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slots = max(1, slots_here() // workers)
    running: list[subprocess.Popen[bytes]] = []
    try:
        log = folder / "scheduler.log"
        running.append(start(["farm", "scheduler", "--host", "127.0.0.1", "--port", "0"], log))
        port = told(running[0], log, rb"listens at \w+://\S*:(\d+)")
        address = Address("127.0.0.1", int(port), None)
        for number in range(workers):
            words = ["worker", address.url, "--name", f"local-{number + 1}"]
            words += ["--cache", cache, "--slots", str(slots), "--allow-code"]
            running.append(start(words, folder / f"worker-{number + 1}.log", environment))
        for number in range(workers):
            told(running[number + 1], folder / f"worker-{number + 1}.log", rb"waits for steps()")
        yield address
    finally:
        end(running)


def start(
    words: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A command of ours in the background; what it prints goes to the log."""
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tf2aif", *words],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # the terminal's Ctrl-C is ours to handle
        )


def end(running: list[subprocess.Popen[bytes]]) -> None:
    """End processes, the last that was started first."""
    for process in reversed(running):
        process.send_signal(signal.SIGTERM)
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
            continue
        process.kill()
        process.wait()


def told(process: subprocess.Popen[bytes], log: Path, pattern: bytes) -> bytes:
    """What a process says in its log, once it does. Raises Tf2aifError where it ends before."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(pattern, log.read_bytes()):
            return found[1]
        time.sleep(0.05)
    lines = " / ".join(last_lines(log)[-3:])
    raise Tf2aifError(f"the farm does not start: {lines}", at=str(log))
