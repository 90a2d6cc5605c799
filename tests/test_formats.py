"""One network in every format that Keras writes: the same weights give the same variants."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from project import UserProject

from tf2aif.workers import Workers

FORMATS = ("model.keras", "model.h5", "model")

# Written by a process of its own, as a user's training script does. MobileNet takes no smaller
# images than these; its weights are drawn, and batch normalisation gets statistics of its own.
WRITE = """
import sys, numpy as np, keras
folder = sys.argv[1]
keras.utils.set_random_seed(3)
model = keras.applications.MobileNet(
    input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=10, dropout=0.0
)
draw = np.random.default_rng(3)
for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        ranges = [(0.5, 1.5), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5)]
        layer.set_weights([draw.uniform(*ends, layer.gamma.shape) for ends in ranges])
model.save(folder + "/model.keras")
model.save(folder + "/model.h5")
model.export(folder + "/model", verbose=False)
np.save(folder + "/samples.npy", draw.random((16, 32, 32, 3), np.float32))
"""

# Keras 2 wrote `groups` for depthwise convolutions into the file, which Keras 3 refuses.
WRITE_KERAS_2 = """
import sys, tf_keras, numpy as np
tf_keras.utils.set_random_seed(3)
layers = tf_keras.layers
model = tf_keras.Sequential([
    layers.InputLayer((8, 8, 3), name="image"),
    layers.DepthwiseConv2D(3, activation="relu"), layers.Flatten(),
    layers.Dense(4, activation="softmax", name="scores"),
])
model.save(sys.argv[1] + "/model.h5")
x = np.random.default_rng(3).random((16, 8, 8, 3), np.float32)
np.save(sys.argv[1] + "/samples.npy", x)
np.save(sys.argv[1] + "/answers.npy", model(x).numpy())
"""


def write_models(script: str, folder: Path) -> None:
    """Run a training script; it may warn of what it does."""
    command = [sys.executable, "-c", script, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def recipe(path: str) -> dict[str, object]:
    """A float and an int8 variant, checked on the samples against the model's own answers."""
    return {
        "model": {"path": path},
        "calibration": {"data": "samples.npy"},
        "evaluation": {"data": "samples.npy", "metric": "cosine"},
        "gate": {"drop": 0.2},
        "targets": {"arm": {"precisions": ["fp32", "int8"]}},
    }


@pytest.fixture
def empty(tmp_path: Path, warm: Workers, monkeypatch: pytest.MonkeyPatch) -> UserProject:
    """A project without a recipe, and an empty store."""
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    return UserProject(tmp_path / "project", tmp_path, warm)


def test_one_network_in_three_formats_gives_the_same_bytes(empty: UserProject) -> None:
    write_models(WRITE, empty.root / "recipes")
    names = {"model.keras": "keras", "model.h5": "h5", "model": "saved-model"}
    for path, name in names.items():
        empty.write(recipe(path), name)
    empty.build()
    assert empty.last is not None
    assert not empty.last.failures
    ran = {name for name, result in empty.last.results.items() if result.done == "ran"}
    imports = {f"{name}/import" for name in names.values()}
    assert imports <= ran
    # What follows from the import is made once: the two others take it from the store.
    later = [name.partition("/")[2] for name in ran - imports]
    assert sorted(later) == sorted(set(later))
    for variant in ("arm-fp32", "arm-int8"):
        made = {
            files(empty.root / "build" / name / variant / "artifact") for name in names.values()
        }
        assert len(made) == 1
        (content,) = made
        assert [name for name, _ in content] == ["model.tflite", "signature.json"]
    records = empty.last.records()
    int8 = records["keras/arm-int8"]
    assert int8 is not None
    assert int8.accuracy is not None
    assert int8.accuracy.variant > 0.9


def files(folder: Path) -> tuple[tuple[str, bytes], ...]:
    """Names and bytes of an artifact."""
    return tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


def test_an_h5_file_of_keras_2_builds(empty: UserProject) -> None:
    pytest.importorskip("tf_keras", reason="needs tf-keras, which reads files of Keras 2")
    write_models(WRITE_KERAS_2, empty.root / "recipes")
    empty.write(recipe("model.h5"), "old")
    empty.build()
    assert empty.last is not None
    assert not empty.last.failures
    made = empty.last.workspace.made("old/import")
    assert made is not None
    assert made.result["loaded_with"] == "tf_keras"
    answers = np.load(empty.path("answers.npy"))
    reference = np.load(empty.root / "build" / "old" / ".steps" / "reference" / "y0.npy")
    np.testing.assert_allclose(reference, answers, atol=1e-5)
    signature = json.loads((empty.root / "build/old/arm-fp32/artifact/signature.json").read_bytes())
    assert [spec["name"] for spec in signature["inputs"]] == ["image"]
    assert [spec["name"] for spec in signature["outputs"]] == ["scores"]
