"""A variant's server on loopback, in a process of its own, as its image would run it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from ..errors import Tf2aifError
from .baseline import Built
from .engines import tail

READY_S = 120.0  # TensorFlow on a slow machine takes a while
STOP_S = 40.0


class Started(Struct, frozen=True):
    """A server that is ready."""

    url: str
    pid: int
    start_s: float  # from its command to `ready`
    memory_bytes: int | None  # resident when it was ready; None: this system does not tell

    def peak_bytes(self) -> int | None:
        """The most resident memory that it had until now."""
        return read_memory(self.pid, "VmHWM")


@contextmanager
def serve(variant: Built, *, threads: int | None, log: Path) -> Iterator[Started]:
    """Start the variant's server and yield it when it is ready; stop it afterwards.

    Raises Tf2aifError where it does not get ready.
    """
    command = [sys.executable, "-m", "tf2aif.serve", str(variant.folder), "--port", "0"]
    # Nothing else asks this server: it need not wait for its last clients.
    command += ["--drain-s", "0", *([] if threads is None else ["--threads", str(threads)])]
    begin = time.perf_counter()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # what is read ahead would not be seen by `select`
            env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
        )
    try:
        url = _wait_ready(variant, process, log)
        start_s = time.perf_counter() - begin
        yield Started(url, process.pid, start_s, read_memory(process.pid, "VmRSS"))
    finally:
        _stop(process)


def read_memory(pid: int, field: str) -> int | None:
    """Bytes of a process's memory as `/proc/<pid>/status` has it: VmRSS now, VmHWM at most."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _wait_ready(variant: Built, process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL that the server announces when it is ready."""
    end = time.monotonic() + READY_S
    out = process.stdout
    while out is not None and (left := end - time.monotonic()) > 0:
        if not select.select([out], [], [], left)[0]:
            break
        words = out.readline().split()
        if not words:
            code = process.wait()
            raise Tf2aifError(f"the server of {variant.id} ended with {code}{tail(log)}")
        if words[0] == b"ready":
            return words[1].decode()
    raise Tf2aifError(f"the server of {variant.id} is not ready after {READY_S:g} s{tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
