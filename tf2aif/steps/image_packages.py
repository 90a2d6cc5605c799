"""Step `image-packages`: the layer of the engine's, the server's and the hooks' Python packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from . import Job

VERSION = 2
TOOLCHAIN = "image"
INPUTS = ("lock",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For which machine, and the time of every file (SOURCE_DATE_EPOCH)."""

    platform: str
    python: str
    epoch: int = 0


def run(job: Job) -> dict[str, Any]:
    """Write the layer. Returns its digest, and its size as it is sent, in bytes."""
    from ..oci.lockfile import Wanted
    from ..oci.wheels import build_layer

    options = msgspec.convert(job.options, Options)
    wanted = Wanted(requirements=(), platform=options.platform, python=options.python)
    lock = job.inputs["lock"] / "lock.txt"
    layer = build_layer(lock, wanted, job.out, Path.cwd(), epoch=options.epoch)
    return {"digest": layer.descriptor.digest, "size_bytes": layer.descriptor.size}
