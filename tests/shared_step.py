"""The step that the machines of `sharing` run. It imports nothing: its worker stays warm."""

from __future__ import annotations

import hashlib
from typing import Any

from tf2aif.steps import Job


def content_of(name: str, size: int, salt: str = "") -> bytes:
    """What a step writes: no bytes that compress, or are those of another step."""
    return hashlib.shake_256(f"{name} {salt}".encode()).digest(size)


def run(job: Job) -> dict[str, Any]:
    """Write the step's bytes, a small file in a folder, and a folder with nothing in it."""
    data = content_of(job.kind, job.options["size"], job.options["salt"])
    (job.out / "model.tflite").write_bytes(data)
    (job.out / "nested").mkdir()
    (job.out / "nested" / "signature.json").write_text(job.kind)
    (job.out / "empty").mkdir()
    return {"size": len(data)}
