"""Small seeded models in all formats, and steps run on them as a worker would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tf2aif.steps import Job, step_module

SEED = 7


def run_step(kind: str, out: Path, given: dict[str, Path], /, **options: Any) -> dict[str, Any]:
    """Run one step into a fresh folder; its result."""
    out.mkdir(parents=True)
    job = Job(step=f"test/{out.name}", kind=kind, options=options, inputs=given, out=out)
    return dict(step_module(kind).run(job))


def random_set(model: Path, out: Path, samples: int = 24, *, batched: bool = True) -> Path:
    """A sample set drawn for the signature of an imported model."""
    random = {"": {"format": "random"}}
    run_step("calibration", out, {"model": model}, inputs=random, samples=samples, batched=batched)
    return out


def array_set(out: Path, **arrays: np.ndarray[Any, Any]) -> Path:
    """A sample set of these arrays."""
    out.mkdir(parents=True)
    count = len(next(iter(arrays.values())))
    contents = {"inputs": list(arrays), "samples": count, "random": False, "labels": False}
    (out / "set.json").write_bytes(msgspec.json.encode(contents))
    for i, array in enumerate(arrays.values()):
        np.save(out / f"x{i}.npy", array)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def conv() -> Any:
    """Convolution, batch normalisation, pooling: one unnamed input, one output."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ]
    )


def pair() -> Any:
    """Two inputs, one of them int32, and two outputs, one of them used twice."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    token = keras.Input((3,), dtype="int32", name="token")
    image = keras.Input((6, 6, 1), name="image")
    words = layers.Flatten()(layers.Embedding(5, 4)(token))
    joined = layers.Concatenate()([layers.Flatten()(layers.Conv2D(3, 3)(image)), words])
    value = layers.Dense(2)(joined)
    return keras.Model([token, image], [layers.Dense(3, activation="softmax")(value), value])


def recurrent() -> Any:
    """An LSTM over a GRU: loops, and tensor lists with an open batch."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((5, 3)), layers.LSTM(4, return_sequences=True), layers.GRU(3)]
    )


MODELS = {"conv": conv, "pair": pair, "recurrent": recurrent}


def legacy() -> Any:
    """A model of Keras 2, with a layer whose saved arguments Keras 3 refuses."""
    import tf_keras

    tf_keras.utils.set_random_seed(SEED)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((8, 8, 2)),
            layers.DepthwiseConv2D(3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, name="scores"),
        ]
    )


def write_signatures(folder: Path) -> None:
    """A tf.Module with two signatures: `double` of floats, and `count` of int32 and bool."""
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable(2.0)
    floats = tf.TensorSpec([None, 3], tf.float32, name="x")
    integers = tf.TensorSpec([4], tf.int32, name="numbers")
    flags = tf.TensorSpec([4], tf.bool, name="flags")
    double = tf.function(lambda x: {"y": x * module.weight}, input_signature=[floats])
    count = tf.function(
        lambda numbers, flags: {"sum": tf.reduce_sum(tf.where(flags, numbers, 0)), "not": ~flags},
        input_signature=[integers, flags],
    )
    tf.saved_model.save(module, str(folder), signatures={"double": double, "count": count})
