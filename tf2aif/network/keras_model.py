"""A network as a Keras model: the config that Keras 2.12 reads, or a live model of Keras 3."""

from __future__ import annotations

from typing import Any

from ..engines.network import Network
from .keras_layers import KerasLayer, keras_layers, keras_name

NAME = "network"


def keras_config(net: Network) -> dict[str, Any]:
    """The network as the `model_config` of a Functional model of Keras 2.12, JSON-able.

    Inputs are float32 with a free batch; inputs and outputs are in the order of the signature.
    Raises StepFailed for what Keras has no layer for.
    """
    layers = [_input(each.name, each.shape) for each in net.inputs]
    layers += [_node(layer) for layer in keras_layers(net)]
    config = {
        "name": NAME,
        "trainable": True,
        "layers": layers,
        "input_layers": [[keras_name(each.name), 0, 0] for each in net.inputs],
        "output_layers": [[keras_name(each.tensor), 0, 0] for each in net.outputs],
    }
    return {"class_name": "Functional", "config": config}


def build_keras(net: Network) -> Any:
    """The network as a live model of Keras 3, with its weights.

    `model.inputs` and `model.outputs` are in the order of the signature, the batch is free. A
    Keras layer has the name of the network's layer that it is, or the last part of. Raises
    StepFailed for what Keras has no layer for.
    """
    import keras

    tensors = {
        each.name: keras.Input(each.shape, dtype="float32", name=keras_name(each.name))
        for each in net.inputs
    }
    made = []
    for layer in keras_layers(net):
        config = dict(layer.config)
        if "alpha" in config:  # renamed in Keras 3
            config["negative_slope"] = config.pop("alpha")
        live = getattr(keras.layers, layer.class_name)(name=layer.name, **config)
        given = [tensors[name] for name in layer.inputs]
        tensors[layer.name] = live(given if len(given) > 1 else given[0])
        made.append((live, layer.weights))
    for live, weights in made:
        live.set_weights(list(weights))
    inputs = [tensors[each.name] for each in net.inputs]
    outputs = [tensors[each.tensor] for each in net.outputs]
    return keras.Model(_alone(inputs), _alone(outputs), name=NAME)


def _alone(tensors: list[Any]) -> Any:
    """A list of one is that one: Keras warns where a call's structure differs."""
    return tensors if len(tensors) > 1 else tensors[0]


def _input(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    name = keras_name(name)
    config = {
        "batch_input_shape": [None, *shape],
        "dtype": "float32",
        "sparse": False,
        "ragged": False,
        "name": name,
    }
    return {"class_name": "InputLayer", "config": config, "name": name, "inbound_nodes": []}


def _node(layer: KerasLayer) -> dict[str, Any]:
    config = {"name": layer.name, "trainable": True, "dtype": "float32", **_lists(layer.config)}
    inbound = [[keras_name(name), 0, 0, {}] for name in layer.inputs]
    return {
        "class_name": layer.class_name,
        "config": config,
        "name": layer.name,
        "inbound_nodes": [inbound],
    }


def _lists(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return [_lists(each) for each in value] if isinstance(value, tuple | list) else value
