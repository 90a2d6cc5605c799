"""An ONNX model in its canonical form: what it computes decides its bytes, and nothing else.

Exporters name nodes and tensors with counters, order them as they were made, and leave notes:
producer, documentation, shapes of inner tensors. All of that goes. Nodes are named `Conv_3`: the
operator, and its number in a depth-first walk from the outputs. A tensor bears the name of the node
that makes it, a constant that of the first node that reads it and of the input in the operator's
specification: `Conv_3.W`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..engines import TensorSpec
from ..engines.signature import Signature
from ..errors import StepFailed

FILE = "model.onnx"
LIMIT_BYTES = 2**31 - 2**20  # a protocol buffer message holds less than 2 GiB
BATCH = "batch"  # the name of a free batch axis, which all inputs and outputs share
STANDARD = ("", "ai.onnx")  # both are the domain of the standard's own operators


def read_model(artifact: Path) -> Any:
    """The ModelProto of an artifact. Raises StepFailed where the file is missing or not one."""
    import onnx
    from google.protobuf.message import DecodeError

    path = artifact / FILE
    try:
        return onnx.load_model(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise StepFailed(f"cannot read the ONNX model: {error}", at=str(path)) from error


def write_model(model: Any, artifact: Path, name: str = FILE) -> int:
    """Write a canonical model as one file; its size in bytes.

    Raises StepFailed where it takes 2 GiB or more.
    """
    check_size(sum(tensor.ByteSize() for tensor in model.graph.initializer))
    content = model.SerializeToString(deterministic=True)
    (artifact / name).write_bytes(content)
    return len(content)


def check_size(size: int) -> None:
    """Raises StepFailed for weights that do not fit into one ONNX file."""
    if size >= LIMIT_BYTES:
        raise StepFailed(
            f"the model's weights take {size / 2**30:.1f} GiB; an ONNX file is one protocol "
            "buffer message, which holds less than 2 GiB",
            hint="split the model, or store its weights as float16 before the import",
        )


def canonical_form(model: Any, signature: Signature) -> Any:
    """The same computation in canonical form, with the inputs and outputs of the signature.

    Identities, nodes that no output needs, equal constants and inner shapes are gone. Raises
    StepFailed where the model lacks an input or output of the signature.
    """
    import onnx

    made = onnx.ModelProto()
    opset = opset_of(model)
    made.ir_version = _ir_version(opset)
    made.opset_import.add(domain="", version=opset)
    _check_names(model.graph, signature)
    made.graph.name = "model"
    for spec in signature.inputs:
        _describe(made.graph.input.add(), spec)
    for spec in signature.outputs:
        _describe(made.graph.output.add(), spec)
    scope = _Scope(model.graph, None, _Namer(opset, [*signature.inputs, *signature.outputs]))
    scope.write(made.graph, {s.name: s.name for s in signature.inputs}, signature.outputs)
    domains = {node.domain for node in all_nodes(made.graph)} - set(STANDARD)
    for found in sorted(model.opset_import, key=lambda each: str(each.domain)):
        if found.domain in domains:
            made.opset_import.add(domain=found.domain, version=found.version)
    return made


def opset_of(model: Any) -> int:
    """The version of the standard's operators that the model uses."""
    return next(int(each.version) for each in model.opset_import if each.domain in STANDARD)


def raise_opset(model: Any, version: int) -> Any:
    """The same model in a newer version of the operators; itself where it has that already.

    Raises StepFailed where one of its operators has no equivalent there.
    """
    from onnx import version_converter

    if opset_of(model) >= version:
        return model
    try:
        return version_converter.convert_version(model, version)
    except (RuntimeError, version_converter.ConvertError) as error:
        raise StepFailed(f"the model has no form in opset {version}: {error}") from error


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node of a graph and of the bodies of its loops and conditions."""
    for node in graph.node:
        yield node
        for _, body in bodies(node):
            yield from all_nodes(body)


def bodies(node: Any) -> list[tuple[str, Any]]:
    """The graphs in a node's attributes, by attribute name, in alphabetical order."""
    import onnx

    kind = onnx.AttributeProto.GRAPH
    return sorted(((a.name, a.g) for a in node.attribute if a.type == kind), key=lambda p: p[0])


def constant_of(node: Any) -> Any:
    """The TensorProto of a Constant node; None for any other node, and for sparse constants."""
    import numpy as np
    from onnx import helper, numpy_helper

    if node.op_type != "Constant" or node.domain not in STANDARD:
        return None
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return value
    dtypes = {"value_float": "float32", "value_floats": "float32"}
    dtypes |= {"value_int": "int64", "value_ints": "int64"}
    if attribute.name not in dtypes:
        return None
    return numpy_helper.from_array(np.asarray(value, dtypes[attribute.name]))


class _Namer:
    """Names that are given once in the whole model, bodies included."""

    def __init__(self, opset: int, taken: Iterable[TensorSpec]) -> None:
        self.opset = opset
        self._given = {spec.name for spec in taken}
        self._counts: Counter[str] = Counter()

    def node(self, op: str) -> str:
        while True:
            name = f"{op}_{self._counts[op]}"
            self._counts[op] += 1
            if name not in self._given:
                return name

    def tensor(self, wanted: str) -> str:
        name = wanted
        while name in self._given:
            name = f"{name}_"
        self._given.add(name)
        return name

    def constant(self, op: Any, node: str, index: int) -> str:
        """The name of a constant that is input number `index` of a node."""
        import onnx

        label = str(index)
        if op.domain in STANDARD and onnx.defs.has(op.op_type, max_inclusive_version=self.opset):
            formal = onnx.defs.get_schema(op.op_type, self.opset).inputs
            variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
            if index < len(formal) and formal[index].option != variadic:
                label = formal[index].name
        return self.tensor(f"{node}.{label}")


class _Scope:
    """A graph, or the body of a loop or condition, and the way through its nodes."""

    def __init__(self, graph: Any, outer: _Scope | None, namer: _Namer) -> None:
        self.outer = outer
        self.namer = namer
        self.inputs = {each.name for each in graph.input}
        self.outputs = [each.name for each in graph.output]
        self.constants = {each.name: each for each in graph.initializer}
        self.makers: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.written: dict[bytes, str] = {}
        for node in graph.node:
            value = constant_of(node)
            if value is None:
                self.makers |= {tensor: node for tensor in node.output if tensor}
            else:
                self.constants[node.output[0]] = value

    def write(self, made: Any, inputs: Mapping[str, str], outputs: Iterable[Any]) -> None:
        """Write nodes and constants; `outputs` bear the names that the graph's outputs get."""
        self.names |= inputs
        ends = [self.resolve(tensor) for tensor in self.outputs]
        by_name = dict(zip(self.outputs, ends, strict=True))
        wanted = [each.name for each in outputs]
        if self.outer is None:  # the signature's order, not the exporter's
            ends = [by_name[name] for name in wanted]
        own = {e: n for e, n in reversed([*zip(ends, wanted, strict=True)]) if e in self.makers}
        for node in self._walk(ends):
            self._write_node(node, made, own)
        for end, name in zip(ends, wanted, strict=True):
            if own.get(end) != name:  # an input, a constant, or a tensor that is output twice
                node = made.node.add(op_type="Identity", name=self.namer.node("Identity"))
                node.input.append(self._source(end, node, 0, made))
                node.output.append(name)

    def resolve(self, tensor: str) -> str:
        """The tensor that `tensor` merely passes on, in this scope or one around it."""
        while tensor in self.makers and self.makers[tensor].op_type == "Identity":
            tensor = self.makers[tensor].input[0]
        known = tensor in self.makers or tensor in self.inputs or tensor in self.constants
        return tensor if known or self.outer is None or not tensor else self.outer.resolve(tensor)

    def _walk(self, ends: Iterable[str]) -> list[Any]:
        """The nodes that the ends need, each after those it needs."""
        done: dict[int, Any] = {}
        seen: set[int] = set()
        for end in ends:
            stack = self._enter(end, seen)
            while stack:
                node, rest = stack[-1]
                source = next(rest, None)
                if source is None:
                    done[id(node)] = node
                    stack.pop()
                else:
                    stack += self._enter(source, seen)
        return list(done.values())

    def _enter(self, tensor: str, seen: set[int]) -> list[tuple[Any, Iterator[str]]]:
        node = self.makers.get(tensor)
        if node is None or id(node) in seen:
            return []
        seen.add(id(node))
        return [(node, iter([self.resolve(name) for name in outer_reads(node)]))]

    def _write_node(self, node: Any, made: Any, own: Mapping[str, str]) -> None:
        name = self.namer.node(node.op_type)
        copy = made.node.add(op_type=node.op_type, name=name)
        copy.domain = "" if node.domain in STANDARD else node.domain
        for i, tensor in enumerate(node.input):
            copy.input.append(self._source(self.resolve(tensor), node, i, made, name))
        while copy.input and not copy.input[-1]:
            copy.input.pop()
        for i, tensor in enumerate(node.output):
            wanted = name if len(node.output) == 1 else f"{name}.out{i}"
            self.names[tensor] = own[tensor] if tensor in own else self.namer.tensor(wanted)
            copy.output.append(self.names[tensor] if tensor else "")
        for attribute in sorted(node.attribute, key=lambda each: str(each.name)):
            self._write_attribute(attribute, name, copy.attribute.add())

    def _write_attribute(self, attribute: Any, node: str, made: Any) -> None:
        import onnx

        if attribute.type != onnx.AttributeProto.GRAPH:
            made.CopyFrom(attribute)
            made.doc_string = ""
            return
        made.name, made.type = attribute.name, attribute.type
        made.g.name = f"{node}.{attribute.name}"
        scope = _Scope(attribute.g, self, self.namer)
        inputs = {}
        for i, each in enumerate(attribute.g.input):
            inputs[each.name] = self.namer.tensor(f"{made.g.name}.in{i}")
            _copy_type(each, inputs[each.name], made.g.input.add())
        for i, each in enumerate(attribute.g.output):
            name = self.namer.tensor(f"{made.g.name}.out{i}")
            _copy_type(each, name, made.g.output.add())
        scope.write(made.g, inputs, made.g.output)

    def _source(self, tensor: str, node: Any, index: int, made: Any, name: str = "") -> str:
        """The new name of a tensor that a node reads; a constant is written when first read."""
        if not tensor:
            return ""
        scope: _Scope | None = self
        while scope is not None:
            if tensor in scope.names:
                return scope.names[tensor]
            if tensor in scope.constants:
                return self._constant(scope.constants[tensor], node, index, made, name)
            scope = scope.outer
        raise StepFailed(f"the graph has no tensor '{tensor}', which '{node.name}' reads")

    def _constant(self, value: Any, node: Any, index: int, made: Any, name: str) -> str:
        """A constant belongs to the graph that reads it, once for each value."""
        encoded = _encoded(value)
        content = encoded.SerializeToString(deterministic=True)
        if content not in self.written:
            encoded.name = self.namer.constant(node, name or node.name, index)
            made.initializer.append(encoded)
            self.written[content] = encoded.name
        return self.written[content]


def outer_reads(node: Any) -> list[str]:
    """What a node reads: its inputs, then what its bodies take from the graphs around them."""
    found = [tensor for tensor in node.input if tensor]
    for _, body in bodies(node):
        made = {each.name for each in (*body.input, *body.initializer)}
        made |= {tensor for each in body.node for tensor in each.output}
        reads = [t for each in body.node for t in outer_reads(each)] + [o.name for o in body.output]
        found += [tensor for tensor in reads if tensor not in made]
    return found


def _encoded(value: Any) -> Any:
    """One encoding for equal values, without a name: TensorProto has several."""
    import onnx
    from onnx import numpy_helper

    if value.data_type == onnx.TensorProto.STRING:
        made = onnx.TensorProto()
        made.CopyFrom(value)
        made.name = made.doc_string = ""
        return made
    return numpy_helper.from_array(numpy_helper.to_array(value))


def _describe(made: Any, spec: TensorSpec) -> None:
    """One of the model's inputs or outputs; a free batch axis is named `batch`."""
    import numpy as np
    from onnx import helper

    made.name = spec.name
    made.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    made.type.tensor_type.shape.SetInParent()
    for axis, length in enumerate(spec.shape):
        dim = made.type.tensor_type.shape.dim.add()
        if length is not None:
            dim.dim_value = length
        else:
            dim.dim_param = f"{spec.name}_{axis}" if axis else BATCH


def _copy_type(value: Any, name: str, made: Any) -> None:
    """A body's input or output: its name, its dtype, and those axes that are numbers."""
    made.name = name
    made.type.CopyFrom(value.type)
    for dim in made.type.tensor_type.shape.dim:
        dim.ClearField("dim_param")
        dim.ClearField("denotation")


def _check_names(graph: Any, signature: Signature) -> None:
    made = {tensor for node in graph.node for tensor in node.output}
    there = {each.name for each in graph.output}
    lost = [spec.name for spec in signature.outputs if spec.name not in there]
    constants = {each.name for each in graph.initializer}
    known = made | constants | {spec.name for spec in signature.inputs}
    unmade = [name for name in there if name not in known]
    if lost or unmade:
        raise StepFailed(f"the ONNX graph lacks the model's output '{(lost or unmade)[0]}'")


def _ir_version(opset: int) -> int:
    """The version of the file format that this opset came out with, so that old readers read it."""
    from onnx import helper

    return int(helper.OP_SET_ID_VERSION_MAP[("ai.onnx", opset)])
