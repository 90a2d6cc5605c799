"""openvino: the imported model as `model.xml` and `model.bin`, for OpenVINO."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..engines import Array
from ..engines.signature import Signature, read_signature, write_signature
from ..errors import StepFailed
from . import Job

VERSION = 2
TOOLCHAIN = "openvino"
INPUTS = ("model",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is quantised. `preset` belongs to int8: NNCF's `mixed` has asymmetric activations."""

    precision: Literal["fp32", "int8"] = "fp32"
    preset: Literal["performance", "mixed"] = "performance"


def inputs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Which artifacts these options need: a calibration set for int8 only."""
    quantised = msgspec.convert(options, Options).precision == "int8"
    return ("model", "calibration") if quantised else INPUTS


def run(job: Job) -> Mapping[str, Any]:
    """Write `model.xml`, `model.bin` and `signature.json`.

    Weights stay float32 where nothing is quantised. Raises StepFailed where OpenVINO cannot read
    an operator of the model, which it names.
    """
    import openvino as ov

    from .calibration import calibration_feeds

    options = msgspec.convert(job.options, Options)
    signature = read_signature(job.inputs["model"])
    model = _convert(job.inputs["model"] / "saved_model", signature)
    if options.precision == "int8":
        feeds = list(calibration_feeds(job.inputs["calibration"], signature))
        model = _canonical(_quantise(model, feeds, options.preset), signature)
    ov.save_model(model, str(job.out / "model.xml"), compress_to_fp16=False)
    described = _described(model, signature)
    write_signature(job.out, described)
    return {"size_bytes": sum(file.stat().st_size for file in job.out.glob("model.*"))}


def _convert(saved_model: Path, signature: Signature) -> Any:
    import openvino as ov
    from openvino import frontend

    failures = (
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )
    try:
        model = ov.convert_model(str(saved_model))
    except (RuntimeError, *failures) as error:
        raise _unsupported(str(error)) from error
    return _canonical(model, signature)


def _quantise(model: Any, feeds: list[dict[str, Array]], preset: str) -> Any:
    """Post-training quantisation by NNCF over the whole calibration set."""
    import nncf

    try:
        made = nncf.quantize(
            model,
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(feeds),
        )
    except (RuntimeError, ValueError, nncf.errors.InternalError) as error:
        raise StepFailed(f"NNCF cannot quantise it: {error}") from error
    # NNCF ends well where it found nothing to do; what it made would be fp32 under another name.
    if not any(node.get_type_name() == "FakeQuantize" for node in made.get_ops()):
        raise StepFailed(
            "NNCF found nothing in the model that it can quantise",
            hint="leave int8 of this target out of the recipe",
        )
    return made


def _canonical(model: Any, signature: Signature) -> Any:
    """The same model without what tells one conversion from the next.

    Names that OpenVINO makes up count from the start of the process, and its notes (rt_info) hold
    the path of the source.
    """
    import openvino as ov

    inputs = [_port(model.inputs, spec.name) for spec in signature.inputs]
    outputs = [_port(model.outputs, spec.name) for spec in signature.outputs]
    made = ov.Model(
        [port.node for port in outputs],
        model.get_sinks(),
        [port.node for port in inputs],
        "model",
    )
    _rename(made)
    for port, spec in zip(made.inputs, signature.inputs, strict=True):
        port.node.set_friendly_name(spec.name)
        port.tensor.set_names({spec.name})
    for port, spec in zip(made.outputs, signature.outputs, strict=True):
        port.tensor.set_names({spec.name})
    return made


def _port(ports: Any, name: str) -> Any:
    for port in ports:
        if name in port.names:
            return port
    raise StepFailed(f"OpenVINO dropped '{name}', which nothing in the model uses")


def _rename(model: Any, prefix: str = "") -> None:
    for i, op in enumerate(model.get_ordered_ops()):
        name = f"{prefix}{op.get_type_name()}_{i}"
        op.set_friendly_name(name)
        for body in _bodies(op):
            _rename(body, f"{name}/")


def _bodies(op: Any) -> list[Any]:
    kind = op.get_type_name()
    if kind in ("Loop", "TensorIterator"):
        return [op.get_function()]
    return [op.get_function(i) for i in range(2)] if kind == "If" else []


def _described(model: Any, source: Signature) -> Signature:
    """The source's signature with the shapes that OpenVINO knows."""
    return Signature(
        inputs=source.inputs,
        outputs=tuple(
            msgspec.structs.replace(spec, shape=_shape(port.partial_shape))
            for port, spec in zip(model.outputs, source.outputs, strict=True)
        ),
    )


def _shape(shape: Any) -> tuple[int | None, ...]:
    return tuple(None if length.is_dynamic else int(length.get_length()) for length in shape)


def _unsupported(message: str) -> StepFailed:
    found = re.findall(
        r"(?:No conversion rule found for operations|No translator found for):? ([\w, ]+)", message
    )
    operators = {name.strip() for names in found for name in names.split(",")}
    if operators:
        return StepFailed(
            f"OpenVINO does not support: {', '.join(sorted(operators))}",
            hint="build the model from other operators, or take a target with another engine",
        )
    return StepFailed(f"OpenVINO cannot convert it: {message.strip()[-600:]}")
