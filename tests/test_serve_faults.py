"""What users do to a server: faults by the thousand, and SIGTERM under load."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from toy_server import (
    Server,
    expected,
    message,
    post,
    read_answer,
    rows,
    send_raw,
    served,
    write_litert,
    write_record,
)

from tf2aif.serve.codec import Request, encode_request

INFER = "/v2/models/toy/infer"
REQUESTS = 10_000
CONNECTIONS = 16
READ_S = 1.0

HOOKS = """
import json
import numpy as np

def decode(body, content_type):
    value = json.loads(body)
    if value is None:
        raise RuntimeError("told to")
    return {"features": np.asarray(value, np.float32)}
"""


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LiteRT with a free batch axis, and a hook that raises when it is told to."""
    folder = write_litert(tmp_path_factory.mktemp("faults"), batch=None)
    (folder / "hooks.py").write_text(HOOKS)
    return write_record(folder, "litert", hooks="hooks.py")


def binary(x: np.ndarray) -> bytes:
    """A good request with a binary tensor."""
    body, length = encode_request(Request(inputs={"features": x}))
    return post(INFER, body, Inference_Header_Content_Length=str(length))


def with_tensor(**changes: object) -> bytes:
    """A request whose tensor is changed."""
    told = message(rows())
    told["inputs"][0] |= changes
    return post(INFER, json.dumps(told).encode())


NAN = np.full((1, 6), np.nan, np.float32)
GOOD = json.dumps(message(rows())).encode()
BODY, LENGTH = encode_request(Request(inputs={"features": rows()}))
SHORT = post(INFER, BODY[:-1], Inference_Header_Content_Length=str(LENGTH))

# Each is sent whole, and answered with that status.
MALFORMED: dict[str, tuple[bytes, int]] = {
    "broken JSON": (post(INFER, GOOD[:-2]), 400),
    "no JSON": (post(INFER, b"\x00\xff\xfe"), 400),
    "deep JSON": (post(INFER, b'{"inputs":' + b"[" * 50_000), 400),
    "wrong shape": (with_tensor(shape=[1, 5], data=[0] * 5), 400),
    "shape unlike data": (with_tensor(shape=[2, 6]), 400),
    "huge shape": (with_tensor(shape=[2**62, 6]), 400),
    "wrong dtype": (with_tensor(datatype="INT64", data=[1] * 6), 400),
    "unknown dtype": (with_tensor(datatype="FLOAT"), 400),
    "wrong length": (post(INFER, GOOD, Inference_Header_Content_Length="7"), 400),
    "length past the end": (post(INFER, GOOD, Inference_Header_Content_Length="99999"), 400),
    "short binary": (SHORT, 400),
    "JSON NaN": (with_tensor(data=[float("nan")] * 6), 400),
    "binary NaN": (binary(NAN), 400),
    "huge numbers": (with_tensor(data=[1e300] * 6), 400),
    "huge integers": (with_tensor(data=[10**400] * 6), 400),
    "oversized body": (post(INFER, b" " * 100_001), 413),
    "no HTTP": (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", 400),
    "unknown model": (post("/v2/models/none/infer", GOOD), 404),
}


async def send_slowly(port: int) -> None:
    """Half a request, then nothing: the server answers 408 in its time, and closes."""
    status, _ = await send_raw(port, post(INFER, GOOD)[:-20], timeout_s=READ_S + 15)
    assert status == 408


async def send_dropped(port: int) -> None:
    """Half a request, or a whole one, and away before the answer."""
    whole = post(INFER, GOOD)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(whole[: random.choice((10, len(whole) - 20, len(whole)))])
    await writer.drain()
    writer.transport.abort()


class FaultRun:
    """Requests on kept connections; the malformed ones each on a connection of its own."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        self.random = random.Random(seed)
        self.slow: list[asyncio.Task[None]] = []

    async def run(self, requests: int) -> None:
        share = requests // CONNECTIONS
        async with asyncio.timeout(75):
            await asyncio.gather(*(self._one_connection(share) for _ in range(CONNECTIONS)))
            await asyncio.gather(*self.slow)

    async def _one_connection(self, requests: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        for _ in range(requests):
            drawn = self.random.random()
            if drawn < 0.05:
                await self._send_malformed()
            elif drawn < 0.06:
                writer.write(post("/predict", b"null"))
                status, body = await read_answer(reader)
                assert (status, b"told to" in body) == (500, True)
                self.counts["hook raised"] += 1
            else:
                await self._send_good(reader, writer)
        writer.close()

    async def _send_good(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        x = rows(self.random.choice((1, 1, 3)), seed=self.random.randrange(10**6))
        way = self.random.choice(("json", "binary", "predict"))
        ways: dict[str, Callable[[], bytes]] = {
            "json": lambda: post(INFER, json.dumps(message(x)).encode()),
            "binary": lambda: binary(x),
            "predict": lambda: post("/predict", json.dumps(x.tolist()).encode()),
        }
        writer.write(ways[way]())
        status, body = await read_answer(reader)
        assert status == 200, body
        told = json.loads(body)
        got = told["scores"] if way == "predict" else told["outputs"][0]["data"]
        wanted = expected(x)
        np.testing.assert_allclose(np.reshape(got, wanted.shape), wanted, rtol=1e-4, atol=1e-5)
        self.counts["good"] += 1

    async def _send_malformed(self) -> None:
        kind = self.random.choice([*MALFORMED, "slow", "dropped", "dropped"])
        self.counts[kind] += 1
        if kind == "slow":  # it takes its time, and must hold up nobody else
            self.slow.append(asyncio.create_task(send_slowly(self.server.port)))
        elif kind == "dropped":
            await send_dropped(self.server.port)
        else:
            data, wanted = MALFORMED[kind]
            status, body = await send_raw(self.server.port, data)
            assert status == wanted, (kind, status, body)
            assert list(json.loads(body)) == ["error"], kind


def test_ten_thousand_requests_with_faults(variant: Path) -> None:
    flags = ("--body-bytes", "100000", "--read-s", str(READ_S), "--queue", "64")
    with served(variant, *flags) as server:
        warm = FaultRun(server, seed=1)
        asyncio.run(warm.run(REQUESTS // 5))
        before = server.resident_bytes()
        main = FaultRun(server, seed=2)
        asyncio.run(main.run(REQUESTS))
        assert server.resident_bytes() - before < 8 * 2**20
        faults = sum(n for kind, n in main.counts.items() if kind not in ("good", "hook raised"))
        assert set(MALFORMED) | {"slow", "dropped"} < set(main.counts)
        assert 0.04 < faults / REQUESTS < 0.06
        assert main.counts["hook raised"] > 50
        assert server.metric("tf2aif_requests_in_flight") == 0
        assert server.ask("/v2/health/live").json == {"live": True}
        assert server.stop() == 0


async def ask_until_closed(server: Server, stats: Counter[str]) -> None:
    """Good requests one after another, until there is no server to connect to."""
    data = binary(rows())
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except ConnectionError:
            return
        status = 200
        while status == 200:
            try:
                writer.write(data)
                await writer.drain()
            except ConnectionError:  # the server had closed: it is sent again on a new one
                break
            stats["sent"] += 1
            status, body = await read_answer(reader)
            stats[str(status)] += 1
            if status == 200 and b'"scores"' not in body:
                stats["wrong"] += 1
        writer.close()


async def stop_under_load(server: Server, load: Callable[[], Awaitable[None]]) -> None:
    """SIGTERM in the middle of the load; it ends by itself when the server is gone."""
    async with asyncio.timeout(30):
        clients = [asyncio.ensure_future(load()) for _ in range(CONNECTIONS)]
        await asyncio.sleep(0.7)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)


def test_sigterm_under_load_loses_no_request(variant: Path) -> None:
    server = Server(variant, "--drain-s", "0.5")
    stats: Counter[str] = Counter()
    try:
        asyncio.run(stop_under_load(server, lambda: ask_until_closed(server, stats)))
        assert server.process.wait(20) == 0
    finally:
        server.kill()
    # A connection may be closed before its request is accepted (0), never after.
    accepted = accepted_requests(server)
    assert stats["200"] > 200
    assert accepted == stats["200"], stats
    assert stats["wrong"] == 0
    assert set(stats) <= {"sent", "200", "0", "wrong"}


def accepted_requests(server: Server) -> int:
    """How many requests the server itself says it accepted and answered."""
    (line,) = [x for x in server.log.read_text().splitlines() if "served" in x]
    words = line.split()
    accepted, answered = int(words[words.index("served") + 1]), int(words[-1])
    assert accepted == answered
    return accepted


def test_ready_ends_before_the_server_does(variant: Path) -> None:
    server = Server(variant, "--drain-s", "3")
    try:
        server.process.send_signal(signal.SIGTERM)
        answer = server.ask("/v2/health/ready")
        while answer.status == 200:  # a signal is looked at ten times a second
            answer = server.ask("/v2/health/ready")
        assert answer.json == {"ready": False}
        answer = server.infer(message(rows()))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert server.process.wait(10) == 0
    finally:
        server.kill()


def test_what_is_under_way_is_finished(variant: Path) -> None:
    async def ask(server: Server) -> tuple[int, bytes]:
        asked = asyncio.create_task(send_raw(server.port, binary(rows())))
        await asyncio.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        return await asked

    server = Server(variant, "--drain-s", "0", "--max-delay-ms", "1000")
    try:
        status, _ = asyncio.run(ask(server))
        assert status == 200
        assert server.process.wait(10) == 0
    finally:
        server.kill()
