"""The emulation of a DPU: runs a power-of-two int8 network integer by integer, in numpy.

Inputs and outputs are real numbers as in the source model: they are quantised and dequantised at
the door, at the positions of the network. What runs here is the arithmetic of the accelerator on
another machine: it is `emulated`, and its times say nothing about the device.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .network import LAYERS, Network, read_network
from .signature import Signature, check_feeds, read_signature

REQUIREMENTS = ("numpy>=1.26,<3",)

EMULATED = True
"""No device runs it: metadata and metrics say so."""


def load(artifact: Path, *, threads: int | None = None) -> Pof2:
    """Load the artifact in that folder.

    numpy's matrix products take their number of threads from the process, so `threads` is only
    checked. Raises Tf2aifError where a file is missing or broken, or nothing in it is quantised.
    """
    if threads is not None and threads < 1:
        raise Tf2aifError(f"threads is {threads}; it is at least 1")
    from .integer import Integers

    signature = read_signature(artifact)
    net = read_network(artifact)
    path = str(artifact / LAYERS)
    if not any(layer.weights_fix for layer in net.layers):
        raise Tf2aifError(
            "no layer in it is quantised",
            at=path,
            hint="this engine runs what the step 'pof2' makes",
        )
    told = {spec.name for spec in signature.inputs}, {spec.name for spec in signature.outputs}
    if told != ({each.name for each in net.inputs}, {each.name for each in net.outputs}):
        raise Tf2aifError("its inputs and outputs are not those of signature.json", at=path)
    try:
        return Pof2(signature, net, Integers(net))
    except KeyError as error:
        raise Tf2aifError(f"it lacks the weight or position {error}", at=path) from error


class Pof2:
    """A loaded power-of-two int8 network."""

    emulated = EMULATED

    def __init__(self, signature: Signature, net: Network, integers: object) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._shapes = {each.name: each.shape for each in net.inputs}
        self._integers = integers

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch of real numbers; float outputs have the dtypes of the source."""
        from .integer import Integers

        if not isinstance(self._integers, Integers):
            raise Tf2aifError("the engine is closed")
        arrays = check_feeds(feeds, self.inputs)
        if len({len(array) for array in arrays.values()}) > 1:
            raise Tf2aifError("the emulation cannot run it: the inputs differ in their batch")
        made = self._integers.run(arrays)
        return {
            spec.name: np.ascontiguousarray(made[spec.name].astype(spec.dtype, copy=False))
            for spec in self.outputs
        }

    def close(self) -> None:
        """Give the memory back."""
        self._integers = None
