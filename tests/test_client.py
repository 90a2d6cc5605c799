"""The client's parts: addresses, connections, samples, answers, figures, stages, reports."""

from __future__ import annotations

import csv
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf2aif.client.address import read_address
from tf2aif.client.answers import Kept, compare, judge
from tf2aif.client.connection import Connection, ConnectionFailed, Reply
from tf2aif.client.figures import Figures, figures_of, is_stable, percentile
from tf2aif.client.load import Load, Window
from tf2aif.client.machine import this_machine
from tf2aif.client.report import Report, Run, ServerReport, align, to_csv, to_json, to_table
from tf2aif.client.samples import Samples, read_payloads, read_reference, read_samples
from tf2aif.client.server import ModelInfo, Tensor, TensorMessages
from tf2aif.client.stages import between, find_model, quantile, read_stages
from tf2aif.errors import Tf2aifError
from tf2aif.serve.codec import Response, decode_request, encode_response
from tf2aif.steps.check import compare as compare_in_check

# What ships.


def test_client_imports_nothing_that_builds() -> None:
    program = (
        "import sys, tf2aif.client.__main__\n"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('tf2aif', 'tensorflow', 'rich')))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    light = ("client", "serve", "errors", "metrics", "engines")
    loaded = {name.split(".")[1] for name in shown.stdout.split() if "." in name}
    assert loaded <= set(light)
    assert not {"tensorflow", "rich"} & set(shown.stdout.split())


# Addresses.


def test_address_names_a_model() -> None:
    address = read_address("https://h:8443/gate/v2/models/a%20b/versions/cpu-int8")
    assert (address.host, address.port, address.tls) == ("h", 8443, True)
    assert (address.prefix, address.model, address.version) == ("/gate", "a b", "cpu-int8")


def test_address_needs_only_host_and_port() -> None:
    address = read_address("[::1]:8080")
    assert (address.host, address.port, address.model) == ("::1", 8080, None)
    assert address.authority == "[::1]:8080"
    assert read_address("http://h/").port == 80


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:99999", "http://h?x=1"])
def test_address_that_is_none(url: str) -> None:
    with pytest.raises(Tf2aifError, match="not the address of a server"):
        read_address(url)


# Connections: real sockets, and servers that do what the test says.


@contextmanager
def listening(serve: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A server that hands each connection, and its number, to `serve`; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                serve(connection, number)
            number += 1

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def answering(*pieces: bytes) -> Callable[[socket.socket, int], None]:
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        for piece in pieces:
            connection.sendall(piece)

    return serve


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Yes: a\r\n\r\nhi"


@pytest.mark.parametrize(
    "pieces",
    [
        (WHOLE,),
        tuple(WHOLE[i : i + 1] for i in range(len(WHOLE))),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nh", b"i"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE),
    ],
    ids=["whole", "byte-by-byte", "chunked", "until-close", "continue"],
)
def test_connection_reads_every_kind_of_answer(pieces: tuple[bytes, ...]) -> None:
    with listening(answering(*pieces)) as url:
        connection = Connection(read_address(url), timeout_s=5)
        reply = connection.request("GET", "/")
        connection.close()
    assert (reply.status, reply.body) == (200, b"hi")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((), "closed the connection"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",), "within its answer"),
        ((b"SSH-2.0-OpenSSH\r\n",), "Expected HTTP"),
    ],
    ids=["nothing", "half", "no-http"],
)
def test_connection_says_what_was_wrong(pieces: tuple[bytes, ...], message: str) -> None:
    with listening(answering(*pieces)) as url:
        with pytest.raises(ConnectionFailed, match=message):
            Connection(read_address(url), timeout_s=5).request("GET", "/")


def test_connection_has_a_time_limit() -> None:
    release = threading.Event()

    def stall(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        release.wait(10)

    with listening(stall) as url:
        with pytest.raises(ConnectionFailed, match=r"no answer within 0\.2 s"):
            Connection(read_address(url), timeout_s=0.2).request("GET", "/")
        release.set()


def test_connection_that_was_idle_is_opened_again() -> None:
    seen: list[int] = []

    def one_request_each(connection: socket.socket, number: int) -> None:
        seen.append(number)
        connection.recv(65536)
        connection.sendall(WHOLE)  # says nothing of closing, and closes

    with listening(one_request_each) as url:
        connection = Connection(read_address(url), timeout_s=5)
        assert [connection.request("GET", "/").body for _ in range(3)] == [b"hi"] * 3
        connection.close()
    assert seen == [0, 1, 2]


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionFailed, match="refused"):
        Connection(read_address(f"127.0.0.1:{port}")).request("GET", "/")


# Samples.


def write_set(folder: Path, labels: bool = True) -> Path:
    folder.mkdir()
    np.save(folder / "x0.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    if labels:
        np.save(folder / "labels.npy", np.arange(4))
    contents = {"inputs": ["image"], "samples": 4, "random": False, "labels": labels}
    (folder / "set.json").write_bytes(msgspec.json.encode(contents))
    return folder


def test_samples_of_every_form(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "s.npz", image=x, labels=np.arange(4))
    np.save(tmp_path / "s.npy", x)
    for source in (write_set(tmp_path / "set"), tmp_path / "s.npz", tmp_path / "s.npy"):
        samples = read_samples(source)
        assert samples.count == 4
        np.testing.assert_array_equal(next(iter(samples.inputs.values())), x)
        assert (samples.labels is None) == (source.suffix == ".npy")


def test_samples_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    np.savez(tmp_path / "only.npz", labels=np.arange(3))
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    np.savez(tmp_path / "empty.npz", a=np.zeros((0, 2)))
    (tmp_path / "folder").mkdir()
    for name in ("text.npy", "only.npz", "uneven.npz", "empty.npz", "folder", "missing"):
        with pytest.raises(Tf2aifError) as failure:
            read_samples(tmp_path / name)
        assert name in failure.value.render()
    with pytest.raises(Tf2aifError, match="reference"):
        read_reference(tmp_path)


def test_payloads_have_types(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    found = read_payloads([tmp_path / "a.jpg", tmp_path / "b"])
    assert [p.content_type for p in found] == ["image/jpeg", "application/octet-stream"]


# Messages.


MODEL = ModelInfo(
    name="m",
    versions=("1",),
    inputs=(Tensor("x", "FP32", (-1, 3)),),
    outputs=(Tensor("y", "FP32", (-1, 2)),),
)


def messages(shape: tuple[int, ...], model_shape: tuple[int, ...]) -> TensorMessages:
    model = msgspec.structs.replace(MODEL, inputs=(Tensor("x", "FP32", model_shape),))
    samples = Samples(inputs={"": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)})
    return TensorMessages(read_address("h:1"), "/v2/models/m", model, samples, binary=True)


def body_of(message: bytes) -> tuple[bytes, int]:
    head, body = message.split(b"\r\n\r\n", 1)
    lines = dict(line.lower().split(b": ") for line in head.split(b"\r\n")[1:])
    assert int(lines[b"content-length"]) == len(body)
    return body, int(lines[b"inference-header-content-length"])


@pytest.mark.parametrize(
    ("shape", "model_shape", "rows", "sent"),
    [((5, 3), (-1, 3), None, (2, 3)), ((5, 3), (1, 3), 1, (1, 3)), ((5, 3), (3,), 1, (3,))],
    ids=["free", "one", "no-batch-axis"],
)
def test_messages_fit_the_batch_axis(
    shape: tuple[int, ...], model_shape: tuple[int, ...], rows: int | None, sent: tuple[int, ...]
) -> None:
    made = messages(shape, model_shape)
    assert (made.count, made.rows) == (5, rows)
    asked = [4, 2] if rows is None else [4]
    request = decode_request(*body_of(made.of(asked)))
    assert request.inputs["x"].shape == sent
    assert request.inputs["x"].reshape(-1, 3)[0].tolist() == [12, 13, 14]
    assert made.of([4]) is made.of([4])


@pytest.mark.parametrize("model_shape", [(-1, 4), (-1, 3, 1), (8, 3)])
def test_messages_refuse_samples_that_do_not_fit(model_shape: tuple[int, ...]) -> None:
    with pytest.raises(Tf2aifError, match=r"the model takes|exactly 8 samples"):
        messages((5, 3), model_shape)


# Answers.


@given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4]))
def test_compare_is_that_of_the_check_step(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    wanted = generator.standard_normal((7, 5)).astype(np.float32) * np.float32(scale)
    found = wanted + generator.standard_normal((7, 5)).astype(np.float32)
    ours, theirs = compare(found, wanted), compare_in_check(found, wanted)
    assert msgspec.to_builtins(ours) == msgspec.to_builtins(theirs)


def test_judge_counts_to_the_sample() -> None:
    labels = np.array([0, 1, 1, 0])
    source = np.eye(2, dtype=np.float32)[labels]
    outputs = source.copy()
    outputs[3] = [0.2, 0.8]
    found = judge({"y": outputs}, reference={"y": source}, labels=labels)
    assert (found.served, found.source, found.drop) == (0.75, 1.0, 0.25)
    assert (found.right, found.samples, found.labels) == (3, 4, True)
    without = judge({"y": outputs}, reference={"y": source}, metric="top-1")
    assert (without.served, without.labels) == (0.75, False)
    assert judge({"y": outputs}).served is None


def test_judge_refuses_what_does_not_go_together() -> None:
    outputs = {"y": np.zeros((4, 2), np.float32)}
    for reference in ({"z": np.zeros((4, 2))}, {"y": np.zeros((4, 3))}):
        with pytest.raises(Tf2aifError, match="source model's"):
            judge(outputs, reference=reference)
    two = {**outputs, "z": outputs["y"]}
    with pytest.raises(Tf2aifError, match="which of y, z"):
        judge(two, labels=np.zeros(4, int))
    with pytest.raises(Tf2aifError, match="no output 'q'"):
        judge(two, labels=np.zeros(4, int), output="q")


def test_answers_under_load_are_held_to_those_before() -> None:
    expected = np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)
    made = messages((5, 3), (-1, 3))

    def reply(values: np.ndarray) -> Reply:
        body, length = encode_response(Response(model_name="m", outputs={"y": values}), binary=True)
        return Reply(200, {"inference-header-content-length": str(length)}, body)

    kept = Kept(made, {"y": expected}, 1000)
    kept.keep([1, 3], reply(expected[[1, 3]]))
    kept.keep([1], reply(expected[[1]] + np.float32(1e-3)))  # rounded otherwise
    assert kept.take_wrong() == {}
    kept.keep([0], reply(expected[[4]]))  # the answer to another
    kept.keep([0], reply(expected[:2]))
    kept.keep([0], Reply(200, {}, b"{}"))
    wrong = kept.take_wrong()
    assert sum(wrong.values()) == 3
    assert any("differs under load" in what for what in wrong)
    assert kept.take_wrong() == {}


# Figures.


def window(latencies_ms: list[float], failures: dict[str, int] | None = None) -> Window:
    values = np.asarray([int(ms * 1e6) for ms in latencies_ms], np.int64)
    return Window(
        latencies_ns=values,
        samples=len(values),
        duration_s=float(values.sum()) / 1e9,
        failures=failures or {},
    )


@given(st.lists(st.integers(0, 10**9), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_percentile_is_one_of_the_values_and_leaves_its_share_below(
    values: list[int], share: float
) -> None:
    ordered = np.sort(np.asarray(values, np.int64))
    found = percentile(ordered, share)
    assert found in values
    assert np.count_nonzero(ordered <= found) >= len(values) * share


def test_percentile_without_a_query_beyond_it_is_not_told() -> None:
    few = figures_of("single-stream", [window([1.0] * 33)] * 3)
    many = figures_of("single-stream", [window([1.0] * 400)] * 3)
    assert few.latency is not None
    assert many.latency is not None
    assert (few.latency.p95_ms, few.latency.p99_ms) == (1.0, None)
    assert (many.latency.p99_ms, many.latency.p99_9_ms) == (1.0, 1.0)


def test_stable_means_the_last_three_within_a_tenth() -> None:
    at = [window([ms] * 20) for ms in (9.0, 1.0, 1.05, 1.09, 1.2)]
    assert not is_stable("single-stream", at[1:3])
    assert is_stable("single-stream", at[:4])
    assert not is_stable("single-stream", at[1:])
    assert not is_stable("single-stream", [at[1], at[1], window([1.0] * 20, {"HTTP 503": 1})])
    assert is_stable("offline", at[1:4])


def test_figures_are_of_the_last_three_windows_and_errors_of_all() -> None:
    windows = [window([50.0] * 10, {"HTTP 500": 2}), *[window([2.0] * 10)] * 3]
    figures = figures_of("single-stream", windows)
    assert (figures.queries, figures.errors, len(figures.windows)) == (30, 2, 4)
    assert figures.throughput == pytest.approx(500)
    assert figures.stable


# Stages.

METRICS = """# TYPE tf2aif_queue_seconds histogram
tf2aif_queue_seconds_bucket{{le="0.001"}} {a}
tf2aif_queue_seconds_bucket{{le="0.002"}} {b}
tf2aif_queue_seconds_bucket{{le="+Inf"}} {c}
tf2aif_queue_seconds_count {c}
tf2aif_queue_seconds_sum {s}
tf2aif_model_info{{engine="litert",name="kws",version="cpu-int8"}} 1.0
# EOF
"""


def test_stages_are_between_two_looks() -> None:
    before = read_stages(METRICS.format(a=5.0, b=5.0, c=5.0, s=0.001))
    after = read_stages(METRICS.format(a=5.0, b=15.0, c=15.0, s=0.016))
    (stage,) = between(before, after).values()
    assert (stage.count, stage.mean_ms) == (10, pytest.approx(1.5))
    assert stage.p50_ms == pytest.approx(1.5)
    assert between(after, after) == {}
    assert find_model(METRICS) == ("kws", "cpu-int8")
    assert read_stages("nv_inference_count 1") == {}


def test_quantile_beyond_the_last_bucket_is_not_told() -> None:
    assert quantile([(0.1, 1.0), (float("inf"), 10.0)], 0.99) is None
    assert quantile([], 0.5) is None


# Reports.


def report() -> Report:
    load = Load()
    figures: Figures = figures_of(load.scenario, [window([1.0] * 20, {"HTTP 503: full": 3})] * 3)
    run = Run(load=load, figures=figures, stages={})
    servers = (
        ServerReport(url="http://a:1", model="kws", version="cpu-int8", runs=(run,)),
        ServerReport(url="http://b:1", model="kws"),
    )
    return Report(
        measured_at="2026-01-01T00:00:00+00:00",
        client="0",
        generator="own",
        encoding="binary",
        machine=this_machine(),
        servers=servers,
    )


def test_report_in_every_form_says_the_same() -> None:
    made = report()
    assert msgspec.json.decode(to_json(made), type=Report) == made
    rows = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert [row["url"] for row in rows] == ["http://a:1", "http://b:1"]
    assert (rows[0]["errors"], rows[0]["stable"], rows[0]["p50_ms"]) == ("9", "False", "1.0")
    assert rows[1]["p50_ms"] == ""
    table = to_table(made)
    assert "with errors" in table
    assert "9 x HTTP 503: full" in table
    assert "no MLPerf results" in table
    assert "no MLPerf results" in made.note


def test_columns_of_numbers_are_to_the_right() -> None:
    assert align(("a", "bb"), [("x", "1"), ("yy", "10")]).splitlines()[2:] == ["x    1", "yy  10"]
