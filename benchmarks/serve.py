"""What the server adds to the bare engine, beside MLServer around the same LiteRT model.

    python benchmarks/serve.py build/digits/cpu-fp32

Added latency at batch 1 is the median at one connection less the bare engine's median; throughput
is at 32 connections. Both servers run at once on loopback and are asked in turn, round by round, by
`wrk` (Debian's package). MLServer's REST door takes no binary tensors, so it is measured with JSON
tensors and with base64 of the raw bytes, without and with its worker process, and its best figure
counts; ours is measured with JSON and with binary tensors. Its environment is made on the first
run, below `build/`.
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

import numpy as np

from tf2aif.engines import engine_module
from tf2aif.engines.signature import read_signature
from tf2aif.serve.codec import Request, encode_request

HERE = Path(__file__).parent
# From uvloop 0.22 on MLServer 1.7's worker processes fail to start ("no current event loop").
MLSERVER = ("mlserver>=1.7,<1.8", "uvloop<0.22", "ai-edge-litert>=2.1,<3")
CONNECTIONS = (1, 32)
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


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
def ours(variant: Path, threads: int) -> Iterator[str]:
    """Our server; the address to infer at."""
    port = _free_port()
    command = [sys.executable, "-m", "tf2aif.serve", str(variant), "--port", str(port)]
    name = json.loads((variant / "variant.json").read_text())["recipe"]
    with _process(
        [*command, "--threads", str(threads)], f"http://127.0.0.1:{port}/v2/health/ready"
    ):
        yield f"http://127.0.0.1:{port}/v2/models/{name}/infer"


@contextmanager
def mlserver(python: Path, variant: Path, work: Path, threads: int, workers: int) -> Iterator[str]:
    """MLServer with our runtime, quiet, and that many worker processes; the address to infer at."""
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
    with _process(command, ready, cwd=folder, env=environment):
        yield f"http://127.0.0.1:{port}/v2/models/model/infer"


@contextmanager
def _process(
    command: list[str], ready: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[None]:
    """Run a server in a process group of its own, from ready to its end."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdout=quiet, stderr=quiet, cwd=cwd, env=env, start_new_session=True
    )
    try:
        _wait_ready(process, ready, " ".join(command))
        yield
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


Sample = tuple[str, str, int, float, float]  # server, body, connections, median us, requests/s


def measure(
    servers: dict[str, str], scripts: dict[str, dict[str, Path]], rounds: int, seconds: int
) -> list[Sample]:
    """Every server, body and number of connections, in turn, `rounds` times, after one unkept."""
    samples: list[Sample] = []
    for number in range(rounds + 1):
        for server, url in servers.items():
            for body, script in scripts[server.partition("-")[0]].items():
                for connections in CONNECTIONS:
                    figures = ask(url, script, connections, seconds if number else 1)
                    if number:
                        samples.append((server, body, connections, *figures))
    return samples


def ask(url: str, script: Path, connections: int, seconds: int) -> tuple[float, float]:
    """Median latency in microseconds and requests a second, as wrk saw them."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"some requests failed:\n{told}")
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    if median is None or rate is None:
        raise SystemExit(f"wrk told something else:\n{told}")
    return float(median[1]) * UNITS[median[2]], float(rate[1])


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
    """The table, and whether the goals are met."""
    print(f"bare engine: {bare_us:.0f} us\n")
    print(f"{'server':12} {'body':8} {'added us':>9} {'requests/s at 32':>17}")
    figures: dict[str, list[tuple[float, float]]] = {"ours": [], "mlserver": []}
    for server, body in dict.fromkeys(sample[:2] for sample in samples):
        added_us = _median(samples, server, body, 1, 3) - bare_us
        rate = _median(samples, server, body, 32, 4)
        figures[server.partition("-")[0]].append((added_us, rate))
        print(f"{server:12} {body:8} {added_us:9.0f} {rate:17.0f}")
    # Our worst body against the best that MLServer reaches in any way.
    added = max(a for a, _ in figures["ours"]) / min(a for a, _ in figures["mlserver"])
    rate = min(r for _, r in figures["ours"]) / max(r for _, r in figures["mlserver"])
    print(f"\nadded latency: {added:.2f} of MLServer's (goal: at most 0.5)")
    print(f"throughput: {rate:.1f} times MLServer's (goal: at least 2)")
    if added > 0.5 or rate < 2:
        raise SystemExit("a goal is missed")


def _median(samples: list[Sample], server: str, body: str, connections: int, field: int) -> float:
    wanted = (server, body, connections)
    return statistics.median(float(s[field]) for s in samples if s[:3] == wanted)


if __name__ == "__main__":
    main()
