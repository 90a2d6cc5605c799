"""The step that test farms run: it writes known bytes, tells that it ran, and fails as asked."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
from shared_step import content_of

from tf2aif.errors import StepFailed
from tf2aif.steps import Job

VERSION = 1


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it does besides."""

    name: str
    size: int = 1000
    sleep_s: float = 0.0
    deed: str = ""
    """`fail`, `crash`, `kill-host`: end the machine's own process; `kill-once`,
    `nap-once`: the first time."""


def run(job: Job) -> dict[str, Any]:
    """Write the step's bytes; each run adds a line to `runs` in the home folder."""
    options = msgspec.convert(job.options, Options)
    with Path(os.environ["HOME"], "runs").open("a") as file:
        file.write(f"{options.name} {os.getpid()}\n")
    print(f"{options.name} begins", flush=True)
    deeds(options)
    time.sleep(options.sleep_s)
    data = b"".join(path.read_bytes() for path in sorted(job.inputs.values()) if path.is_file())
    for folder in sorted(path for path in job.inputs.values() if path.is_dir()):
        data += (folder / "model.tflite").read_bytes()
    (job.out / "model.tflite").write_bytes(data + content_of(options.name, options.size))
    (job.out / "nested").mkdir()
    (job.out / "nested" / "signature.json").write_text(options.name)
    (job.out / "empty").mkdir()
    return {"size": options.size, "variable": os.environ.get("TF_FARM_TEST", "")}


def deeds(options: Options) -> None:
    """What goes wrong."""
    if options.deed == "fail":
        raise StepFailed("operator FOO is not supported", hint="leave it out")
    if options.deed == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    host = os.getppid()
    if options.deed.endswith("-once"):
        once = Path(os.environ["HOME"], f"once-{options.name}")
        if once.exists():
            return
        once.touch()
    if options.deed == "nap-once":
        time.sleep(60)
    if options.deed.startswith("kill"):
        time.sleep(0.5)  # so that it was told that the step has begun
        os.kill(host, signal.SIGKILL)
        time.sleep(30)
