"""A variant's server on loopback, in a process of its own, as its image would run it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import Tf2aifError
from .baseline import Built
from .engines import tail

READY_S = 120.0  # TensorFlow on a slow machine takes a while
STOP_S = 40.0


@contextmanager
def serve(variant: Built, *, threads: int | None, log: Path) -> Iterator[str]:
    """Start the variant's server and yield its URL; stop it afterwards.

    Raises Tf2aifError where it does not get ready.
    """
    command = [sys.executable, "-m", "tf2aif.serve", str(variant.folder), "--port", "0"]
    # Nothing else asks this server: it need not wait for its last clients.
    command += ["--drain-s", "0", *([] if threads is None else ["--threads", str(threads)])]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # what is read ahead would not be seen by `select`
            env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
        )
    try:
        yield _wait_ready(variant, process, log)
    finally:
        _stop(process)


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
