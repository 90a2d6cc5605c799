"""From the layers of a network to the stages of hardware.

What is one layer there and has no stage of its own is put together from others here; what stands
behind all hardware (a softmax at the end) goes to the door: with hls4ml's default precision a
softmax in the circuit collapses, and accuracy falls to chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..engines import Array, network
from ..engines.network import Layer, Network
from ..errors import StepFailed
from .stages import Door, Output, Pipeline, Stage, Window

DOORS: dict[type[Layer], Door] = {
    network.Softmax: "softmax",
    network.Sigmoid: "sigmoid",
    network.Tanh: "tanh",
}


def lower(net: Network) -> Pipeline:
    """The stages of a float network.

    Raises StepFailed that names every layer for which there is no stage.
    """
    doors = _at_the_door(net)
    plan = _Plan(net)
    for given in net.inputs:
        plan.add_input(given)
    refused = []
    for layer in net.layers:
        if layer.name in doors:
            continue
        try:
            _LOWERED.get(type(layer), _unknown)(plan, layer)
        except _Refused as reason:
            refused.append(f"{layer.name} ({layer.source}): {reason}")
            plan.places[layer.name] = "?"
    if refused:
        raise StepFailed(
            f"{len(refused)} of {len(net.layers)} layers have no stage in the HLS path",
            at="; ".join(refused[:8]),
            hint="build the model from other layers, or take a target with another pipeline",
        )
    return plan.finish(doors)


class _Refused(Exception):
    """A layer that has no stage, and why."""


class _Plan:
    """The stages so far, and which one holds each tensor."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.stages: list[Stage] = []
        self.places: dict[str, str] = {}
        self.inputs: dict[str, str] = {}

    def add_input(self, given: network.Input) -> None:
        # With an ending that no keyword of C++ has.
        name = self._identifier(f"{given.name}_in")
        self.stages.append(Stage(name=name, kind="input", inputs=(), shape=given.shape or (1,)))
        self.places[given.name] = self.inputs[given.name] = name

    def add(self, layer: Layer, kind: Any, **fields: Any) -> str:
        """A stage that has the layer's name, or one derived from it where that is taken."""
        made = {
            "inputs": tuple(self.places[name] for name in layer.inputs),
            "shape": layer.shape,
            "source": layer.source,
            "name": self._identifier(layer.name),
        } | fields
        self.stages.append(Stage(kind=kind, **made))
        self.places[layer.name] = self.stages[-1].name
        return self.stages[-1].name

    def shape(self, layer: Layer) -> tuple[int, ...]:
        """Of the layer's first input."""
        return self.net.shapes()[layer.inputs[0]]

    def finish(self, doors: dict[str, Door]) -> Pipeline:
        outputs = []
        by_name = {layer.name: layer for layer in self.net.layers}
        for output in self.net.outputs:
            door = doors.get(output.tensor, "none")
            tensor = by_name[output.tensor].inputs[0] if door != "none" else output.tensor
            outputs.append(Output(name=output.name, stage=self.places[tensor], door=door))
        held = {output.stage for output in outputs}
        if held & set(self.inputs.values()):
            raise StepFailed("an output of the model is one of its inputs: nothing to synthesise")
        return Pipeline(stages=tuple(self.stages), inputs=self.inputs, outputs=tuple(outputs))

    def _identifier(self, name: str) -> str:
        letters = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).lower()
        base = f"x{letters}" if not letters[:1].isalpha() else letters
        taken = {stage.name for stage in self.stages}
        made, count = base, 1
        while made in taken:
            made, count = f"{base}_{count}", count + 1
        return made


def _at_the_door(net: Network) -> dict[str, Door]:
    """Layers that nothing else reads, whose results are outputs, and which float computes."""
    users = net.consumers()
    outputs = {output.tensor for output in net.outputs}
    return {
        layer.name: DOORS[type(layer)]
        for layer in net.layers
        if type(layer) in DOORS and layer.name in outputs and not users[layer.name]
    }


def _unknown(plan: _Plan, layer: Layer) -> None:  # noqa: ARG001
    kind = str(type(layer).__struct_config__.tag)
    if type(layer) in DOORS:
        raise _Refused(f"{kind} is computed at the end only, as an output of the model")
    raise _Refused(f"{kind} is not supported")


def _conv(plan: _Plan, layer: Any) -> None:
    kernel = _kernel(plan, layer)
    plan.add(
        layer,
        "conv",
        window=_window(kernel.shape, layer),
        weight=kernel,
        bias=plan.net.weight(layer, "bias"),
    )


def _depthwise(plan: _Plan, layer: Any) -> None:
    kernel = _kernel(plan, layer)
    window, bias = _window(kernel.shape, layer), plan.net.weight(layer, "bias")
    if kernel.shape[2] == 1:  # of one channel it is a plain convolution
        plan.add(layer, "conv", window=window, weight=kernel, bias=bias)
    elif kernel.shape[3] == 1:
        plan.add(layer, "depthwise", window=window, weight=kernel[..., 0], bias=bias)
    else:
        raise _Refused(f"a depthwise convolution with multiplier {kernel.shape[3]}; only 1 is")


def _kernel(plan: _Plan, layer: Any) -> Array:
    if layer.dilations != (1, 1):
        raise _Refused(f"a convolution dilated by {layer.dilations}")
    return plan.net.weight(layer, "kernel")


def _window(size: tuple[int, ...], layer: Any) -> Window:
    return Window(kernel=(size[0], size[1]), strides=layer.strides, padding=layer.padding)


def _dense(plan: _Plan, layer: Layer) -> None:
    if len(plan.shape(layer)) != 1:
        raise _Refused(f"a dense layer over a tensor of shape {plan.shape(layer)}")
    weight, bias = plan.net.weight(layer, "kernel"), plan.net.weight(layer, "bias")
    plan.add(layer, "dense", weight=weight, bias=bias)


def _scale(plan: _Plan, layer: Layer) -> None:
    """A scale for each channel is a depthwise kernel of one pixel."""
    shape = plan.shape(layer)
    if len(shape) != 3:
        raise _Refused(f"a scale over a tensor of shape {shape}, behind no layer with weights")
    scale, offset = plan.net.weight(layer, "scale"), plan.net.weight(layer, "offset")
    channels = shape[-1]
    weight = np.broadcast_to(scale, (channels,)).reshape(1, 1, channels)
    if channels == 1:
        weight = weight[..., np.newaxis]
    bias = np.broadcast_to(offset, (channels,))
    kind = "conv" if channels == 1 else "depthwise"
    plan.add(layer, kind, window=Window(kernel=(1, 1)), weight=weight, bias=bias)


def _relu(plan: _Plan, layer: Layer) -> None:
    plan.add(layer, "relu")


def _pool(kind: str, whole: str) -> Callable[[_Plan, Any], None]:
    def make(plan: _Plan, layer: Any) -> None:
        shape = plan.shape(layer)
        if layer.size == shape[:2] and not any(layer.padding) and layer.shape[:2] == (1, 1):
            _reduce(plan, layer, whole)
        else:
            plan.add(layer, kind, window=_window(layer.size, layer))

    return make


def _global(kind: str) -> Callable[[_Plan, Any], None]:
    def make(plan: _Plan, layer: Any) -> None:
        if len(plan.shape(layer)) != 3:
            raise _Refused(f"a pool over a tensor of shape {plan.shape(layer)}")
        _reduce(plan, layer, kind)

    return make


def _reduce(plan: _Plan, layer: Layer, kind: str) -> None:
    height, width, channels = plan.shape(layer)
    window = Window(kernel=(height, width), strides=(height, width))
    made = plan.add(layer, kind, window=window, shape=(channels,))
    if layer.shape != (channels,):
        plan.add(layer, "reshape", inputs=(made,))


def _add(plan: _Plan, layer: Layer) -> None:
    shapes = {plan.net.shapes()[name] for name in layer.inputs}
    if shapes != {layer.shape} or len(layer.inputs) != 2:
        raise _Refused(f"a sum of tensors of shapes {sorted(shapes)}")
    plan.add(layer, "add")


def _concat(plan: _Plan, layer: Any) -> None:
    if layer.axis not in (-1, len(layer.shape) - 1) or len(layer.inputs) != 2:
        raise _Refused(f"{len(layer.inputs)} tensors put together along axis {layer.axis}")
    plan.add(layer, "concat")


def _pad(plan: _Plan, layer: Any) -> None:
    plan.add(layer, "pad", window=Window(kernel=(1, 1), padding=layer.padding))


def _reshape(plan: _Plan, layer: Layer) -> None:
    place = plan.places[layer.inputs[0]]
    if next(stage.shape for stage in plan.stages if stage.name == place) == layer.shape:
        plan.places[layer.name] = place
    else:
        plan.add(layer, "reshape")


_LOWERED: dict[type[Layer], Callable[[_Plan, Any], None]] = {
    network.Conv2D: _conv,
    network.DepthwiseConv2D: _depthwise,
    network.Dense: _dense,
    network.Scale: _scale,
    network.Relu: _relu,
    network.MaxPool: _pool("max_pool", "global_max"),
    network.AveragePool: _pool("average_pool", "global_average"),
    network.GlobalAverage: _global("global_average"),
    network.GlobalMax: _global("global_max"),
    network.Add: _add,
    network.Concat: _concat,
    network.Pad: _pad,
    network.Reshape: _reshape,
}
