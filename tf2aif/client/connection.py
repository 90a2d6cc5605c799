"""One HTTP/1.1 connection that is kept open, on a blocking socket.

The parser is httptools' (llhttp): against a server on loopback it costs 22 us of CPU a request.
The standard library's `http.client` costs 110 us and makes each request 130 us slower, most of it
for headers parsed as mail; for a model that answers in 200 us the client would measure itself.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from msgspec import Struct

from ..errors import Tf2aifError
from .address import Address

try:
    import httptools
except ModuleNotFoundError:  # said when the first connection is made
    httptools = None  # type: ignore[assignment]

RECEIVE_BYTES = 256 * 2**10


class Reply(Struct, frozen=True):
    """What came back: status, headers (names in lower case), body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ConnectionFailed(OSError):
    """There is no whole answer: the server is away, too slow, or does not speak HTTP."""


class Connection:
    """One connection, opened when first used. Used by one thread at a time."""

    def __init__(self, address: Address, timeout_s: float = 30.0) -> None:
        if httptools is None:
            raise Tf2aifError("the client needs httptools", hint="pip install 'tf2aif[client]'")
        self.address = address
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and wait for its answer. Raises ConnectionFailed."""
        return self.exchange(head(self.address, method, path, len(body), headers) + body)

    def exchange(self, message: bytes) -> Reply:
        """Send the bytes of one whole request; see `head`. Raises ConnectionFailed.

        A server may close a connection that has been idle: then the request goes out once more,
        on a new one.
        """
        fresh = self._socket is None
        try:
            return self._exchange(message)
        except _ClosedWhileIdle as error:
            if fresh:
                raise ConnectionFailed("the server closed the connection") from error
        return self._exchange(message)

    def close(self) -> None:
        """Close the socket; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, message: bytes) -> Reply:
        receiver = _Receiver()
        try:
            if self._socket is None:
                self._socket = self._open()
            receiver.feed(_first(self._socket, message))
            while not receiver.done:
                receiver.feed(self._socket.recv(RECEIVE_BYTES))
        except _ClosedWhileIdle:
            self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise ConnectionFailed(f"no answer within {self._timeout_s:g} s") from error
        except (OSError, httptools.HttpParserError) as error:
            self.close()
            text = error.strerror if isinstance(error, OSError) else None
            raise ConnectionFailed(text or str(error) or type(error).__name__) from error
        if not receiver.keep_alive:
            self.close()
        return receiver.reply()

    def _open(self) -> socket.socket:
        address = self.address
        opened = socket.create_connection((address.host, address.port), self._timeout_s)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not address.tls:
            return opened
        try:
            context = ssl.create_default_context()
            return context.wrap_socket(opened, server_hostname=address.host)
        except OSError:
            opened.close()
            raise


def head(
    address: Address,
    method: str,
    path: str,
    length: int,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request's first line and headers, up to its body of `length` bytes."""
    lines = [f"{method} {address.prefix}{path} HTTP/1.1", f"Host: {address.authority}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if length or method == "POST":
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _ClosedWhileIdle(Exception):
    """Not one byte of an answer came."""


def _first(opened: socket.socket, message: bytes) -> bytes:
    """Send a request; the first bytes of its answer."""
    try:
        opened.sendall(message)
        data = opened.recv(RECEIVE_BYTES)
    except (ConnectionResetError, BrokenPipeError, ConnectionAbortedError) as error:
        raise _ClosedWhileIdle from error
    if not data:
        raise _ClosedWhileIdle
    return data


class _Receiver:
    """Collects one answer; the methods named on_* are what httptools calls."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._in_body = False
        self.done = False
        self.keep_alive = False

    def feed(self, data: bytes) -> None:
        """Take what was received; nothing received is the end of the connection."""
        if data:
            self._parser.feed_data(data)
        elif self._in_body and not self._has_length():
            self.done = True  # the body of such an answer ends with its connection
        else:
            raise ConnectionError("the server closed the connection within its answer")

    def reply(self) -> Reply:
        """The whole answer."""
        return Reply(self._parser.get_status_code(), self._headers, b"".join(self._chunks))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # 100 Continue: the answer is still to come
            self._headers, self._in_body = {}, False
            return
        self.done = True
        self.keep_alive = self._parser.should_keep_alive()

    def _has_length(self) -> bool:
        return "content-length" in self._headers or "transfer-encoding" in self._headers
