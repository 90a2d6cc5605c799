"""A network as a Keras 2.12 file: `model_config` and weights in the layout of its HDF5 format.

Written with h5py alone: Keras 3 would put fields into the config that 2.12 does not know. The bytes
depend on the network only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.network import Network
from .keras_layers import KerasLayer, keras_layers, keras_name
from .keras_model import keras_config

KERAS_VERSION = "2.12.0"

# What Keras 2.12 calls the weights of a layer, in the order in which it loads them.
_NAMES: dict[str, tuple[str, ...]] = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Conv2D": ("kernel", "bias"),
    "Conv2DTranspose": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise_kernel", "bias"),
    "PReLU": ("alpha",),
}


def write_h5(path: Path, net: Network) -> None:
    """Write a float network as `.h5`; raises StepFailed for what Keras has no layer for."""
    import h5py

    config = json.dumps(keras_config(net), sort_keys=True)
    layers = keras_layers(net)
    names = _loading_order(net, layers)
    with h5py.File(path, "w", libver="earliest", track_order=False) as file:
        file.attrs["model_config"] = np.bytes_(config)
        _mark(file)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array(names, "S")
        _mark(group)
        by_name = {layer.name: layer for layer in layers}
        for name in names:
            _write_weights(group.create_group(name), by_name.get(name))


def _loading_order(net: Network, layers: list[KerasLayer]) -> list[str]:
    """Layers as Keras 2 numbers those of a model, by which it matches their weights.

    By their depth below the outputs, deepest first; of equal depth as a walk from the outputs
    meets them.
    """
    reads = {layer.name: [keras_name(name) for name in layer.inputs] for layer in layers}
    reads |= {keras_name(each.name): [] for each in net.inputs}
    met: dict[str, int] = {}
    stack = [keras_name(each.tensor) for each in reversed(net.outputs)]
    while stack:
        name = stack.pop()
        if name not in met:
            met[name] = len(met)
            stack += reversed(reads[name])
    depths = dict.fromkeys(met, 0)
    for layer in reversed(layers):
        for name in reads[layer.name]:
            depths[name] = max(depths[name], depths[layer.name] + 1)
    return sorted(met, key=lambda name: (-depths[name], met[name]))


def _mark(group: Any) -> None:
    group.attrs["keras_version"] = np.bytes_(KERAS_VERSION)
    group.attrs["backend"] = np.bytes_("tensorflow")


def _write_weights(group: Any, layer: KerasLayer | None) -> None:
    weights = layer.weights if layer else ()
    names = _NAMES[layer.class_name] if layer and weights else ()
    paths = [f"{layer.name}/{name}:0" for name in names] if layer else []
    group.attrs["weight_names"] = np.array(paths, "S") if paths else np.zeros(0)
    for path, array in zip(paths, weights, strict=True):
        group.create_dataset(path, data=np.ascontiguousarray(array, np.float32), track_times=False)
