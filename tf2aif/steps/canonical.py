"""A frozen graph in its canonical form: what it computes decides its bytes, and nothing else.

Exporters name nodes and functions with counters, order them as they happened to be made, and add
identities, control edges and private attributes. All of that goes. Nodes are named `Conv2D_3`:
the operator, and its number in a depth-first walk from the outputs along the data edges.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# Operators that pass their inputs on, each as the output of the same number.
TRANSPARENT = frozenset({"Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot"})

# Control flow of TensorFlow 1: there, identities and control edges say in which frame a node runs.
FRAMES = frozenset(
    f"{prefix}{op}"
    for prefix in ("", "Ref")
    for op in ("Switch", "Merge", "Enter", "Exit", "NextIteration", "LoopCond")
)

# Private attributes that change how a node runs; all others are notes of an exporter.
KEPT_ATTRIBUTES = frozenset({"_lower_using_switch_merge", "_num_original_outputs"})


class Port(NamedTuple):
    """An input or output of a graph: its tensor (`x:0`) and its dtype (a DataType number)."""

    tensor: str
    dtype: int


class Frozen(NamedTuple):
    """A GraphDef whose weights are constants, and its inputs and outputs by signature name."""

    graph: Any
    inputs: dict[str, Port]
    outputs: dict[str, Port]


def canonical_form(frozen: Frozen) -> Frozen:
    """The same computation in canonical form; each output is an Identity that bears its name."""
    body = _Body(frozen.graph.node, frozen.outputs.values())
    namer = _Namer()
    names = {_owner(port.tensor): namer.own(name) for name, port in frozen.inputs.items()}
    results = {name: namer.own(name) for name in frozen.outputs}
    made = type(frozen.graph)()
    made.versions.producer = frozen.graph.versions.producer
    functions = _Functions(frozen.graph.library)
    order = body.walk(keep=names)
    names |= {name: namer.numbered(body.nodes[name].op) for name in order if name not in names}
    for name in order:
        _copy_node(body, name, names, functions, made.node.add())
    for name, port in frozen.outputs.items():
        node = made.node.add(name=results[name], op="Identity")
        node.input.append(_renamed(body.resolve(port.tensor), names))
        node.attr["T"].type = port.dtype
    functions.write(made.library)
    return Frozen(
        made,
        {n: Port(f"{names[_owner(p.tensor)]}:0", p.dtype) for n, p in frozen.inputs.items()},
        {n: Port(f"{results[n]}:0", p.dtype) for n, p in frozen.outputs.items()},
    )


class _Body:
    """The nodes of a graph or of one function, and the way through them."""

    def __init__(self, nodes: Iterable[Any], ends: Iterable[Any]) -> None:
        self.nodes: dict[str, Any] = {node.name: node for node in nodes}
        self._ends = [end.tensor if isinstance(end, Port) else end for end in ends]
        self._framed = any(node.op in FRAMES for node in self.nodes.values())

    def resolve(self, tensor: str) -> str:
        """The tensor that `tensor` merely passes on."""
        while not self._framed:
            node = self.nodes.get(_owner(tensor))
            if node is None or node.op not in TRANSPARENT:
                break
            tensor = node.input[_number(tensor)]
        return tensor

    def sources(self, name: str) -> list[str]:
        """The inputs of a node: tensors in their order, then control edges where they matter."""
        found = self.nodes[name].input
        data = [self.resolve(tensor) for tensor in found if not tensor.startswith("^")]
        return data + [edge for edge in found if edge.startswith("^") and self._framed]

    def walk(self, keep: Iterable[str] = ()) -> list[str]:
        """The nodes that the ends need, each after those it needs, then `keep`.

        Raises nothing for the loops of TensorFlow 1: a node met again is simply not entered.
        """
        done: dict[str, None] = {}
        seen: set[str] = set()
        for end in (*map(self.resolve, self._ends), *keep):
            stack = self._enter(_owner(end), seen)
            while stack:
                name, rest = stack[-1]
                source = next(rest, None)
                if source is None:
                    done[name] = None
                    stack.pop()
                else:
                    stack += self._enter(_owner(source), seen)
        return list(done)

    def _enter(self, name: str, seen: set[str]) -> list[tuple[str, Iterator[str]]]:
        if name in seen or name not in self.nodes:  # an argument of a function is no node
            return []
        seen.add(name)
        return [(name, iter(self.sources(name)))]


class _Namer:
    """Names that are valid, and given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._counts: Counter[str] = Counter()

    def own(self, wanted: str) -> str:
        """The wanted name as far as it is valid and free."""
        valid = re.sub(r"[^A-Za-z0-9_.\-/]", "_", wanted)
        valid = valid if re.match(r"[A-Za-z0-9.]", valid) else f"t{valid}"
        return self._take(valid) if valid not in self._given else self.numbered(valid)

    def numbered(self, stem: str) -> str:
        """The next free `stem_N`."""
        while True:
            name = f"{stem}_{self._counts[stem]}"
            self._counts[stem] += 1
            if name not in self._given:
                return self._take(name)

    def _take(self, name: str) -> str:
        self._given.add(name)
        return name


class _Functions:
    """The library's functions that are called, renamed in the order in which they are met."""

    def __init__(self, library: Any) -> None:
        self._known = {function.signature.name: function for function in library.function}
        self._names: dict[str, str] = {}

    def rename(self, name: str) -> str:
        return self._names.setdefault(name, f"function_{len(self._names)}")

    def write(self, library: Any) -> None:
        written = 0
        while written < len(self._names):  # a body may call functions not met before
            name = list(self._names)[written]
            _copy_function(self._known[name], self._names[name], self, library.function.add())
            written += 1


def _copy_node(
    body: _Body, name: str, names: Mapping[str, str], functions: _Functions, made: Any
) -> None:
    node = body.nodes[name]
    made.name, made.op = names[name], node.op
    made.input.extend(_renamed(tensor, names) for tensor in body.sources(name))
    for key in sorted(node.attr):
        if not key.startswith("_") or key in KEPT_ATTRIBUTES:
            _copy_attribute(node.attr[key], functions.rename, made.attr[key])
    if node.op == "Const":
        _copy_tensor(node.attr["value"].tensor, made.attr["value"].tensor)


def _copy_attribute(value: Any, rename: Callable[[str], str], made: Any) -> None:
    made.CopyFrom(value)
    for function in (*([made.func] if value.HasField("func") else []), *made.list.func):
        function.name = rename(function.name)
        function.ClearField("attr")


def _copy_tensor(tensor: Any, made: Any) -> None:
    """One encoding for equal values: TensorProto has several, and each producer its own."""
    import tensorflow as tf

    made.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(tensor), dtype=tensor.dtype))


def _copy_function(function: Any, name: str, functions: _Functions, made: Any) -> None:
    signature = function.signature
    body = _Body(function.node_def, [function.ret[out.name] for out in signature.output_arg])
    order = body.walk()
    namer = _Namer()
    names = {arg.name: namer.own(f"arg_{i}") for i, arg in enumerate(signature.input_arg)}
    names |= {node: namer.numbered(body.nodes[node].op) for node in order}
    made.signature.name = name
    made.signature.is_stateful = signature.is_stateful
    for arg in signature.input_arg:
        _copy_argument(arg, names[arg.name], made.signature.input_arg.add())
    for i, arg in enumerate(signature.output_arg):
        _copy_argument(arg, f"ret_{i}", made.signature.output_arg.add())
        made.ret[f"ret_{i}"] = _renamed(body.resolve(function.ret[arg.name]), names)
    for node in order:
        _copy_node(body, node, names, functions, made.node_def.add())


def _copy_argument(arg: Any, name: str, made: Any) -> None:
    made.CopyFrom(arg)
    made.name = name
    made.ClearField("handle_data")


def _owner(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _number(tensor: str) -> int:
    """Which output of its node: `x` is the first, `x:2` (in a function, `x:output:2`) the third."""
    return int(tensor.rpartition(":")[2]) if ":" in tensor else 0


def _renamed(tensor: str, names: Mapping[str, str]) -> str:
    """The tensor under its node's new name. In a graph, `x` and `x:0` are one: `x` is kept."""
    node, colon, output = tensor.removeprefix("^").partition(":")
    edge = "^" if tensor.startswith("^") else ""
    return f"{edge}{names[node]}" + (f"{colon}{output}" if output != "0" else "")
