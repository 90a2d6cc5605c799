"""pof2: a network of layers quantised to power-of-two int8, as AMD's DPUs compute it.

The artifact runs in the engine of the same name, integer by integer, on any machine. The float
network that the vendor's own quantiser starts from goes with it, in `float/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..engines.signature import read_signature, write_signature
from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:
    from ..engines import Array
    from ..engines.network import Network

VERSION = 1
TOOLCHAIN = "python"
INPUTS = ("model", "calibration")

FLOAT = "float"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How positions are found.

    `search` takes for each tensor the position of least squared error (`mse`), or the highest
    without saturation (`minmax`). `equalise` brings the channels of kernels that follow each other
    to like ranges first, which changes no result in float arithmetic. `replace_relu6` takes ReLU
    for ReLU6 before that, as depthwise networks often need; where activations exceed 6 it is
    another network.
    """

    search: Literal["minmax", "mse"] = "mse"
    equalise: bool = True
    replace_relu6: bool = False


def run(job: Job) -> Mapping[str, Any]:
    """Write the quantised `layers.json` and `weights.npz`, `signature.json`, and `float/`.

    Raises StepFailed where the calibration set is not for this model, and where no layer of it
    can be quantised.
    """
    from ..engines.network import read_network, write_network
    from ..network.equalise import equalise, replace_relu6
    from ..network.quantise import quantise

    options = msgspec.convert(job.options, Options)
    model = job.inputs["model"]
    net = read_network(model)
    samples = _samples(job, net)
    if options.replace_relu6:
        net = replace_relu6(net)
    if options.equalise:
        net = equalise(net)
    placement = _placed_on_cpu(job)
    made = quantise(net, samples, search=options.search, floats=placement)
    counted = _counted(made)
    write_network(job.out, made)
    write_signature(job.out, read_signature(model))
    (job.out / FLOAT).mkdir()
    write_network(job.out / FLOAT, net)
    write_signature(job.out / FLOAT, read_signature(model))
    _keep_placement(job)
    return counted


def _samples(job: Job, net: Network) -> dict[str, Array]:
    """The calibration set by input name, samples along axis 0."""
    from ..sampleset import read_set

    found = read_set(job.inputs["calibration"])
    for each in net.inputs:
        if each.name not in found.inputs:
            raise StepFailed(
                f"the calibration set lacks the input '{each.name}'",
                hint=f"it has: {', '.join(found.inputs)}",
            )
        shape = found.inputs[each.name].shape[1:]
        if shape != each.shape:
            raise StepFailed(
                f"a calibration sample of '{each.name}' has shape {shape}; the model's is "
                f"{each.shape}"
            )
    return {each.name: found.inputs[each.name] for each in net.inputs}


def _placed_on_cpu(job: Job) -> list[str]:
    """What the pre-check of a board, where there was one, leaves to the processor."""
    from .dpu_check import read_placement

    placed = read_placement(job.inputs["model"])
    return [row.layer for row in placed if row.place == "CPU"]


def _keep_placement(job: Job) -> None:
    from .dpu_check import copy_placement

    copy_placement(job.inputs["model"], job.out)


def _counted(net: Network) -> dict[str, Any]:
    """What was quantised, for the record; StepFailed where nothing was."""
    quantised = [layer for layer in net.layers if layer.weights_fix]
    if not quantised:
        raise StepFailed(
            "the model has no layer that can be quantised",
            hint="a DPU computes convolutions and dense layers; leave out this target",
        )
    return {
        "quantised": len(quantised),
        "integer": sum(not layer.floats for layer in net.layers),
        "floats": [layer.name for layer in net.layers if layer.floats],
        "inputs": {each.name: each.fix for each in net.inputs},
        "outputs": {
            each.name: next((a.fix for a in net.layers if a.name == each.tensor), None)
            for each in net.outputs
        },
    }
