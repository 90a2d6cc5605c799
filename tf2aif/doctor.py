"""Which toolchains are on this machine, and what each target still lacks."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from .devices import describe_devices
from .machine import this_platform
from .spec.config import load_config
from .spec.load import load_targets, pipeline
from .spec.target import Target
from .steps import step_module
from .toolchains import TOOLCHAINS, Missing
from .toolchains.places import Places

Findings = dict[str, dict[str, str]]


def examine(project: Path) -> Findings:
    """Machine, devices, toolchains and targets, each name with one line of words.

    Raises FilesError where the project's own settings or targets are wrong.
    """
    places = Places(load_config(project).toolchains)
    return {
        "machine": {
            "platform": this_platform(),
            "python": platform.python_version(),
            "cores": str(len(os.sched_getaffinity(0))),
        },
        "devices": describe_devices(),
        "toolchains": {name: _words(name, places) for name in TOOLCHAINS},
        "targets": {n: _of_target(t, places) for n, t in load_targets(project).items()},
    }


def _words(name: str, places: Places) -> str:
    tool, place = places.identity(name), places.place(name)
    where = f" ({place.kind} {place.name})" if place else ""
    if isinstance(tool, Missing):
        return f"missing {tool.what}{where}: {tool.hint}"
    versions = {**tool.versions, **tool.further}
    return ", ".join(f"{dist} {version}" for dist, version in versions.items()) + where


def _of_target(target: Target, places: Places) -> str:
    steps = {use.step for name in target.precisions for use in pipeline(target, name)}
    makers = {step_module(step).TOOLCHAIN for step in steps}
    lacks = _lacks([*makers, target.engine.name], places)
    if not lacks:
        here = target.platform == this_platform()
        return "built and verified here" if here else "built here"
    words = ", ".join(lacks)
    how = target.emulation
    if how is None or _lacks([how.name], places):
        return f"bundled: lacks {words}"
    if not _lacks(makers, places):
        return f"built here, not run: lacks {words}"
    return f"{'emulated' if how.exact else 'bundled'}: lacks {words}"


def _lacks(toolchains: Iterable[str], places: Places) -> list[str]:
    tools = (places.identity(name) for name in toolchains)
    return sorted({tool.what for tool in tools if isinstance(tool, Missing)})
