"""A variant's own server in a process, for tests."""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TARGET = {"x86_64": "cpu", "aarch64": "arm"}.get(platform.machine(), "cpu")
"""The target of this machine's own platform."""


@contextmanager
def served(variant: Path, *options: str) -> Iterator[str]:
    """The variant's own server in a process; its URL."""
    command = [sys.executable, "-m", "tf2aif.serve", str(variant), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--drain-s", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        found = re.match(r"ready (http://\S+) ", line)
        assert found, f"the server said {line!r}"
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
