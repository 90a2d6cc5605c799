"""A graph of an ONNX model that is being changed, and what can be inferred about its tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..engines import Array
from .onnx_graph import all_nodes, bodies, constant_of

Shape = tuple[int | None, ...]


def inferred_shapes(model: Any) -> dict[str, Shape]:
    """The shapes of the main graph's tensors as far as they can be inferred; None: any length."""
    graph = _inferred(model)
    found: dict[str, Shape] = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            found[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in dims
            )
    return found


def inferred_types(model: Any) -> dict[str, int]:
    """The dtypes (TensorProto.DataType) of the main graph's tensors, constants included."""
    graph = _inferred(model)
    found = {each.name: int(each.data_type) for each in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        found[value.name] = int(value.type.tensor_type.elem_type)
    return found


def _inferred(model: Any) -> Any:
    import onnx

    return onnx.shape_inference.infer_shapes(model, data_prop=True).graph


class Editor:
    """Who makes and who reads each tensor of a graph, and which tensors are constants.

    Changes of single nodes are made at once; nodes are taken out by `finish`. The order of the
    nodes is not looked after: `canonical_form` sorts them.
    """

    def __init__(self, graph: Any) -> None:
        self.nodes: list[Any] = list(graph.node)
        self.constants: dict[str, Any] = {each.name: each for each in graph.initializer}
        self.makers: dict[str, Any] = {}
        self.readers: Counter[str] = Counter(each.name for each in graph.output)
        self._graph = graph
        self._dropped: set[int] = set()
        for node in self.nodes:
            self.makers |= {tensor: node for tensor in node.output if tensor}
            if (value := constant_of(node)) is not None:
                self.constants[node.output[0]] = value
        for node in all_nodes(graph):
            self.readers.update(node.input)
            for _, body in bodies(node):
                self.readers.update(each.name for each in body.output)

    def value(self, name: str) -> Array | None:
        """The value of a constant; None for what is computed."""
        from onnx import numpy_helper

        found = self.constants.get(name)
        return None if found is None else np.asarray(numpy_helper.to_array(found))

    def only_reader(self, tensor: str) -> Any:
        """The one node that reads the tensor; None where others do too, or it is an output."""
        if self.readers[tensor] != 1:
            return None
        return next((n for n in self.nodes if tensor in n.input and not self.dropped(n)), None)

    def add_constant(self, name: str, value: Array) -> str:
        """A new initializer; the name that it got."""
        from onnx import numpy_helper

        while name in self.constants or name in self.makers:
            name = f"{name}_"
        self.constants[name] = self._graph.initializer.add()
        self.constants[name].CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def set_input(self, node: Any, index: int, name: str) -> None:
        """Have a node read another tensor as its input `index`, which may be its next one."""
        if index == len(node.input):
            node.input.append(name)
        else:
            self.readers[node.input[index]] -= 1
            node.input[index] = name
        self.readers[name] += 1

    def take_over(self, node: Any, successor: Any) -> None:
        """Take out `successor`, the one reader of `node`, and give its output to `node`."""
        self.drop(successor)
        node.output[0] = successor.output[0]
        self.makers[node.output[0]] = node

    def drop(self, node: Any) -> None:
        """Take a node out."""
        self._dropped.add(id(node))  # `nodes` holds every node, so no id comes twice
        self.readers.subtract(node.input)
        for tensor in node.output:
            self.makers.pop(tensor, None)

    def dropped(self, node: Any) -> bool:
        """Whether a node was taken out."""
        return id(node) in self._dropped

    def finish(self) -> None:
        """Write what is left into the graph."""
        kept = []
        for node in self.nodes:
            if not self.dropped(node):
                kept.append(type(node)())
                kept[-1].CopyFrom(node)
        del self._graph.node[:]
        self._graph.node.extend(kept)
