"""reference: what the source model answers for every sample of the evaluation set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from . import Job

VERSION = 1
TOOLCHAIN = "tensorflow"
INPUTS = ("model", "evaluation")
COMPARE = "numbers"  # TensorFlow's sums differ in their last bits from process to process
TOLERANCE = 1e-5


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has none."""


def run(job: Job) -> Mapping[str, Any]:
    """Write `outputs.json` and `y0.npy`, `y1.npy`... (axis 0 counts the samples).

    The model runs through its signature, as the native baseline does.
    """
    import numpy as np

    from ..engines import tensorflow as tensorflow_engine
    from ..engines.batches import run_batches
    from ..sampleset import read_set

    msgspec.convert(job.options, Options)
    samples = read_set(job.inputs["evaluation"])
    engine = tensorflow_engine.load(job.inputs["model"])
    results = run_batches(engine, samples.inputs)
    engine.close()
    for i, result in enumerate(results.values()):
        np.save(job.out / f"y{i}.npy", np.asarray(result, order="C"), allow_pickle=False)
    (job.out / "outputs.json").write_bytes(msgspec.json.encode({"outputs": list(results)}) + b"\n")
    return {"samples": samples.samples}
