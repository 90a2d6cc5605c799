"""Which toolchains are on this machine, and what each target still lacks."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .machine import this_platform
from .spec.load import load_targets, pipeline
from .spec.target import Target
from .steps import step_module
from .toolchains import TOOLCHAINS, Missing, identity

Findings = dict[str, dict[str, str]]


def examine(project: Path) -> Findings:
    """Machine, toolchains and targets, each name with one line of words."""
    return {
        "machine": {
            "platform": this_platform(),
            "python": platform.python_version(),
            "cores": str(len(os.sched_getaffinity(0))),
        },
        "toolchains": {name: _words(name) for name in TOOLCHAINS},
        "targets": {n: _of_target(t) for n, t in load_targets(project).items()},
    }


def _words(name: str) -> str:
    tool = identity(name)
    if isinstance(tool, Missing):
        return f"missing {tool.what}: {tool.hint}"
    return ", ".join(f"{dist} {version}" for dist, version in tool.versions.items())


def _of_target(target: Target) -> str:
    needed = {target.engine.name}
    for precision in target.precisions:
        needed |= {step_module(use.step).TOOLCHAIN for use in pipeline(target, precision)}
    lacks = sorted({tool.what for name in needed if isinstance(tool := identity(name), Missing)})
    if lacks:
        return f"bundled: lacks {', '.join(lacks)}"
    return "built and verified here" if target.platform == this_platform() else "built here"
