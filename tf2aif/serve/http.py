"""The HTTP door: addresses, headers and status codes, and nothing of what is behind them.

It speaks ASGI and is no more than a table of addresses, so it needs no framework. `listener` holds
what concerns connections instead of requests.

Source: the Open Inference Protocol v2, "HTTP/REST"; RFC 9110 for status codes and headers.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec
from msgspec import Struct

from .config import Limits
from .dataplane import DataPlane
from .failures import Kind, RequestFailed, invalid
from .metrics import CONTENT_TYPE as METRICS_TYPE
from .model import metadata
from .openapi import document

LOG = logging.getLogger("tf2aif.serve")
JSON = b"application/json"
OCTETS = b"application/octet-stream"
JSON_LENGTH = b"inference-header-content-length"

STATUS = {
    Kind.INVALID: 400,
    Kind.UNKNOWN: 404,
    Kind.NOT_ALLOWED: 405,
    Kind.SLOW: 408,
    Kind.TOO_LARGE: 413,
    Kind.UNSUPPORTED: 415,
    Kind.FAILED: 500,
    Kind.BUSY: 503,
    Kind.NOT_READY: 503,
    Kind.DEADLINE: 504,
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[bytes, bytes]


class Reply(Struct, frozen=True):
    """What goes back: status, body, content type, more header lines."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


Get = Callable[[], Reply]
Post = Callable[[bytes, Headers], Awaitable[Reply]]


class Disconnected(Exception):
    """The client went away before its request was whole: nobody waits for an answer."""


class HttpDoor:
    """An ASGI application over one data plane."""

    def __init__(self, plane: DataPlane, limits: Limits) -> None:
        self._plane = plane
        self._limits = limits
        self._held_bytes = 0
        self._gets, self._posts = self._addresses()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            reply = await self._reply(scope, receive)
        except RequestFailed as failure:
            reply = _failure(failure)
        except Disconnected:
            return
        except Exception as error:  # the last door before the client: it must get an answer
            LOG.exception("the server itself failed")
            reply = _failure(RequestFailed(Kind.FAILED, f"the server failed: {error!r}"))
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            *reply.headers,
        ]
        if self._plane.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _reply(self, scope: Mapping[str, Any], receive: Receive) -> Reply:
        path: str = scope["path"]
        method: str = scope["method"]
        post = self._posts.get(path)
        if post is not None and method == "POST":
            return await self._post(post, dict(scope["headers"]), receive)
        get = self._gets.get(path)
        if get is not None and method in ("GET", "HEAD"):
            return get()
        if get is None and post is None:
            raise RequestFailed(Kind.UNKNOWN, self._unknown(path))
        allowed = "GET, HEAD" if get is not None else "POST"
        raise NotAllowed(allowed)

    async def _post(self, post: Post, headers: Headers, receive: Receive) -> Reply:
        held = _Held(self)
        try:
            body = await self._read(headers, receive, held)
            return await post(body, headers)
        finally:
            self._held_bytes -= held.size

    async def _read(self, headers: Headers, receive: Receive, held: _Held) -> bytes:
        """The whole body, decompressed, within the limits of time and size."""
        limit = self._limits.body_bytes
        if int(headers.get(b"content-length", b"0")) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        more = True
        try:
            async with asyncio.timeout(self._limits.read_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunks.append(message["body"])
                    held.take(len(chunks[-1]))
                    if held.size > limit:
                        raise _too_large(limit)
                    more = message["more_body"]
        except TimeoutError:
            text = f"the request was not whole after {self._limits.read_s:g} s"
            raise RequestFailed(Kind.SLOW, text) from None
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"identity":
            return body
        body = _decompress(body, encoding, limit)
        held.take(len(body))
        return body

    async def _infer(self, body: bytes, headers: Headers) -> Reply:
        answer, json_length = await self._plane.infer(body, _json_length(headers))
        if json_length is None:
            return Reply(200, answer)
        return Reply(200, answer, OCTETS, ((JSON_LENGTH, b"%d" % json_length),))

    async def _predict(self, body: bytes, headers: Headers) -> Reply:
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        answer, answer_type = await self._plane.predict(body, content_type)
        return Reply(200, answer, answer_type.encode())

    def _addresses(self) -> tuple[dict[str, Get], dict[str, Post]]:
        model = self._plane.model
        about = Reply(200, msgspec.json.encode(metadata(model)))
        api = Reply(200, msgspec.json.encode(document(model)))
        server = {"name": "tf2aif", "version": _version(), "extensions": ["binary_tensor_data"]}
        server_reply = Reply(200, msgspec.json.encode(server))
        gets: dict[str, Get] = {
            "/v2": lambda: server_reply,
            "/v2/health/live": lambda: _health("live", self._plane.live),
            "/v2/health/ready": lambda: _health("ready", self._plane.ready),
            "/metrics": lambda: Reply(200, self._plane.render_metrics(), METRICS_TYPE.encode()),
            "/openapi.json": lambda: api,
        }
        posts: dict[str, Post] = {"/predict": self._predict}
        of_model = f"/v2/models/{model.name}"
        for base in (of_model, f"{of_model}/versions/{model.version}"):
            gets[base] = lambda: about
            gets[f"{base}/ready"] = lambda: _health("ready", self._plane.ready, name=model.name)
            posts[f"{base}/infer"] = self._infer
        return gets, posts

    def _unknown(self, path: str) -> str:
        if path.startswith("/v2/models/"):
            model = self._plane.model
            known = f"the model is '{model.name}', version '{model.version}'"
            return f"there is nothing at {path}; {known}"
        return f"there is nothing at {path}; see /openapi.json"

    def hold(self, size: int) -> None:
        """Count bytes that a request holds; BUSY where all of them together hold too much."""
        if self._held_bytes + size > self._limits.bodies_bytes:
            raise RequestFailed(Kind.BUSY, "the requests hold too much memory", retry_after_s=1)
        self._held_bytes += size


class _Held:
    """How many bytes one request holds."""

    def __init__(self, door: HttpDoor) -> None:
        self._door = door
        self.size = 0

    def take(self, size: int) -> None:
        self._door.hold(size)
        self.size += size


class NotAllowed(RequestFailed):
    """The address is there, and takes other methods."""

    def __init__(self, allowed: str) -> None:
        super().__init__(Kind.NOT_ALLOWED, f"this address takes {allowed}")
        self.allowed = allowed


def error_body(message: str) -> bytes:
    """An error in the protocol's form."""
    return msgspec.json.encode({"error": message})


def _failure(failure: RequestFailed) -> Reply:
    headers: list[tuple[bytes, bytes]] = []
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after_s))
    if isinstance(failure, NotAllowed):
        headers.append((b"allow", failure.allowed.encode()))
    if failure.kind is Kind.SLOW:  # the rest of the request may come at any time, or never
        headers.append((b"connection", b"close"))
    return Reply(STATUS[failure.kind], error_body(failure.message), JSON, tuple(headers))


def _health(what: str, well: bool, **more: str) -> Reply:
    return Reply(200 if well else 503, msgspec.json.encode({**more, what: well}))


def _json_length(headers: Headers) -> int | None:
    """The length of the JSON part, where the header says that binary tensors follow it."""
    value = headers.get(JSON_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise invalid("Inference-Header-Content-Length is a number of bytes")
    return int(value)


def _decompress(body: bytes, encoding: bytes, limit: int) -> bytes:
    if encoding not in (b"gzip", b"deflate"):
        name = encoding.decode("latin-1")
        raise RequestFailed(Kind.UNSUPPORTED, f"content encoding '{name}' is not read; gzip is")
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, as its header says
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid(f"the body is not {encoding.decode()}: {error}") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not stream.eof or stream.unused_data:
        raise invalid(f"the body is not one whole {encoding.decode()} stream")
    return plain


def _too_large(limit: int) -> RequestFailed:
    return RequestFailed(Kind.TOO_LARGE, f"the body is larger than {limit} bytes")


def _version() -> str:
    from .. import __version__

    return __version__
