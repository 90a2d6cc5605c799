"""The devices of this machine: what they are, as facts of the steps that compile on them.

A step module that says `DEVICE = "nvidia"` makes what holds for one device only. What its device is
belongs to its facts: a change runs the step again, and nothing else does. A device is a module in
the table below. Planning comes through here: no vendor library is loaded, files are read.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from ..errors import Tf2aifError


class DeviceModule(Protocol):
    """What a module in the table offers."""

    def facts(self) -> Mapping[str, str]:
        """What the device and its software are, by name; empty where there is none."""

    def describe(self) -> Mapping[str, str]:
        """The same in words, for `tf2aif doctor`; says what is lacking."""


DEVICES: dict[str, str] = {"nvidia": "tf2aif.devices.nvidia"}


def device_facts(name: str) -> dict[str, str]:
    """The facts of the device of that name on this machine; empty where there is none."""
    return dict(_module(name).facts())


def describe_devices() -> dict[str, str]:
    """All devices of this machine in words."""
    return {what: words for name in DEVICES for what, words in _module(name).describe().items()}


def _module(name: str) -> DeviceModule:
    if name not in DEVICES:
        raise Tf2aifError(f"unknown device '{name}'", hint=f"there are: {', '.join(DEVICES)}")
    module: DeviceModule = importlib.import_module(DEVICES[name])
    return module
