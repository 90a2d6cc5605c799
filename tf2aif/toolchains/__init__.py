"""Toolchains: what steps run with, by name, in the table below.

Each is of a kind, a module that matches `Kind` and knows how to find it and how to start it. A
project may say in its `tf2aif.yaml` that one runs somewhere else: a `Place`, which makes it one of
another kind. A no-op build comes through here, so nothing heavy is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..errors import Tf2aifError
from .installed import installed as distributions_here
from .variables import as_facts, child_environment, environment_facts

if TYPE_CHECKING:
    from .connection import Connection
    from .places import Place  # imports msgspec

__all__ = [
    "KINDS",
    "TOOLCHAINS",
    "FarKind",
    "Identity",
    "Kind",
    "Making",
    "Missing",
    "NearKind",
    "Root",
    "Toolchain",
    "as_facts",
    "child_environment",
    "command",
    "environment_facts",
    "find",
    "identity",
    "prepare",
    "route",
    "search_path",
    "warm_modules",
]


class Root(NamedTuple):
    """A distribution that steps of a toolchain import themselves."""

    distributions: tuple[str, ...]
    """One of these, by normalised name: `tensorflow`, or `tensorflow-cpu`."""
    modules: tuple[str, ...] = ()
    """Imported before the first step, so that all steps start alike."""
    optional: bool = False
    """It is used where it is there, and the toolchain works without it."""


class Toolchain(NamedTuple):
    """How a toolchain is found, and what its worker starts with."""

    kind: str
    roots: tuple[Root, ...]
    extra: str = ""
    """`pip install 'tf2aif[extra]'` brings it; without one, tf2aif itself does."""
    probes: tuple[str, ...] = ()
    """Distributions that a root imports on its way wherever they are there, though no step needs
    them: loaded at the start too, so that no process seems to have learnt of them later."""
    lock: str = ""
    """Kind `venv`: a requirements file with versions and hashes, of ours or by its path."""
    extends: bool = False
    """Kind `venv`: this environment's packages come behind those of the lock."""
    place: Place | None = None
    """Where the project wants it to run, if not as the table says."""
    name: str = ""
    """Its own in the table; `find` sets it."""


class Identity(NamedTuple):
    """What a toolchain is on this machine."""

    kind: str
    python: str
    platform: str
    versions: Mapping[str, str]
    """Root distribution -> version."""
    further: Mapping[str, str] = {}
    """What else decides what it makes: a lock's digest, an image's, a device's driver."""

    def facts(self) -> dict[str, str]:
        """The identity as facts of every step that runs with it."""
        return {
            "kind": self.kind,
            "python": self.python,
            "platform": self.platform,
            **self.versions,
            **self.further,
        }


class Missing(NamedTuple):
    """A toolchain that is not on this machine: what is lacking, and the command to run."""

    what: str
    hint: str


class Making(NamedTuple):
    """What a kind is given to make its environment with."""

    log: Path
    """What it prints is added to this file."""
    timeout_s: float | None = None
    stopped: Callable[[], bool] = lambda: False
    """Whether the build is being ended: so must the making."""


class Kind(Protocol):
    """What a module in the table of kinds offers."""

    def identity(self, toolchain: Toolchain) -> Identity | Missing:
        """What it is on this machine, or what is lacking."""


class NearKind(Kind, Protocol):
    """One whose steps run in warm workers on this machine."""

    def prepare(self, toolchain: Toolchain, making: Making) -> None:
        """Make what its worker needs, where it is not there yet. Raises StepFailed."""

    def command(self, toolchain: Toolchain) -> list[str]:
        """The command that starts its worker; the worker's own arguments follow."""

    def search_path(self, toolchain: Toolchain) -> tuple[str, ...]:
        """Folders that its worker needs on `PYTHONPATH` to find tf2aif itself."""


class FarKind(Kind, Protocol):
    """One whose steps run somewhere else: see `tf2aif.offload`."""

    def connection(self, toolchain: Toolchain) -> Connection:
        """The way there."""


_NUMPY = Root(("numpy",), ("numpy",))
_TENSORFLOW = Root(("tensorflow", "tensorflow-cpu", "tensorflow-intel"), ("tensorflow",))
_LITERT = Root(("ai-edge-litert",), ("ai_edge_litert.interpreter",))
_IMAGE = (Root(("isal",), ("isal",)), Root(("uv",)))
_ONNX = Root(("onnx",), ("onnx",))
_ONNXRUNTIME = Root(("onnxruntime", "onnxruntime-gpu"), ("onnxruntime",))
_TENSORRT = Root(("tensorrt", "tensorrt-cu12", "tensorrt-cu13"))
_RTX = Root(("tensorrt-rtx", "tensorrt-rtx-cu13-bindings"))
_OPENVINO = Root(("openvino",), ("openvino",))

KINDS: dict[str, str] = {
    "environment": "tf2aif.toolchains.environment",
    "venv": "tf2aif.toolchains.venv",
    "nvidia": "tf2aif.toolchains.nvidia",
    "vart": "tf2aif.toolchains.vart",
    "vitis": "tf2aif.toolchains.vitis",
    "docker": "tf2aif.toolchains.docker",
    "ssh": "tf2aif.toolchains.ssh",
    "compiled": "tf2aif.toolchains.compiled",
    "vivado": "tf2aif.toolchains.vivado",
}
FAR = frozenset({"docker", "ssh"})

TOOLCHAINS: dict[str, Toolchain] = {
    "image": Toolchain("environment", _IMAGE, "images"),
    "python": Toolchain("environment", (_NUMPY,)),
    "tensorflow": Toolchain(
        "environment",
        (_TENSORFLOW, Root(("keras",), ("keras",)), Root(("tf-keras",), optional=True)),
        "tensorflow",
    ),
    "litert": Toolchain("environment", (_LITERT,), "litert"),
    "openvino": Toolchain(
        "environment",
        (_OPENVINO, Root(("nncf",), ("nncf",))),
        "openvino",
        probes=("onnx", "torch"),  # NNCF asks each framework whether a model is its own
    ),
    "onnxruntime": Toolchain("environment", (_ONNXRUNTIME,), "onnxruntime"),
    "onnx": Toolchain("environment", (_ONNX, _ONNXRUNTIME), "onnx"),
    "tf2onnx": Toolchain(
        "environment", (_TENSORFLOW, Root(("tf2onnx",), ("tf2onnx",)), _ONNX, _ONNXRUNTIME), "onnx"
    ),
    "pof2": Toolchain("environment", (_NUMPY,)),
    "vitis": Toolchain("vitis", ()),
    "vart": Toolchain("vart", ()),
    "hls": Toolchain("environment", (_NUMPY,)),
    "vivado": Toolchain("vivado", ()),
    "tensorflow-gpu": Toolchain("nvidia", (_TENSORFLOW, _NUMPY), "tensorflow"),
    "tensorflow-system": Toolchain("nvidia", (_TENSORFLOW, _NUMPY), "tensorflow"),
    "tensorrt-system": Toolchain("nvidia", (_TENSORRT, _NUMPY)),
    "tensorrt": Toolchain("nvidia", (_TENSORRT, _NUMPY)),
    "tensorrt-rtx-builder": Toolchain("environment", (_RTX, _NUMPY), "rtx"),
    "tensorrt-rtx": Toolchain("nvidia", (_RTX, _NUMPY), "rtx"),
    "onnxruntime-gpu": Toolchain("nvidia", (Root(("onnxruntime-gpu",)), _NUMPY), "gpu"),
    "hls4ml": Toolchain(
        "compiled",
        (Root(("hls4ml",), ("hls4ml",)), _NUMPY, Root(("h5py",), ("h5py",))),
        "tensorflow",
        lock="toolchain-hls4ml.txt",
        extends=True,
    ),
    "bench": Toolchain(
        "environment",
        (_TENSORFLOW, _LITERT._replace(optional=True), _OPENVINO._replace(optional=True)),
        "tensorflow",
    ),
}


def find(name: str, place: Place | None = None) -> Toolchain:
    """The toolchain of that name, as the table says or where the project wants it to run."""
    if name not in TOOLCHAINS:
        raise Tf2aifError(f"unknown toolchain '{name}'", hint=f"there are: {_join(TOOLCHAINS)}")
    toolchain = TOOLCHAINS[name]._replace(name=name)
    if place is None:
        return toolchain
    return toolchain._replace(
        kind=place.kind, lock=place.venv or "", extends=place.extends, place=place
    )


def identity(name: str, place: Place | None = None) -> Identity | Missing:
    """What the toolchain is on this machine, or what is lacking and the command to run."""
    toolchain = find(name, place)
    kind: Kind = importlib.import_module(KINDS[toolchain.kind])
    return kind.identity(toolchain)


def route(name: str, place: Place | None = None) -> Connection | None:
    """The way to where its steps run; None: a worker on this machine."""
    toolchain = find(name, place)
    if toolchain.kind not in FAR:
        return None
    kind: FarKind = importlib.import_module(KINDS[toolchain.kind])
    return kind.connection(toolchain)


def prepare(name: str, making: Making, place: Place | None = None) -> None:
    """Make what a worker of the toolchain needs, where it is not there yet. Raises StepFailed."""
    toolchain = find(name, place)
    _near(toolchain).prepare(toolchain, making)


def command(name: str, place: Place | None = None) -> list[str]:
    """The command that starts a worker of the toolchain; the worker's arguments follow."""
    toolchain = find(name, place)
    return _near(toolchain).command(toolchain)


def search_path(name: str, place: Place | None = None) -> tuple[str, ...]:
    """Folders that a worker of the toolchain needs on `PYTHONPATH` to find tf2aif itself."""
    toolchain = find(name, place)
    return _near(toolchain).search_path(toolchain)


def warm_modules(name: str) -> tuple[str, ...]:
    """What a worker of the toolchain imports before its first step, of what is there.

    Asked in the worker: the modules of those roots that its environment has, then the probes.
    """
    toolchain, here = find(name), distributions_here()
    roots = (root for root in toolchain.roots if any(d in here for d in root.distributions))
    modules = (module for root in roots for module in root.modules)
    return (*modules, *(probe for probe in toolchain.probes if probe in here))


def _near(toolchain: Toolchain) -> NearKind:
    kind: NearKind = importlib.import_module(KINDS[toolchain.kind])
    return kind


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
