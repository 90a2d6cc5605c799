"""What the server adds to the bare engine, beside MLServer around the same LiteRT model.

    python benchmarks/serve.py build/digits/cpu-fp32

Added latency at batch 1 is the median at one connection less the bare engine's median; throughput
is at 32 connections. All servers run at once on loopback and are asked in turn, round by round, by
`wrk` (Debian's package). CPU time is what all processes of a server used for each request at 32
connections: other work on the machine distorts it least.

MLServer's REST door takes no binary tensors, so it is measured with JSON tensors and with base64 of
the raw bytes, without and with its worker process. The goals hold our binary bodies against the
best that it reaches in any of these ways; JSON against JSON is told beside them. Its environment is
made on the first run, below `build/`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from timed import machine

from tf2aif.engines import engine_module
from tf2aif.engines.signature import read_signature
from tf2aif.serve.codec import Request, encode_request

HERE = Path(__file__).parent
# From uvloop 0.22 on MLServer 1.7's worker processes fail to start ("no current event loop").
MLSERVER = ("mlserver>=1.7,<1.8", "uvloop<0.22", "ai-edge-litert>=2.1,<3")
CONNECTIONS = (1, 32)
MOST_ADDED, LEAST_RATE = 0.5, 2.0
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


class Address(NamedTuple):
    """Where a server is asked, and the process group that it runs in."""

    url: str
    group: int


def main() -> None:
    arguments = _arguments()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = make_environment(work / "mlserver-venv")
    scripts = write_requests(arguments.variant, work)
    with ExitStack() as stack:
        servers = {"ours": stack.enter_context(ours(arguments.variant, arguments.threads))}
        for workers in (0, 1):
            served = mlserver(python, arguments.variant, work, arguments.threads, workers)
            servers[f"mlserver-{workers}"] = stack.enter_context(served)
        samples = measure(servers, scripts, arguments.rounds, arguments.seconds)
    bare_us = time_engine(arguments.variant, arguments.threads)
    report(samples, bare_us)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", type=Path, help="a built variant whose engine is litert")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of the engine, in every server")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/serve"))
    return parser.parse_args()


def make_environment(folder: Path) -> Path:
    """A virtual environment with MLServer; its Python."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *MLSERVER], check=True)
        (folder / "done").touch()
    return python


def write_requests(variant: Path, work: Path) -> dict[str, dict[str, Path]]:
    """A wrk script for each server and body: one sample of seeded random values."""
    spec = read_signature(variant / "artifact").inputs[0]
    shape = [axis or 1 for axis in spec.shape]
    array = np.random.default_rng(0).random(shape).astype(spec.dtype)
    request = Request(inputs={spec.name: array}, binary=True)
    binary, length = encode_request(request)
    as_json, _ = encode_request(Request(inputs={spec.name: array}), binary=False)
    raw = base64.b64encode(array.tobytes()).decode()
    tensor = {"name": spec.name, "shape": [1], "datatype": "BYTES", "data": [raw]}
    as_base64 = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(length)}
    return {
        "ours": {
            "binary": _script(work / "ours-binary", binary, headers),
            "json": _script(work / "ours-json", as_json, {}),
        },
        "mlserver": {
            "json": _script(work / "mlserver-json", as_json, {}),
            "base64": _script(work / "mlserver-base64", as_base64, {}),
        },
    }


def _script(path: Path, body: bytes, headers: dict[str, str]) -> Path:
    path.with_suffix(".body").write_bytes(body)
    kind = "application/octet-stream" if headers else "application/json"
    lines = [
        f'local file = io.open("{path.with_suffix(".body")}", "rb")',
        'wrk.method = "POST"; wrk.body = file:read("*a"); file:close()',
        f'wrk.headers["Content-Type"] = "{kind}"',
        *(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()),
    ]
    path.with_suffix(".lua").write_text("\n".join(lines))
    return path.with_suffix(".lua")


@contextmanager
def ours(variant: Path, threads: int) -> Iterator[Address]:
    """Our server."""
    port = _free_port()
    command = [sys.executable, "-m", "tf2aif.serve", str(variant), "--port", str(port)]
    name = json.loads((variant / "variant.json").read_text())["recipe"]
    ready = f"http://127.0.0.1:{port}/v2/health/ready"
    with _process([*command, "--threads", str(threads)], ready) as group:
        yield Address(f"http://127.0.0.1:{port}/v2/models/{name}/infer", group)


@contextmanager
def mlserver(
    python: Path, variant: Path, work: Path, threads: int, workers: int
) -> Iterator[Address]:
    """MLServer with our runtime, quiet, and that many worker processes."""
    folder = work / f"mlserver-{workers}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    port = _free_port()
    settings = {
        "debug": False,
        "parallel_workers": workers,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": _free_port(),
        "metrics_port": _free_port(),
        "metrics_dir": str(folder),
    }
    artifact = str((variant / "artifact").resolve())
    model = {
        "name": "model",
        "implementation": "mlserver_litert.LiteRTRuntime",
        "parameters": {"uri": artifact, "extra": {"threads": threads}},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    shutil.copy(HERE / "mlserver_litert.py", folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [str(python.with_name("mlserver")), "start", str(folder)]
    ready = f"http://127.0.0.1:{port}/v2/models/model/ready"
    with _process(command, ready, cwd=folder, env=environment) as group:
        yield Address(f"http://127.0.0.1:{port}/v2/models/model/infer", group)


@contextmanager
def _process(
    command: list[str], ready: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[int]:
    """Run a server in a process group of its own, from ready to its end; the group's number."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdout=quiet, stderr=quiet, cwd=cwd, env=env, start_new_session=True
    )
    try:
        _wait_ready(process, ready, " ".join(command))
        yield process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with suppress(ProcessLookupError):  # MLServer at times waits for its workers for ever
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


def _wait_ready(process: subprocess.Popen[bytes], ready: str, what: str) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"it ended with {process.returncode}: {what}")
        if _answers(ready):
            return
        time.sleep(0.1)
    raise SystemExit(f"not ready after 30 s: {what}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sample(NamedTuple):
    """One measurement."""

    server: str
    body: str
    connections: int
    median_us: float
    rate: float  # requests a second
    cpu_us: float  # of the server, for each request


def cpu_s(group: int) -> float:
    """CPU time that all living processes of a group have used, in seconds."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    servers: dict[str, Address], scripts: dict[str, dict[str, Path]], rounds: int, seconds: int
) -> list[Sample]:
    """Every server, body and number of connections, in turn, `rounds` times, after one unkept."""
    samples: list[Sample] = []
    for number in range(rounds + 1):
        for server, address in servers.items():
            for body, script in scripts[server.partition("-")[0]].items():
                for connections in CONNECTIONS:
                    figures = ask(address, script, connections, seconds if number else 1)
                    if number:
                        samples.append(Sample(server, body, connections, *figures))
    return samples


def ask(
    address: Address, script: Path, connections: int, seconds: int
) -> tuple[float, float, float]:
    """Median latency in us and requests a second, as wrk saw them; CPU us for each request."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    before_s = cpu_s(address.group)
    told = subprocess.run(
        [*command, address.url], check=True, capture_output=True, text=True
    ).stdout
    used_s = cpu_s(address.group) - before_s
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"some requests failed:\n{told}")
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    count = re.search(r"(\d+) requests in", told)
    if median is None or rate is None or count is None:
        raise SystemExit(f"wrk told something else:\n{told}")
    cpu_us = used_s / int(count[1]) * 1e6
    return float(median[1]) * UNITS[median[2]], float(rate[1]), cpu_us


def time_engine(variant: Path, threads: int, runs: int = 2000) -> float:
    """The bare engine's median for one sample, in microseconds."""
    engine = engine_module("litert").load(variant / "artifact", threads=threads)
    feeds = {
        spec.name: np.zeros([axis or 1 for axis in spec.shape], spec.dtype)
        for spec in engine.inputs
    }
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        engine.run(feeds)
        taken.append(time.perf_counter() - start)
    engine.close()
    return statistics.median(taken) * 1e6


def report(samples: list[Sample], bare_us: float) -> None:
    """The table, and whether the goals are met: exit code 1 where one is not."""
    print(f"{machine()}\nbare engine: {bare_us:.0f} us\n")
    print(f"{'server':12} {'body':8} {'added us':>9} {'requests/s at 32':>17} {'CPU us each':>12}")
    added: dict[tuple[str, str], float] = {}
    rates: dict[tuple[str, str], float] = {}
    for way in dict.fromkeys((sample.server, sample.body) for sample in samples):
        one, many = ([s for s in samples if s[:3] == (*way, c)] for c in CONNECTIONS)
        added[way] = statistics.median(s.median_us for s in one) - bare_us
        rates[way] = statistics.median(s.rate for s in many)
        cpu_us = statistics.median(s.cpu_us for s in many)
        print(f"{way[0]:12} {way[1]:8} {added[way]:9.0f} {rates[way]:17.0f} {cpu_us:12.0f}")
    theirs = [way for way in added if way[0] != "ours"]
    their_json = [way for way in theirs if way[1] == "json"]
    print("\nours / MLServer's best    added latency  throughput")
    for body, ways in (("binary", theirs), ("json", their_json)):
        latency = added["ours", body] / min(added[way] for way in ways)
        throughput = rates["ours", body] / max(rates[way] for way in ways)
        print(f"{body:25} {latency:13.2f} {throughput:11.1f}")
        if body == "binary" and (latency > MOST_ADDED or throughput < LEAST_RATE):
            raise SystemExit(f"goal missed: {MOST_ADDED} of its latency, {LEAST_RATE} of its rate")


if __name__ == "__main__":
    main()
