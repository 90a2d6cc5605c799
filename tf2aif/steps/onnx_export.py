"""onnx: the imported model as `model.onnx`, for every target that reads ONNX.

tf2onnx converts the frozen graph; what it gives is simplified, brought into canonical form, and
compared with the source model in ONNX Runtime before it counts.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..engines.signature import Signature, natural_key, read_signature, write_signature
from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:  # it imports numpy, and planning imports this
    from .onnx_compare import Source

VERSION = 1
TOOLCHAIN = "tf2onnx"
INPUTS = ("model",)

SIGNATURE = "serving_default"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which operators are used, and how far the outputs may be from the source's."""

    opset: Literal[17, 18] = 17
    """Version of ONNX's operators: TensorRT takes 17 or newer, tf2onnx 1.17 makes 18 at most."""
    tolerance: Annotated[float, Meta(gt=0, lt=1)] = 1e-3
    """Largest difference of an output from the source's, over the largest value of that output."""


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.onnx` and `signature.json`.

    Raises StepFailed where tf2onnx has no mapping for an operator of the model, which it names,
    where weights take 2 GiB or more, and where the outputs are not the source's.
    """
    from .onnx_compare import compare_models
    from .onnx_graph import all_nodes, canonical_form, write_model
    from .onnx_simplify import simplify

    options = msgspec.convert(job.options, Options)
    signature = read_signature(job.inputs["model"])
    source = read_source(job.inputs["model"], signature)
    model = _convert(source, options.opset)
    before = sum(1 for _ in all_nodes(model.graph))
    model = canonical_form(model, signature)
    simplify(model)
    model = canonical_form(model, signature)
    size = write_model(model, job.out)
    write_signature(job.out, signature)
    operators = Counter(node.op_type for node in all_nodes(model.graph))
    print(f"{before} nodes from tf2onnx, {operators.total()} written", flush=True)
    return {
        "size_bytes": size,
        "opset": options.opset,
        "operators": dict(sorted(operators.items())),
        **compare_models(source, job.out, signature, options.tolerance),
    }


def read_source(model: Path, signature: Signature) -> Source:
    """The graph of an import artifact, read without loading it into TensorFlow."""
    from tensorflow.core.protobuf import saved_model_pb2

    from .onnx_compare import Source

    content = (model / "saved_model" / "saved_model.pb").read_bytes()
    meta = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
    definition = meta.signature_def[SIGNATURE]
    return Source(
        meta.graph_def,
        {spec.name: definition.inputs[spec.name].name for spec in signature.inputs},
        {spec.name: definition.outputs[spec.name].name for spec in signature.outputs},
    )


def _convert(source: Source, opset: int) -> Any:
    """The frozen graph through tf2onnx: a ModelProto."""
    import tensorflow as tf
    from tf2onnx import tf_loader, tfonnx, utils

    graph = type(source.graph)()
    graph.CopyFrom(source.graph)
    _name_apart(graph)
    inputs, outputs = list(source.inputs.values()), list(source.outputs.values())
    utils.INTERNAL_NAME = 1  # counts over a whole process: a warm worker's is that of a fresh one
    names = {tensor: name for name, tensor in {**source.inputs, **source.outputs}.items()}
    with _Complaints() as complaints:
        try:
            with tf.Graph().as_default():
                graph = tf_loader.tf_optimize(inputs, outputs, graph)
            with tf.Graph().as_default() as loaded:
                tf.import_graph_def(graph, name="")
                del graph
                made = tfonnx.process_tf_graph(
                    loaded,
                    opset=opset,
                    input_names=inputs,
                    output_names=outputs,
                    tensors_to_rename=names,
                )
                complaints.check()
                return _optimize(made).make_model("")
        except StepFailed:
            raise
        except Exception as error:  # tf2onnx raises whatever its handlers meet
            complaints.check()
            raise complaints.failure(error) from error


def _name_apart(graph: Any) -> None:
    """Put each function's name before the names of its nodes.

    tf2onnx takes a tensor of a loop's body for one of the main graph where both have one name, and
    says then that the graph has cycles.
    """

    def renamed(tensor: str) -> str:
        edge = "^" if tensor.startswith("^") else ""
        return f"{edge}{prefix}_{tensor.removeprefix('^')}"

    for function in graph.library.function:
        prefix = function.signature.name
        for each in (*function.signature.input_arg, *function.node_def):
            each.name = renamed(each.name)
        for node in function.node_def:
            node.input[:] = [renamed(tensor) for tensor in node.input]
        for name in list(function.ret):
            function.ret[name] = renamed(function.ret[name])


def _optimize(graph: Any) -> Any:
    """tf2onnx's optimizers, over and over until none of them changes anything.

    Its own loop copies all weights after each of two dozen passes, into memory that is given back
    at the end only: 7.2 GB for ResNet50, where this takes 1.8.
    """
    from tf2onnx.optimizer import _get_optimizers

    graph.update_proto = lambda *_: None
    changed, iteration = True, 0
    while changed:
        changed = False
        for make in _get_optimizers().values():
            optimizer = make()
            graph = optimizer.optimize(graph, iteration)
            changed = changed or optimizer.graph_been_opt
        iteration += 1
    del graph.update_proto
    graph.topological_sort(graph.get_nodes())
    return graph


class _Complaints(logging.Handler):
    """What tf2onnx logs as errors while it converts: the operators are named there only."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._unsupported: dict[str, set[str]] = {}
        self._failed: list[str] = []

    def __enter__(self) -> _Complaints:
        logging.getLogger("tf2onnx").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("tf2onnx").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep which node it is about."""
        message = record.getMessage()
        if found := re.search(r"op \[(.+): (\w+)\] is not supported", message):
            self._unsupported.setdefault(found[2], set()).add(found[1])
        elif found := re.search(r"Failed to convert node '([^']+)'", message):
            self._failed.append(found[1])

    def check(self) -> None:
        """Raises StepFailed where an operator has no mapping: tf2onnx itself goes on."""
        if self._unsupported:
            told = [f"{op} ({_some(nodes)})" for op, nodes in sorted(self._unsupported.items())]
            raise StepFailed(
                f"ONNX has nothing that tf2onnx could make of: {', '.join(told)}",
                hint="build the model from other operators, leave this part to the service's "
                "hooks, or take a target with another engine",
            )

    def failure(self, error: Exception) -> StepFailed:
        """What tf2onnx raised, with the nodes that it failed at."""
        nodes = f" {_some(set(self._failed))}" if self._failed else " the model"
        return StepFailed(
            f"tf2onnx cannot convert{nodes}: {str(error).strip()[-600:] or type(error).__name__}",
            hint="the log tells more; build the model from other operators, or take a target "
            "with another engine",
        )


def _some(nodes: set[str]) -> str:
    named = sorted(nodes, key=natural_key)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more
