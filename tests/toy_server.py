"""What the server's tests share: real variants, real server processes, a plain HTTP client."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

FEATURES, CLASSES = 6, 3


def weights() -> tuple[np.ndarray, np.ndarray]:
    """The classifier's weights and biases: its answers can be computed by hand."""
    random = np.random.default_rng(5)
    return (
        random.normal(size=(FEATURES, CLASSES)).astype(np.float32),
        random.normal(size=CLASSES).astype(np.float32),
    )


def expected(x: np.ndarray) -> np.ndarray:
    """What the classifier gives for rows of features, up to rounding."""
    w, b = weights()
    return x @ w + b


def write_litert(folder: Path, *, batch: int | None, quantized: bool = False) -> Path:
    """A variant that runs `x @ w + b` with LiteRT, made by the real converter."""
    import tensorflow as tf

    w, b = weights()
    module = tf.Module()
    spec = tf.TensorSpec([batch, FEATURES], tf.float32, name="features")
    module.f = tf.function(lambda features: {"scores": features @ w + b}, input_signature=[spec])
    saved = folder / "saved"
    tf.saved_model.save(module, str(saved), signatures={"serving_default": module.f})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    if quantized:
        rows = np.random.default_rng(1).uniform(-1, 1, (100, batch, FEATURES)).astype(np.float32)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"features": row} for row in rows)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with warnings.catch_warnings():  # the converter calls what TensorFlow itself deprecates
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        warnings.filterwarnings("ignore", "Statistics for quantized inputs")
        model = converter.convert()
    (folder / "artifact").mkdir()
    (folder / "artifact" / "model.tflite").write_bytes(model)
    dtype = "int8" if quantized else "float32"
    details = _quantization(model) if quantized else {}
    write_signature(
        folder,
        inputs=[_spec("features", dtype, [batch, FEATURES], details.get("features"))],
        outputs=[_spec("scores", dtype, [batch, CLASSES], details.get("scores"))],
    )
    return write_record(folder, "litert")


def write_onnx(folder: Path) -> Path:
    """The same with ONNX Runtime, and a second input and output of other dtypes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    w, b = weights()
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", FEATURES]),
        helper.make_tensor_value_info("count", TensorProto.INT64, ["n", 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES]),
        helper.make_tensor_value_info("many", TensorProto.BOOL, ["n", 1]),
    ]
    ten = numpy_helper.from_array(np.array(10, np.int64), "ten")
    initial = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b"), ten]
    nodes = [
        helper.make_node("Gemm", ["features", "w", "b"], ["scores"]),
        helper.make_node("Greater", ["count", "ten"], ["many"]),
    ]
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, initial)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (folder / "artifact").mkdir(parents=True)
    onnx.save(model, str(folder / "artifact" / "model.onnx"))
    write_signature(
        folder,
        inputs=[_spec("features", "float32", [None, FEATURES]), _spec("count", "int64", [None, 1])],
        outputs=[_spec("scores", "float32", [None, CLASSES]), _spec("many", "bool", [None, 1])],
    )
    return write_record(folder, "onnxruntime")


def write_signature(folder: Path, **sides: list[dict[str, Any]]) -> None:
    (folder / "artifact" / "signature.json").write_text(json.dumps(sides))


def write_record(folder: Path, engine: str, **more: Any) -> Path:
    """`variant.json`, with fields that the server must not mind."""
    record = {
        "schema": 1,
        "recipe": "toy",
        "variant": "cpu-fp32",
        "engine": {"name": engine, "options": {}},
        "state": "built",
        **more,
    }
    (folder / "variant.json").write_text(json.dumps(record))
    return folder


def _spec(name: str, dtype: str, shape: list[int | None], how: Any = None) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, "quantization": how}


def _quantization(model: bytes) -> dict[str, Any]:
    """Scale and zero point of each tensor at the door, from the artifact itself."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=model).get_signature_runner("serving_default")
    details = {**runner.get_input_details(), **runner.get_output_details()}
    found = {}
    for name, detail in details.items():
        how = detail["quantization_parameters"]
        found[name] = {"scale": how["scales"].tolist(), "zero_point": how["zero_points"].tolist()}
    return found


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an answer in the protocol's form of an error."""
        assert list(self.json) == ["error"], self.body
        return str(self.json["error"])


class Server:
    """A server process, started as users start it."""

    def __init__(self, variant: Path, *flags: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "tf2aif.serve", str(variant), "--port", str(port), *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.log = variant / f"server-{time.monotonic_ns()}.log"
        start = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().split()
        self.start_s = time.perf_counter() - start
        if line[:1] != ["ready"]:
            self.kill()
            raise AssertionError(self.log.read_text())
        self.url, self.model = line[1], line[2]
        self.port = int(self.url.rpartition(":")[2])
        self.address = self.url.removeprefix("http://")

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
        timeout_s: float = 20,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            verb = method or ("GET" if body is None else "POST")
            connection.request(verb, path, body, dict(headers or {}))
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def infer(self, message: Any, **options: Any) -> Answer:
        """Inference with JSON tensors."""
        return self.ask("/v2/models/toy/infer", json.dumps(message).encode(), **options)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples of exactly that name."""
        lines = self.ask("/metrics").body.decode().splitlines()
        wanted = (f"{name} ", f"{name}{{")
        return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """End it at once, if it has not ended by itself."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def served(variant: Path, *flags: str) -> Iterator[Server]:
    """A server that is killed at the end, if it did not stop by itself."""
    server = Server(variant, "--drain-s", "0", *flags)
    try:
        yield server
    finally:
        server.kill()


def rows(count: int = 1, seed: int = 0) -> np.ndarray:
    """Rows of features."""
    values = np.random.default_rng(seed).uniform(-1, 1, (count, FEATURES))
    return values.astype(np.float32)


def message(x: np.ndarray, **more: Any) -> dict[str, Any]:
    """An inference message with JSON tensors."""
    data = x.ravel().tolist()
    tensor = {"name": "features", "shape": list(x.shape), "datatype": "FP32", "data": data}
    return {"inputs": [tensor], **more}


async def send_raw(port: int, data: bytes, *, timeout_s: float = 20) -> tuple[int, bytes]:
    """Send bytes on a connection of its own; status and body of the answer (0: none)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await read_answer(reader, timeout_s=timeout_s)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader, *, timeout_s: float = 20) -> tuple[int, bytes]:
    """The next answer on a connection; status 0 where the connection ended instead."""
    async with asyncio.timeout(timeout_s):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""
        lines = head.lower().split(b"\r\n")
        size = next((int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length")), 0)
        return int(head.split()[1]), await reader.readexactly(size)


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A POST request's bytes; header names are written with `_` for `-`."""
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


Ask = Callable[..., Answer]
