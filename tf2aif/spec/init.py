"""A first recipe for a model, from what can be read in it without TensorFlow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import Fault, FilesError
from .check_model import render
from .load import load_targets, pipeline
from .model_header import ModelHeader, Shape, Signature, Tensor, read_header
from .recipe import FUNCTION, NAME
from .references import needs_calibration
from .target import Target


def write_recipe_for(model: Path, dest: Path, project: Path = Path()) -> str:
    """The text of a recipe for a model, to be written to `dest`.

    `model` is a SavedModel folder, a .keras or .h5 file, or file.py:function. Every target that
    the project has is in it, at the precisions that need no calibration set, so that it builds as
    it is; the rest stands in comments. Raises FilesError where the model cannot be read.
    """
    function = re.match(FUNCTION, str(model))
    file = Path(str(model).rpartition(":")[0]) if function else model
    if not file.exists():
        raise FilesError([Fault(f"no file or folder '{file}'")])
    header = None if function else read_header(model)
    signature = _signature(header)
    written = os.path.relpath(model.absolute(), dest.absolute().parent)
    lines = [
        *_header_lines(header),
        *_name_lines(dest),
        *_model_lines(written, "function" if function else "path", header),
        "",
        *_target_lines(load_targets(project)),
        "",
        *_data_lines(signature),
    ]
    return "\n".join(lines) + "\n"


def _signature(header: ModelHeader | None) -> Signature:
    if header is None or not header.signatures:
        return Signature(())
    return header.signatures[header.default() or next(iter(header.signatures))]


def _header_lines(header: ModelHeader | None) -> Iterator[str]:
    if header is None or not header.signatures:
        return
    yield "# What the model says of itself:"
    for name, signature in header.signatures.items():
        yield f"#   signature {name}"
        for side, tensors in (("input", signature.inputs), ("output", signature.outputs)):
            for tensor in tensors:
                dtype = tensor.dtype or "unknown dtype"
                yield f"#     {side} {tensor.name}: {dtype}{_sizes(tensor.shape)}"


def _sizes(shape: Shape | None) -> str:
    return ", shape unknown" if shape is None else f", shape {render(shape)}"


def _name_lines(dest: Path) -> Iterator[str]:
    if not re.fullmatch(NAME, dest.stem):
        name = re.sub(r"[^a-z0-9._-]+", "-", dest.stem.lower()).strip("-._")[:63]
        yield f"name: {_quoted(name.rstrip('-._') or 'model')}"


def _model_lines(written: str, key: str, header: ModelHeader | None) -> Iterator[str]:
    yield "model:"
    yield f"  {key}: {_quoted(written)}"
    if header and header.signatures and header.default() is None:
        first, *others = header.signatures
        yield f"  signature: {_quoted(first)}  # or: {', '.join(others)}"
    batches = {t.shape[0] if t.shape else None for t in _signature(header).inputs} - {None, 1}
    if batches:
        fixed = batches.pop() if len(batches) == 1 else "none"
        yield f"  batch: {fixed}  # the model fixes it"
    else:
        yield "  # batch: free  # by default 1; 'free' keeps the axis open, 'none': there is none"
    still_open = [tensor for tensor in _signature(header).inputs if None in _sample(tensor)]
    if still_open:
        yield "  # the model leaves these sizes open: say them, without the batch axis"
        yield "  # inputs:"
        for tensor in still_open:
            sizes = ", ".join("SIZE" if size is None else str(size) for size in _sample(tensor))
            yield f"  #   {_quoted(tensor.name)}: [{sizes}]"


def _sample(tensor: Tensor) -> Shape:
    return (tensor.shape or ())[1:]


def _target_lines(targets: Mapping[str, Target]) -> Iterator[str]:
    yield "# int8 needs a calibration set: name one below, then take `precisions` away."
    yield "targets:"
    for name, target in targets.items():
        without = [
            p for p in target.precisions if not any(map(needs_calibration, pipeline(target, p)))
        ]
        if len(without) == len(target.precisions):
            yield f"  {name}:"
        elif without:
            yield f"  {name}: {{precisions: [{', '.join(without)}]}}"
        else:
            yield f"  # {name}:"


def _data_lines(signature: Signature) -> Iterator[str]:
    yield "# Samples: .npy, .npz#array, .tfrecord#feature, a folder of images, or file.py:function."
    for tensor in signature.inputs:
        sizes = ", ".join("any" if size is None else str(size) for size in ("n", *_sample(tensor)))
        yield f"#   {tensor.name}: {tensor.dtype or 'any dtype'}, shape ({sizes})"
    data = _data(signature.inputs)
    yield from ("# calibration:", *data, "#   samples: 200")
    yield from ("# evaluation:", *data, "#   labels: samples.npz#y", "#   metric: top-1")
    if len(signature.outputs) > 1:
        yield f"#   output: {_quoted(signature.outputs[0].name)}"
    yield from ("# gate:", "#   drop: 0.02  # what a variant may lose of the metric")


def _data(inputs: tuple[Tensor, ...]) -> list[str]:
    if len(inputs) < 2:
        return ["#   data: samples.npz#x"]
    lines = (f"#       {_quoted(one.name)}: {_quoted(f'{one.name}.npy')}" for one in inputs)
    return ["#   data:", "#     inputs:", *lines]


def _quoted(text: str) -> str:
    """Text as a YAML scalar, in quotes where it would be read as something else."""
    if re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./:-]*[A-Za-z0-9_/]", text) and text.lower() not in (
        "true",
        "false",
        "null",
    ):
        return text
    return json.dumps(text, ensure_ascii=False)
