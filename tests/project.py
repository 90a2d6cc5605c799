"""A user's project in a temporary folder, and builds of it that tell which steps ran."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tf2aif import tasks
from tf2aif.build import Build
from tf2aif.workers import Workers

# Writes a small classifier of digits, trained for a moment; run in a process of its own, as a
# user's training script is. `--nudge` changes one weight.
TRAIN = """
import sys, numpy as np, keras
from keras import layers
out, data, nudge = sys.argv[1], sys.argv[2], float(sys.argv[3])
keras.utils.set_random_seed(1)
x = np.load(data + "/train_x.npy"); y = np.load(data + "/train_y.npy")
weights = data + "/weights.npz"
model = keras.Sequential([
    keras.Input((8, 8, 1), name="image"),
    layers.Conv2D(4, 3, activation="relu"), layers.Flatten(),
    layers.Dense(10, activation="softmax", name="digit"),
])
import os
if os.path.exists(weights):
    stored = np.load(weights)
    model.set_weights([stored[k] for k in sorted(stored.files)])
else:
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=15, verbose=0)
    np.savez(weights, **{f"w{i}": w for i, w in enumerate(model.get_weights())})
values = model.get_weights()
values[0][0, 0, 0, 0] += nudge
model.set_weights(values)
model.export(out, verbose=False)
"""

LOADER = """import numpy as np
from scaling import factor
def samples():
    return np.load(__file__.replace("loader.py", "calibration.npy")) * factor()
"""


def write_digits_data(folder: Path) -> None:
    """Training, calibration and evaluation samples from scikit-learn's digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    labels = digits.target.astype(np.int32)
    np.save(folder / "train_x.npy", images[:1000])
    np.save(folder / "train_y.npy", labels[:1000])
    np.save(folder / "calibration.npy", images[:64])
    np.savez(folder / "evaluation.npz", x=images[1000:1200], y=labels[1000:1200])


def write_model(out: Path, data: Path, nudge: float = 0.0) -> None:
    """Export the classifier; its weights are trained once and kept beside the data."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", TRAIN, str(out), str(data), str(nudge)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)


class UserProject:
    """A folder as a user has it: recipes, models and data; and what a build of it did."""

    def __init__(self, root: Path, exported: Path, workers: Workers) -> None:
        self.root = root
        self.exported = exported
        self.workers = workers
        self.last: Build | None = None

    @classmethod
    def create(cls, root: Path, exported: Path, workers: Workers) -> UserProject:
        """A project whose one recipe builds three variants of the classifier."""
        recipes = root / "recipes"
        recipes.mkdir(parents=True)
        shutil.copytree(exported / "model", recipes / "model")
        for name in ("calibration.npy", "evaluation.npz"):
            shutil.copyfile(exported / name, recipes / name)
        (recipes / "loader.py").write_text(LOADER)
        (recipes / "scaling.py").write_text("def factor():\n    return 1\n")
        project = cls(root, exported, workers)
        project.write(project.recipe())
        return project

    @staticmethod
    def recipe(**changes: Any) -> dict[str, Any]:
        """The recipe as data, with some keys changed."""
        return {
            "model": {"path": "model"},
            "calibration": {"data": "calibration.npy", "samples": 32},
            "evaluation": {
                "data": "evaluation.npz#x",
                "labels": "evaluation.npz#y",
                "metric": "top-1",
            },
            "gate": {"drop": 0.05},
            "targets": {"arm": {"precisions": ["fp32", "int8"]}, "arm-tf": None},
            **changes,
        }

    def write(self, recipe: dict[str, Any], name: str = "digits") -> Path:
        """Write a recipe file."""
        path = self.root / "recipes" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    def path(self, name: str) -> Path:
        """A file beside the recipes."""
        return self.root / "recipes" / name

    def build(self, jobs: int = 1, **options: Any) -> set[str]:
        """Build everything; the names of the steps that a worker ran, without their recipe's."""
        build = Build.load([self.root / "recipes"], self.root, workers=self.workers, **options)
        self.last = build
        tasks.run(build, jobs=jobs)
        build.workspace.stats.save()
        return self.did("ran")

    def did(self, done: str) -> set[str]:
        """The steps of the last build that were `fresh`, `restored` or that `ran`."""
        assert self.last is not None
        return {name.partition("/")[2] for name, r in self.last.results.items() if r.done == done}

    def artifact(self, variant: str) -> Path:
        """The folder that a variant ships."""
        return self.root / "build" / "digits" / variant / "artifact"

    def cli(
        self, *words: str, within_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line in this project, as a user does."""
        return subprocess.run(
            [sys.executable, "-m", "tf2aif", *words],
            cwd=self.root,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=within_s,
        )
