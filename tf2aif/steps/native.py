"""native: the imported SavedModel as it is, for the engine `tensorflow`: the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..engines.signature import FILE
from . import Job

VERSION = 1
TOOLCHAIN = "python"
INPUTS = ("model",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has none."""


def run(job: Job) -> Mapping[str, Any]:
    """Copy `saved_model/` and `signature.json`."""
    import shutil

    msgspec.convert(job.options, Options)
    model = job.inputs["model"]
    shutil.copytree(model / "saved_model", job.out / "saved_model")
    shutil.copy(model / FILE, job.out / FILE)
    return {}
