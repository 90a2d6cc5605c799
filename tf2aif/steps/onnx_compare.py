"""Whether an ONNX model computes what its source model computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..engines import Array, Tensors, TensorSpec
from ..engines.signature import Signature
from ..errors import StepFailed

ABSOLUTE_TOLERANCE = 1e-5
# Of an output of whole numbers (the classes of an argmax) so many may differ: ties break anywhere.
DIFFERENT_SHARE = 1e-3


class Source(NamedTuple):
    """A frozen graph, and its tensors (`x:0`) by signature name."""

    graph: Any  # tensorflow.GraphDef
    inputs: dict[str, str]
    outputs: dict[str, str]


def compare_models(
    source: Source, artifact: Path, signature: Signature, tolerance: float
) -> dict[str, Any]:
    """Both models on seeded random batches, of several sizes where the batch is free.

    Gives the largest difference of any output over that output's largest value. Some models refuse
    random numbers (an index out of range, say): the difference is None then, and the reason told.
    Raises StepFailed over the tolerance, and where shapes or dtypes differ.
    """
    from ..engines import onnxruntime as engine_module

    batches = random_batches(signature)
    truths, refused = _run_source(source, batches)
    if not truths:
        return {"difference": None, "unchecked": refused}
    engine = engine_module.load(artifact)
    try:
        worst = 0.0
        for batch, truth in zip(batches, truths, strict=False):
            found = engine.run(batch)
            for name, values in truth.items():
                worst = max(worst, difference(name, values, found[name], tolerance))
    finally:
        engine.close()
    return {"difference": worst}


def random_batches(signature: Signature) -> list[dict[str, Array]]:
    """Batches that most models accept: floats from 0 to 1, then from -1 to 1; integers 0 and 1."""
    free = any(spec.shape and spec.shape[0] is None for spec in signature.inputs)
    return [
        {spec.name: _random(spec, size, low, 10 * i + j) for j, spec in enumerate(signature.inputs)}
        for i, (size, low) in enumerate([(2, 0.0), (5, -1.0)] if free else [(1, 0.0), (1, -1.0)])
    ]


def _random(spec: TensorSpec, batch: int, low: float, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    shape = [batch if length is None else length for length in spec.shape]
    if np.dtype(spec.dtype).kind in "iub":
        return generator.integers(0, 2, shape).astype(spec.dtype)
    return generator.uniform(low, 1.0, shape).astype(spec.dtype)


def _run_source(source: Source, batches: list[dict[str, Array]]) -> tuple[list[Tensors], str]:
    """What the source gives for the batches up to the first that it refuses, and why it does."""
    import tensorflow as tf
    from tensorflow.errors import InvalidArgumentError

    found: list[Tensors] = []
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(source.graph, name="")
    with tf.compat.v1.Session(graph=graph) as session:
        for batch in batches:
            feeds = {source.inputs[name]: array for name, array in batch.items()}
            try:
                outputs: Mapping[str, Any] = session.run(source.outputs, feeds)
            except InvalidArgumentError as error:
                return found, _reason(str(error.message))
            found.append({name: np.asarray(value) for name, value in outputs.items()})
    return found, ""


def _reason(message: str) -> str:
    """What an operator complained of, without where TensorFlow was then."""
    lines = [line.strip() for line in message.splitlines()]
    told = [n for n in lines if n and not n.startswith(("Graph execution", "Detected at", "[["))]
    return " ".join(told)[:300]


def difference(name: str, truth: Array, found: Array, tolerance: float) -> float:
    """The largest difference over the largest value. Raises StepFailed over the tolerance."""
    if truth.shape != found.shape or truth.dtype != found.dtype:
        raise StepFailed(
            f"output '{name}' is {found.dtype} {found.shape} in the ONNX model, "
            f"and {truth.dtype} {truth.shape} in the source"
        )
    if truth.dtype.kind != "f":
        share = float(np.mean(truth != found)) if truth.size else 0.0
        if share > DIFFERENT_SHARE:
            raise StepFailed(f"{share:.1%} of output '{name}' differ from the source")
        return 0.0
    wide = truth.astype(np.float64), found.astype(np.float64)
    same = (wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1]))
    with np.errstate(invalid="ignore"):
        worst = float(np.max(np.where(same, 0.0, np.abs(wide[0] - wide[1])), initial=0.0))
    largest = float(np.max(np.abs(wide[0]), where=np.isfinite(wide[0]), initial=0.0))
    if not worst <= ABSOLUTE_TOLERANCE + tolerance * largest:  # NaN fails too
        raise StepFailed(
            f"output '{name}' of the ONNX model differs by {worst:.3g} from the source, which "
            f"reaches {largest:.3g}",
            hint="where this is rounding in a very deep model, raise the step's 'tolerance'",
        )
    return worst / largest if largest else worst
