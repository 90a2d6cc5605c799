"""The version of the library behind an engine."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from . import engine_module

OURS = frozenset({"pof2", "hls"})
"""Engines that are our own code."""
_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_lean"),
    "tensorrt-system": ("tensorrt", "tensorrt_lean"),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "tensorflow-system": ("tensorflow",),
    "vart": ("vart", "xir"),
}
_NAME = re.compile(r"[\w.-]+")


def engine_version(name: str) -> str | None:
    """The version of that engine in this process; None where it does not tell.

    A library of the system, such as TensorRT's in a base image, tells it once it is loaded.
    """
    if name in OURS:
        return __version__
    for requirement in engine_module(name).REQUIREMENTS:
        found = _NAME.match(requirement)
        if found and found[0] != "numpy":
            try:
                return version(found[0])
            except PackageNotFoundError:
                continue
    loaded = (sys.modules.get(module) for module in _MODULES.get(name, ()))
    told = (getattr(module, "__version__", None) for module in loaded)
    return next((str(each) for each in told if each), None)
