"""The names and shapes of a model's inputs: what it declares, and what the recipe asks for.

No vendor library is needed here, so a recipe can be checked with the same rules.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping

from ..engines.signature import natural_key
from ..errors import StepFailed

Shape = tuple[int | None, ...]

# Names that Keras 3 makes up: of a tensor in the session that built the model, of the layer in one
# that loaded it.
_MADE_UP = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


def stable_names(names: Iterable[str]) -> dict[str, str]:
    """Each input's name -> the name it has in the artifact: its own, unless Keras 3 made it up.

    Keras counts tensors from the start of the process, so the same model saved in two sessions has
    `keras_tensor_7` once and `keras_tensor_12` once, and `input_layer` as a file. All of these
    become `input_layer`, `input_layer_1` and so on, in the order of their numbers.

    >>> stable_names(["image", "keras_tensor_12", "keras_tensor_9"])
    {'image': 'image', 'keras_tensor_9': 'input_layer', 'keras_tensor_12': 'input_layer_1'}
    """
    ordered = sorted(names, key=natural_key)
    free = (f"input_layer_{i}" if i else "input_layer" for i in itertools.count())
    return {name: next(free) if _MADE_UP.fullmatch(name) else name for name in ordered}


def asked_shapes(inputs: Mapping[str, list[int]], names: Mapping[str, str]) -> dict[str, list[int]]:
    """The shapes asked for, by the names in the artifact; a recipe may use either name."""
    there = {**names, **{new: new for new in names.values()}}
    for name in inputs:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=len(there), cutoff=0.0)
            raise StepFailed(
                f"the model has no input '{name}'", hint=f"there are: {', '.join(near)}"
            )
    return {there[name]: shape for name, shape in inputs.items()}


def input_shapes(
    declared: Mapping[str, Shape | None], asked: Mapping[str, list[int]], batch: int | str
) -> dict[str, Shape]:
    """The shape of each input: what the model declares, what the recipe asks, and the batch.

    Raises StepFailed where they contradict each other, or leave an axis open.
    """
    return {
        name: _with_batch(name, _merged(name, shape, asked.get(name), batch), batch)
        for name, shape in declared.items()
    }


def _merged(name: str, declared: Shape | None, asked: list[int] | None, batch: int | str) -> Shape:
    if asked is None:
        if declared is None:
            raise StepFailed(
                f"the model leaves the number of axes of input '{name}' open",
                hint=f"give its shape without the batch axis: 'inputs: {{{name}: [...]}}'",
            )
        return declared
    first = () if batch == "none" else ((declared or (None,))[0],)
    wanted = (*first, *asked)
    if declared is not None and not _agree(declared, wanted):
        raise StepFailed(
            f"input '{name}' has shape {_text(declared)}; the recipe asks for {_text(wanted)}"
        )
    return wanted


def _with_batch(name: str, shape: Shape, batch: int | str) -> Shape:
    if batch == "none" or not shape:  # a scalar has no batch axis
        return shape
    if None in shape[1:]:
        raise StepFailed(
            f"input '{name}' has shape {_text(shape)}: the model leaves an axis open",
            hint=f"give its shape without the batch axis: 'inputs: {{{name}: [...]}}'",
        )
    fixed = None if batch == "free" else int(batch)
    if shape[0] not in (None, fixed):
        raise StepFailed(
            f"the model fixes the batch of input '{name}' to {shape[0]}; the recipe says {batch}",
            hint=f"say 'batch: {shape[0]}', or 'batch: none' where its first axis is no batch",
        )
    return (fixed, *shape[1:])


def _agree(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(one, other, strict=True)
    )


def _text(shape: Shape) -> str:
    return f"({', '.join('?' if length is None else str(length) for length in shape)})"
