"""From a function with variables to a frozen graph, and from a frozen graph to a SavedModel.

The SavedModel written here has one file and no variables: nothing in it comes from a clock, a
counter or a random number, so the same graph gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engines import TensorSpec
from ..engines.signature import Signature, natural_key
from ..errors import StepFailed
from .canonical import Frozen, Port
from .shapes import Shape

LIMIT_BYTES = 2**31 - 1  # of one protocol buffer message

SIGNATURE = "serving_default"

# What a graph cannot hold as a constant: state, and code that lives in a Python process.
_STATE = ("Hash", "Lookup", "VarHandle", "ReadVariable", "VariableV2", "Iterator", "PyFunc")


def freeze(function: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Frozen:
    """A ConcreteFunction as a frozen graph, its calls inlined, its control flow functional.

    `inputs` and `outputs` name its tensors, in its own order; the result has them as people count.
    Raises StepFailed where the weights are too large for one message, or cannot be constants.
    """
    from tensorflow.python.framework import convert_to_constants as constants

    _check_size(sum(v.dtype.size * (v.shape.num_elements() or 0) for v in function.variables))
    # What convert_variables_to_constants_v2_as_graph does, but for the function that it makes of
    # the result: for ResNet50 that is nine tenths of its time.
    data = constants._FunctionConverterDataInEager(
        func=function, lower_control_flow=False, aggressive_inlining=True
    )
    try:
        graph, _ = constants._replace_variables_by_constants(converter_data=data)
    except (ValueError, RuntimeError) as error:
        raise StepFailed(f"the model cannot be frozen: {error}") from error
    given = function.inputs[: len(inputs)]  # what it captures comes after
    _check_stateless(graph, {tensor.op.name for tensor in given})
    return Frozen(graph, _ports(inputs, given), _ports(outputs, function.outputs))


def declared_shapes(frozen: Frozen) -> dict[str, Shape | None]:
    """What the graph says about its inputs; None where not even the number of axes is fixed."""
    return {name: _declared(_placeholder(frozen, name)) for name in frozen.inputs}


def fix_shapes(frozen: Frozen, shapes: Mapping[str, Shape]) -> Signature:
    """Set these shapes of the inputs in place; TensorFlow infers those of the outputs.

    Raises StepFailed where an operator does not accept them.
    """
    for name, shape in shapes.items():
        attribute = _placeholder(frozen, name).attr["shape"]
        attribute.Clear()
        attribute.shape.SetInParent()
        for length in shape:
            attribute.shape.dim.add(size=-1 if length is None else length)
    return _infer(frozen)


def _infer(frozen: Frozen) -> Signature:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.import_graph_def(frozen.graph, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise StepFailed(f"the shapes do not fit the model: {error}") from error
    return Signature(
        inputs=tuple(_spec(graph, name, port) for name, port in frozen.inputs.items()),
        outputs=tuple(_spec(graph, name, port) for name, port in frozen.outputs.items()),
    )


def write_saved_model(frozen: Frozen, signature: Signature, folder: Path) -> None:
    """Write the graph as a SavedModel with the one signature `serving_default`."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.graph_def.CopyFrom(frozen.graph)
    definition = meta.signature_def[SIGNATURE]
    definition.method_name = "tensorflow/serving/predict"
    for spec in signature.inputs:
        _describe(definition.inputs[spec.name], frozen.inputs[spec.name], spec)
    for spec in signature.outputs:
        _describe(definition.outputs[spec.name], frozen.outputs[spec.name], spec)
    _check_size(saved.ByteSize())
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString(deterministic=True))


def _ports(names: Sequence[str], tensors: Sequence[Any]) -> dict[str, Port]:
    found = dict(zip(names, tensors, strict=True))
    return {
        name: Port(found[name].name, found[name].dtype.as_datatype_enum)
        for name in sorted(found, key=natural_key)
    }


def _check_size(size: int) -> None:
    if size > LIMIT_BYTES:
        raise StepFailed(
            f"the model's weights take {size / 2**30:.1f} GiB; a frozen graph is one protocol "
            "buffer message, which holds less than 2 GiB",
            hint="store the weights as float16, or split the model",
        )


def _check_stateless(graph: Any, inputs: set[str]) -> None:
    """Raises StepFailed, naming the operators, where state or Python code is left in the graph."""
    found = set()
    for node in (*graph.node, *(n for f in graph.library.function for n in f.node_def)):
        if any(word in node.op for word in _STATE):
            found.add(node.op)
        if node.op == "Placeholder" and node.name not in inputs:
            found.add(f"resource '{node.name}'")
    if found:
        raise StepFailed(
            f"the model holds what a frozen graph cannot: {', '.join(sorted(found))}",
            hint="leave lookup tables, mutable state and Python functions to the service's hooks, "
            "and export the part of the model that is arithmetic",
        )


def _spec(graph: Any, name: str, port: Port) -> TensorSpec:
    import tensorflow as tf

    tensor = graph.get_tensor_by_name(port.tensor)
    if tensor.dtype == tf.string or not tensor.dtype.is_numpy_compatible:
        raise StepFailed(
            f"'{name}' is of dtype {tensor.dtype.name}; the targets take numbers and booleans",
            hint="leave the decoding of strings to the service's hooks, "
            "and export the model from the numbers on",
        )
    if tensor.shape.rank is None:
        raise StepFailed(
            f"the model leaves the number of axes of '{name}' open",
            hint=f"give its shape without the batch axis: 'inputs: {{{name}: [...]}}'",
        )
    return TensorSpec(
        name=name, dtype=tensor.dtype.as_numpy_dtype().dtype.name, shape=tuple(tensor.shape)
    )


def _describe(info: Any, port: Port, spec: TensorSpec) -> None:
    info.name, info.dtype = port.tensor, port.dtype
    info.tensor_shape.SetInParent()
    for length in spec.shape:
        info.tensor_shape.dim.add(size=-1 if length is None else length)


def _placeholder(frozen: Frozen, name: str) -> Any:
    wanted = frozen.inputs[name].tensor.partition(":")[0]
    return next(node for node in frozen.graph.node if node.name == wanted)


def _declared(placeholder: Any) -> Shape | None:
    shape = placeholder.attr["shape"].shape
    if shape.unknown_rank or "shape" not in placeholder.attr:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
