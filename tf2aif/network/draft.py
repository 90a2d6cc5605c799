"""A network while it is being made: layers that can be replaced, shapes with their batch axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..engines import Array
from ..engines.network import Layer, Pair, Sides


class Tile(Layer, frozen=True, kw_only=True, tag="tile"):
    """Copies along axes; only as part of an enlargement that repeats pixels."""

    multiples: tuple[int, ...]


class Spread(Layer, frozen=True, kw_only=True, tag="spread"):
    """Pixels dealt out to batches (SpaceToBatchND); only before a dilated convolution."""

    block: Pair
    padding: Sides


class Gather(Layer, frozen=True, kw_only=True, tag="gather"):
    """Such batches put together again (BatchToSpaceND), after that convolution."""

    block: Pair
    crops: Sides


PARTS = (Tile, Spread, Gather)
"""What is no layer by itself."""


class Draft:
    """Layers by name in topological order, weights, and what the outputs are."""

    def __init__(self) -> None:
        self.layers: dict[str, Any] = {}
        self.weights: dict[str, dict[str, Array]] = {}
        self.outputs: dict[str, str] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}

    def add(self, layer: Layer, weights: Mapping[str, Array] | None = None) -> str:
        """Append a layer; its name."""
        self.layers[layer.name] = layer
        self.weights[layer.name] = dict(weights or {})
        return layer.name

    def replace(self, old: str, layer: Layer, weights: Mapping[str, Array] | None = None) -> None:
        """Put another layer of the same name in the place of one."""
        self.layers[old] = msgspec.structs.replace(layer, name=old)
        self.weights[old] = dict(weights or {})

    def redirect(self, old: str, new: str) -> None:
        """Whoever reads `old` reads `new` from now on."""
        for name, layer in self.layers.items():
            if old in layer.inputs:
                inputs = tuple(new if each == old else each for each in layer.inputs)
                self.layers[name] = msgspec.structs.replace(layer, inputs=inputs)
        self.outputs = {name: new if t == old else t for name, t in self.outputs.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, with its batch axis."""
        if name in self.inputs:
            return self.inputs[name]
        found: tuple[int, ...] = self.layers[name].shape
        return found

    def get(self, name: str, kind: type[Any]) -> Any:
        """The layer of that name where it is of that kind; else None."""
        layer = self.layers.get(name)
        return layer if isinstance(layer, kind) else None

    def users(self, name: str) -> list[Any]:
        """The layers that read a tensor, one entry for each time they read it."""
        return [each for each in self.layers.values() for used in each.inputs if used == name]

    def sole_user(self, name: str) -> Any:
        """The one layer that reads a tensor which is no output; else None."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self.outputs.values() else None

    def prune(self) -> None:
        """Drop what no output needs."""
        needed = set(self.outputs.values())
        for name in reversed(list(self.layers)):
            if name in needed:
                needed.update(self.layers[name].inputs)
            else:
                del self.layers[name], self.weights[name]
