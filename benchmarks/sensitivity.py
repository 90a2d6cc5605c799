"""What the sensitivity search of step `onnx-mixed` finds: accuracy and share of int8 layers.

    python benchmarks/sensitivity.py [--kws FOLDER] [--drop 0.002 ...] [--calibration entropy]

Two networks, with real data: MobileNetV2, trained for a moment on scikit-learn's digits, and the
keyword-spotting network of MLPerf Tiny where FOLDER has it (`model/` and `samples.npz`). For each
gate it prints what int8 of all layers loses, what the search leaves in fp16, and what that loses;
then the costliest layers. Scores are those of step `check`, on samples that nothing was trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tf2aif.errors import StepFailed
from tf2aif.steps import Job, dataset, import_model, onnx_export, onnx_mixed, reference

SIDE = 32  # pixels: digits of 8 x 8, four times as large


def main() -> None:
    """Build each network once, search for each gate, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kws", type=Path, help="folder with `model/` and `samples.npz`")
    parser.add_argument("--drop", type=float, nargs="+", default=[0.01, 0.002])
    parser.add_argument("--calibration", default="minmax")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    figures = []
    with TemporaryDirectory() as folder:
        os.environ["TF2AIF_TRIALS"] = str(Path(folder) / "trials")
        home = Path(folder)
        makers = {"MobileNetV2": lambda: mobilenet(home / "mobilenet")}
        if arguments.kws:
            makers = {"KWS": lambda: keywords(home / "kws", arguments.kws), **makers}
        for name, make in makers.items():
            given = make()
            for drop in arguments.drop:
                out = Path(folder) / f"{name}-{drop}"
                figures.append(search(name, out, given, drop, arguments.calibration))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def search(
    name: str, out: Path, given: dict[str, Path], drop: float, calibration: str
) -> dict[str, Any]:
    """One search: its table on stdout, its figures."""
    started = time.perf_counter()
    asked = {"calibration": calibration, "allowed_drop": drop, "metric": "top-1"}
    try:
        result = run(onnx_mixed, out, given, **asked, samples=600, trials=200)
    except StepFailed as error:  # a gate that no choice holds
        print(f"{name}, {calibration}, gate {drop}: {error.faults[0].message}", flush=True)
        return {"model": name, "drop": drop, "failed": error.faults[0].message}
    taken = time.perf_counter() - started
    told = f"{result['int8_layers']} of {result['layers']} layers in int8"
    print(
        f"{name}, {calibration}, gate {drop}: source {result['source']:.4f}, "
        f"all int8 {result['all_int8']['score']:.4f}, mixed {result['mixed']['score']:.4f} "
        f"with {told}; {result['trials']} trials, {taken:.0f} s"
    )
    for cost in result["costs"][:8]:
        kept = "fp16" if cost["kept"] else "int8"
        layers = ", ".join(cost["layers"])
        print(f"  {layers:24} drop {cost['drop']:+.4f}  {cost['sqnr_db']} dB  {kept}")
    sys.stdout.flush()
    return {"model": name, "drop": drop, "seconds": round(taken, 1), **result}


def mobilenet(folder: Path) -> dict[str, Path]:
    """MobileNetV2 of width 0.35 for digits, trained on 1200 of them."""
    import keras
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron(digits.images / 8 - 1, np.ones((1, SIDE // 8, SIDE // 8)))
    images = np.repeat(images[..., None], 3, axis=3).astype(np.float32)
    labels = digits.target.astype(np.int64)
    keras.utils.set_random_seed(1)
    model = keras.applications.MobileNetV2((SIDE, SIDE, 3), 0.35, weights=None, classes=10)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # 0.999 is for trainings a thousand times as long
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(images[:1200], labels[:1200], batch_size=32, epochs=15, verbose=0)
    folder.mkdir()
    model.save(folder / "source.keras")
    return prepared(folder, folder / "source.keras", images, labels, 1200)


def keywords(folder: Path, source: Path) -> dict[str, Path]:
    """The keyword-spotting network: 200 samples to calibrate, all 1000 to evaluate."""
    samples = np.load(source / "samples.npz")
    folder.mkdir()
    return prepared(folder, source / "model", samples["x"], samples["y"], 0)


def prepared(folder: Path, source: Path, x: Any, y: Any, first: int) -> dict[str, Path]:
    """Import, export and sets; calibration is on the first 200 samples, evaluation from `first`."""
    np.savez(folder / "calibration.npz", x=x[:200])
    np.savez(folder / "evaluation.npz", x=x[first:], y=y[first:])
    run(import_model, folder / "import", {"source": source}, batch="free")
    model = {"model": folder / "import"}
    run(onnx_export, folder / "onnx", model)
    for kind in ("calibration", "evaluation"):
        file = {"data": folder / f"{kind}.npz"}
        options: dict[str, Any] = {"inputs": {"": {"format": "npz", "input": "data", "array": "x"}}}
        if kind == "evaluation":
            options["labels"] = {"format": "npz", "input": "data", "array": "y"}
        run(dataset, folder / kind, {**model, **file}, **options)
    run(reference, folder / "reference", {**model, "evaluation": folder / "evaluation"})
    names = ("calibration", "evaluation", "reference")
    return {"model": folder / "onnx"} | {name: folder / name for name in names}


def run(module: Any, out: Path, given: dict[str, Path], **options: Any) -> dict[str, Any]:
    """A step, as a worker runs it."""
    out.mkdir(parents=True)
    job = Job(step=out.name, kind=out.name, options=options, inputs=given, out=out)
    return dict(module.run(job))


if __name__ == "__main__":
    main()
