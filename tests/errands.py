"""A step for the tests of toolchains: it does what its option `do` says, here or elsewhere."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from tf2aif.steps import Job


def run(job: Job) -> Mapping[str, Any] | None:
    """Do one errand; its other options are arguments."""
    arguments = {name: value for name, value in job.options.items() if name != "do"}
    return ERRANDS[job.options["do"]](job, **arguments)


def where(job: Job, name: str) -> dict[str, Any]:
    """Import a module; where it is from, and who we are."""
    module = importlib.import_module(name)
    return {
        "file": getattr(module, "__file__", None),
        "prefix": sys.prefix,
        "pid": os.getpid(),
        "node": platform.node(),
    }


def emulate(job: Job) -> dict[str, Any]:
    """Convert a small network with hls4ml, compile it, and ask both."""
    import hls4ml
    import keras
    import numpy as np

    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    config = hls4ml.utils.config_from_keras_model(model, granularity="name", backend="Vitis")
    project = hls4ml.converters.convert_from_keras_model(
        model, hls_config=config, output_dir=str(job.out / "hls"), backend="Vitis"
    )
    project.compile()
    samples = np.random.default_rng(1).random((16, 4), np.float32)
    error = np.abs(project.predict(samples) - model.predict(samples, verbose=0)).max()
    return {"version": hls4ml.__version__, "error": float(error)}


ERRANDS = {errand.__name__: errand for errand in (emulate, where)}
