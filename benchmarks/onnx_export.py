"""Our step `onnx` beside the export of Keras 3 itself: what converts, memory, time, the same bytes.

    python benchmarks/onnx_export.py [MODEL ...]

Each export has a process of its own, and Keras' twice. Keras takes a Keras model, the step what
`import` made of the same model's SavedModel; both write opset 17 with a free batch. The difference
is that of ONNX Runtime's outputs from Keras' own, over the largest output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np


def dense_net() -> Any:
    """A dense block: concatenations, pooling."""
    import keras

    return keras.applications.DenseNet121(weights=None, input_shape=(64, 64, 3))


def efficient_net() -> Any:
    """Squeeze and excitation, swish."""
    import keras

    return keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3))


def mobilenet_v2() -> Any:
    """Depthwise convolutions, residual sums."""
    import keras

    return keras.applications.MobileNetV2(weights=None)


def resnet50() -> Any:
    """25.6 million weights."""
    import keras

    return keras.applications.ResNet50(weights=None)


def segmentation() -> Any:
    """Transposed convolutions, bilinear resizing."""
    import keras

    layers = keras.layers
    image = keras.Input((64, 64, 3))
    small = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(image)
    large = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(small)
    wide = layers.UpSampling2D(2, interpolation="bilinear")(small)
    return keras.Model(image, layers.Conv2D(4, 1)(layers.Concatenate()([large, wide])))


def attention() -> Any:
    """A block of a transformer."""
    import keras

    layers = keras.layers
    words = keras.Input((16, 32))
    mixed = layers.MultiHeadAttention(4, 8)(words, words)
    value = layers.LayerNormalization()(layers.Add()([words, mixed]))
    return keras.Model(words, layers.Dense(5, activation="softmax")(value))


def recurrent() -> Any:
    """LSTM both ways over a GRU."""
    import keras

    layers = keras.layers
    both = layers.Bidirectional(layers.LSTM(8, return_sequences=True))
    return keras.Sequential([keras.Input((10, 4)), both, layers.GRU(6)])


MODELS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (
        mobilenet_v2,
        resnet50,
        efficient_net,
        dense_net,
        segmentation,
        attention,
        recurrent,
    )
}


def main() -> None:
    """Export each model in every way, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of: {', '.join(MODELS)}")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(export(arguments.models[0], arguments.way)))
        return
    print("| model | way | nodes | difference | s | peak GB | same bytes again |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models or MODELS:
        for way in ("keras", "step"):
            first, second = (run(name, way) for _ in range(2))
            if "error" in first:
                print(f"| {name} | {way} | {first['error']} |")
                continue
            same = "yes" if first["digest"] == second["digest"] else "no"
            print(
                f"| {name} | {way} | {first['nodes']} | {first['difference']:.1e} "
                f"| {first['seconds']:.1f} | {first['peak_gb']:.1f} | {same} |",
                flush=True,
            )


def run(name: str, way: str) -> dict[str, Any]:
    """One export in a process of its own."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, __file__, name, "--way", way]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def export(name: str, way: str) -> dict[str, Any]:
    """Export with one way; the peak of memory is that of the export, after making the model."""
    import keras
    import onnx
    import onnxruntime

    keras.utils.set_random_seed(3)
    model = MODELS[name]()
    batch = np.random.default_rng(0).random((2, *model.inputs[0].shape[1:]), np.float32)
    truth = np.asarray(model(batch))
    with TemporaryDirectory() as folder:
        path = Path(folder)
        file = path / "keras.onnx"
        if way == "step":
            imported(model, path)
        started = time.perf_counter()
        if way == "keras":
            model.export(str(file), format="onnx", verbose=False, opset_version=17)
        else:
            file = stepped(path)
        taken = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        session = onnxruntime.InferenceSession(str(file))
        found = session.run(None, {session.get_inputs()[0].name: batch})[0]
        return {
            "nodes": len(onnx.load(str(file)).graph.node),
            "difference": float(np.abs(found - truth).max() / np.abs(truth).max()),
            "seconds": taken,
            "peak_gb": peak,
            "digest": hashlib.sha256(file.read_bytes()).hexdigest(),
        }


def imported(model: Any, folder: Path) -> None:
    """The model's SavedModel, imported by a process of its own."""
    model.export(str(folder / "saved"), verbose=False)
    script = (
        "import sys; from pathlib import Path; from tf2aif.steps import Job, import_model\n"
        "path = Path(sys.argv[1]); out = path / 'import'; out.mkdir()\n"
        "import_model.run(Job(step='i', kind='import', options={'batch': 'free'},"
        " inputs={'source': path / 'saved'}, out=out))"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True)


def stepped(folder: Path) -> Path:
    """The step, with all that it checks."""
    from tf2aif.steps import Job, onnx_export

    out = folder / "onnx"
    out.mkdir()
    inputs = {"model": folder / "import"}
    onnx_export.run(Job(step="onnx", kind="onnx", options={}, inputs=inputs, out=out))
    return out / "model.onnx"


if __name__ == "__main__":
    main()
