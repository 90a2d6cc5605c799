"""Step `image-lock`: which Python packages an image gets, resolved once for its platform.

It reads requirements and, where there is one, a lock; and writes `lock.txt`. A lock that was
resolved from these very requirements is taken as it is, with no network; of another, versions are
kept where they fit. An unsatisfiable requirement ends the build here, before any download.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..errors import StepFailed
from . import Job

VERSION = 2
TOOLCHAIN = "image"
INPUTS: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is wanted, and for which machine."""

    requirements: tuple[str, ...]
    platform: str
    python: str


def run(job: Job) -> dict[str, Any]:
    """Write `lock.txt`. Returns how many packages it names, and whether it was resolved now."""
    from ..oci.lockfile import Wanted, is_lock_of, pins, resolve

    options = msgspec.convert(job.options, Options)
    wanted = Wanted(
        requirements=options.requirements, platform=options.platform, python=options.python
    )
    known = _read(job.inputs.get("lock"))
    kept = is_lock_of(known, wanted)
    text = known if kept else resolve(wanted, known)
    (job.out / "lock.txt").write_text(text, encoding="utf-8")
    return {"packages": len(pins(text)), "resolved": not kept}


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StepFailed(f"not a lock: {error}", at=str(path)) from error
