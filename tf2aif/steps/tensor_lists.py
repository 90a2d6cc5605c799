"""Recurrent layers at a fixed batch: the batch in the shapes of their tensor lists.

A recurrent layer collects its steps in a tensor list whose element shape was written down when the
model was traced, with -1 for a batch that was open then. Fixing the batch at the inputs does not
reach it, and TensorFlow Lite takes only lists of static shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .canonical import Frozen

# Operator -> which of its inputs is the element shape.
_ELEMENT_SHAPE = {
    "EmptyTensorList": 0,
    "TensorListReserve": 0,
    "TensorListFromTensor": 1,
    "TensorListStack": 1,
    "TensorListGetItem": 2,
}


def fix_lists(frozen: Frozen, batch: int) -> Frozen:
    """The graph with `batch` in place of -1 at axis 0 of element shapes; the graph is not changed.

    That axis 0 is the batch is a guess, and a safe one: a list refuses elements of another shape
    when the graph runs, so the import's comparison with the source finds out.
    """
    graph = type(frozen.graph)()
    graph.CopyFrom(frozen.graph)
    graph.node.extend(_fix(graph.node, batch, ""))
    for function in graph.library.function:
        function.node_def.extend(_fix(function.node_def, batch, ":output:0"))
    return frozen._replace(graph=graph)


def _fix(nodes: Iterable[Any], batch: int, suffix: str) -> list[Any]:
    """Point the lists at new constants, which are returned."""
    import tensorflow as tf

    constants = {node.name: node for node in nodes if node.op == "Const"}
    made = []
    for node, position in _lists(nodes):
        constant = constants.get(node.input[position].partition(":")[0])
        if constant is None:
            continue
        shape = tf.make_ndarray(constant.attr["value"].tensor)
        if shape.ndim != 1 or shape.tolist()[:1] != [-1] or -1 in shape[1:]:
            continue
        new = type(constant)(name=f"{node.name}/element_shape", op="Const")
        new.attr["dtype"].type = constant.attr["dtype"].type
        fixed = np.array([batch, *shape[1:]], shape.dtype)
        new.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(fixed))
        node.input[position] = new.name + suffix
        made.append(new)
    return made


def _lists(nodes: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    return ((node, _ELEMENT_SHAPE[node.op]) for node in nodes if node.op in _ELEMENT_SHAPE)
