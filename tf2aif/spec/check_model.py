"""Checking a recipe's source model, as far as its header can be read without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from ..engines import TensorSpec
from ..errors import Fault, FilesError
from .files import missing_file, resolve
from .load import LoadedRecipe
from .model_header import ModelHeader, Shape, Signature, Tensor, read_header
from .python_source import source_faults
from .recipe import Model
from .words import nearest


class KnownModel(msgspec.Struct, frozen=True):
    """The signature that a recipe uses, as the recipe closes it."""

    signature: Signature
    model: Model
    exact_names: bool
    """Whether the import step keeps these names; of a Keras model it may give others."""

    def sample_shape(self, name: str) -> Shape | None:
        """The shape of one sample of an input, None where it is not known."""
        if name in self.model.inputs:
            return tuple(self.model.inputs[name])
        shape = next((t.shape for t in self.signature.inputs if t.name == name), None)
        return shape if shape is None or self.model.batch == "none" else shape[1:]

    def sample_spec(self, name: str) -> TensorSpec | None:
        """One sample of an input, None where its shape or dtype is not known."""
        dtype = next((t.dtype for t in self.signature.inputs if t.name == name), None)
        shape = self.sample_shape(name)
        if shape is None or dtype is None or not _is_numpy(dtype):
            return None
        return TensorSpec(name=name, dtype=dtype, shape=shape)


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
    known = KnownModel(header.signatures[name], model, exact)
    faults = list(_input_faults(loaded, known)) + list(_output_faults(loaded, known))
    return known, faults


def _input_faults(loaded: LoadedRecipe, known: KnownModel) -> Iterator[Fault]:
    """Shapes that the recipe states and the model does not have; what stays open for random."""
    inputs = {tensor.name: tensor for tensor in known.signature.inputs}
    for name, shape in known.model.inputs.items():
        at = loaded.at("model", "inputs", name)
        if name in inputs:
            yield from _shape_faults(inputs[name], shape, known, at)
        elif known.exact_names:
            yield Fault(f"the model has no input '{name}'", at, nearest(name, inputs))
    if loaded.recipe.calibration == "random":
        for name in inputs:
            shape_now = known.sample_shape(name)
            if shape_now is not None and None in shape_now:
                message = f"random samples need a shape, and input '{name}' leaves it open"
                yield Fault(message, loaded.at("calibration"), "state it in model.inputs")


def _shape_faults(tensor: Tensor, stated: list[int], known: KnownModel, at: str) -> Iterator[Fault]:
    if tensor.shape is None:
        return
    own = tensor.shape if known.model.batch == "none" else tensor.shape[1:]
    fits = len(own) == len(stated) and all(
        size in (None, wanted) for size, wanted in zip(own, stated, strict=True)
    )
    if not fits:
        hint = "leave the batch axis out" if len(stated) == len(own) + 1 else ""
        there = ", ".join("any" if size is None else str(size) for size in own)
        yield Fault(f"input '{tensor.name}' has the shape ({there}) in the model", at, hint)


def _output_faults(loaded: LoadedRecipe, known: KnownModel) -> Iterator[Fault]:
    evaluation = loaded.recipe.evaluation
    outputs = [tensor.name for tensor in known.signature.outputs]
    if evaluation is None or not outputs or not known.exact_names:
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
