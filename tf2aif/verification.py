"""What came of building variants again: of each step, each variant and each image."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .file_differences import FileDifference

How = Literal["bytes", "numbers", "outputs", "nothing"]
State = Literal[
    "same", "agrees", "measured", "differs", "follows", "failed", "elsewhere", "untried"
]

WORDS: dict[State, str] = {
    "same": "the same bytes",
    "agrees": "other bytes, and outputs that agree",
    "measured": "measures times, which are not compared",
    "differs": "other bytes from the same inputs",
    "follows": "differs after a step that differs",
    "failed": "did not run again",
    "elsewhere": "cannot run on this machine",
    "untried": "rests on a step that did not run again",
}
FAULTY: tuple[State, ...] = ("differs", "failed")
UNVERIFIED: tuple[State, ...] = ("elsewhere", "untried")


class StepCheck(Struct, frozen=True, kw_only=True):
    """What came of one step."""

    state: State
    compared: How = "bytes"
    after: tuple[str, ...] = ()
    """The steps that it reads and that are not the same."""
    files: tuple[FileDifference, ...] = ()
    message: str = ""
    excused: bool = True
    """Whether it is no fault: of `follows`, that only such steps are before it as may differ."""


class LayerCheck(Struct, frozen=True, kw_only=True):
    """A layer that is not the same; a digest is empty where only the other image has it."""

    created_by: str
    first: str
    second: str


class ImageCheck(Struct, frozen=True, kw_only=True):
    """A variant's container image."""

    state: Literal["same", "differs", "follows"]
    first: str
    second: str
    layers: tuple[LayerCheck, ...] = ()
    excused: bool = True


class VariantCheck(Struct, frozen=True, kw_only=True):
    """What came of a variant. `first` is the first step at fault, in the order of the graph."""

    state: Literal["same", "partly", "differs"]
    """`partly`: what could run is the same."""
    steps: tuple[str, ...]
    first: str | None = None
    message: str = ""
    """Why its folder could not be written again: a gate that failed, an image."""
    damaged: tuple[FileDifference, ...] = ()
    """Files in the variant's folder that are not as they were built."""
    image: ImageCheck | None = None


class Verification(Struct, frozen=True, kw_only=True):
    """What came of all."""

    variants: dict[str, VariantCheck]
    steps: dict[str, StepCheck]
    damaged: dict[str, tuple[FileDifference, ...]]
    """Step -> files of its artifact in `build/` that are not as the step made them."""

    @property
    def same(self) -> bool:
        """Whether nothing is at fault."""
        return all(variant.state != "differs" for variant in self.variants.values())

    @property
    def partial(self) -> bool:
        """Whether something could not be looked at."""
        return any(check.state in UNVERIFIED for check in self.steps.values())
