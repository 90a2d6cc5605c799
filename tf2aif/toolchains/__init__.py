"""Toolchains: what steps run with, by name, in the table below.

Each is of a kind, a module that matches `Kind` and knows how to find it and how to start it. A
no-op build comes through here, so nothing heavy is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from ..errors import Tf2aifError
from .variables import child_environment, environment_facts

__all__ = [
    "KINDS",
    "TOOLCHAINS",
    "Identity",
    "Kind",
    "Missing",
    "Root",
    "Toolchain",
    "child_environment",
    "command",
    "environment_facts",
    "identity",
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


class Identity(NamedTuple):
    """What a toolchain is on this machine."""

    kind: str
    python: str
    platform: str
    versions: Mapping[str, str]
    """Root distribution -> version."""

    def facts(self) -> dict[str, str]:
        """The identity as facts of every step that runs with it."""
        return {
            "kind": self.kind,
            "python": self.python,
            "platform": self.platform,
            **self.versions,
        }


class Missing(NamedTuple):
    """A toolchain that is not on this machine: what is lacking, and the command to run."""

    what: str
    hint: str


class Kind(Protocol):
    """What a module in the table of kinds offers."""

    def identity(self, toolchain: Toolchain) -> Identity | Missing:
        """What it is on this machine, or what is lacking."""

    def command(self, toolchain: Toolchain) -> list[str]:
        """The command that starts its worker; the worker's own arguments follow."""

    def warm_modules(self, toolchain: Toolchain) -> tuple[str, ...]:
        """The modules that its worker imports before the first step."""


_NUMPY = Root(("numpy",), ("numpy",))
_TENSORFLOW = Root(("tensorflow", "tensorflow-cpu", "tensorflow-intel"), ("tensorflow",))
_LITERT = Root(("ai-edge-litert",), ("ai_edge_litert.interpreter",))
_IMAGE = (Root(("isal",), ("isal",)), Root(("uv",)))
_OPENVINO = Root(("openvino",), ("openvino",))

KINDS: dict[str, str] = {"environment": "tf2aif.toolchains.environment"}

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
    "onnxruntime": Toolchain(
        "environment", (Root(("onnxruntime",), ("onnxruntime",)),), "onnxruntime"
    ),
    "bench": Toolchain(
        "environment",
        (_TENSORFLOW, _LITERT._replace(optional=True), _OPENVINO._replace(optional=True)),
        "tensorflow",
    ),
}


def identity(name: str) -> Identity | Missing:
    """What the toolchain is on this machine, or what is lacking and the command to run."""
    toolchain = _find(name)
    return _kind(toolchain).identity(toolchain)


def command(name: str) -> list[str]:
    """The command that starts a worker of the toolchain; the worker's arguments follow."""
    toolchain = _find(name)
    return _kind(toolchain).command(toolchain)


def warm_modules(name: str) -> tuple[str, ...]:
    """What a worker of the toolchain imports before its first step, of what is there."""
    toolchain = _find(name)
    return _kind(toolchain).warm_modules(toolchain)


def _find(name: str) -> Toolchain:
    if name not in TOOLCHAINS:
        raise Tf2aifError(f"unknown toolchain '{name}'", hint=f"there are: {_join(TOOLCHAINS)}")
    return TOOLCHAINS[name]


def _kind(toolchain: Toolchain) -> Kind:
    module: Kind = importlib.import_module(KINDS[toolchain.kind])
    return module


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
