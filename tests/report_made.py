"""A `build/` folder as builds and benchmarks leave it, written with their own structs and writers.

Only the figures are made up: what is read is what a build of such recipes would have written.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from tf2aif.bench.record import ScenarioFigures, SpeedUp, encode_record, make_record
from tf2aif.client.figures import Figures, Latency, WindowFigures
from tf2aif.client.load import Load
from tf2aif.client.machine import Machine
from tf2aif.oci.record import ImageRecord
from tf2aif.record import SCHEMA, Accuracy, VariantRecord
from tf2aif.records import ActionRecord, encode
from tf2aif.rerun import pretty
from tf2aif.timeline import BuiltStep, LastBuild, write_last

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; =1+1"
TARGETS = {
    "cpu": ("litert", "linux/amd64", ("fp32", "fp16", "dynamic", "int8", "int8-io")),
    "cpu-openvino": ("openvino", "linux/amd64", ("fp32", "int8")),
    "arm": ("litert", "linux/arm64", ("fp32", "fp16", "dynamic", "int8", "int8-io")),
    "gpu": ("tensorrt", "linux/amd64", ("fp32", "fp16", "int8")),
    "zynq-pynq-z2-hls": ("hls", "linux/arm", ("ap16",)),
}
CPU = {"cpu": "A Processor", "cpus": 2, "architecture": "x86_64"}
JETSON = Machine(
    cpu="A Board", architecture="aarch64", cores=6, governor="performance", gpu=None,
    memory_bytes=8 * 2**30, system="A Linux", kernel="6.1", python="3.11.2",
    load_average=(0.1, 0.1, 0.1),
)  # fmt: skip


def digest_of(*parts: object) -> str:
    """32 hex digits that depend on the parts alone."""
    return f"{random.Random(repr(parts)).getrandbits(128):032x}"


def variant(recipe: str, name: str, *, seed: int = 0, **changes: Any) -> VariantRecord:
    """The record of a variant for this machine's platform, checked and timed."""
    draw = random.Random(f"{recipe}/{name}/{seed}")
    target, _, precision = name.rpartition("-")
    size = draw.randrange(20_000, 90_000)
    whole = {
        "schema": SCHEMA,
        "recipe": recipe,
        "variant": name,
        "target": target,
        "precision": precision,
        "platform": "linux/amd64",
        "state": "verified-on-device",
        "engine": {"name": "litert", "options": {}},
        "artifact": digest_of(recipe, name, seed),
        "size_bytes": size,
        "accuracy": accuracy(0.92 - draw.choice((0.0, 0.0, 0.0013, 0.0042))),
        "latency": latency(draw.uniform(0.008, 0.09)),
        **changes,
    }
    return msgspec.convert(msgspec.to_builtins(whole), VariantRecord)


def accuracy(value: float, **changes: Any) -> Accuracy:
    """What a check found; the source model has 0.92, and the gate allows 0.01."""
    whole: dict[str, Any] = {
        "metric": "top-1", "source": 0.92, "variant": value, "drop": 0.92 - value,
        "allowed_drop": 0.01, "samples": 600, "labels": True, "measured_on": "x86_64",
    }  # fmt: skip
    return Accuracy(**{**whole, **changes})


def latency(median_ms: float, native_ms: float = 0.4, **changes: Any) -> dict[str, Any]:
    """What the step `latency` writes."""
    times = {"p10_ms": 0.95, "p90_ms": 1.08}
    ratio = native_ms / median_ms
    return {
        "batch": 1, "threads": None, "random": False, "machine": CPU,
        "native": {"median_ms": native_ms, "runs": 900}
        | {name: native_ms * share for name, share in times.items()},
        "variant": {"median_ms": median_ms, "runs": 900}
        | {name: median_ms * share for name, share in times.items()},
        "speedup": ratio, "speedup_low": ratio * 0.97, "speedup_high": ratio * 1.02,
        **changes,
    }  # fmt: skip


def image(name: str, tag: str, size_bytes: int = 54_000_000) -> ImageRecord:
    """A variant's image."""
    return ImageRecord(
        name=name, tag=tag, digest=f"sha256:{digest_of(name, tag) * 2}", platform="linux/amd64",
        size_bytes=size_bytes, base="debian", base_digest=f"sha256:{'0' * 64}", layers=(),
    )  # fmt: skip


def put(build: Path, *records: VariantRecord) -> Path:
    """Write the records where a build puts them."""
    for record in records:
        folder = build / record.recipe / record.variant
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "variant.json").write_bytes(pretty(record))
    return build


def put_step(build: Path, step: str, kind: str, seconds: float) -> None:
    """Write what stands beside a step's artifact."""
    recipe, _, name = step.partition("/")
    timing = {"wall_s": seconds, "cpu_s": seconds * 1.4, "peak_mb": 512.5}
    path = build / recipe / ".steps" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(ActionRecord(step=step, kind=kind, timing=timing)))


def put_build(build: Path, steps: Iterable[tuple[str, str, float]]) -> None:
    """Write what a build leaves of itself: half of the steps ran, half were restored."""
    made = tuple(
        BuiltStep(
            name=name, kind=kind, start_s=float(place), seconds=seconds,
            done="restored" if place % 2 else "ran", lane=place % 2,
        )
        for place, (name, kind, seconds) in enumerate(steps)
    )  # fmt: skip
    counts = {done: sum(step.done == done for step in made) for done in ("ran", "restored")}
    last = LastBuild(
        started=1_790_000_000.0, seconds=75.25, cpu_s=120.0, jobs=2, memory_mb=4000, **counts,
        fresh=12, failed=0, steps=made,
    )  # fmt: skip
    write_last(build / ".tf2aif", last)


def figures(median_ms: float, *, stable: bool = True) -> Figures:
    """Of a single stream."""
    shares = {"p50_ms": 1.0, "p90_ms": 1.2, "p95_ms": 1.3, "p99_ms": 1.9, "p99_9_ms": None}
    window = WindowFigures(p50_ms=median_ms, throughput=1e3 / median_ms, queries=900, errors=0)
    found = {name: share and median_ms * share for name, share in shares.items()}
    return Figures(
        scenario="single-stream", stable=stable, throughput=1e3 / median_ms, queries=2700,
        samples=2700, errors=0, failures={}, windows=(window,) * 3,
        latency=Latency(mean_ms=median_ms, min_ms=median_ms / 2, max_ms=median_ms * 9, **found),
    )  # fmt: skip


def put_bench(
    build: Path, record: VariantRecord, median_ms: float, *, stable: bool = True, **changes: Any
) -> None:
    """Add a run of `tf2aif bench` on another machine."""
    scenario = ScenarioFigures(
        scenario="single-stream", load=Load(), engine=figures(median_ms, stable=stable),
        server=figures(median_ms + 0.2), native=figures(median_ms * 3), stages={},
        overhead_ms=0.2, speedup=SpeedUp(ratio=3.0, low=2.8, high=3.3),
    )  # fmt: skip
    whole = {
        "threads": None, "native": None, "random": False, "generator": "own",
        "measured_at": "2026-11-20T10:00:00+00:00", "memory_bytes": 90 * 2**20, **changes,
    }  # fmt: skip
    made = make_record(
        record, engine_version="1", machine=JETSON, scenarios=(scenario,),
        cold_starts_s=(0.4,), unmeasured={"energy": "no counter"}, **whole,
    )  # fmt: skip
    with (build / record.recipe / record.variant / "bench.jsonl").open("ab") as file:
        file.write(encode_record(made) + b"\n")


def small(build: Path) -> Path:
    """One recipe, one target, two precisions and the baseline; nothing else."""
    native = variant(
        "iris", "cpu-tf-fp32", baseline=True, engine={"name": "tensorflow", "options": {}},
        latency=latency(0.4), accuracy=accuracy(0.92),
    )  # fmt: skip
    return put(build, variant("iris", "cpu-fp32"), variant("iris", "cpu-int8"), native)


def zoo(build: Path) -> Path:
    """Two recipes with every state, images, measurements elsewhere, and what builds leave."""
    steps = []
    for recipe in ("lenet", "u-net-with-a-rather-long-name"):
        for target, (engine, platform, precisions) in TARGETS.items():
            for precision in precisions:
                name = f"{target}-{precision}"
                made = _of_target(recipe, name, target, engine, platform)
                put(build, made)
                if target == "arm" and precision == "int8":
                    put_bench(build, made, 1.5, imported_from="board.jsonl")
                steps.append((f"{recipe}/check-{name}", "check", 0.1 * len(name)))
        native = {"name": "tensorflow", "options": {}}
        put(
            build,
            variant(recipe, "cpu-tf-fp32", baseline=True, engine=native, latency=latency(0.4),
                    image=image(recipe, "cpu-tf-fp32", 700_000_000)),
        )  # fmt: skip
        steps.append((f"{recipe}/import", "import", 4.5))
    for step in steps:
        put_step(build, *step)
    put_build(build, steps)
    put_places(build)
    return build


def _of_target(recipe: str, name: str, target: str, engine: str, platform: str) -> VariantRecord:
    changes: dict[str, Any] = {
        "target": target, "precision": name.removeprefix(f"{target}-"), "platform": platform,
        "engine": {"name": engine, "options": {}}, "image": image(recipe, name),
    }  # fmt: skip
    if target == "arm":
        changes |= {"state": "built", "latency": None}
    if target == "gpu":
        nothing = {"artifact": "", "size_bytes": 0, "accuracy": None, "latency": None}
        reason = f"tensorrt is not here: {HOSTILE}"
        changes |= {"state": "bundled", "reason": reason, "image": None, **nothing}
    if target == "zynq-pynq-z2-hls":
        changes |= {"state": "emulated", "reason": "vivado is not here", "emulates": target}
        changes |= {"latency": None, "image": None}
    if (recipe, name) == ("lenet", "cpu-openvino-int8"):
        lost = accuracy(0.85)
        changes |= {"state": "failed", "reason": "top-1 dropped by 0.0700", "accuracy": lost}
    return variant(recipe, name, **changes)


def crowd(build: Path, count: int = 60) -> Path:
    """One recipe of many variants, most of them nearly as fast and exactly as accurate."""
    draw = random.Random(7)
    for number in range(count - 1):
        name = f"cpu-engine-{number}-of-a-{'long-' * (number % 4)}name-int8"
        value = draw.choice((0.92, 0.92, 0.92, 0.919, 0.9165, 0.915))
        time_ms = math.exp(draw.gauss(math.log(0.02), 0.25 if number % 3 else 1.2))
        put(build, variant("crowd", name, accuracy=accuracy(value), latency=latency(time_ms)))
    return put(build, variant("crowd", "cpu-tf-fp32", baseline=True, latency=latency(0.4)))


def odd(build: Path) -> Path:
    """Recipes whose figures are unlike others': huge, tiny, negative, alone, or not there."""
    for number, (value, median_ms) in enumerate(
        [(12_345_678.9, 5e5), (-9876.5, 0.02), (1e-7, 3.0), (0.5, 1e-4)]
    ):
        for name, step in (("cpu-fp32", 0.0), ("cpu-int8", 1e-9)):
            scored = accuracy(
                value * (1 - step), metric="metrics.py:a_metric_of_a_rather_long_name_indeed",
                source=value, drop=value * step, allowed_drop=0.0, labels=False,
            )  # fmt: skip
            timed = latency(median_ms * (1 + step), native_ms=median_ms * 0.5)
            put(build, variant(f"odd-{number}", name, accuracy=scored, latency=timed))
    put(build, variant("alone", "cpu-int8", accuracy=None, latency=None))
    put(build, variant("untimed", "cpu-int8", latency=None))
    put(build, variant("unchecked", "cpu-int8", accuracy=None))
    return put(build, variant("stopped", "cpu-int8", latency=latency(0.0001) | _STOPPED))


_STOPPED = {"variant": {"median_ms": 0.0, "p10_ms": 0.0, "p90_ms": 0.0, "runs": 1}}

FLEET = """\
currency: EUR
nodes:
  small:
    platform: linux/amd64
    count: 40
    cores: 2
    memory_mb: 4000
    cost_per_hour: 0.05
    power: {idle_w: 10, busy_w: 30}
  large:
    platform: linux/amd64
    count: 10
    cores: 16
    memory_mb: 64000
    cost_per_hour: 0.6
    power: {idle_w: 60, busy_w: 220}
"""
SERVICES = """\
services:
  doors: {recipe: lenet, rate: 2000, objectives: [p90<=1ms, accuracy>=0.91]}
  windows: {recipe: u-net-with-a-rather-long-name, rate: 90000, objectives: [p90<=2ms]}
  roofs: {recipe: lenet, rate: 100, objectives: [p90<=0.0001ms]}
"""


def put_places(build: Path) -> None:
    """Place services on a fleet and simulate it, as `tf2aif place` and `tf2aif simulate` do."""
    from tf2aif.choose.collect import refresh
    from tf2aif.choose.fleet import read_fleet
    from tf2aif.choose.load import poisson
    from tf2aif.choose.match import Conditions
    from tf2aif.choose.options import make_problem
    from tf2aif.choose.place import place, plans
    from tf2aif.choose.placement import encode_placement
    from tf2aif.choose.policies import POLICIES
    from tf2aif.choose.select import places_of
    from tf2aif.choose.services import read_services
    from tf2aif.choose.simulate import simulate
    from tf2aif.choose.simulation import encode_simulation

    paths = {"fleet": FLEET, "services": SERVICES}
    for name, text in paths.items():
        (build.parent / f"{name}.yaml").write_text(text)
    fleet = read_fleet(build.parent / "fleet.yaml")
    services = read_services(build.parent / "services.yaml")
    conditions = Conditions(subject="engine", stable=False)
    problem = make_problem(refresh(build), places_of(fleet), services, 0.8, conditions)
    policies = (("solver",) if find_spec("ortools") else ()) + tuple(POLICIES)
    placed = place(problem, policies, effort=0.1, currency="EUR")
    (build / "placement.json").write_bytes(encode_placement(placed))
    found, _ = plans(problem, policies, effort=0.1)
    result = simulate(problem, found, poisson(services, 0, 0.5), 0, currency="EUR")
    (build / "simulation.json").write_bytes(encode_simulation(result))
