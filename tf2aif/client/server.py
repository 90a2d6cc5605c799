"""A model at an address: what it takes and gives, and asking it from several threads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..errors import Tf2aifError
from ..serve.codec import Request, decode_response, encode_request
from ..serve.datatypes import datatype_of
from ..serve.failures import RequestFailed
from .address import Address
from .connection import Connection, ConnectionFailed, Reply, head
from .samples import Payload, Samples
from .stages import find_model

Array = NDArray[Any]

CACHE_BYTES = 256 * 2**20  # of messages of single samples, encoded once
JSON_LENGTH = "inference-header-content-length"


class Tensor(Struct, frozen=True):
    """An input or output as the metadata has it; -1 is a free axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What a server says of its model."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class _Error(Struct):
    error: str = ""


class Messages(Protocol):
    """Samples as whole HTTP requests."""

    count: int
    rows: int | None  # most samples in one request; None: any number

    def of(self, indices: Sequence[int]) -> bytes:
        """The request that asks for these samples."""

    def outputs(self, reply: Reply) -> dict[str, Array]:
        """The tensors of an answer; axis 0 is the samples. Raises RequestFailed."""


class Server:
    """One server, asked about itself."""

    def __init__(self, address: Address, *, timeout_s: float = 30.0) -> None:
        self.address = address
        self.timeout_s = timeout_s

    def get(self, path: str) -> Reply:
        """Ask for a path on a connection of its own. Raises Tf2aifError where no answer comes."""
        connection = Connection(self.address, self.timeout_s)
        try:
            return connection.request("GET", path)
        except ConnectionFailed as error:
            raise Tf2aifError(
                f"no answer: {error}", at=self.address.url, hint="is the server started?"
            ) from error
        finally:
            connection.close()

    def wait_ready(self, timeout_s: float) -> None:
        """Return when the server is ready. Raises Tf2aifError when it is not in that time."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                if self.get("/v2/health/ready").status == 200:
                    return
                why = "it says that it is not ready"
            except Tf2aifError as error:
                why = error.faults[0].message
            if time.monotonic() >= end:
                raise Tf2aifError(
                    f"the server is not ready after {timeout_s:g} s: {why}", at=self.address.url
                )
            time.sleep(0.1)

    def model_path(self) -> str:
        """The path of the model: of the one that the address names, or of the only one."""
        name, version = self.address.model, self.address.version
        if name is None:
            name, version = find_model(self.metrics() or "")
        if name is None:
            raise Tf2aifError(
                "which model is meant?",
                at=self.address.url,
                hint=f"write {self.address.url.rstrip('/')}/v2/models/MODEL",
            )
        path = f"/v2/models/{quote(name, safe='')}"
        return f"{path}/versions/{quote(version, safe='')}" if version else path

    def describe(self, path: str) -> ModelInfo:
        """The metadata of the model at that path. Raises Tf2aifError."""
        reply = self.get(path)
        at = f"{self.address.url} {path}"
        if reply.status != 200:
            raise Tf2aifError(f"no metadata of the model: {error_text(reply)}", at=at)
        try:
            return msgspec.json.decode(reply.body, type=ModelInfo)
        except msgspec.DecodeError as error:
            raise Tf2aifError(f"not the metadata of a model: {error}", at=at) from error

    def metrics(self) -> str | None:
        """The server's own metrics as text; None where it has none."""
        reply = self.get("/metrics")
        return reply.body.decode("utf-8", "replace") if reply.status == 200 else None


class TensorMessages:
    """Samples as inference requests of the protocol, binary or JSON."""

    def __init__(
        self, address: Address, path: str, model: ModelInfo, samples: Samples, *, binary: bool
    ) -> None:
        self.count = samples.count
        self._arrays, self._batched, self.rows = _match(model, samples, address.url)
        self._address = address
        self._path = f"{path}/infer"
        self._binary = binary
        self._cache: dict[int, bytes] = {}
        self._room = CACHE_BYTES

    def of(self, indices: Sequence[int]) -> bytes:
        """The request for these samples; one for a single sample is made once."""
        if len(indices) > 1:
            return self._encode(indices)
        known = self._cache.get(indices[0])
        if known is None:
            known = self._encode(indices)
            if self._room > 0:
                self._cache[indices[0]] = known
                self._room -= len(known)
        return known

    def outputs(self, reply: Reply) -> dict[str, Array]:
        """The tensors of an answer, samples along axis 0."""
        length = reply.headers.get(JSON_LENGTH)
        response = decode_response(reply.body, None if length is None else int(length))
        if self._batched:
            return response.outputs
        return {name: array[np.newaxis] for name, array in response.outputs.items()}

    def _encode(self, indices: Sequence[int]) -> bytes:
        rows = list(indices) if self._batched else indices[0]
        inputs = {name: np.asarray(array[rows]) for name, array in self._arrays.items()}
        request = Request(inputs=inputs, binary=self._binary)
        body, json_length = encode_request(request, binary=self._binary)
        headers = {"Content-Type": "application/json"}
        if json_length is not None:
            headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(json_length)}
        return head(self._address, "POST", self._path, len(body), headers) + body


class PayloadMessages:
    """Raw files at the door that takes them through the server's hooks."""

    def __init__(self, address: Address, payloads: Sequence[Payload]) -> None:
        self.count = len(payloads)
        self.rows: int | None = 1
        self._messages = [
            head(address, "POST", "/predict", len(each.body), {"Content-Type": each.content_type})
            + each.body
            for each in payloads
        ]

    def of(self, indices: Sequence[int]) -> bytes:
        """The request with this file."""
        return self._messages[indices[0]]

    def outputs(self, reply: Reply) -> dict[str, Array]:  # noqa: ARG002
        """Nothing: what hooks answer has no form that we know."""
        return {}


def error_text(reply: Reply) -> str:
    """A refusal in words: the status, and the protocol's error where there is one."""
    try:
        text = msgspec.json.decode(reply.body, type=_Error).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = ""
    return f"HTTP {reply.status}{': ' if text else ''}{text[:200]}"


def refusal(error: RequestFailed) -> str:
    """An answer that is none, in words."""
    return f"not an answer: {error.message}"


def _match(
    model: ModelInfo, samples: Samples, at: str
) -> tuple[Mapping[str, Array], bool, int | None]:
    """Arrays by input name, whether axis 0 is a batch, and the most samples in one request."""
    arrays = samples.inputs
    if list(arrays) == [""] and len(model.inputs) == 1:
        arrays = {model.inputs[0].name: arrays[""]}
    wanted = {tensor.name: tensor for tensor in model.inputs}
    if arrays.keys() != wanted.keys():
        raise Tf2aifError(
            f"the samples are for {', '.join(sorted(arrays))}; "
            f"the model takes {', '.join(sorted(wanted))}",
            at=at,
        )
    extra = {len(wanted[name].shape) - array.ndim for name, array in arrays.items()}
    batched = extra == {0}
    if not batched and extra != {-1}:
        raise _unfit(arrays, wanted, at)
    for name, array in arrays.items():
        shape = wanted[name].shape[1:] if batched else wanted[name].shape
        fits = all(w in (-1, n) for w, n in zip(shape, array.shape[1:], strict=True))
        if not fits or datatype_of(array.dtype) != wanted[name].datatype:
            raise _unfit(arrays, wanted, at)
    fixed = {wanted[name].shape[0] for name in arrays} - {-1} if batched else {1}
    if fixed - {1}:
        raise Tf2aifError(
            f"the server takes exactly {max(fixed)} samples in a request",
            at=at,
            hint="serve it with a free batch axis, or with a batch of 1",
        )
    return arrays, batched, 1 if fixed else None


def _unfit(arrays: Mapping[str, Array], wanted: Mapping[str, Tensor], at: str) -> Tf2aifError:
    have = ", ".join(f"{n} {datatype_of(a.dtype)} {list(a.shape[1:])}" for n, a in arrays.items())
    takes = ", ".join(f"{n} {t.datatype} {list(t.shape)}" for n, t in wanted.items())
    return Tf2aifError(f"a sample is {have}; the model takes {takes}", at=at)
