"""Connections: limits of time and size before there is a request, and a stop that loses none.

uvicorn has no limit for a client that opens a connection and sends its request slowly, or never;
nor for the size of header lines; and it closes its connections at once when it is told to stop.
This holds its httptools protocol and its server to all three.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .config import Config
from .http import HttpDoor, error_body


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A request must be whole in `read_s`, its header lines in `header_bytes`.

    The timer runs from the connection's start, and then from each request's first byte, until
    the request is whole. What is under way when it ends is answered by the door, which has the
    same limit; a connection without a request is closed.
    """

    read_s = 30.0
    header_bytes = 64 * 2**10

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._headers_size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._headers_size += len(data)
        super().data_received(data)
        if self._in_headers and self._headers_size > self.header_bytes:
            self.refuse(431, f"the header lines are larger than {self.header_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        if self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._headers_size = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._in_headers = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, msg)

    def refuse(self, status: int, message: str) -> None:
        """Answer without a request, in the protocol's form, and close."""
        if self.transport.is_closing():
            return
        body = error_body(message)
        head = (
            f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client does not read its answer is cut off."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.read_s, self.transport.abort)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.read_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.refuse(408, f"the request was not whole after {self.read_s:g} s")


class GracefulServer(uvicorn.Server):
    """A server that is told to stop drains first: not ready, but serving, for `drain_s`.

    Every answer then closes its connection, so that clients come to no harm when the rest is
    closed. A second signal ends the draining.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], drain_s: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._drain_s = drain_s
        self._told_at: float | None = None
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only take note: a signal may come in the middle of anything, a held lock included."""
        del sig, frame
        if self._told_at is not None:
            self.should_exit = True
        self._told_at = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's own look around, ten times a second."""
        if self._told_at is not None:
            if not self._draining:
                self._draining = True
                self._drain()
            if time.monotonic() >= self._told_at + self._drain_s:
                self.should_exit = True
        return await super().on_tick(counter)


def make_server(door: HttpDoor, config: Config, drain: Callable[[], None]) -> GracefulServer:
    """A server of that door; serve it with the socket of `listen`."""
    limits = config.limits

    class Protocol(LimitedProtocol):
        read_s = limits.read_s
        header_bytes = limits.header_bytes

    settings = uvicorn.Config(
        door,
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(limits.stop_s) or 1,
        backlog=2048,
    )
    return GracefulServer(settings, drain, limits.drain_s)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at that address. Raises OSError."""
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
