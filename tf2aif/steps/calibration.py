"""The calibration set as a converter takes it: one feed of the source model after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..engines import Array
from ..engines.signature import Signature
from ..errors import StepFailed
from ..sampleset import read_set


def calibration_feeds(folder: Path, signature: Signature) -> Iterator[dict[str, Array]]:
    """All samples in their order, in batches that the model takes.

    A free batch is one sample, a fixed one is filled up with its last sample, and a model without
    a batch axis gets a sample as it is. Raises StepFailed where the set is not for this model.
    """
    found = read_set(folder)
    missing = [spec.name for spec in signature.inputs if spec.name not in found.inputs]
    if missing:
        raise StepFailed(
            f"the calibration set lacks the input '{missing[0]}'",
            hint=f"it has: {', '.join(found.inputs)}",
        )
    samples = {spec.name: found.inputs[spec.name] for spec in signature.inputs}
    if any(samples[spec.name].ndim == len(spec.shape) + 1 for spec in signature.inputs):
        yield from ({n: np.array(a[i]) for n, a in samples.items()} for i in range(found.samples))
        return
    size = max((spec.shape[0] or 1 for spec in signature.inputs), default=1)
    for start in range(0, found.samples, size):
        yield {name: _filled(a[start : start + size], size) for name, a in samples.items()}


def _filled(batch: Array, size: int) -> Array:
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
