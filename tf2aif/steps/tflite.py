"""tflite: the imported model as `model.tflite`, for LiteRT."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..engines import Quantization, TensorSpec
from ..engines.signature import Signature, read_signature, write_signature
from ..errors import StepFailed
from . import Job

VERSION = 1
TOOLCHAIN = "tensorflow"
INPUTS = ("model",)

SIGNATURE = "serving_default"

Precision = Literal["fp32", "fp16", "dynamic", "int8"]
Door = Literal["float", "int8", "uint8"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is quantised.

    `fp16` stores weights as float16; `dynamic` stores them as int8 and computes in float32 or
    int8; `int8` stores and computes in int8 with the calibration set's ranges. `inputs` and
    `outputs` say what an int8 model takes and gives where its source has floats.
    """

    precision: Precision = "fp32"
    inputs: Door = "float"
    outputs: Door = "float"


def inputs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Which artifacts these options need: a calibration set for int8 only."""
    quantised = msgspec.convert(options, Options).precision == "int8"
    return ("model", "calibration") if quantised else INPUTS


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.tflite` and `signature.json`.

    Raises StepFailed where TensorFlow Lite lacks an operator of the model, which it names.
    """
    options = msgspec.convert(job.options, Options)
    if options.precision != "int8" and (options.inputs, options.outputs) != ("float", "float"):
        raise StepFailed(
            f"precision {options.precision} has float inputs and outputs",
            hint="'inputs' and 'outputs' belong to precision int8",
        )
    signature = read_signature(job.inputs["model"])
    with warnings.catch_warnings():
        # The interpreter, which the calibration uses too, points to ai-edge-litert; TensorFlow 2.21
        # still needs its own.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        content = _convert(job.inputs, options, signature)
        described = _described(content, signature)
    (job.out / "model.tflite").write_bytes(content)
    write_signature(job.out, described)
    return {"size_bytes": len(content)}


def _convert(inputs: Mapping[str, Path], options: Options, signature: Signature) -> bytes:
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    from .calibration import calibration_feeds

    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(inputs["model"] / "saved_model"), signature_keys=[SIGNATURE]
    )
    if options.precision != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if options.precision == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if options.precision == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = _door(tf, options.inputs)
        converter.inference_output_type = _door(tf, options.outputs)
        _check_loops(inputs["model"])
        converter.representative_dataset = lambda: calibration_feeds(
            inputs["calibration"], signature
        )
    try:
        return bytes(converter.convert())
    except ConverterError as error:
        raise _unsupported(str(error)) from error
    except (ValueError, RuntimeError) as error:
        raise StepFailed(f"TensorFlow Lite cannot convert it: {error}") from error


def _door(tf: Any, door: Door) -> Any:
    return {"float": tf.float32, "int8": tf.int8, "uint8": tf.uint8}[door]


def _unsupported(message: str) -> StepFailed:
    """The converter's pages of MLIR as one sentence that names the operators."""
    names = re.findall(r"(?:TF Select|Custom|Flex) ops: ([\w, .:]+)", message)
    operators = {name.strip() for found in names for name in found.split(",") if name.strip()}
    operators |= set(re.findall(r"failed to legalize operation '(?:tf\.|tfl\.)?([\w.]+)'", message))
    operators |= set(re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", message))
    operators |= set(re.findall(r"not (?:yet )?supported for op: '?(\w+)'?", message))
    if not operators:
        return StepFailed(f"TensorFlow Lite cannot convert it: {message.strip()[-600:]}")
    if any(name.startswith("TensorList") for name in operators):
        return StepFailed(
            f"TensorFlow Lite does not support: {', '.join(sorted(operators))} of open shape",
            hint="recurrent layers need a fixed batch: 'batch: 1' in the recipe's model",
        )
    return StepFailed(
        f"TensorFlow Lite does not support: {', '.join(sorted(operators))}",
        hint="build the model from other operators, or take a target with another engine",
    )


def _described(content: bytes, source: Signature) -> Signature:
    """The signature as the file has it: dtypes, shapes and quantisation, in the source's order."""
    import tensorflow as tf

    runner = tf.lite.Interpreter(model_content=content).get_signature_runner(SIGNATURE)
    ins, outs = runner.get_input_details(), runner.get_output_details()
    return Signature(
        inputs=tuple(_spec(spec, ins) for spec in source.inputs),
        outputs=tuple(_spec(spec, outs) for spec in source.outputs),
    )


def _check_loops(model: Path) -> None:
    """Raises StepFailed for loops: calibrating one ends TensorFlow 2.21's process with SIGSEGV."""
    from tensorflow.core.protobuf import saved_model_pb2

    content = (model / "saved_model" / "saved_model.pb").read_bytes()
    graph = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].graph_def
    if any(node.op in ("While", "StatelessWhile") for node in graph.node):
        raise StepFailed(
            "TensorFlow Lite cannot quantise loops (While) to int8",
            hint="build recurrent layers with unroll=True, or take precision dynamic",
        )


def _spec(source: TensorSpec, details: Mapping[str, Any]) -> TensorSpec:
    if source.name not in details:
        raise StepFailed(
            f"TensorFlow Lite dropped '{source.name}', which nothing in the model uses"
        )
    import numpy as np

    detail = details[source.name]
    dtype = np.dtype(detail["dtype"]).name
    quantised = dtype in ("int8", "uint8", "int16") and dtype != source.dtype
    return TensorSpec(
        name=source.name,
        dtype=dtype,
        shape=tuple(None if n < 0 else int(n) for n in detail["shape_signature"]),
        quantization=_quantization(detail["quantization_parameters"]) if quantised else None,
    )


def _quantization(found: Mapping[str, Any]) -> Quantization:
    return Quantization(
        scale=tuple(float(scale) for scale in found["scales"]),
        zero_point=tuple(int(zero) for zero in found["zero_points"]),
        axis=int(found["quantized_dimension"]) if len(found["scales"]) > 1 else None,
    )
