"""A step for the tests of toolchains: it leaves a small untrained network as a SavedModel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tf2aif.steps import Job


def run(job: Job) -> Mapping[str, Any]:
    """A convolutional network, written to `out` as Keras exports it."""
    import keras

    layers = [
        keras.Input((8, 8, 1), batch_size=1),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
    keras.Sequential(layers).export(str(job.out / "saved_model"), verbose=False)
    return {"pid": os.getpid()}
