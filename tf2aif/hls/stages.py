"""Stages: what a network is made of where it becomes hardware, in the order of its data.

A stage has one output, a tensor of a fixed shape without the batch axis, channels last.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from ..engines import Array

Kind = Literal[
    "input",
    "conv",
    "depthwise",
    "dense",
    "relu",
    "max_pool",
    "average_pool",
    "global_max",
    "global_average",
    "add",
    "concat",
    "pad",
    "reshape",
]

Door = Literal["none", "softmax", "sigmoid", "tanh"]
"""What is computed in float behind the hardware, at the engine's door."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Where a kernel goes: heights first, then widths; padding is top, bottom, left, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage. `weight` and `bias` are float; the layout is Keras's.

    conv: (height, width, channels in, channels out); depthwise: (height, width, channels);
    dense: (in, out); bias: one a channel. `window` is there for conv, depthwise and pools; of
    `pad` only its padding counts.
    """

    name: str
    """An identifier, unique among the stages and lower-case."""
    kind: Kind
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    window: Window | None = None
    weight: Array | None = None
    bias: Array | None = None
    source: str = ""
    """The layer of the network that it comes from."""

    @property
    def size(self) -> int:
        """Elements of its output."""
        return prod(self.shape)

    def hole(self) -> Window:
        """Its window, where its kind has one."""
        if self.window is None:
            raise ValueError(f"stage '{self.name}' ({self.kind}) has no window")
        return self.window

    def constants(self) -> tuple[Array, Array]:
        """Its weight and bias, where its kind has them."""
        if self.weight is None or self.bias is None:
            raise ValueError(f"stage '{self.name}' ({self.kind}) has no weights")
        return self.weight, self.bias


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One output of the source model: a stage, and what is left to do in float."""

    name: str
    stage: str
    door: Door = "none"


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """A network as stages, sources first."""

    stages: tuple[Stage, ...]
    inputs: Mapping[str, str]
    """Name of the source model's input -> its stage, in the signature's order."""
    outputs: tuple[Output, ...]

    def named(self) -> dict[str, Stage]:
        """The stages by name."""
        return {stage.name: stage for stage in self.stages}

    def weights(self) -> int:
        """How many weights and biases there are."""
        return sum(
            int(each.size)
            for stage in self.stages
            for each in (stage.weight, stage.bias)
            if each is not None
        )


WEIGHTED = frozenset({"conv", "depthwise", "dense"})
SAME_TYPE = frozenset({"max_pool", "global_max", "pad", "reshape"})
"""Kinds that move values and compute none: what comes out has the type of what goes in."""
