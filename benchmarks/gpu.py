"""Engines for NVIDIA GPUs: built, compared with their ONNX, and timed beside other engines.

    python benchmarks/gpu.py [--models lenet mobilenet_v2 resnet50] [--model NAME=SAVED_MODEL ...]

The first table needs no GPU: each model as ONNX in fp32, fp16 and int8, and as an engine of
TensorRT for RTX, built twice: seconds, bytes, and whether both builds gave the same bytes. `error`
is the Euclidean norm of the difference from the fp32 outputs over theirs, on random samples.

The second needs an NVIDIA GPU, and says so where there is none. For each ONNX file and each engine
that is here (TensorRT, TensorRT for RTX, ONNX Runtime with CUDA; native TensorFlow on the GPU for
the source model): the largest difference from ONNX Runtime on the CPU, the median time of a run of
one sample with its 10th and 90th percentile, and samples a second at batches 1, 8 and 32.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timed import machine

from tf2aif.engines import Engine
from tf2aif.engines.nvidia import Machine, read_machine
from tf2aif.engines.signature import read_signature
from tf2aif.errors import Tf2aifError
from tf2aif.steps import Job, step_module

MODELS = ["lenet", "mobilenet_v2", "resnet50"]
BATCHES = (1, 8, 32)
PRECISIONS = {
    "fp32": (),
    "fp16": (("onnx-cast", {"precision": "fp16"}),),
    "int8": (("onnx-int8", {}),),
}
PROFILES = [{"min": 1, "opt": 1, "max": 1}, {"min": 1, "opt": 32, "max": 32}]
SECONDS = 3.0  # of each measured row
SEED = 0

Arrays = dict[str, np.ndarray[Any, Any]]


class Timed(NamedTuple):
    """Runs of one batch."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    samples_s: float


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=SAVED_MODEL")
    parser.add_argument("--samples", type=int, default=32, help="random samples of each model")
    words = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory(prefix="tf2aif-gpu-") as name:
        work = Path(name)
        sources = {model: write_model(model, work) for model in words.models}
        sources |= {k: Path(v) for k, _, v in (each.partition("=") for each in words.model)}
        print(f"{machine()}\n")
        print("| model | precision | ONNX bytes | error | engine s | bytes | repeatable |")
        print("|---|---|---|---|---|---|---|")
        made = {name: build_all(name, path, work, words.samples) for name, path in sources.items()}
        here = read_machine()
        if not here.present:
            print(
                "\nThere is no NVIDIA GPU on this machine (no driver answers): no engine was run."
            )
            return
        measure_all(here, made, words.samples)


def write_model(name: str, work: Path) -> Path:
    """One of `benchmarks/models.py`, with a signature of any batch."""
    import keras
    import models

    keras.utils.set_random_seed(SEED)
    path = work / f"{name}.keras"
    getattr(models, name)().save(path)
    return path


# -- building, which needs no GPU --


def build_all(name: str, source: Path, work: Path, samples: int) -> dict[str, Path]:
    """Every precision of a model as ONNX, by its name; prints a row for each engine for RTX."""
    folder = work / name
    model = step("import", folder / "import", {"source": source}, batch="free")
    drawn = {"inputs": {"": {"format": "random"}}, "samples": samples, "batched": True}
    given = {"calibration": step("calibration", folder / "calibration", {"model": model}, **drawn)}
    onnx = {"fp32": step("onnx", folder / "fp32", {"model": model})}
    for precision, uses in PRECISIONS.items():
        for kind, options in uses:
            wanted = {"model": onnx["fp32"], **given} if "int8" in kind else {"model": onnx["fp32"]}
            onnx[precision] = step(kind, folder / precision, wanted, **options)
        print(f"| {name} | {precision} {row_of_build(folder, precision, onnx, samples)} |")
    return {"source": model, **onnx}


def row_of_build(folder: Path, precision: str, onnx: dict[str, Path], samples: int) -> str:
    size = (onnx[precision] / "model.onnx").stat().st_size
    far = error(onnx["fp32"], onnx[precision], samples)
    try:
        start = time.perf_counter()
        plans = [
            step("tensorrt-rtx", folder / f"rtx-{precision}-{i}", {"model": onnx[precision]})
            for i in range(2)
        ]
        seconds = (time.perf_counter() - start) / 2
    except Tf2aifError as failure:
        return f"| {size} | {far:.2g} | {failure.faults[0].message[:120]} | |"
    first, second = ((plan / "engine.plan").read_bytes() for plan in plans)
    same = "yes" if first == second else "no"
    return f"| {size} | {far:.2g} | {seconds:.2f} | {len(first)} | {same}"


def step(kind: str, out: Path, given: dict[str, Path], **options: Any) -> Path:
    """Run a step in this process; the folder of its artifact."""
    out.mkdir(parents=True)
    job = Job(step=out.name, kind=kind, options=options, inputs=given, out=out)
    with quiet():
        step_module(kind).run(job)
    return out


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What this process and its children print goes nowhere."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def error(truth: Path, other: Path, samples: int) -> float:
    """How far the first output is from that of the fp32 ONNX, relative to its size."""
    name = read_signature(truth).outputs[0].name
    wanted, found = (cpu(each).run(feeds(truth, samples))[name] for each in (truth, other))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def cpu(artifact: Path) -> Engine:
    """The artifact in ONNX Runtime on the CPU; where it has one, the form that a CPU can run."""
    from tf2aif.engines import onnxruntime

    if (artifact / "check.onnx").exists():
        form = artifact.with_name(f"{artifact.name}-check")
        form.mkdir(exist_ok=True)
        shutil.copyfile(artifact / "check.onnx", form / "model.onnx")
        shutil.copyfile(artifact / "signature.json", form / "signature.json")
        artifact = form
    loaded: Engine = onnxruntime.load(artifact)
    return loaded


def feeds(artifact: Path, rows: int) -> Arrays:
    """Seeded samples for a model: floats in 0 to 1, integers 0 and 1."""
    draw = np.random.default_rng(SEED)
    found = {}
    for spec in read_signature(artifact).inputs:
        shape = [rows, *(length or 1 for length in spec.shape[1:])]
        high = 1.0 if spec.dtype.startswith("float") else 2.0
        found[spec.name] = (draw.random(shape) * high).astype(spec.dtype)
    return found


# -- measuring, on a GPU --


def measure_all(here: Machine, made: dict[str, dict[str, Path]], samples: int) -> None:
    """Print a row for each model, precision and engine of this machine."""
    gpus = "; ".join(
        f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in here.gpus
    )
    print(f"\n{gpus}, driver {here.driver}, {time.strftime('%Y-%m-%d')}\n")
    columns = " | ".join(f"samples/s at {batch}" for batch in BATCHES)
    print(f"| model | precision | engine | worst difference | ms at 1 (p10-p90) | {columns} |")
    print("|---|---|---|---|---|" + "---|" * len(BATCHES))
    for name, artifacts in made.items():
        for precision in PRECISIONS:
            for engine, load in engines(artifacts, precision):
                row = measure(artifacts["fp32"], artifacts[precision], load, samples)
                print(f"| {name} | {precision} | {engine} | {row} |", flush=True)


def engines(
    artifacts: dict[str, Path], precision: str
) -> Iterator[tuple[str, Callable[[], Engine]]]:
    """The engines to try with that precision, each with a function that builds and loads it."""
    onnx = artifacts[precision]
    yield "tensorrt", lambda: _built("tensorrt", onnx, timing_cache=False, batches=PROFILES)
    yield "tensorrt-rtx", lambda: _built("tensorrt-rtx", onnx, batches=PROFILES)
    yield "onnxruntime cuda", lambda: _loaded("onnxruntime_gpu", onnx)
    if precision == "fp32":
        yield "tensorflow", lambda: _loaded("tensorflow_gpu", artifacts["source"])


def _built(kind: str, onnx: Path, **options: Any) -> Engine:
    out = onnx.parent / f"{kind}-{onnx.name}"
    return _loaded(kind.replace("-", "_"), step(kind, out, {"model": onnx}, **options))


def _loaded(module: str, artifact: Path) -> Engine:
    loaded: Engine = importlib.import_module(f"tf2aif.engines.{module}").load(artifact)
    return loaded


def measure(truth: Path, onnx: Path, load: Callable[[], Engine], samples: int) -> str:
    """The cells of a row; in words what an engine that is not here lacks."""
    try:
        engine = load()
    except Tf2aifError as error:
        return f"not run: {error.faults[0].message[:150]} |" + " |" * len(BATCHES)
    except ImportError as error:
        return f"not run: {error} |" + " |" * len(BATCHES)
    try:
        wanted = cpu(onnx).run(feeds(truth, samples))
        found = engine.run(feeds(truth, samples))
        worst = max(float(np.abs(found[n] - wanted[n]).max()) for n in wanted)
        rows = [time_runs(engine, feeds(truth, batch), batch) for batch in BATCHES]
    finally:
        engine.close()
    first = rows[0]
    latency = f"{first.median_ms:.3f} ({first.p10_ms:.3f}-{first.p90_ms:.3f})"
    rates = " | ".join(f"{row.samples_s:.0f}" for row in rows)
    return f"{worst:.2g} | {latency} | {rates}"


def time_runs(engine: Engine, given: Arrays, batch: int) -> Timed:
    """Run for `SECONDS` after a warm-up: from arrays on the host to arrays on the host."""
    times: list[float] = []
    for least in (SECONDS / 4, SECONDS):
        times.clear()
        end = time.perf_counter() + least
        while time.perf_counter() < end or len(times) < 20:
            start = time.perf_counter()
            engine.run(given)
            times.append(time.perf_counter() - start)
    tenths = _tenths(times)
    rate = batch * len(times) / sum(times)
    return Timed(1e3 * statistics.median(times), 1e3 * tenths[0], 1e3 * tenths[-1], rate)


def _tenths(times: Sequence[float]) -> list[float]:
    return statistics.quantiles(times, n=10)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
