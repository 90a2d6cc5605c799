"""The server as its clients see it: a real process, real engines, over HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_server import (
    CLASSES,
    FEATURES,
    ROOT,
    Server,
    expected,
    message,
    post,
    rows,
    send_raw,
    served,
    write_litert,
    write_onnx,
    write_record,
)

from tf2aif.serve.codec import Request, Wanted, decode_response, encode_request

INFER = "/v2/models/toy/versions/cpu-fp32/infer"

HOOKS = """
import json, time
import numpy as np

def decode(body, content_type):
    told = json.loads(body)
    if told == "raise":
        raise KeyError("told to")
    if told == "exit":
        raise SystemExit(3)
    if told == "hang":
        time.sleep(3600)
    if told == "nonsense":
        return "no tensors"
    return {"features": np.asarray(told, np.float32)}

def preprocess(inputs):
    if np.abs(inputs["features"]).max() > 100:
        raise ValueError("a feature is over 100")
    return {"features": inputs["features"] * np.float32(2)}

def postprocess(outputs):
    return [int(row.argmax()) for row in outputs["scores"]]

def encode(result):
    return (",".join(map(str, result)).encode(), "text/csv")

def example():
    return b"[[1, 2, 3, 4, 5, 6]]", "application/json"
"""


@pytest.fixture(scope="session")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LiteRT with a free batch axis, and hooks in its record."""
    folder = write_litert(tmp_path_factory.mktemp("free"), batch=None)
    (folder / "hooks.py").write_text(HOOKS)
    return write_record(folder, "litert", hooks="hooks.py")


@pytest.fixture(scope="session")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LiteRT with a batch of 4."""
    return write_litert(tmp_path_factory.mktemp("fixed"), batch=4)


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LiteRT with int8 at the door."""
    return write_litert(tmp_path_factory.mktemp("int8"), batch=1, quantized=True)


@pytest.fixture(scope="session")
def server(free: Path) -> Iterator[Server]:
    with served(free) as running:
        yield running


def scores(answer: Any) -> np.ndarray:
    """The outputs of a JSON answer."""
    assert answer.status == 200, answer.body
    (output,) = answer.json["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_metadata_and_health(server: Server) -> None:
    about = server.ask("/v2").json
    assert (about["name"], about["extensions"]) == ("tf2aif", ["binary_tensor_data"])
    for base in ("/v2/models/toy", "/v2/models/toy/versions/cpu-fp32"):
        assert server.ask(base).json == {
            "name": "toy",
            "versions": ["cpu-fp32"],
            "platform": "litert_tflite",
            "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, FEATURES]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, CLASSES]}],
        }
        assert server.ask(f"{base}/ready").json == {"name": "toy", "ready": True}
    assert server.ask("/v2/health/live").json == {"live": True}
    assert server.ask("/v2/health/ready").json == {"ready": True}
    assert server.ask("/v2", method="HEAD").body == b""


@pytest.mark.parametrize("count", [1, 5])
def test_json_and_binary_tensors_give_the_same(server: Server, count: int) -> None:
    x = rows(count)
    as_json = server.infer(message(x, id="7"))
    assert as_json.json["id"] == "7"
    assert (as_json.json["model_name"], as_json.json["model_version"]) == ("toy", "cpu-fp32")
    np.testing.assert_allclose(scores(as_json), expected(x), rtol=1e-5, atol=1e-6)
    body, length = encode_request(Request(inputs={"features": x}, binary=True))
    binary = server.ask(INFER, body, {"Inference-Header-Content-Length": str(length)})
    assert binary.headers["content-type"] == "application/octet-stream"
    length = int(binary.headers["inference-header-content-length"])
    decoded = decode_response(binary.body, length).outputs["scores"]
    np.testing.assert_array_equal(decoded, scores(as_json))


def test_compressed_bodies_are_read(server: Server) -> None:
    body = gzip.compress(json.dumps(message(rows())).encode())
    answer = server.ask(INFER, body, {"Content-Encoding": "gzip"})
    np.testing.assert_allclose(scores(answer), expected(rows()), rtol=1e-5, atol=1e-6)
    assert server.ask(INFER, body[:-9], {"Content-Encoding": "gzip"}).status == 400
    assert server.ask(INFER, b"x", {"Content-Encoding": "br"}).status == 415
    bomb = gzip.compress(bytes(40 * 2**20))
    assert server.ask(INFER, bomb, {"Content-Encoding": "gzip"}).status == 413


def test_a_fixed_batch_serves_any_number_of_rows(fixed: Path) -> None:
    with served(fixed) as running:
        for count in (1, 4, 6):
            x = rows(count, seed=count)
            np.testing.assert_allclose(scores(running.infer(message(x))), expected(x), atol=1e-5)


def test_int8_at_the_door_is_rounded_and_saturated(int8: Path) -> None:
    from tf2aif.engines import dequantize, engine_module, quantize

    engine = engine_module("litert").load(int8 / "artifact")
    (given,), (made,) = engine.inputs, engine.outputs
    assert given.quantization is not None
    assert made.quantization is not None
    with served(int8) as running:
        for x in (rows(1), rows(1) * 1000):
            stored = quantize(x, "int8", given.quantization)
            wanted = dequantize(engine.run({"features": stored})["scores"], made.quantization)
            np.testing.assert_array_equal(scores(running.infer(message(x))), wanted)
            told = message(stored)
            told["inputs"][0]["datatype"] = "INT8"
            np.testing.assert_array_equal(scores(running.infer(told)), wanted)


def test_several_inputs_and_dtypes_with_onnxruntime(tmp_path: Path) -> None:
    x, count = rows(3), np.array([[9], [10], [11]], np.int64)
    with served(write_onnx(tmp_path)) as running:
        wanted = (Wanted("many", False), Wanted("scores", True))
        request = Request(inputs={"count": count, "features": x}, outputs=wanted)
        body, length = encode_request(request)
        answer = running.ask(INFER, body, {"Inference-Header-Content-Length": str(length)})
        length = int(answer.headers["inference-header-content-length"])
        outputs = decode_response(answer.body, length).outputs
        assert list(outputs) == ["many", "scores"]
        assert outputs["many"].tolist() == [[False], [False], [True]]
        np.testing.assert_allclose(outputs["scores"], expected(x), rtol=1e-5, atol=1e-5)
        assert "missing" in running.infer(message(x)).error


def changed(**changes: Any) -> dict[str, Any]:
    told = message(rows())
    told["inputs"][0] |= changes
    return told


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "input 'features' is missing"),
        (changed(name="feature"), "did you mean 'features'?"),
        (changed(datatype="FP64"), "takes FP32, not FP64"),
        (changed(shape=[1, 5], data=[0] * 5), "takes shape [-1, 6], not [1, 5]"),
        (changed(shape=[6]), "takes shape [-1, 6], not [6]"),
        (changed(shape=[0, 6], data=[]), "at least 1"),
        (changed(data=[1e39] * 6), "does not fit FP32"),
        (message(rows(), outputs=[{"name": "score"}]), "there is no output 'score'"),
        (message(rows(), parameters={"timeout": "soon"}), "microseconds"),
    ],
)
def test_wrong_messages_are_refused(server: Server, told: Any, words: str) -> None:
    answer = server.infer(told)
    assert answer.status == 400
    assert words in answer.error


def test_binary_nan_is_refused(server: Server) -> None:
    x = rows()
    x[0, 3] = np.nan
    body, length = encode_request(Request(inputs={"features": x}))
    answer = server.ask(INFER, body, {"Inference-Header-Content-Length": str(length)})
    assert (answer.status, answer.error) == (400, "input 'features' has NaN or infinity")


def test_wrong_addresses_methods_and_headers(server: Server) -> None:
    assert server.ask("/nothing").status == 404
    assert "the model is 'toy'" in server.ask("/v2/models/other/infer", b"{}").error
    refused = server.ask("/v2/models/toy/infer")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    refused = server.ask("/v2", b"{}")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    for length in ("-1", "x", "", "1" * 30, "99999"):
        answer = server.ask(INFER, b"{}", {"Inference-Header-Content-Length": length})
        assert answer.status == 400, length


def test_predict_goes_through_the_hooks(server: Server) -> None:
    x = rows(4)
    answer = server.ask("/predict", json.dumps(x.tolist()).encode())
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/csv"
    wanted = expected(x * 2).argmax(axis=1)
    assert answer.body.decode() == ",".join(map(str, wanted))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'"raise"', 500, "hook 'decode' raised KeyError: 'told to' (hooks.py:8)"),
        (b'"exit"', 500, "hook 'decode' raised SystemExit: 3"),
        (b'"nonsense"', 500, "hook 'decode' gives arrays by input name, not a str"),
        (b"{", 400, "JSONDecodeError"),
        (b"[[1, 2]]", 400, "takes shape"),
        (b"[[1, 2, 3, 4, 5, 600]]", 400, "a feature is over 100"),
    ],
)
def test_a_hook_that_raises_fails_one_request(
    server: Server, body: bytes, status: int, words: str
) -> None:
    answer = server.ask("/predict", body)
    assert (answer.status, words in answer.error) == (status, True), answer.body
    assert server.ask("/predict", b"[[1, 2, 3, 4, 5, 6]]").status == 200


def test_predict_without_hooks(fixed: Path) -> None:
    with served(fixed) as running:
        one = rows()[0]
        answer = running.ask("/predict", json.dumps(one.tolist()).encode())
        wanted = expected(one[np.newaxis])
        np.testing.assert_allclose(answer.json["scores"], wanted, rtol=1e-5, atol=1e-6)
        by_name = json.dumps({"features": rows(2).tolist()}).encode()
        assert len(running.ask("/predict", by_name).json["scores"]) == 2
        assert running.ask("/predict", b"x", {"Content-Type": "text/plain"}).status == 400
        assert running.ask("/predict", b'[["a"]]').status == 400


def test_deadlines_and_hooks_that_hang(free: Path) -> None:
    flags = ("--deadline-s", "0.3", "--stall-s", "0.5", "--hook-threads", "1")
    with served(free, *flags) as running:
        assert running.ask("/predict", b'"hang"').status == 504
        # Its thread is gone for good: who waits for one gets an answer all the same.
        assert "no answer within 0.3" in running.ask("/predict", b"[[1, 2, 3, 4, 5, 6]]").error
        assert running.infer(message(rows())).status == 200
        assert running.ask("/v2/health/live").status == 503
        assert running.stop() == 0


def test_a_request_may_bring_its_deadline_forward(free: Path) -> None:
    with served(free, "--max-delay-ms", "100") as running:
        hurried = message(rows(), parameters={"timeout": 20_000})  # microseconds
        answer = running.infer(hurried)
        assert (answer.status, answer.error[:16]) == (504, "no answer within")
        assert running.infer(message(rows())).status == 200


def test_a_full_queue_says_when_to_try_again(free: Path) -> None:
    async def ask_many(port: int) -> list[tuple[int, bytes]]:
        asks = (send_raw(port, post("/predict", b'"hang"')) for _ in range(6))
        return await asyncio.gather(*asks)

    with served(free, "--queue", "4", "--deadline-s", "1") as running:
        answers = asyncio.run(ask_many(running.port))
        assert sorted(status for status, _ in answers) == [503, 503, 504, 504, 504, 504]
        assert running.infer(message(rows())).status == 200
        assert running.metric("tf2aif_requests_in_flight") == 0


def test_a_full_queue_has_retry_after(free: Path) -> None:
    async def fill(running: Server) -> None:
        asks = asyncio.create_task(send_raw(running.port, post("/predict", b'"hang"')))
        await asyncio.sleep(0.2)
        answer = await asyncio.to_thread(running.infer, message(rows()))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await asks

    with served(free, "--queue", "1", "--deadline-s", "0.6") as running:
        asyncio.run(fill(running))


def test_bodies_are_limited(free: Path) -> None:
    flags = ("--body-bytes", "1000", "--bodies-bytes", "1500", "--header-bytes", "2000")
    with served(free, *flags) as running:
        assert running.ask(INFER, b" " * 1001).status == 413
        chunked = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        chunked += b"1f4\r\n" + b" " * 500 + b"\r\n"
        assert asyncio.run(send_raw(running.port, chunked + chunked[-507:] * 2))[0] == 413
        long = f"GET /v2 HTTP/1.1\r\nX: {'x' * 3000}".encode()
        status, body = asyncio.run(send_raw(running.port, long))
        assert (status, json.loads(body)["error"][:16]) == (431, "the header lines")
        assert asyncio.run(send_raw(running.port, b"nonsense\r\n\r\n"))[0] == 400
        assert running.infer(message(rows())).status == 200


def test_slow_senders_are_answered_and_closed(free: Path) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n".encode()

    async def ask_slowly(port: int) -> list[int]:
        parts = (b"", b"POST", head[:-2], head, head + b"{")
        return [status for status, _ in await asyncio.gather(*(send_raw(port, p) for p in parts))]

    with served(free, "--read-s", "0.4") as running:
        assert asyncio.run(ask_slowly(running.port)) == [408] * 5
        assert running.metric("tf2aif_requests_in_flight") == 0


def test_batches_are_made_of_requests_that_wait(free: Path) -> None:
    async def ask_many(port: int) -> list[tuple[int, bytes]]:
        bodies = [json.dumps(message(rows(1, seed))).encode() for seed in range(16)]
        return await asyncio.gather(*(send_raw(port, post(INFER, body)) for body in bodies))

    with served(free, "--max-size", "8", "--max-delay-ms", "50") as running:
        before = running.metric("tf2aif_batch_rows_count")
        answers = asyncio.run(ask_many(running.port))
        assert running.metric("tf2aif_batch_rows_count") - before <= 6
    for seed, (status, body) in enumerate(answers):
        assert status == 200
        got = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
        np.testing.assert_allclose(got, expected(rows(1, seed))[0], rtol=1e-5, atol=1e-6)


def test_metrics_tell_every_stage(server: Server) -> None:
    before = server.metric("tf2aif_requests_total")
    server.infer(message(rows()))
    server.infer({})
    text = server.ask("/metrics")
    assert text.headers["content-type"].startswith("application/openmetrics-text")
    assert text.body.endswith(b"# EOF\n")
    assert server.metric("tf2aif_requests_total") == before + 2
    for stage in ("request", "queue", "preprocess", "inference", "postprocess"):
        assert server.metric(f"tf2aif_{stage}_seconds_count") > 0
    for gauge in ("model_load_seconds", "model_warmup_seconds", "ready"):
        assert server.metric(f"tf2aif_{gauge}") > 0
    resident = server.metric("process_resident_memory_bytes")
    assert 10e6 < resident == pytest.approx(server.resident_bytes(), rel=0.1)
    assert b'outcome="invalid"' in text.body
    labels = f'engine="litert",engine_version="{version("ai-edge-litert")}"'
    info = f'tf2aif_model_info{{{labels},name="toy",version="cpu-fp32"}} 1.0'
    assert info.encode() in text.body


def test_what_ships_imports_nothing_that_builds(free: Path) -> None:
    code = (
        "import sys, asyncio\n"
        "from pathlib import Path\n"
        "from tf2aif.serve import __main__, run, dataplane, http, listener, metrics, openapi\n"
        "from tf2aif.serve import hook_check, images, labels\n"
        "from tf2aif.serve.model import Model\n"
        "model = Model(Path(sys.argv[1])); model.load(); model.run(model.zeros(), 1)\n"
        "print(*sorted(sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(free)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    loaded = told.stdout.split()
    ours = {name for name in loaded if name.startswith("tf2aif.")}
    shipped = ("tf2aif.serve", "tf2aif.engines", "tf2aif.errors")
    assert [name for name in ours if not name.startswith(shipped)] == []
    for vendor in ("tensorflow", "keras", "openvino", "onnxruntime", "PIL", "doit", "starlette"):
        assert vendor not in loaded


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda v: (v / "variant.json").unlink(), "no variant is there"),
        (lambda v: (v / "variant.json").write_text("{}"), "not the record of a variant"),
        (lambda v: (v / "artifact" / "signature.json").unlink(), "signature.json"),
        (lambda v: (v / "artifact" / "model.tflite").write_bytes(b"TFL3"), "LiteRT cannot load it"),
        (lambda v: (v / "hooks.py").write_text("def decode(x): ..."), "called with 2 arguments"),
        (lambda v: (v / "hooks.py").write_text("1 / 0"), "ZeroDivisionError"),
        (lambda v: (v / "hooks.py").unlink(), "cannot read the hooks file"),
    ],
)
def test_what_cannot_be_served_says_why(
    free: Path, tmp_path: Path, break_it: Any, words: str
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(free, broken)
    break_it(broken)
    command = [sys.executable, "-m", "tf2aif.serve", str(broken), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20)
    assert told.returncode == 1
    assert words in told.stderr
    assert "error: " in told.stderr


def test_wrong_settings_are_refused(free: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for flags in (["--port", "70000"], ["--queue", "0"], ["--deadline-s", "soon"]):
        command = [sys.executable, "-m", "tf2aif.serve", str(free), *flags]
        told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20)
        assert (told.returncode, "error:" in told.stderr) == (2, True), told.stderr


def test_an_address_in_use(free: Path, server: Server) -> None:
    command = [sys.executable, "-m", "tf2aif.serve", str(free), "--port", str(server.port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20)
    assert (told.returncode, "cannot listen: Address already in use" in told.stderr) == (1, True)
