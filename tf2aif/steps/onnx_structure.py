"""onnx-structure: an ONNX model without what training changes, for measuring how fast kernels are.

Weights are replaced by numbers that hang on their name and shape alone, so a model that was trained
anew has the same structure, byte for byte. What decides shapes stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import msgspec

from . import Job

VERSION = 2
TOOLCHAIN = "onnx"
INPUTS = ("model",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """There are none."""


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.onnx` and `signature.json`. Returns how many tensors were replaced.

    Raises StepFailed for an operator that TensorRT lacks: this step needs no device, so that is
    told before an engine is asked for, or a bundle goes to one.
    """
    import onnx

    from .onnx_graph import all_nodes
    from .trt_operators import check_operators

    model = onnx.load(str(job.inputs["model"] / "model.onnx"))
    check_operators(all_nodes(model.graph))
    scales = set(_scales(model.graph))
    replaced = sum(_replace(tensor, tensor.name in scales) for tensor in _weights(model.graph))
    (job.out / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    shutil.copyfile(job.inputs["model"] / "signature.json", job.out / "signature.json")
    return {"replaced": replaced}


def _weights(graph: Any) -> Iterator[Any]:
    """Every stored tensor of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (attribute.g, *attribute.graphs):
                yield from _weights(inner)


def _scales(graph: Any) -> Iterator[str]:
    """The names of tensors that are scales of Q/DQ: calibration made them."""
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield node.input[1]


def _replace(tensor: Any, is_scale: bool) -> bool:
    """Put other numbers in place of a tensor's own, if training could have changed them.

    Integers of 32 and 64 bits are shapes and indices. An int8 tensor of zeros is a zero point,
    which must stay 0. A lone float that is no scale is a constant of the code, such as the 6 of
    ReLU6. Other floats become positive ones, as scales must be, and none is 0 or 1, which a
    compiler would simplify away.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    values = numpy_helper.to_array(tensor)
    draw = np.random.default_rng(crc32(repr((tensor.name, values.shape)).encode()))
    if tensor.data_type in floats and (values.ndim or is_scale):
        made = draw.uniform(0.25, 0.75, values.shape).astype(values.dtype)
    elif tensor.data_type == TensorProto.INT8 and values.any():
        made = draw.integers(1, 127, values.shape).astype(np.int8)
    else:
        return False
    tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
    return True
