"""Step `latency`: a variant's time per run beside native TensorFlow's, measured in one process.

Both are run in turns, on the same samples in the same batch, so that what else the machine does
falls on both. Only the engines are timed: quantising at the door and copies before it are not.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:
    from ..engines import Array, Engine, TensorSpec

VERSION = 2
TOOLCHAIN = "bench"
INPUTS = (
    "artifact",
    "model",
)  # and `samples`: an evaluation or calibration set, where there is one

WARM_UP_RUNS = 5
WARM_UP_S = 0.25  # of each engine, at most, beyond the first WARM_UP_RUNS
BLOCK_S = 0.005  # an engine's turn lasts about as long as this
BLOCK_RUNS = 20  # and has at most as many runs
MIN_ROUNDS = 8
RESAMPLES = 1000


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is measured, and for how long."""

    engine: str
    engine_options: dict[str, Any] = {}
    threads: int | None = None  # None: what each engine takes by itself
    repeats: int = 200  # rounds, at most
    budget_s: float = 2.0  # for both engines together; at least MIN_ROUNDS rounds are made
    seed: int = 0


class Times(Struct, frozen=True, kw_only=True):
    """Wall time of one run, milliseconds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


class Result(Struct, frozen=True, kw_only=True):
    """`latency.json`. `speedup` is native over variant, `speedup_low` to `speedup_high` its 95%."""

    batch: int | None  # None: no batch axis
    threads: int | None
    native: Times
    variant: Times
    speedup: float
    speedup_low: float
    speedup_high: float
    random: bool  # fed with random samples
    machine: dict[str, Any]


def run(job: Job) -> Mapping[str, Any]:
    """Measure; writes `latency.json` and returns what is in it."""
    from ..engines import engine_module

    options = msgspec.convert(job.options, Options)
    # The engine's own number of threads is the baseline's too.
    options = msgspec.structs.replace(
        options, threads=options.engine_options.get("threads", options.threads)
    )
    rest = {name: v for name, v in options.engine_options.items() if name != "threads"}
    native = engine_module("tensorflow").load(job.inputs["model"], threads=options.threads)
    try:
        variant = engine_module(options.engine).load(
            job.inputs["artifact"], threads=options.threads, **rest
        )
        try:
            result = _measure_both(job, options, native, variant)
        finally:
            variant.close()
    finally:
        native.close()
    encoded = msgspec.json.format(msgspec.json.encode(result), indent=2)
    (job.out / "latency.json").write_bytes(encoded + b"\n")
    built: dict[str, Any] = msgspec.to_builtins(result)
    return built


def _measure_both(job: Job, options: Options, native: Engine, variant: Engine) -> Result:
    from ..engines.batches import batch_size

    samples, random = _samples(job, native, options.seed)
    batch = batch_size(variant, samples, free_batch=1)
    if batch_size(native, samples, free_batch=batch or 1) != batch:
        raise StepFailed("the variant and its source model have different batches")
    runs = [_runner(engine, samples, batch) for engine in (native, variant)]
    first, second = take_turns(*runs, repeats=options.repeats, budget_s=options.budget_s)
    speedup, low, high = speed_up(first, second, options.seed)
    return Result(
        batch=batch,
        threads=options.threads,
        native=_times(first),
        variant=_times(second),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        random=random,
        machine=_machine(),
    )


def _samples(job: Job, native: Engine, seed: int) -> tuple[dict[str, Array], bool]:
    """Samples to feed, by input name, and whether they are random."""
    import numpy as np

    from ..sampleset import draw, read_set

    if "samples" in job.inputs:
        found = read_set(job.inputs["samples"])
        return found.inputs, found.random
    generator = np.random.default_rng(seed)
    return {spec.name: draw(_closed(spec), 1, generator)[0] for spec in native.inputs}, True


def _closed(spec: TensorSpec) -> TensorSpec:
    """The spec with one sample in its batch, where that is open. Its axis 0 holds the samples."""
    if spec.shape[:1] != (None,):
        return spec
    return msgspec.structs.replace(spec, shape=(1, *spec.shape[1:]))


def _runner(engine: Engine, samples: Mapping[str, Array], batch: int | None) -> Callable[[], Any]:
    """One run of an engine on the first samples, as it takes them."""
    import numpy as np

    from ..engines.batches import encode

    first = {name: np.asarray(x[0] if batch is None else x[:batch]) for name, x in samples.items()}
    if batch is not None:  # fewer samples than a batch holds are repeated
        first = {name: np.resize(x, (batch, *x.shape[1:])) for name, x in first.items()}
    feeds = encode(engine, first, batched=batch is not None)
    return lambda: engine.run(feeds)


def take_turns(
    first: Callable[[], Any], second: Callable[[], Any], *, repeats: int, budget_s: float
) -> tuple[Array, Array]:
    """Wall times in ms of two functions that are called in turns: two arrays (rounds, runs).

    Each round times a short block of each, in an order that alternates. The first call of a block
    is not timed: it pays for what the other one has thrown out of the caches.
    """
    import numpy as np

    sizes = [_block_runs(_warm_up(call)) for call in (first, second)]
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    end = time.perf_counter() + budget_s
    while len(times[0]) < max(repeats, MIN_ROUNDS):
        if len(times[0]) >= MIN_ROUNDS and time.perf_counter() > end:
            break
        order = (0, 1) if len(times[0]) % 2 == 0 else (1, 0)
        for which in order:
            times[which].append(_block((first, second)[which], sizes[which]))
    return np.asarray(times[0]), np.asarray(times[1])


def _warm_up(call: Callable[[], Any]) -> float:
    """Call until warm; the time of the fastest call, seconds."""
    end, fastest, runs = time.perf_counter() + WARM_UP_S, float("inf"), 0
    while runs < WARM_UP_RUNS or (time.perf_counter() < end and runs < 10 * WARM_UP_RUNS):
        start = time.perf_counter()
        call()
        fastest, runs = min(fastest, time.perf_counter() - start), runs + 1
    return fastest


def _block_runs(run_s: float) -> int:
    return max(1, min(BLOCK_RUNS, int(BLOCK_S / max(run_s, 1e-9))))


def _block(call: Callable[[], Any], runs: int) -> list[float]:
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def speed_up(native: Array, variant: Array, seed: int = 0) -> tuple[float, float, float]:
    """Ratio of the medians, and the 2.5th and 97.5th percentile of its bootstrap distribution.

    Times are (rounds, runs). Whole rounds are drawn, the same for both, since the runs of a round
    share what disturbed them.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(native), (RESAMPLES, len(native)))
    ratios = [np.median(native[rounds]) / np.median(variant[rounds]) for rounds in drawn]
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(np.median(native) / np.median(variant)), float(low), float(high)


def _times(times: Array) -> Times:
    import numpy as np

    p10, median, p90 = (float(value) for value in np.percentile(times, (10, 50, 90)))
    return Times(median_ms=median, p10_ms=p10, p90_ms=p90, runs=int(times.size))


def _machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity is not None else os.cpu_count()
    return {"cpu": model, "cpus": cpus, "architecture": platform.machine()}
