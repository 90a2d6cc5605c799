"""Step `gate`: holds a variant to the recipe's gate before the device's compiler starts.

A compiler may take an hour on the device: what would fail the gate afterwards fails here. What
comes out is the same for every gate that holds, so another limit re-runs nothing behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import StepFailed
from . import Job
from .check import Result, scored

VERSION = 1
TOOLCHAIN = "python"
INPUTS = ("check",)


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the variant may lose, in the units of its metric."""

    allowed_drop: float


def run(job: Job) -> Mapping[str, Any]:
    """Writes `gate.json`. Raises StepFailed where the variant lost more than it may."""
    options = msgspec.convert(job.options, Options)
    result = msgspec.json.decode((job.inputs["check"] / "check.json").read_bytes(), type=Result)
    score = scored(result)
    if lost := score.lost(options.allowed_drop):
        raise StepFailed(
            lost,
            hint="raise the gate in the recipe if that is acceptable, give more calibration "
            "samples, or choose another precision",
        )
    (job.out / "gate.json").write_bytes(b'{"holds": true}\n')
    return {"drop": score.drop}
