"""Running an engine over a sample set: cut into batches, quantised and dequantised at the door."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import Tf2aifError
from . import Array, Engine, Tensors, TensorSpec, dequantize, quantize

FREE_BATCH = 32  # samples a run, where the artifact leaves the batch axis open


def run_batches(
    engine: Engine, samples: Tensors, *, free_batch: int = FREE_BATCH
) -> dict[str, Array]:
    """What an engine makes of all samples, by output name, as real values along axis 0.

    `samples` are by input name, samples along axis 0, in real values: an input that is quantised
    at the door is quantised here, and an output dequantised to float32. With a fixed batch the
    last batch is filled up with its last sample, and what that gives is cut off. An artifact
    without a batch axis gets one sample at a time, and its outputs are stacked.

    Raises Tf2aifError where names, numbers of samples or shapes do not go together.
    """
    size = batch_size(engine, samples, free_batch=free_batch)
    parts: dict[str, list[Array]] = {spec.name: [] for spec in engine.outputs}
    for batch, count in _batches(samples, size):
        outputs = engine.run(encode(engine, batch, batched=size is not None))
        for spec in engine.outputs:
            value = decode(spec, outputs[spec.name])
            parts[spec.name].append(_cut(spec, value, size, count))
    return {name: np.concatenate(values) for name, values in parts.items()}


def batch_size(engine: Engine, samples: Tensors, *, free_batch: int = FREE_BATCH) -> int | None:
    """Samples a run; None where the artifact has no batch axis, and takes one sample as it is."""
    specs = {spec.name: spec for spec in engine.inputs}
    if set(specs) != set(samples):
        found, wanted = ", ".join(sorted(samples)), ", ".join(sorted(specs))
        raise Tf2aifError(f"samples are for inputs {found}; the artifact's are {wanted}")
    if len({len(values) for values in samples.values()}) != 1 or not len(
        next(iter(samples.values()))
    ):
        raise Tf2aifError("inputs need equal numbers of samples, and at least one")
    ranks = {len(specs[name].shape) - samples[name].ndim for name in specs}
    if ranks == {-1}:
        return None
    if ranks != {0}:
        shapes = ", ".join(f"{name} {samples[name].shape[1:]}" for name in sorted(specs))
        raise Tf2aifError(f"samples do not fit the artifact's inputs: one sample is {shapes}")
    fixed = {spec.shape[0] for spec in engine.inputs} - {None}
    if len(fixed) > 1:
        raise Tf2aifError(f"the artifact's inputs differ in their batch: {sorted(map(str, fixed))}")
    return fixed.pop() if fixed else free_batch


def _batches(samples: Tensors, size: int | None) -> Iterator[tuple[dict[str, Array], int]]:
    """Batches, and how many of the samples in each are not filling."""
    total = len(next(iter(samples.values())))
    if size is None:
        for index in range(total):
            yield {name: np.asarray(values[index]) for name, values in samples.items()}, 1
        return
    for start in range(0, total, size):
        yield (
            {name: np.asarray(values[start : start + size]) for name, values in samples.items()},
            min(size, total - start),
        )


def encode(engine: Engine, batch: Tensors, *, batched: bool = True) -> dict[str, Array]:
    """Real values as an engine takes them: quantised, and filled up to its fixed batch."""
    feeds = {}
    for spec in engine.inputs:
        values = batch[spec.name]
        if spec.quantization is not None:
            values = quantize(values, spec.dtype, spec.quantization)
        missing = (spec.shape[0] or 0) - len(values) if batched else 0
        if missing > 0:
            values = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
        feeds[spec.name] = np.asarray(values, order="C")
    return feeds


def decode(spec: TensorSpec, stored: Array) -> Array:
    """An output in real values."""
    return stored if spec.quantization is None else dequantize(stored, spec.quantization)


def _cut(spec: TensorSpec, value: Array, size: int | None, count: int) -> Array:
    if size is None:
        return value[np.newaxis]
    if not value.ndim or len(value) < count:
        raise Tf2aifError(
            f"output '{spec.name}' of shape {value.shape} has no batch axis for {count} samples",
            hint="a model that mixes samples needs `batch: none`",
        )
    return value[:count]
