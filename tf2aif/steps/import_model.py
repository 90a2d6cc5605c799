"""import: any model file becomes a canonical, frozen SavedModel with one signature.

The same weights give the same bytes, exported again or saved in another format, so what follows
from the import is not built again.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ..engines import Array, TensorSpec
from ..engines import tensorflow as tensorflow_engine
from ..engines.signature import Signature, natural_key, write_signature
from ..errors import StepFailed
from . import Job
from .canonical import Frozen, canonical_form
from .freeze import Shape, declared_shapes, fix_shapes, write_saved_model
from .source_model import Source, open_source

VERSION = 1
TOOLCHAIN = "tensorflow"
INPUTS = ("source",)

Batch = Annotated[int, Meta(ge=1)] | Literal["free", "none"]

# The frozen graph runs the same kernels on the same weights: only their fusion may differ.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5

# Names that Keras 3 makes up: of a tensor in the session that built the model, of the layer in one
# that loaded it.
_MADE_UP = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which signature, and the shapes of its inputs."""

    signature: str | None = None
    batch: Batch = 1
    inputs: dict[str, list[Annotated[int, Meta(ge=1)]]] = {}


def run(job: Job) -> Mapping[str, Any]:
    """Write `saved_model/` and `signature.json`; say how the model was opened and checked.

    Raises StepFailed where the model cannot be read or frozen, where shapes do not fit, and where
    the frozen graph does not compute what the source computes.
    """
    options = msgspec.convert(job.options, Options)
    source = open_source(job.inputs["source"], options.signature)
    names = stable_names(source.frozen.inputs)
    frozen = canonical_form(_rename(source.frozen, names))
    shapes = _shapes(declared_shapes(frozen), _asked(options.inputs, names), options.batch)
    signature = fix_shapes(frozen, shapes)
    write_saved_model(frozen, signature, job.out / "saved_model")
    write_signature(job.out, signature)
    return {
        "loaded_with": source.loaded_with,
        "signature": source.signature,
        "renamed": {old: new for old, new in names.items() if old != new},
        "inputs": msgspec.to_builtins(signature.inputs),
        "outputs": msgspec.to_builtins(signature.outputs),
        **_compare(source, names, signature, job.out),
    }


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


def _rename(frozen: Frozen, names: Mapping[str, str]) -> Frozen:
    inputs = {names[name]: frozen.inputs[name] for name in names}
    ordered = {name: inputs[name] for name in sorted(inputs, key=natural_key)}
    return frozen._replace(inputs=ordered)


def _asked(inputs: Mapping[str, list[int]], names: Mapping[str, str]) -> dict[str, list[int]]:
    """The shapes asked for, by the names in the artifact; a recipe may use either name."""
    there = {**names, **{new: new for new in names.values()}}
    for name in inputs:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=len(there), cutoff=0.0)
            raise StepFailed(
                f"the model has no input '{name}'", hint=f"there are: {', '.join(near)}"
            )
    return {there[name]: shape for name, shape in inputs.items()}


def _shapes(
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


def _compare(
    source: Source, names: Mapping[str, str], signature: Signature, artifact: Path
) -> dict[str, Any]:
    """Source and artifact on one seeded random batch: the largest difference of any output.

    Some models refuse random numbers (an index out of range, say). That is no fault of theirs: the
    difference is None then, and the reason is told.
    """
    from tensorflow.errors import InvalidArgumentError

    feeds = {spec.name: _random(spec, i) for i, spec in enumerate(signature.inputs)}
    try:
        truth = source.call({old: feeds[new] for old, new in names.items()})
    except InvalidArgumentError as error:
        return {"difference": None, "unchecked": str(error).splitlines()[0][:300]}
    engine = tensorflow_engine.load(artifact)
    found = engine.run(feeds)
    engine.close()
    return {"difference": max(_difference(n, truth[n], found[n]) for n in found)}


def _difference(name: str, truth: Array, found: Array) -> float:
    if truth.shape != found.shape or truth.dtype != found.dtype:
        raise StepFailed(
            f"output '{name}' is {found.dtype} {found.shape} after freezing, "
            f"and {truth.dtype} {truth.shape} in the source"
        )
    wide = truth.astype(np.float64), found.astype(np.float64)
    worst = float(np.max(np.abs(wide[0] - wide[1]), initial=0.0))
    largest = float(np.max(np.abs(wide[0]), initial=0.0))
    if not worst <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * largest:  # NaN fails too
        raise StepFailed(
            f"output '{name}' differs by {worst:.3g} from the source, which reaches {largest:.3g}",
            hint="does the model draw random numbers, or keep state, when it is called?",
        )
    return worst


def _random(spec: TensorSpec, seed: int) -> Array:
    """A batch that most models accept: 0 to 1; an open axis has length 2."""
    generator = np.random.default_rng(seed)
    shape = [2 if length is None else length for length in spec.shape]
    if np.dtype(spec.dtype).kind in "iub":
        return generator.integers(0, 2, shape).astype(spec.dtype)
    return generator.random(shape).astype(spec.dtype)


def _agree(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(one, other, strict=True)
    )


def _text(shape: Shape) -> str:
    return f"({', '.join('?' if length is None else str(length) for length in shape)})"
