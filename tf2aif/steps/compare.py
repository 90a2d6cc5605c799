"""Whether an imported model computes what its source computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engines import Array, Tensors, TensorSpec
from ..engines.signature import Signature
from ..errors import StepFailed
from .canonical import Frozen
from .source_model import Source

# The frozen graph runs the same kernels on the same weights: only their fusion may differ.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5


def compare_source(
    source: Source, names: Mapping[str, str], signature: Signature, frozen: Frozen
) -> dict[str, Any]:
    """Source and frozen graph on one seeded random batch: the largest difference of any output.

    Some models refuse random numbers (an index out of range, say). That is no fault of theirs: the
    difference is None then, and the reason is told.
    """
    from tensorflow.errors import InvalidArgumentError

    feeds = {spec.name: _random(spec, i) for i, spec in enumerate(signature.inputs)}
    try:
        truth = _arrays(source.call({old: feeds[new] for old, new in names.items()}))
    except InvalidArgumentError as error:
        return {"difference": None, "unchecked": _reason(error)}
    found, again = _run_twice(frozen, feeds)
    # A model that draws numbers from a seed agrees with its source once, but not with itself.
    return {
        "difference": max(
            max(_difference(name, truth[name], found[name]) for name in found),
            max(_difference(name, found[name], again[name]) for name in found),
        )
    }


def _run_twice(frozen: Frozen, feeds: Tensors) -> tuple[dict[str, Array], dict[str, Array]]:
    """In a session of its own: loading the SavedModel for this takes far longer."""
    import tensorflow as tf

    outputs = {name: port.tensor for name, port in frozen.outputs.items()}
    given = {frozen.inputs[name].tensor: array for name, array in feeds.items()}
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(frozen.graph, name="")
    with tf.compat.v1.Session(graph=graph) as session:
        first, second = (session.run(outputs, given) for _ in range(2))
    return _arrays(first), _arrays(second)


def _arrays(found: Mapping[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in found.items()}


def _reason(error: Any) -> str:
    """What an operator complained of, without where TensorFlow was then."""
    lines = [line.strip() for line in str(error.message).splitlines()]
    told = [n for n in lines if n and not n.startswith(("Graph execution", "Detected at", "[["))]
    return " ".join(told)[:300]


def _difference(name: str, truth: Array, found: Array) -> float:
    if truth.shape != found.shape or truth.dtype != found.dtype:
        raise StepFailed(
            f"output '{name}' is {found.dtype} {found.shape} after freezing, "
            f"and {truth.dtype} {truth.shape} in the source"
        )
    wide = truth.astype(np.float64), found.astype(np.float64)
    worst = float(np.max(np.abs(wide[0] - wide[1]), initial=0.0))
    largest = float(np.max(np.abs(wide[0]), initial=0.0))
    if not worst <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * largest:  # NaN fails too
        raise StepFailed(
            f"output '{name}' differs by {worst:.3g} from the source, which reaches {largest:.3g}",
            hint="does the model draw random numbers, or keep state, when it is called?",
        )
    return worst


def _random(spec: TensorSpec, seed: int) -> Array:
    """A batch that most models accept: 0 to 1; an open axis has length 2."""
    generator = np.random.default_rng(seed)
    shape = [2 if length is None else length for length in spec.shape]
    if np.dtype(spec.dtype).kind in "iub":
        return generator.integers(0, 2, shape).astype(spec.dtype)
    return generator.random(shape).astype(spec.dtype)
