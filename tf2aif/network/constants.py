"""A frozen graph at a known batch: the shape of every tensor, the value of every constant one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..engines import Array
from ..engines.signature import Signature
from ..errors import StepFailed
from ..steps.freeze import SIGNATURE

FullShape = tuple[int, ...]


class Known(NamedTuple):
    """A graph as its layers are read from it. Tensors are named `NODE:NUMBER`."""

    nodes: tuple[Any, ...]
    """What is computed from the inputs, as NodeDefs, each after those it needs."""
    inputs: dict[str, str]
    """Signature name -> tensor."""
    outputs: dict[str, str]
    shapes: dict[str, FullShape]
    """With the batch axis."""
    constants: dict[str, Array]
    batch: int


def read_graph(saved_model: Path, signature: Signature) -> Known:
    """The graph of an imported model, at its own batch, or at 1 where the batch is free.

    Raises StepFailed where an input has no batch axis, or a shape stays open.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    content = (saved_model / "saved_model.pb").read_bytes()
    meta = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
    told = meta.signature_def[SIGNATURE]
    inputs = {spec.name: told.inputs[spec.name].name for spec in signature.inputs}
    outputs = {spec.name: told.outputs[spec.name].name for spec in signature.outputs}
    batch = _batch(signature)
    _fix_batch(meta.graph_def, set(inputs.values()), batch)
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(meta.graph_def, name="")
    shapes = _shapes(graph)
    constant = _constant_nodes(meta.graph_def, graph, shapes)
    nodes = tuple(node for node in meta.graph_def.node if node.name not in constant)
    wanted = {tensor(name) for node in nodes for name in node.input} | set(outputs.values())
    # Lists of tensors (variants) are no numbers; what reads them is no layer either.
    needed = sorted(
        name
        for name in wanted
        if name.partition(":")[0] in constant
        and graph.get_tensor_by_name(name).dtype.is_numpy_compatible
    )
    # The shape of a tensor is taken from the tensor itself, so the inputs have to be something.
    zeros = {name: np.zeros(shapes[name], _dtype(graph, name)) for name in inputs.values()}
    with tf.compat.v1.Session(graph=graph) as session:
        values = session.run(needed, zeros) if needed else []
    constants = {name: np.asarray(value) for name, value in zip(needed, values, strict=True)}
    return Known(nodes, inputs, outputs, shapes, constants, batch)


def tensor(name: str) -> str:
    """An input of a NodeDef as `NODE:NUMBER`."""
    return name if ":" in name else f"{name}:0"


def _dtype(graph: Any, name: str) -> Any:
    return graph.get_tensor_by_name(name).dtype.as_numpy_dtype


def _batch(signature: Signature) -> int:
    found = set()
    for spec in signature.inputs:
        if not spec.shape:
            raise StepFailed(
                f"input '{spec.name}' has no batch axis; a layer graph's tensors all have one",
                hint="leave constants to the service's hooks",
            )
        found.add(spec.shape[0] or 1)
    if len(found) > 1:
        raise StepFailed(f"the inputs differ in their batch: {sorted(found)}")
    return found.pop() if found else 1


def _fix_batch(graph: Any, inputs: set[str], batch: int) -> None:
    for node in graph.node:
        if node.op == "Placeholder" and f"{node.name}:0" in inputs:
            node.attr["shape"].shape.dim[0].size = batch


def _shapes(graph: Any) -> dict[str, FullShape]:
    return {
        each.name: tuple(each.shape)
        for operation in graph.get_operations()
        for each in operation.outputs
        if each.shape.is_fully_defined()
    }


def _constant_nodes(definition: Any, graph: Any, shapes: Mapping[str, FullShape]) -> set[str]:
    """Nodes whose values do not depend on the inputs; a Shape of a known shape is one."""
    found: set[str] = set()
    for node in definition.node:
        operation = graph.get_operation_by_name(node.name)
        if operation.op_def.is_stateful:
            continue
        sources = [name.lstrip("^").partition(":")[0] for name in node.input]
        shape_known = node.op == "Shape" and tensor(node.input[0]) in shapes
        if node.op == "Const" or shape_known or (sources and found.issuperset(sources)):
            found.add(node.name)
    return found
