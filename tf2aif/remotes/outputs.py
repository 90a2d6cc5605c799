"""Which files a step may leave, so that no record brings others into an artifact.

A step's module may say it itself, in OUTPUTS; for those that do not, it stands here. A step of
which nobody said anything may leave what it likes. Patterns are those of `fnmatch`: `*` matches
`/` too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ..graph import Step

_SAVED_MODEL = ("saved_model/saved_model.pb", "saved_model/fingerprint.pb")
_VARIABLES = ("saved_model/variables/variables.*", "saved_model/assets/*")

OUTPUTS: dict[str, tuple[str, ...]] = {
    "model": ("*",),  # what the user's own function saves
    "import": ("signature.json", *_SAVED_MODEL, *_VARIABLES),
    "calibration": ("set.json", "x*.npy", "labels.npy"),
    "evaluation": ("set.json", "x*.npy", "labels.npy"),
    "reference": ("outputs.json", "y*.npy"),
    "tflite": ("model.tflite", "signature.json"),
    "openvino": ("model.xml", "model.bin", "signature.json"),
    "native": ("signature.json", *_SAVED_MODEL, *_VARIABLES),
    "check": ("check.json",),
    "gate": ("gate.json",),
    "latency": ("latency.json",),
}


def strange_files(step: Step, paths: Iterable[str]) -> list[str]:
    """Those that the step never leaves."""
    patterns = allowed(step)
    return [path for path in paths if not any(fnmatchcase(path, one) for one in patterns)]


def allowed(step: Step) -> tuple[str, ...]:
    """The patterns of a step's files; everything where nobody has said."""
    said = getattr(sys.modules.get(step.module), "OUTPUTS", None)
    return tuple(said) if said is not None else OUTPUTS.get(step.kind, ("*",))
