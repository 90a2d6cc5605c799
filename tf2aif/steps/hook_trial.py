"""Trying a recipe's hooks before it is built: what `tf2aif check` runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..engines import TensorSpec
from . import Job

VERSION = 1
TOOLCHAIN = "python"
INPUTS = ("hooks",)


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of the model; empty where its file does not say."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


def run(job: Job) -> Mapping[str, Any]:
    """Call each hook once. Result: `faults`, each with message, at and hint."""
    from ..serve.hook_check import try_hooks

    options = msgspec.convert(job.options, Options)
    faults = try_hooks(job.inputs["hooks"], options.inputs, options.outputs)
    return {"faults": [{"message": f.message, "at": f.at, "hint": f.hint} for f in faults]}
