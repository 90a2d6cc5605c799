"""The fixed-point types of all stages of a pipeline: what is chosen, and what follows from it.

Chosen is, for each stage that computes, the type of its result, and of its weights and biases.
Accumulators are not: they are always as wide as it takes for no sum to round or overflow, so that
a result is rounded once, and does not depend on the order in which terms are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2
from pathlib import Path

import msgspec

from ..errors import Tf2aifError
from .fixed import EXACT_BITS, Fixed, parse, product, total
from .stages import SAME_TYPE, WEIGHTED, Pipeline, Stage

FILE = "widths.json"


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The types of one stage."""

    result: Fixed
    weight: Fixed | None = None
    bias: Fixed | None = None


Types = Mapping[str, Chosen]
"""Stage -> its types; stages of a kind in SAME_TYPE are not in it."""


class Spelled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The types of one stage as a file or an option has them."""

    result: str | None = None
    weight: str | None = None
    bias: str | None = None


def uniform(pipeline: Pipeline, fixed: Fixed) -> dict[str, Chosen]:
    """One type for all that is chosen."""
    return {
        stage.name: Chosen(
            result=fixed,
            weight=fixed.plain() if stage.kind in WEIGHTED else None,
            bias=fixed.plain() if stage.kind in WEIGHTED else None,
        )
        for stage in pipeline.stages
        if stage.kind not in SAME_TYPE
    }


def changed(types: Types, spelled: Mapping[str, Spelled]) -> dict[str, Chosen]:
    """The types with those of some stages replaced.

    Raises Tf2aifError where a stage has none to choose, or a type is not one.
    """
    made = dict(types)
    for name, words in spelled.items():
        if name not in made:
            raise Tf2aifError(
                f"no layer '{name}' has fixed-point types to choose",
                hint=f"there are: {', '.join(made)}",
            )
        before = made[name]
        given = {field: parse(text) for field, text in _fields(words).items()}
        unknown = [f for f in given if getattr(before, f) is None]
        if unknown:
            raise Tf2aifError(f"layer '{name}' has no {unknown[0]}", hint="leave it out")
        made[name] = msgspec.structs.replace(before, **given)
    return made


def result_types(pipeline: Pipeline, types: Types) -> dict[str, Fixed]:
    """The type of every stage's output."""
    results: dict[str, Fixed] = {}
    for stage in pipeline.stages:
        same = stage.kind in SAME_TYPE
        results[stage.name] = results[stage.inputs[0]] if same else types[stage.name].result
    return results


def accumulators(pipeline: Pipeline, types: Types) -> dict[str, Fixed]:
    """The accumulator of every stage that has one."""
    results = result_types(pipeline, types)
    made = {}
    for stage in pipeline.stages:
        if stage.kind in WEIGHTED or stage.kind.endswith(("_pool", "_average", "_max")):
            made[stage.name] = _accumulator(stage, results[stage.inputs[0]], types)
    return made


def is_exact(pipeline: Pipeline, types: Types) -> bool:
    """Whether float64 holds all sums, so that `emulate` gives what the hardware gives."""
    return all(each.width <= EXACT_BITS for each in accumulators(pipeline, types).values())


def cost_bits(pipeline: Pipeline, types: Types) -> int:
    """Bits of all weights, biases and results of one inference: what the search makes small."""
    bits = 0
    for stage in pipeline.stages:
        if stage.name in types:
            chosen = types[stage.name]
            bits += stage.size * chosen.result.width
            if chosen.weight is not None and chosen.bias is not None:
                weight, bias = stage.constants()
                bits += weight.size * chosen.weight.width + bias.size * chosen.bias.width
    return int(bits)


def write_types(folder: Path, types: Types) -> None:
    """Write `widths.json` into that folder; the same types give the same bytes."""
    spelled = {name: _spelled(chosen) for name, chosen in types.items()}
    encoded = msgspec.json.format(msgspec.json.encode(spelled), indent=2)
    (folder / FILE).write_bytes(encoded + b"\n")


def read_spelled(folder: Path) -> dict[str, Spelled]:
    """What `widths.json` of that folder says; nothing where there is none.

    Raises Tf2aifError where it is not such a file.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Spelled])
    except msgspec.MsgspecError as error:
        raise Tf2aifError(f"not a table of fixed-point types: {error}", at=str(path)) from error


def _accumulator(stage: Stage, given: Fixed, types: Types) -> Fixed:
    if stage.kind in WEIGHTED:
        chosen = types[stage.name]
        weight, _ = stage.constants()
        if chosen.weight is None or chosen.bias is None:
            raise Tf2aifError(f"layer '{stage.name}' lacks the types of its weights")
        # The last axis is the output's channels, in a depthwise kernel too.
        return total(product(given, chosen.weight), weight[..., 0].size, chosen.bias)
    if stage.kind in ("max_pool", "global_max"):
        return given.plain()
    height, width = stage.hole().kernel
    # The division cuts what lies below the last bit: as many bits more as the sum has make that
    # smaller than a step of what goes in, divided by the number of terms.
    extra = ceil(log2(height * width))
    summed = total(given, height * width)
    return Fixed(width=summed.width + extra, integer=summed.integer)


def _fields(words: Spelled) -> dict[str, str]:
    return {name: text for name, text in msgspec.structs.asdict(words).items() if text is not None}


def _spelled(chosen: Chosen) -> Spelled:
    return Spelled(
        result=chosen.result.spell(),
        weight=chosen.weight.spell() if chosen.weight else None,
        bias=chosen.bias.spell() if chosen.bias else None,
    )
