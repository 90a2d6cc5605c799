"""From an imported model to its network of layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np

from ..engines import Array
from ..engines.network import AnyLayer, Input, Network, Output
from ..engines.signature import Signature, read_signature
from ..errors import StepFailed
from .constants import read_graph
from .draft import PARTS, Draft
from .lift import lift
from .simplify import simplify


def build_network(model: Path) -> Network:
    """The network of an imported model (`saved_model/`, `signature.json`), in TensorFlow's floats.

    Batch normalisation is folded into the kernels before it. Raises StepFailed that names the
    operators for which there is no layer.
    """
    signature = read_signature(model)
    known = read_graph(model / "saved_model", signature)
    draft = lift(known)
    simplify(draft)
    _check(draft, known.batch)
    return _finish(draft, signature)


def _check(draft: Draft, batch: int) -> None:
    if not draft.layers:
        raise StepFailed("the model computes nothing: its outputs are its inputs")
    for layer in draft.layers.values():
        if isinstance(layer, PARTS):
            raise StepFailed(
                f"no layer for operator {layer.source.rpartition('_')[0]}: with what is around it "
                "it is neither an enlargement nor a dilated convolution",
                at=layer.source,
            )
        if not layer.shape or layer.shape[0] != batch:
            raise StepFailed(
                f"the result of '{layer.source}' has shape {layer.shape}: it mixes the {batch} "
                "samples of a batch, or drops their axis",
                at=layer.source,
                hint="a layer graph computes each sample by itself",
            )


def _finish(draft: Draft, signature: Signature) -> Network:
    """The network with names that tell the kinds of its layers, and float32 weights."""
    names = _names(draft)
    layers: list[AnyLayer] = []
    weights: dict[str, Array] = {}
    for old, layer in draft.layers.items():
        inputs = tuple(names[name] for name in layer.inputs)
        layers.append(
            msgspec.structs.replace(layer, name=names[old], inputs=inputs, shape=layer.shape[1:])
        )
        for what, values in draft.weights[old].items():
            weights[f"{names[old]}/{what}"] = np.ascontiguousarray(values, np.float32)
    inputs_ = tuple(
        Input(name=spec.name, dtype=spec.dtype, shape=draft.inputs[spec.name][1:])
        for spec in signature.inputs
    )
    outputs = tuple(
        Output(name=spec.name, tensor=names[draft.outputs[spec.name]]) for spec in signature.outputs
    )
    return Network(inputs_, outputs, tuple(layers), weights)


def _names(draft: Draft) -> dict[str, str]:
    """`conv2d_0`, counted for each kind; an input keeps its own name."""
    names = {name: name for name in draft.inputs}
    counts: Counter[str] = Counter()
    for old, layer in draft.layers.items():
        kind = str(type(layer).__struct_config__.tag)
        while f"{kind}_{counts[kind]}" in draft.inputs:
            counts[kind] += 1
        names[old] = f"{kind}_{counts[kind]}"
        counts[kind] += 1
    return names
