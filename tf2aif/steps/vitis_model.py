"""vitis-model: beside the quantised network, the file that AMD's own quantiser starts from.

Vitis AI reads Keras 2.12's `.h5`. It is rewritten from the network of layers, so it has only layers
and fields that 2.12 knows, whatever the model was exported with.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import msgspec

from . import Job
from .dpu_check import JSON, TEXT
from .pof2 import FLOAT

VERSION = 1
TOOLCHAIN = "tensorflow"  # for h5py, which comes with it
INPUTS = ("model",)

FILE = "model.h5"
KEPT = ("layers.json", "weights.npz", "signature.json", JSON, TEXT)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has none."""


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.h5`, and the quantised network as it came.

    Raises StepFailed for layers that Keras does not have, which it names.
    """
    from ..engines.network import read_network
    from ..network.h5 import write_h5
    from ..network.keras_layers import keras_layers

    msgspec.convert(job.options, Options)
    model = job.inputs["model"]
    net = read_network(model / FLOAT)
    write_h5(job.out / FILE, net)
    for name in KEPT:
        if (model / name).exists():
            shutil.copyfile(model / name, job.out / name)
    return {
        "size_bytes": (job.out / FILE).stat().st_size,
        "keras_layers": sorted({layer.class_name for layer in keras_layers(net)}),
    }
