"""Step `image-app`: the layer of our own code that ships, and of the user's hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from . import Job

VERSION = 1
TOOLCHAIN = "image"
INPUTS: tuple[str, ...] = ()

SOURCE, HOOK = "source/", "hook/"
"""How inputs are named: these, and then the path in the image's folder."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For which Python, and the time of every file (SOURCE_DATE_EPOCH)."""

    python: str
    epoch: int = 0


def run(job: Job) -> dict[str, Any]:
    """Write the layer. Returns its digest, and its size as it is sent, in bytes."""
    from ..oci.shipped import build_layer

    options = msgspec.convert(job.options, Options)
    sources = {n.removeprefix(SOURCE): p for n, p in job.inputs.items() if n.startswith(SOURCE)}
    hooks = {n.removeprefix(HOOK): p for n, p in job.inputs.items() if n.startswith(HOOK)}
    layer = build_layer(
        sources, hooks, job.out, Path.cwd(), python=options.python, epoch=options.epoch
    )
    return {"digest": layer.descriptor.digest, "size_bytes": layer.descriptor.size}
