"""Half precision as types in an ONNX graph, and what it computes, in float32 with roundings.

A strongly typed compiler (TensorRT) takes the types of the graph as they are: there is no flag for
precision. So tensors become float16 or bfloat16 here; the model's own inputs and outputs, and
operators that have no such type in the standard, stay float32 behind Casts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ..engines import Array
from ..errors import StepFailed
from .onnx_editor import Editor, inferred_types
from .onnx_graph import STANDARD, bodies, opset_of, outer_reads, raise_opset

Half = Literal["fp16", "bf16"]

FLOAT = 1  # onnx.TensorProto.FLOAT

# What these give hangs on an attribute, not on the types of their inputs.
_OWN_TYPE = frozenset({"Cast", "CastLike", "ConstantOfShape", "EyeLike", "Bernoulli", "Constant"})

# Their outputs are values of their inputs, which need no rounding again.
_SELECTING = frozenset(
    {"Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements"}
    | {"GatherND", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin"}
    | {"Relu", "Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split"}
    | {"Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"}
)

# The standard has bfloat16 for convolutions since opset 22, and half precision for Q/DQ since 19.
_BFLOAT16_OPSET = 22
_QDQ_OPSET = 19


class Lowered(NamedTuple):
    """A typed model, and which of its layers compute in half precision."""

    model: Any
    nodes: int  # that compute in half precision
    kept: dict[str, int]  # operators that stay float32, and how many of each
    flushed: int  # weights that are too small for the type and became zero


def lower(model: Any, half: Half, keep: Collection[str] = ()) -> Lowered:
    """A copy of the model, computing in half precision wherever the standard's operators can.

    `keep` are operators, or single nodes by name, that stay float32. Raises StepFailed where a
    weight is beyond the range of the type, and names it.
    """
    import onnx

    quantised = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    wanted = _BFLOAT16_OPSET if half == "bf16" else _QDQ_OPSET if quantised else 0
    made = onnx.ModelProto()
    made.CopyFrom(raise_opset(model, wanted))
    pass_ = _Lowering(made, half)
    kept: dict[str, int] = {}
    count = 0
    for node in pass_.graph.nodes:
        slots = () if {node.op_type, node.name} & set(keep) else pass_.slots(node)
        if slots:
            pass_.lower(node, slots)
            count += 1
            continue
        pass_.widen(node)
        if any(pass_.types.get(t) == FLOAT for t in node.output) and node.op_type != "Constant":
            kept[node.op_type] = kept.get(node.op_type, 0) + 1
    for each in made.graph.output:
        pass_.wide(each.name)
    pass_.graph.finish()
    made.graph.node.extend(pass_.casts)
    return Lowered(made, count, dict(sorted(kept.items())), pass_.flushed)


class _Lowering:
    """A float32 tensor `t` of the graph is `t` in float32 and `t.half` in half precision."""

    def __init__(self, model: Any, half: Half) -> None:
        self.graph = Editor(model.graph)
        self.types = inferred_types(model)
        self.casts: list[Any] = []
        self.flushed = 0
        self._opset = opset_of(model)
        self._half, self._code, self._name = half, code_of(half), f"tensor({_NAMES[half]})"
        self._narrow: dict[str, str] = {}  # tensors that are there in half precision
        self._made_narrow: set[str] = set()  # by their own node, so that float32 needs a Cast

    def slots(self, node: Any) -> tuple[int, ...]:
        """Which inputs of a node become half precision; none where the standard has it not."""
        import onnx

        if node.domain not in STANDARD or bodies(node) or node.op_type in _OWN_TYPE:
            return ()
        schema = onnx.defs.get_schema(node.op_type, self._opset)
        takes = {
            c.type_param_str for c in schema.type_constraints if self._name in c.allowed_type_strs
        }

        def lowers(index: int, formal: Any) -> bool:
            return formal[min(index, len(formal) - 1)].type_str in takes

        floats = [i for i, tensor in enumerate(node.input) if self.types.get(tensor) == FLOAT]
        results = [i for i, tensor in enumerate(node.output) if self.types.get(tensor) == FLOAT]
        if not all(lowers(i, schema.outputs) for i in results):
            return ()
        return tuple(i for i in floats if lowers(i, schema.inputs))

    def lower(self, node: Any, slots: tuple[int, ...]) -> None:
        """Have a node compute in half precision."""
        for i in range(len(node.input)):
            if i in slots:
                node.input[i] = self._narrowed(node.input[i], node)
            elif node.input[i]:
                self.wide(node.input[i])
        for i, tensor in enumerate(node.output):
            if self.types.get(tensor) == FLOAT:
                node.output[i] = self._narrow[tensor] = f"{tensor}.half"
                self._made_narrow.add(tensor)

    def widen(self, node: Any) -> None:
        """Have float32 ready for all that a node and its bodies read."""
        for tensor in outer_reads(node):
            self.wide(tensor)

    def wide(self, tensor: str) -> None:
        """Have a tensor ready in float32, under its own name."""
        if tensor in self._made_narrow:
            self._cast(f"{tensor}.half", tensor, FLOAT)
            self._made_narrow.remove(tensor)

    def _narrowed(self, tensor: str, reader: Any) -> str:
        value = self.graph.value(tensor)
        if value is not None:
            return self._constant(tensor, value, reader)
        if tensor not in self._narrow:
            self._narrow[tensor] = f"{tensor}.half"
            self._cast(tensor, self._narrow[tensor], self._code)
        return self._narrow[tensor]

    def _constant(self, name: str, value: Array, reader: Any) -> str:
        bound = reader.op_type == "Clip"
        key = f"{name}.bound" if bound else name
        if key not in self._narrow:
            rounded = _saturated(value, self._half) if bound else rounded_to(value, self._half)
            if not bound:
                _check_range(name, value, rounded, reader, self._half)
                self.flushed += int(np.count_nonzero((value != 0) & (rounded == 0)))
            self._narrow[key] = self.graph.add_constant(f"{key}.half", rounded)
        return self._narrow[key]

    def _cast(self, source: str, result: str, code: int) -> None:
        from onnx import helper

        self.casts.append(helper.make_node("Cast", [source], [result], to=code))


def emulation(model: Any) -> Any:
    """A model of float32 operators that computes what a half precision one does, with its values.

    Weights stay as they are stored; what a node gives is rounded by a pair of Casts. ONNX Runtime's
    CPU kernels have no bfloat16, and run float16 operators in float32 without the roundings
    between, so the typed model itself would not show there what half precision costs.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    types = inferred_types(made)
    codes = {code_of(half) for half in _NAMES}
    narrow = {tensor: code for tensor, code in types.items() if code in codes}
    nodes = []
    renamed = {
        each.name: f"{each.name}.stored" for each in made.graph.initializer if each.name in narrow
    }
    for each in made.graph.initializer:
        each.name = renamed.get(each.name, each.name)
    nodes += [_cast_node(stored, name, FLOAT) for name, stored in renamed.items()]
    for node in made.graph.node:
        nodes += _emulated(node, narrow)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _emulated(node: Any, narrow: Mapping[str, int]) -> list[Any]:
    """A node and the roundings after it."""
    copy = type(node)()
    copy.CopyFrom(node)
    results = [tensor for tensor in node.output if tensor in narrow]
    if node.op_type == "Cast" and (results or node.input[0] in narrow):
        to = next(each for each in copy.attribute if each.name == "to")
        to.i = FLOAT if results else to.i
    found = [copy]
    for i, tensor in enumerate(node.output):
        if tensor in narrow and node.op_type not in _SELECTING:
            copy.output[i] = f"{tensor}.exact"
            found.append(_cast_node(copy.output[i], f"{tensor}.rounded", narrow[tensor]))
            found.append(_cast_node(f"{tensor}.rounded", tensor, FLOAT))
    return found


def has_half(model: Any) -> bool:
    """Whether any weight or tensor of the main graph is in half precision."""
    codes = {code_of(half) for half in _NAMES}
    return any(code in codes for code in inferred_types(model).values())


_NAMES: dict[Half, str] = {"fp16": "float16", "bf16": "bfloat16"}
_LARGEST: dict[Half, float] = {"fp16": 65504.0, "bf16": (2 - 2**-7) * 2.0**127}


def code_of(half: Half) -> int:
    """The number of the type in TensorProto.DataType."""
    return {"fp16": 10, "bf16": 16}[half]


def rounded_to(value: Array, half: Half) -> Array:
    """Values rounded to nearest, ties to even; what is beyond the range becomes infinite."""
    with np.errstate(over="ignore"):
        return value.astype(_dtype(half))


def _saturated(value: Array, half: Half) -> Array:
    largest = _LARGEST[half]
    return np.clip(value, -largest, largest).astype(_dtype(half))


def _dtype(half: Half) -> Any:
    import ml_dtypes

    return np.float16 if half == "fp16" else ml_dtypes.bfloat16


def _check_range(name: str, value: Array, rounded: Array, reader: Any, half: Half) -> None:
    lost = np.isfinite(value) & ~np.isfinite(rounded.astype(np.float32))
    if lost.any():
        worst = float(np.abs(value[lost]).max())
        raise StepFailed(
            f"{half} cannot hold the constant '{name}' of '{reader.name}': "
            f"{int(lost.sum())} of its {value.size} values are beyond the range, up to {worst:.3g}",
            hint=f"leave it in float32: 'keep: [{reader.name}]'"
            + (", or take bf16, which has the range of float32" if half == "fp16" else ""),
        )


def _cast_node(source: str, result: str, code: int) -> Any:
    from onnx import helper

    return helper.make_node("Cast", [source], [result], to=code)
