"""The client against the real server of real variants, on loopback."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import pytest
from serving import TARGET, served

from tf2aif.client.__main__ import main
from tf2aif.client.load import Load
from tf2aif.client.report import Report
from tf2aif.client.run import Options, run
from tf2aif.errors import Tf2aifError
from tf2aif.record import Accuracy, read_record
from tf2aif.serve.codec import Response, decode_request, encode_response

pytest_plugins = ("built",)

SHORT = Load(window_s=0.2, warmup_s=0.2, max_windows=3)


@pytest.fixture(scope="module")
def url(digits: Path) -> Iterator[str]:
    """The int8 variant's server."""
    with served(digits / f"{TARGET}-int8") as address:
        yield address


def checked_by_build(variant: Path) -> Accuracy:
    record = read_record(variant)
    assert record is not None
    assert record.accuracy is not None
    return record.accuracy


def options(digits: Path, *urls: str, **more: object) -> Options:
    steps = digits / ".steps"
    given = {"samples": steps / "evaluation", "reference": steps / "reference", "loads": (), **more}
    return Options(urls=urls, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["binary", "json"])
def test_accuracy_is_that_of_the_check_step(digits: Path, url: str, encoding: str) -> None:
    (server,) = run(options(digits, url, encoding=encoding)).servers
    wanted = checked_by_build(digits / f"{TARGET}-int8")
    assert (server.model, server.version) == ("digits", f"{TARGET}-int8")
    assert server.accuracy is not None
    assert server.accuracy.served == wanted.variant
    assert server.accuracy.source == wanted.source
    assert server.accuracy.drop == wanted.drop
    assert server.accuracy.right == round(wanted.variant * wanted.samples)
    assert server.accuracy.samples == wanted.samples == 200


def test_answers_agree_with_the_source_model_as_the_check_step_found(
    digits: Path, url: str
) -> None:
    (server,) = run(options(digits, url)).servers
    record = read_record(digits / f"{TARGET}-int8")
    assert server.accuracy is not None
    assert record is not None
    for name, wanted in record.outputs.items():
        found = msgspec.to_builtins(server.accuracy.outputs[name])
        assert found == pytest.approx({key: wanted[key] for key in found}, rel=1e-6)


@pytest.mark.parametrize("generator", ["auto", "own"])
def test_every_scenario(digits: Path, url: str, generator: str) -> None:
    names = ("single-stream", "multi-stream", "server", "offline")
    loads = tuple(
        msgspec.structs.replace(SHORT, scenario=name, generator=generator, connections=count)
        for name, count in zip(names, (1, 2, 4, 4), strict=True)
    )
    (server,) = run(options(digits, url, loads=loads)).servers
    assert [each.figures.scenario for each in server.runs] == list(names)
    for each in server.runs:
        figures = each.figures
        assert figures.failures == {}
        assert figures.throughput > 0
        assert len(figures.windows) == 3
        assert (figures.latency is None) == (figures.scenario == "offline")
        assert set(each.stages) == {"queue", "preprocess", "inference", "postprocess", "request"}
        assert each.stages["request"].count >= figures.queries
    first = server.runs[0]
    assert first.figures.latency is not None
    assert first.stages["request"].mean_ms < first.figures.latency.mean_ms


def test_many_servers_in_one_run(digits: Path, url: str) -> None:
    with served(digits / f"{TARGET}-fp32") as other:
        report = run(options(digits, url, other, loads=(SHORT,)))
    assert [server.version for server in report.servers] == [f"{TARGET}-int8", f"{TARGET}-fp32"]
    for server in report.servers:
        wanted = checked_by_build(digits / server.version)
        assert server.accuracy is not None
        assert server.accuracy.served == wanted.variant
        assert len(server.runs) == 1


def test_without_samples_it_draws_them(digits: Path, url: str) -> None:
    (server,) = run(options(digits, url, samples=None, reference=None, loads=(SHORT,))).servers
    assert server.accuracy is None
    assert server.runs[0].figures.errors == 0


def test_files_go_through_the_hooks(digits: Path, url: str, tmp_path: Path) -> None:
    samples = np.load(digits / ".steps" / "evaluation" / "x0.npy")
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_text(json.dumps(samples[index].tolist()))
    paths.append(tmp_path / "bad.json")
    paths[-1].write_text("{")
    asked = options(digits, url, samples=None, reference=None, files=tuple(paths), loads=(SHORT,))
    report = run(asked)
    assert report.encoding == "raw"
    (figures,) = (each.figures for each in report.servers[0].runs)
    assert 0 < figures.errors < sum(each.queries for each in figures.windows)
    assert all(what.startswith("HTTP 400") for what in figures.failures)
    assert not figures.stable


def test_a_full_queue_is_told(digits: Path) -> None:
    load = msgspec.structs.replace(SHORT, scenario="offline", connections=16, rows=1)
    # With a delay requests wait in the queue; without one a short run is over before the next.
    with served(digits / f"{TARGET}-int8", "--queue", "1", "--max-delay-ms", "5") as busy:
        (server,) = run(options(digits, busy, loads=(load,))).servers
    assert server.accuracy is not None  # what is refused then is asked again
    assert server.accuracy.served == checked_by_build(digits / f"{TARGET}-int8").variant
    figures = server.runs[0].figures
    assert any(what.startswith("HTTP 503") for what in figures.failures)
    assert not figures.stable


@pytest.mark.parametrize(
    ("path", "message"),
    [("/v2/models/other", "no metadata of the model: HTTP 404"), ("/elsewhere", "not ready")],
)
def test_what_is_not_there(digits: Path, url: str, path: str, message: str) -> None:
    with pytest.raises(Tf2aifError, match=message):
        run(options(digits, url + path, ready_s=0.2))


def test_samples_of_another_model(digits: Path, url: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 9, 9), np.float32))
    with pytest.raises(Tf2aifError, match=r"a sample is image FP32 \[9, 9\]; the model takes"):
        run(options(digits, url, samples=tmp_path / "x.npy"))


# The command line.


def test_command_line_in_every_form(digits: Path, url: str, tmp_path: Path) -> None:
    words = [url, "--samples", str(digits / ".steps" / "evaluation"), "--window-s", "0.2"]
    words += ["--warmup-s", "0.2", "--max-windows", "3", "--scenario", "single-stream"]
    words += ["--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    shown = subprocess.run(
        [sys.executable, "-m", "tf2aif.client", *words, "--scenario", "offline"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CI": "1"},
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr.splitlines() == [
        "asking for every sample once",
        "single-stream",
        "offline",
    ]
    assert "no MLPerf results" in shown.stdout
    report = msgspec.json.decode((tmp_path / "r.json").read_bytes(), type=Report)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert [row["scenario"] for row in rows] == ["single-stream", "offline"]
    assert report.servers[0].accuracy is not None
    assert float(rows[0]["accuracy"]) == report.servers[0].accuracy.served


def test_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["127.0.0.1:9", "--ready-s", "0.1", "--quiet"]) == 1
    assert "not ready after 0.1 s" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["127.0.0.1:9", "--scenario", "nonsense"])
    assert stop.value.code == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("generator", ["auto", "own"])
@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_ctrl_c_ends_it(url: str, scenario: str, generator: str) -> None:
    words = [url, "--scenario", scenario, "--generator", generator, "--window-s", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tf2aif.client", *words, "--warmup-s", "0.1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CI": "1"},
    )
    assert process.stderr is not None
    while process.stderr.readline().strip() != scenario:
        assert process.poll() is None
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_strict_makes_errors_a_failure(digits: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    words = [url, "--files", str(tmp_path / "bad.json"), "--quiet", "--window-s", "0.1"]
    words += ["--warmup-s", "0.1", "--max-windows", "3"]
    assert main(words) == 0
    assert main([*words, "--strict"]) == 5


# Another server than ours, that can be told to answer wrongly.


class Sums(BaseHTTPRequestHandler):
    """Answers samples with their sums; where `mixed`, requests of one sample wrongly."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    mixed = False

    def do_GET(self) -> None:
        about = {
            "name": "sum",
            "versions": ["1"],
            "platform": "test",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
        }
        found = {"/v2/health/ready": {}, "/v2/models/sum": about}.get(self.path)
        self.reply(404 if found is None else 200, msgspec.json.encode(found or {}), None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = decode_request(body, int(self.headers["inference-header-content-length"]))
        x = request.inputs["x"]
        if self.mixed and len(x) == 1:
            x = x[:, ::-1] + 3
        outputs = {"y": x.sum(axis=1, keepdims=True)}
        answer = encode_response(Response(model_name="sum", outputs=outputs), binary=True)
        self.reply(200, *answer)

    def reply(self, status: int, body: bytes, json_length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if json_length is not None:
            self.send_header("Inference-Header-Content-Length", str(json_length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("mixed", [False, True])
def test_wrong_answers_under_load_are_found(tmp_path: Path, mixed: bool) -> None:
    handler = type("Handler", (Sums,), {"mixed": mixed})
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((64, 2), np.float32))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v2/models/sum"
        report = run(Options(urls=(url,), samples=tmp_path / "x.npy", loads=(SHORT,)))
        server.shutdown()
        thread.join()
    (server_report,) = report.servers
    figures = server_report.runs[0].figures
    assert server_report.runs[0].stages == {}  # it has no metrics
    assert bool(figures.errors) == mixed
    assert all("differs under load" in what for what in figures.failures)
