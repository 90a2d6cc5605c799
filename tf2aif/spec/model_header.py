"""What can be read of a model without TensorFlow: its signatures, with names, dtypes and shapes.

Sources: tensorflow/core/protobuf/{saved_model,meta_graph}.proto and framework/{types,
tensor_shape}.proto for a SavedModel; the `config.json` of a `.keras` archive; the attribute
`model_config` of an `.h5` file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from ..errors import Fault, FilesError
from .wire import Span, as_signed, as_span, read_fields, read_message, read_text, whole

SERVING = "serving_default"

Shape = tuple[int | None, ...]

# DataType of framework/types.proto, as numpy names them.
_DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
}


class Tensor(msgspec.Struct, frozen=True):
    """An input or output; None: not known, and in a shape: open."""

    name: str
    dtype: str | None = None
    shape: Shape | None = None


class Signature(msgspec.Struct, frozen=True):
    """What one call takes and gives, by name in alphabetical order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] = ()


class ModelHeader(msgspec.Struct, frozen=True):
    """A model's signatures by name; none where they cannot be read without TensorFlow."""

    format: Literal["saved_model", "keras", "h5"]
    signatures: dict[str, Signature] = {}

    def default(self) -> str | None:
        """The signature that is used where none is named: serving_default, or the only one."""
        if SERVING in self.signatures:
            return SERVING
        return next(iter(self.signatures)) if len(self.signatures) == 1 else None


def read_header(path: Path) -> ModelHeader:
    """Read the header of a SavedModel folder, a `.keras` file or an `.h5` file, by its content.

    Raises FilesError where it is none of them, or not whole.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        if zipfile.is_zipfile(path):
            return _read_keras(path)
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise _refuse(path, f"cannot be read: {error.strerror or error}") from error
    if start == b"\x89HDF\r\n\x1a\n":
        return _read_h5(path)
    raise _refuse(path, f"not a model that we read{_guess(path, start)}", _WANTED)


_WANTED = "a SavedModel folder, a .keras file or an .h5 file is wanted"


def _guess(path: Path, start: bytes) -> str:
    if start[4:] == b"TFL3":
        return ": it is a TFLite model, already converted"
    if path.suffix == ".onnx":
        return ": it is an ONNX model"
    if path.name == "saved_model.pb":
        return ": name the folder that it is in"
    return ""


def _refuse(path: Path, message: str, hint: str = "") -> FilesError:
    return FilesError([Fault(message, str(path), hint)])


def _read_folder(path: Path) -> ModelHeader:
    file = path / "saved_model.pb"
    if not file.exists():
        if (path / "saved_model.pbtxt").exists():
            return ModelHeader("saved_model")
        raise _refuse(path, "no saved_model.pb in this folder", _WANTED)
    with file.open("rb") as stream:
        try:
            return ModelHeader("saved_model", dict(sorted(_signatures(stream))))
        except (ValueError, KeyError, IndexError) as error:
            message = f"not a whole SavedModel: {error}"
            raise _refuse(file, message, "export or copy it again") from error


def _signatures(stream: BinaryIO) -> Iterator[tuple[str, Signature]]:
    """The signatures of the graph that is tagged `serve`, or of the first one."""
    graphs = [as_span(v) for number, v in read_fields(stream, whole(stream)) if number == 2]
    if not graphs:
        raise ValueError("it holds no graph")
    chosen = next((span for span in graphs if "serve" in _tags(stream, span)), graphs[0])
    for number, value in read_fields(stream, chosen):
        if number == 5:  # map<string, SignatureDef> signature_def
            entry = read_message(stream, as_span(value))
            name = read_text(stream, entry[1][0])
            if not name.startswith("__"):  # __saved_model_init_op and its like
                yield name, _signature(stream, as_span(entry[2][0]))


def _tags(stream: BinaryIO, graph: Span) -> list[str]:
    for number, value in read_fields(stream, graph):
        if number == 1:  # MetaInfoDef; its field 4: repeated string tags
            info = read_message(stream, as_span(value))
            return [read_text(stream, tag) for tag in info.get(4, [])]
    return []


def _signature(stream: BinaryIO, span: Span) -> Signature:
    fields = read_message(stream, span)
    sides = ([_tensor(stream, as_span(v)) for v in fields.get(number, [])] for number in (1, 2))
    inputs, outputs = (tuple(sorted(side, key=lambda t: t.name)) for side in sides)
    return Signature(inputs, outputs)


def _tensor(stream: BinaryIO, span: Span) -> Tensor:
    """An entry of map<string, TensorInfo>."""
    entry = read_message(stream, span)
    name = read_text(stream, entry[1][0])
    info = read_message(stream, as_span(entry[2][0])) if 2 in entry else {}
    dtype = _DTYPES.get(as_signed(info[2][0])) if 2 in info else None
    shape = _shape(stream, as_span(info[3][0])) if 3 in info else None
    return Tensor(name, dtype, shape)


def _shape(stream: BinaryIO, span: Span) -> Shape | None:
    fields = read_message(stream, span)
    if 3 in fields and fields[3][0]:  # unknown_rank
        return None
    sizes = []
    for dim in fields.get(2, []):
        size = as_signed(read_message(stream, as_span(dim)).get(1, [0])[0])
        sizes.append(None if size < 0 else size)
    return tuple(sizes)


def _read_keras(path: Path) -> ModelHeader:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except KeyError as error:
        raise _refuse(path, "no config.json in it: not a .keras file", _WANTED) from error
    except (zipfile.BadZipFile, ValueError) as error:
        hint = "save or copy it again"
        raise _refuse(path, f"not a whole .keras file: {error}", hint) from error
    return ModelHeader("keras", _keras_signatures(config))


def _read_h5(path: Path) -> ModelHeader:
    try:
        import h5py
    except ImportError:  # it comes with TensorFlow; without it the file is read by the import step
        return ModelHeader("h5")
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    except OSError as error:
        raise _refuse(path, f"not a whole .h5 file: {error}", "save or copy it again") from error
    if text is None:
        hint = "save the whole model, not its weights: model.save('model.h5')"
        raise _refuse(path, "it holds weights and no model", hint)
    return ModelHeader("h5", _keras_signatures(json.loads(text)))


def _keras_signatures(config: Any) -> dict[str, Signature]:
    """The one signature of a Keras model; outputs are in no config. Nothing where it is custom."""
    try:
        inputs = tuple(_keras_inputs(config["config"], config.get("build_config") or {}))
    except (KeyError, TypeError, IndexError, AttributeError):
        return {}
    return {SERVING: Signature(inputs)} if inputs else {}


def _keras_inputs(model: Any, build: Any) -> Iterator[Tensor]:
    layers = model["layers"] if isinstance(model, dict) else model  # a list in the oldest files
    wanted = _layer_names(model.get("input_layers")) if isinstance(model, dict) else []
    found = [layer for layer in layers if layer["class_name"] == "InputLayer"]
    if wanted:
        by_name = {layer["config"]["name"]: layer for layer in found}
        found = [by_name[name] for name in wanted if name in by_name]
    for layer in found:
        config = layer["config"]
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        yield Tensor(config["name"], _keras_dtype(config.get("dtype")), _open_shape(shape))
    if not found:  # a Sequential without an InputLayer says its shape in its first layer
        first = layers[0]["config"]
        shape = first.get("batch_input_shape") or build.get("input_shape")
        if shape:
            yield Tensor(f"{first['name']}_input", _keras_dtype(first.get("dtype")), tuple(shape))


def _layer_names(places: Any) -> list[str]:
    """The layers in `input_layers`: one [name, node, tensor], or lists or mappings of them."""
    if isinstance(places, dict):
        return [name for place in places.values() for name in _layer_names(place)]
    if isinstance(places, list):
        if places and isinstance(places[0], str):
            return [places[0]]
        return [name for place in places for name in _layer_names(place)]
    return []


def _keras_dtype(dtype: Any) -> str | None:
    """A dtype, or the compute dtype of a serialised policy."""
    if isinstance(dtype, dict):
        dtype = dtype.get("config", {}).get("name")
    return dtype if isinstance(dtype, str) and not dtype.startswith("mixed") else None


def _open_shape(shape: Any) -> Shape | None:
    return None if shape is None else tuple(shape)
