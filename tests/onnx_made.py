"""What tests of ONNX steps share: imports and exports of `models`, made once in a test run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
from models import array_set, run_step

from tf2aif.steps import Job, onnx_export

HOME = Path(tempfile.mkdtemp(prefix="tf2aif-onnx-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)


def run_module(module: Any, out: Path, given: dict[str, Path], /, **options: Any) -> dict[str, Any]:
    """Run a step's module into a fresh folder, as a worker does; its result."""
    out.mkdir(parents=True)
    job = Job(step=f"test/{out.name}", kind=out.name, options=options, inputs=given, out=out)
    return dict(module.run(job))


def import_of(name: str, batch: int | str = 1) -> Path:
    """The import of a model of `models.MODELS`."""
    source, out = HOME / f"{name}.keras", HOME / f"import-{name}-{batch}"
    if not source.exists():
        models.MODELS[name]().save(source)
    if not out.exists():
        run_step("import", out, {"source": source}, batch=batch)
    return out


def onnx_of(name: str, batch: int | str = 1) -> Path:
    """The ONNX artifact of a model of `models.MODELS`."""
    out = HOME / f"onnx-{name}-{batch}"
    if not out.exists():
        run_module(onnx_export, out, {"model": import_of(name, batch)})
    return out


@cache
def digits(trained: Path) -> Path:
    """The classifier of fixture `exported`, in folders: its import, its ONNX, its data.

    `import`, `onnx`, `calibration` (64 samples), `evaluation` (200, with labels), `reference`.
    """
    home = HOME / "digits"
    run_step("import", home / "import", {"source": trained / "model"}, batch="free")
    run_module(onnx_export, home / "onnx", {"model": home / "import"})
    array_set(home / "calibration", image=np.load(trained / "calibration.npy"))
    samples = np.load(trained / "evaluation.npz")
    labelled_set(home / "evaluation", samples["x"], samples["y"], "image")
    given = {"model": home / "import", "evaluation": home / "evaluation"}
    run_step("reference", home / "reference", given)
    return home


def labelled_set(out: Path, samples: Any, labels: Any, name: str) -> Path:
    """A sample set of one input, with labels."""
    array_set(out, **{name: samples})
    contents = out / "set.json"
    contents.write_bytes(contents.read_bytes().replace(b'"labels":false', b'"labels":true'))
    np.save(out / "labels.npy", labels)
    return out
