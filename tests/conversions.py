"""A step for the tests of toolchains: small real conversions, one after another in one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tf2aif.steps import Job


def run(job: Job) -> Mapping[str, Any]:
    """Do one conversion in `out`, on what the ones before left there."""
    DEEDS[job.options["do"]](job.out)
    return {"pid": os.getpid()}


def save_keras(out: Path) -> None:
    """A small convolutional network, untrained, as a SavedModel."""
    import keras

    layers = [
        keras.Input((8, 8, 1), batch_size=1),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
    keras.Sequential(layers).export(str(out / "saved_model"), verbose=False)


def tflite_int8(out: Path) -> None:
    """The SavedModel as a fully quantised TFLite file."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(out / "saved_model"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample] for sample in _samples())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    (out / "model.tflite").write_bytes(converter.convert())


def saved_model_runs(out: Path) -> None:
    """The SavedModel through its signature."""
    import tensorflow as tf

    signature = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
    name = next(iter(signature.structured_input_signature[1]))
    signature(**{name: tf.constant(_samples()[0])})


def openvino_int8(out: Path) -> None:
    """The SavedModel as OpenVINO files, quantised with NNCF."""
    import nncf
    import openvino as ov

    model = ov.convert_model(str(out / "saved_model"))
    ov.save_model(nncf.quantize(model, nncf.Dataset(_samples())), str(out / "model.xml"))


def openvino_runs(out: Path) -> None:
    """The OpenVINO files on the processor."""
    import openvino as ov

    ov.Core().compile_model(str(out / "model.xml"), "CPU")([_samples()[0]])


def litert_runs(out: Path) -> None:
    """The TFLite file in its interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(out / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], _samples()[0])
    interpreter.invoke()


def _samples() -> list[Any]:
    import numpy as np

    return list(np.random.default_rng(0).random((8, 1, 8, 8, 1), dtype=np.float32))


DEEDS: dict[str, Callable[[Path], None]] = {
    deed.__name__: deed
    for deed in (
        litert_runs, openvino_int8, openvino_runs, save_keras, saved_model_runs, tflite_int8,
    )
}  # fmt: skip
