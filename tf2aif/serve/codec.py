"""Tensors of the Open Inference Protocol v2 on the wire, in both directions.

A message is JSON, or JSON followed by the raw bytes of its binary tensors in order (the binary
tensor extension); the length of the JSON part then travels beside the message, in HTTP as the
header `Inference-Header-Content-Length`. The codec knows tensors and messages, no model and no
HTTP: whoever calls it compares what was sent with what the model takes.

Source: the Open Inference Protocol, "HTTP/REST" and "Binary tensor data extension".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct
from numpy.typing import NDArray

from .datatypes import NUMPY, datatype_of
from .failures import invalid

Array = NDArray[Any]

MAX_RANK = 32  # numpy's own limit is 64; no model comes near either
_MAX_TIMEOUT_US = 2**53


class Wanted(Struct, frozen=True):
    """An output that was asked for, and whether as binary data."""

    name: str
    binary: bool


class Request(Struct, frozen=True, kw_only=True):
    """A request for inference: its tensors by name, and which outputs are wanted (none: all)."""

    inputs: dict[str, Array]
    id: str = ""
    outputs: tuple[Wanted, ...] = ()
    binary: bool = False  # the outputs, where `outputs` names none
    timeout_s: float | None = None


class Response(Struct, frozen=True, kw_only=True):
    """An answer: the outputs by name, from this model and version."""

    model_name: str
    outputs: dict[str, Array]
    model_version: str = ""
    id: str = ""


class _WireTensor(Struct):
    name: str
    shape: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=MAX_RANK)]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Raw = Raw()


class _WireWanted(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _WireRequest(Struct):
    inputs: list[_WireTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_WireWanted] | None = None


class _WireResponse(Struct):
    model_name: str
    outputs: list[_WireTensor]
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


_REQUEST = msgspec.json.Decoder(_WireRequest)
_RESPONSE = msgspec.json.Decoder(_WireResponse)
_ENCODE = msgspec.json.Encoder().encode


def decode_request(body: bytes | memoryview, json_length: int | None = None) -> Request:
    """A request from its bytes; `json_length` where binary tensors follow the JSON.

    Raises RequestFailed (INVALID) that says what is wrong and in which tensor. Binary tensors
    are views of `body`, read-only.
    """
    wire, rest = _split(body, json_length, _REQUEST)
    outputs = tuple(_wanted(each, wire.parameters) for each in wire.outputs or ())
    if len({each.name for each in outputs}) != len(outputs):
        raise invalid("an output is asked for twice")
    return Request(
        inputs=_tensors(wire.inputs, rest, "input"),
        id=wire.id or "",
        outputs=outputs,
        binary=_flag(wire.parameters, "binary_data_output", "the request"),
        timeout_s=_timeout(wire.parameters),
    )


def decode_response(body: bytes | memoryview, json_length: int | None = None) -> Response:
    """An answer from its bytes. Raises RequestFailed (INVALID) where they are not one."""
    wire, rest = _split(body, json_length, _RESPONSE)
    return Response(
        model_name=wire.model_name,
        outputs=_tensors(wire.outputs, rest, "output"),
        model_version=wire.model_version or "",
        id=wire.id or "",
    )


def encode_request(request: Request, *, binary: bool = True) -> tuple[bytes, int | None]:
    """A request's bytes, and the length of their JSON part where binary tensors follow it.

    `binary` says how the inputs travel; `request.binary` how the outputs shall come back.
    Raises RequestFailed (INVALID) where JSON cannot hold a value (NaN, bytes that are no UTF-8).
    """
    message: dict[str, Any] = {}
    if request.id:
        message["id"] = request.id
    parameters: dict[str, Any] = {}
    if request.binary:
        parameters["binary_data_output"] = True
    if request.timeout_s is not None:
        parameters["timeout"] = round(request.timeout_s * 1e6)
    if parameters:
        message["parameters"] = parameters
    if request.outputs:
        message["outputs"] = [
            {"name": each.name, "parameters": {"binary_data": each.binary}}
            for each in request.outputs
        ]
    tensors = [(name, array, binary) for name, array in request.inputs.items()]
    return _join(message, "inputs", tensors)


def encode_response(
    response: Response, wanted: Sequence[Wanted] = (), *, binary: bool = False
) -> tuple[bytes, int | None]:
    """An answer's bytes, and the length of their JSON part where binary tensors follow it.

    `wanted` picks and orders the outputs; without it all come, all binary or all JSON.
    Raises RequestFailed (INVALID) where JSON cannot hold a value, and where an output is unknown.
    """
    message: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        message["model_version"] = response.model_version
    if response.id:
        message["id"] = response.id
    picked = wanted or [Wanted(name, binary) for name in response.outputs]
    for each in picked:
        if each.name not in response.outputs:
            known = ", ".join(f"'{name}'" for name in response.outputs)
            raise invalid(f"there is no output '{each.name}'; there are: {known}")
    tensors = [(each.name, response.outputs[each.name], each.binary) for each in picked]
    return _join(message, "outputs", tensors)


def _split(
    body: bytes | memoryview, json_length: int | None, decoder: msgspec.json.Decoder[Any]
) -> tuple[Any, memoryview]:
    """The JSON part, decoded, and what follows it."""
    view = memoryview(body)
    if json_length is None:
        json_length = len(view)
    if not 0 < json_length <= len(view):
        raise invalid(
            f"the JSON part is said to have {json_length} bytes, the body has {len(view)}"
        )
    try:
        return decoder.decode(view[:json_length]), view[json_length:]
    except RecursionError:
        raise invalid("the JSON is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the JSON does not fit the protocol: {error}") from None


def _wanted(wire: _WireWanted, request_parameters: Mapping[str, Any] | None) -> Wanted:
    where = f"output '{wire.name}'"
    if wire.parameters and wire.parameters.get("classification"):
        raise invalid(f"{where}: the classification extension is not offered")
    _refuse_shared_memory(wire.parameters, where)
    if wire.parameters and "binary_data" in wire.parameters:
        return Wanted(wire.name, _flag(wire.parameters, "binary_data", where))
    return Wanted(wire.name, _flag(request_parameters, "binary_data_output", "the request"))


def _flag(parameters: Mapping[str, Any] | None, key: str, where: str) -> bool:
    value = (parameters or {}).get(key, False)
    if not isinstance(value, bool):
        raise invalid(f"{where}: parameter '{key}' is true or false, not {value!r:.40}")
    return value


def _timeout(parameters: Mapping[str, Any] | None) -> float | None:
    """The parameter `timeout`, in microseconds as Triton's clients send it, as seconds."""
    value = (parameters or {}).get("timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MAX_TIMEOUT_US:
        raise invalid(
            f"parameter 'timeout' is a positive number of microseconds, not {value!r:.40}"
        )
    return value / 1e6


def _refuse_shared_memory(parameters: Mapping[str, Any] | None, where: str) -> None:
    if parameters and any(key.startswith("shared_memory") for key in parameters):
        raise invalid(f"{where}: the shared memory extension is not offered")


def _tensors(wires: list[_WireTensor], rest: memoryview, word: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for wire in wires:
        where = f"{word} '{wire.name}'"
        if wire.name in found:
            raise invalid(f"{where} is there twice")
        if wire.datatype not in NUMPY:
            raise invalid(
                f"{where}: unknown datatype '{wire.datatype}'; there are: {', '.join(NUMPY)}"
            )
        found[wire.name], rest = _tensor(wire, rest, where)
    if len(rest):
        raise invalid(f"{len(rest)} bytes follow the last binary tensor")
    return found


def _tensor(wire: _WireTensor, rest: memoryview, where: str) -> tuple[Array, memoryview]:
    _refuse_shared_memory(wire.parameters, where)
    size = (wire.parameters or {}).get("binary_data_size")
    has_data = len(memoryview(wire.data)) > 0
    if size is None:
        if not has_data:
            raise invalid(f"{where} has neither 'data' nor the parameter 'binary_data_size'")
        return _from_json(wire, where), rest
    if has_data and bytes(wire.data) != b"null":
        raise invalid(f"{where} has both 'data' and the parameter 'binary_data_size'")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
        raise invalid(
            f"{where}: 'binary_data_size' is {size!r:.40}, {len(rest)} bytes of the body are left"
        )
    return _from_bytes(rest[:size], wire.datatype, wire.shape, where), rest[size:]


def _from_bytes(raw: memoryview, datatype: str, shape: list[int], where: str) -> Array:
    count = math.prod(shape)
    if datatype == "BYTES":
        return _shaped(_strings_from_bytes(raw, count, where), shape, where)
    dtype = NUMPY[datatype]
    if len(raw) != count * dtype.itemsize:
        raise invalid(
            f"{where}: shape {shape} of {datatype} takes {count * dtype.itemsize} bytes, "
            f"{len(raw)} were sent"
        )
    if datatype == "BOOL" and count and int(np.frombuffer(raw, np.uint8).max()) > 1:
        raise invalid(f"{where}: a BOOL is one byte, 0 or 1")
    return _shaped(np.frombuffer(raw, dtype), shape, where)


def _shaped(array: Array, shape: list[int], where: str) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:  # no elements, and axes whose product overflows
        raise invalid(f"{where}: no tensor has the shape {shape}") from None


def _strings_from_bytes(raw: memoryview, count: int, where: str) -> Array:
    """Elements of 4 bytes length, little-endian, and that many bytes each."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or at > len(raw):
            raise invalid(f"{where}: element {len(found)} runs past the tensor's bytes")
        found.append(bytes(raw[start:at]))
    if len(found) != count:
        raise invalid(f"{where}: the shape takes {count} elements, {len(found)} were sent")
    return _objects(found)


def _objects(elements: Iterable[bytes]) -> Array:
    listed = list(elements)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def _from_json(wire: _WireTensor, where: str) -> Array:
    """Values in row-major order, flat or nested as the shape says."""
    raw = memoryview(wire.data)
    depth = _depth(raw)
    if depth == 0 or depth not in (1, max(1, len(wire.shape))):
        raise invalid(f"{where}: 'data' is a flat list, or nested as the shape {wire.shape} says")
    element = str if wire.datatype == "BYTES" else _ELEMENT[NUMPY[wire.datatype].kind]
    try:
        values = _decoder(element, depth).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"{where}: 'data' is not {wire.datatype}: {error}") from None
    array = _array(values, wire.datatype, where)
    if (depth > 1 and array.shape != tuple(wire.shape)) or array.size != math.prod(wire.shape):
        raise invalid(f"{where}: the shape is {wire.shape}, the data has {list(array.shape)}")
    return _shaped(array, wire.shape, where)


_ELEMENT: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float}
_decoders: dict[tuple[type, int], msgspec.json.Decoder[Any]] = {}


def _decoder(element: type, depth: int) -> msgspec.json.Decoder[Any]:
    """A decoder of lists in lists, `depth` deep, of that element. Made once each."""
    known = _decoders.get((element, depth))
    if known is None:
        kind: Any = element
        for _ in range(depth):
            kind = list[kind]
        known = _decoders[element, depth] = msgspec.json.Decoder(kind)
    return known


def _depth(raw: memoryview) -> int:
    """How many lists open before the first value."""
    depth = 0
    for byte in raw:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
        if depth > MAX_RANK:
            break
    return depth


def _array(values: list[Any], datatype: str, where: str) -> Array:
    """The decoded lists as an array. Ragged lists and numbers that do not fit are refused."""
    if datatype == "BYTES":
        array = np.array(values, dtype=object)
        if any(not isinstance(each, str) for each in array.flat):
            raise invalid(f"{where}: the lists in 'data' are not all of one length")
        return _objects(each.encode() for each in array.flat).reshape(array.shape)
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype=NUMPY[datatype])
    except (OverflowError, FloatingPointError):
        raise invalid(f"{where}: a number in 'data' does not fit {datatype}") from None
    except ValueError:
        raise invalid(f"{where}: the lists in 'data' are not all of one length") from None


def _join(
    message: dict[str, Any], key: str, tensors: Iterable[tuple[str, Array, bool]]
) -> tuple[bytes, int | None]:
    """The message's bytes: JSON, then the binary tensors in order."""
    listed: list[dict[str, Any]] = []
    chunks: list[bytes | memoryview] = []
    for name, array, binary in tensors:
        datatype = datatype_of(array.dtype)
        tensor: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype}
        if binary:
            raw = _to_bytes(array, datatype)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            chunks.append(raw)
        else:
            tensor["data"] = _to_json(array, datatype, name)
        listed.append(tensor)
    message[key] = listed
    head = _ENCODE(message)
    if not chunks:
        return head, None
    return b"".join([head, *chunks]), len(head)


def _to_bytes(array: Array, datatype: str) -> bytes:
    if datatype == "BYTES":
        elements = [_as_bytes(each) for each in array.flat]
        return b"".join(
            part for each in elements for part in (len(each).to_bytes(4, "little"), each)
        )
    return array.astype(NUMPY[datatype], copy=False).tobytes()


def _as_bytes(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    return str(element).encode()


def _to_json(array: Array, datatype: str, name: str) -> list[Any]:
    if datatype == "BYTES":
        try:
            return [_as_bytes(each).decode() for each in array.flat]
        except UnicodeDecodeError:
            raise invalid(
                f"tensor '{name}' is not UTF-8: JSON cannot hold it, binary data can"
            ) from None
    if datatype.startswith("FP") and not np.isfinite(array).all():
        raise invalid(f"tensor '{name}' has NaN or infinity: JSON cannot hold it, binary data can")
    values: list[Any] = array.ravel().tolist()
    return values
