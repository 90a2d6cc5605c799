"""What a machine of a farm can do: a label for each capability, with its version in it.

A label such as `tensorrt-10.3-sm90-py3.11@1f0e9c2a` says for people what it is; behind the @ is the
digest of all facts of the toolchain and its device that go into the key of a step, and of tf2aif's
own source. So two machines with the same label make the same artifacts, and a step that wants one
never lands elsewhere.
"""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from .. import capacity
from ..devices import DEVICES, device_facts
from ..errors import Tf2aifError
from ..facts import Facts, key
from ..machine import machine_facts, this_platform
from ..processes import machine_memory_mb
from ..toolchains import TOOLCHAINS, Missing, identity
from .source import version

SCHEMA = 1
CODE, GPU, MEMORY, CPU = "code", "gpu", "memory-mb", "cpu"
"""Resources besides the labels: user code is run, GPUs, MiB, anything at all."""
MEMORY_SHARE = 0.9
SLOT_MB = 2048
"""A converter with TensorFlow in it takes about so much."""


class Bid(Struct, frozen=True, forbid_unknown_fields=True):
    """One toolchain of a machine."""

    label: str
    facts: dict[str, str]
    """As they stand in the key of its steps."""


class Offer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a machine offers."""

    schema: int = SCHEMA
    machine: str
    version: str = msgspec.field(default_factory=version)
    """Of tf2aif, and of its source: builds leave machines alone that have another one."""
    platform: str
    """As OCI names it: `linux/arm64`."""
    python: str
    slots: int
    memory_mb: int
    gpus: int = 0
    code: bool = False
    """Steps that run the recipes' own code are taken."""
    bids: dict[str, Bid]
    """By toolchain."""
    devices: dict[str, dict[str, str]] = {}
    """Facts of each kind of device that is there."""
    about: dict[str, Any] = {}
    """The processor and its cores, as facts of what holds for this machine only."""
    cache: str = ""
    """The shared cache, as this machine knows it."""

    def resources(self) -> dict[str, float]:
        """What dask counts: a slot takes one of each label."""
        plain = (CPU, self.platform.replace("/", "-"), f"python-{self.python}")
        labels = {name: float(self.slots) for name in (*plain, *self.labels)}
        labels |= {machine_label(self.about): float(self.slots)}
        labels |= {CODE: float(self.slots)} if self.code else {}
        labels |= {GPU: float(self.gpus)} if self.gpus else {}
        return {**labels, MEMORY: float(self.memory_mb)}

    @property
    def labels(self) -> tuple[str, ...]:
        """Of its toolchains, sorted."""
        return tuple(sorted(bid.label for bid in self.bids.values()))


def make_offer(
    *,
    name: str | None = None,
    slots: int | None = None,
    only: Iterable[str] = (),
    code: bool = False,
    cache: str = "",
) -> Offer:
    """What this machine can do; `only` these toolchains, if any are named.

    Raises Tf2aifError for a toolchain that is not known, or was named and is not here.
    """
    wanted = tuple(only)
    devices = {device: facts for device in DEVICES if (facts := device_facts(device))}
    return Offer(
        machine=name or socket.gethostname(),
        platform=this_platform(),
        python=".".join(platform.python_version_tuple()[:2]),
        slots=slots or slots_here(),
        memory_mb=int(machine_memory_mb() * MEMORY_SHARE),
        gpus=_gpus(devices),
        code=code,
        bids=bids(wanted),
        devices=devices,
        about=machine_facts(),
        cache=cache,
    )


def bids(only: Iterable[str] = ()) -> dict[str, Bid]:
    """The toolchains that are here, with their labels."""
    wanted, found = tuple(only), {}
    for name in wanted or TOOLCHAINS:
        tool = identity(name)
        if not isinstance(tool, Missing):
            found[name] = Bid(label_of(name, tool.facts()), tool.facts())
        elif wanted:
            raise Tf2aifError(f"{name}: {tool.what} is not here", hint=tool.hint)
    return found


def label_of(toolchain: str, facts: Mapping[str, str]) -> str:
    """The label of a toolchain with these facts on this machine."""
    device = device_facts("nvidia") if needs_gpu(toolchain) else {}  # no other one matters to it
    capability = re.search(r"compute capability (\d+)\.(\d+)", device.get("gpu", ""))
    words = [
        toolchain,
        _version(facts),
        f"sm{capability[1]}{capability[2]}" if capability else "",
        f"py{facts.get('python', '')}",
    ]
    digest = key({"facts": dict(facts), "device": device, "tf2aif": version()})[:8]
    return f"{'-'.join(word for word in words if word)}@{digest}"


def needs_gpu(toolchain: str) -> bool:
    """Whether what it makes holds for the GPU that it was made with, or it runs on one."""
    return toolchain in TOOLCHAINS and TOOLCHAINS[toolchain].kind == "nvidia"


def machine_label(about: Facts) -> str:
    """For what holds for machines of this kind only, such as a measured time."""
    return f"machine@{key(dict(about))[:8]}"


def slots_here() -> int:
    """As many steps at a time as there are cores, and memory for."""
    return max(1, min(capacity.cores(), int(machine_memory_mb() // SLOT_MB)))


def _version(facts: Mapping[str, str]) -> str:
    """Two numbers of the version of its first distribution or tool."""
    for name, value in facts.items():
        found = re.match(r"v?(\d+(?:\.\d+)?)", value)
        if name not in ("kind", "python", "platform") and found:
            return found[1]
    return ""


def _gpus(devices: Mapping[str, object]) -> int:
    if "nvidia" not in devices:
        return 0
    from ..devices.nvidia import read

    return len(read().gpus)
