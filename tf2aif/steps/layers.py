"""layers: the imported model as a network of layers, which accelerators' tools are built for.

Batch normalisation is folded, and what exporters spell out in several operators (a hard swish, an
enlargement, PReLU) is one layer again. The network is run beside the model before it is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..engines.signature import Signature, read_signature, write_signature
from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:
    from ..engines.network import Network

VERSION = 1
TOOLCHAIN = "tensorflow"
INPUTS = ("model",)

TOLERANCE = 1e-4  # of the largest output: sums are in another order, and normalisation is folded


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has none."""


def run(job: Job) -> Mapping[str, Any]:
    """Write `layers.json`, `weights.npz` and `signature.json`.

    Raises StepFailed for operators that have no layer, which it names, and where the network does
    not compute what the model computes.
    """
    from ..engines.network import write_network
    from ..network.build import build_network

    msgspec.convert(job.options, Options)
    model = job.inputs["model"]
    signature = read_signature(model)
    network = build_network(model)
    difference = _compare(network, model, signature)
    write_network(job.out, network)
    write_signature(job.out, signature)
    kinds = Counter(str(type(layer).__struct_config__.tag) for layer in network.layers)
    return {
        "layers": dict(sorted(kinds.items())),
        "parameters": sum(array.size for array in network.weights.values()),
        "difference": difference,
    }


def _compare(network: Network, model: Path, signature: Signature) -> float:
    """The largest difference of any output on one random batch, relative to the largest value."""
    import numpy as np

    from ..engines import tensorflow
    from ..engines.operators import run_float

    generator = np.random.default_rng(0)
    feeds = {}
    for spec in signature.inputs:
        shape = [2 if length is None else length for length in spec.shape]
        drawn = generator.random(shape, np.float32)
        feeds[spec.name] = drawn.astype(spec.dtype) if "float" in spec.dtype else (drawn > 0.5)
        feeds[spec.name] = feeds[spec.name].astype(spec.dtype)
    engine = tensorflow.load(model)
    truth = engine.run(feeds)
    engine.close()
    found = run_float(network, feeds)
    worst = 0.0
    for name, values in truth.items():
        if found[name].shape != values.shape:
            shapes = f"{found[name].shape}, the model's {values.shape}"
            raise StepFailed(f"output '{name}' of the layers has shape {shapes}")
        largest = float(np.abs(values).max(initial=1e-6))
        difference = float(np.abs(found[name] - values.astype(np.float64)).max(initial=0)) / largest
        if not difference <= TOLERANCE:  # NaN fails too
            raise StepFailed(
                f"output '{name}' of the layers differs by {difference:.3g} of its largest value",
                hint="this is a fault of tf2aif: please report it with the model",
            )
        worst = max(worst, difference)
    return float(f"{worst:.3g}")
