"""Checking a recipe's source model, as far as its header can be read without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from ..engines import TensorSpec
from ..errors import Fault, FilesError, StepFailed
from ..steps.shapes import input_shapes, stable_names
from .files import missing_file, resolve
from .load import LoadedRecipe
from .model_header import ModelHeader, Shape, Signature, Tensor, read_header
from .python_source import source_faults
from .recipe import Model
from .words import nearest


class KnownModel(msgspec.Struct, frozen=True):
    """The signature that a recipe uses, as the import step will make it of the model."""

    inputs: tuple[Tensor, ...]
    """One sample of each input: shapes are without the batch axis."""

    outputs: tuple[Tensor, ...]
    exact_names: bool
    """Whether the import step keeps these names; of a Keras model it may give others."""


def spec_of(tensor: Tensor) -> TensorSpec | None:
    """A tensor as `sampleset.fit` wants it, None where its shape or dtype is not known."""
    if tensor.shape is None or tensor.dtype is None or not _is_numpy(tensor.dtype):
        return None
    return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)


def check_model(loaded: LoadedRecipe) -> tuple[KnownModel | None, list[Fault]]:
    """What is known of a recipe's model, and what is wrong with it."""
    model = loaded.recipe.model
    faults: list[Fault] = []
    for index, written in enumerate(model.files):
        faults += missing_file(loaded, written, loaded.at("model", "files", index))
    if model.function is not None and model.path is None:
        return None, faults + _function_faults(loaded, model)
    if model.path is None or model.function is not None:
        return None, faults
    at = loaded.at("model", "path")
    faults += missing_file(loaded, model.path, at)
    if faults:
        return None, faults
    path = resolve(loaded, model.path)
    try:
        header = read_header(path)
    except FilesError as error:
        return None, [Fault(f"{model.path}: {f.message}", at, f.hint) for f in error.faults]
    return _choose(loaded, header)


def _function_faults(loaded: LoadedRecipe, model: Model) -> list[Fault]:
    written, _, function = str(model.function).rpartition(":")
    at = loaded.at("model", "function")
    path = resolve(loaded, written)
    return missing_file(loaded, written, at) or source_faults(path, function, at, model.arguments)


def _choose(loaded: LoadedRecipe, header: ModelHeader) -> tuple[KnownModel | None, list[Fault]]:
    """The signature that is used: the recipe's, serving_default, or the only one."""
    model = loaded.recipe.model
    if not header.signatures:
        return None, []
    name = model.signature or header.default()
    if name is None:
        hint = f"set model.signature; there are: {', '.join(header.signatures)}"
        return None, [Fault("the model has several signatures", loaded.at("model"), hint)]
    exact = header.format == "saved_model"
    if name not in header.signatures:
        if not exact:
            return None, []  # a Keras model's signatures are the import step's to name
        at = loaded.at("model", "signature")
        hint = nearest(name, header.signatures)
        return None, [Fault(f"the model has no signature '{name}'", at, hint)]
    signature = header.signatures[name]
    names = stable_names(tensor.name for tensor in signature.inputs)
    faults = _unknown_inputs(loaded, names) if exact else []
    inputs = []
    for tensor in signature.inputs:
        renamed = msgspec.structs.replace(tensor, name=names[tensor.name])
        closed, wrong = _close(loaded, renamed, tensor.name)
        inputs.append(closed)
        faults += wrong if exact or tensor.shape is not None else []
    faults += _output_faults(loaded, signature) if exact else []
    return KnownModel(tuple(inputs), signature.outputs, exact), faults


def _unknown_inputs(loaded: LoadedRecipe, names: Mapping[str, str]) -> list[Fault]:
    """Inputs that the recipe names and the model does not have, under neither of their names."""
    there = dict.fromkeys([*names.values(), *names])
    return [
        Fault(
            f"the model has no input '{name}'",
            loaded.at("model", "inputs", name),
            nearest(name, there),
        )
        for name in loaded.recipe.model.inputs
        if name not in there
    ]


def _close(loaded: LoadedRecipe, tensor: Tensor, own: str) -> tuple[Tensor, list[Fault]]:
    """One sample of an input, closed by the rules of the import step, and what these refuse.

    `own` is its name in the model, which the recipe may use as well.
    """
    model, name = loaded.recipe.model, tensor.name
    used = next((one for one in (own, name) if one in model.inputs), None)
    asked = {name: model.inputs[used]} if used else {}
    try:
        shape: Shape | None = input_shapes({name: tensor.shape}, asked, model.batch)[name]
        faults: list[Fault] = []
    except StepFailed as failure:
        at = loaded.at("model", "inputs", used) if used else loaded.at("model")
        shape = tensor.shape
        faults = [Fault(fault.message, at, fault.hint) for fault in failure.faults]
    sample = shape[1:] if shape and model.batch != "none" else shape
    return msgspec.structs.replace(tensor, shape=sample), faults


def render(shape: Shape) -> str:
    """A shape as faults say it: `(any, 28, 28)`."""
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _output_faults(loaded: LoadedRecipe, signature: Signature) -> Iterator[Fault]:
    evaluation = loaded.recipe.evaluation
    outputs = [tensor.name for tensor in signature.outputs]
    if evaluation is None or not outputs:
        return
    if evaluation.output is None:
        if len(outputs) > 1:
            hint = f"set evaluation.output; there are: {', '.join(outputs)}"
            yield Fault("the model has several outputs", loaded.at("evaluation"), hint)
    elif evaluation.output not in outputs:
        at = loaded.at("evaluation", "output")
        hint = nearest(evaluation.output, outputs)
        yield Fault(f"the model has no output '{evaluation.output}'", at, hint)


def _is_numpy(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "fiub"
    except TypeError:
        return False
