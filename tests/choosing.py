"""Catalogues, fleets and records of measurements for tests of choosing, made with the real structs.

The figures are made up; what is done with them is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tf2aif.bench.record import (
    BenchRecord,
    Energy,
    ScenarioFigures,
    encode_record,
    make_record,
)
from tf2aif.choose.catalogue import (
    CatalogueAccuracy,
    CatalogueVariant,
    MeasuredOn,
    Measurement,
    Percentiles,
    Requirements,
)
from tf2aif.client.figures import Figures, Latency
from tf2aif.client.load import Load
from tf2aif.client.machine import Machine
from tf2aif.oci.record import ImageRecord
from tf2aif.record import Accuracy, VariantRecord
from tf2aif.rerun import pretty

XEON = "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
DIGEST = "sha256:" + "a" * 64


def measured(p50_ms: float = 1.0, **changes: Any) -> Measurement:
    """A measurement of the server on an x86-64 machine of 4 cores."""
    latency = {"p50_ms": p50_ms, "p99_ms": p50_ms * 2}
    fields: dict[str, Any] = {
        "origin": "bench",
        "subject": "server",
        "scenario": "single-stream",
        "batch": 1,
        "machine": MeasuredOn(platform="linux/amd64", cpu=XEON, cores=4),
        "measured_at": "2026-11-20T10:00:00Z",
        "latency": Percentiles(**latency),
        "stable": True,
    }
    return Measurement(**{**fields, **changes})


def variant(name: str = "a", *measurements: Measurement, **changes: Any) -> CatalogueVariant:
    """A variant of the recipe `net` for x86-64, with an accuracy of 0.9 and 1000 bytes."""
    value = changes.pop("accuracy", 0.9)
    machine = changes.get("platform", "linux/amd64").split("/")[1]
    fields: dict[str, Any] = {
        "id": f"net/{name}",
        "recipe": "net",
        "variant": name,
        "target": "cpu",
        "precision": "fp32",
        "state": "built",
        "platform": "linux/amd64",
        "engine": "litert",
        "artifact": "0" * 32,
        "size_bytes": 1000,
        "accuracy": None if value is None else accuracy(value),
        "requires": Requirements(
            labels={"kubernetes.io/arch": machine, "kubernetes.io/os": "linux"}
        ),
        "measurements": measurements,
    }
    return CatalogueVariant(**{**fields, **changes})


def accuracy(value: float, **changes: Any) -> CatalogueAccuracy:
    """A top-1 accuracy; the source model's is 0.95."""
    fields: dict[str, Any] = {
        "metric": "top-1",
        "value": value,
        "source": 0.95,
        "drop": 0.95 - value,
        "allowed_drop": 1.0,
        "samples": 100,
        "labels": True,
    }
    return CatalogueAccuracy(**{**fields, **changes})


# Records, as builds and `tf2aif bench` write them.


def write_variant(build: Path, name: str = "net/cpu-fp32", **changes: Any) -> VariantRecord:
    """A variant's folder with its record alone."""
    recipe, _, own = name.partition("/")
    target, _, precision = own.rpartition("-")
    fields: dict[str, Any] = {
        "schema": 1,
        "recipe": recipe,
        "variant": own,
        "target": target,
        "precision": precision,
        "platform": "linux/amd64",
        "state": "verified-on-device",
        "engine": {"name": "litert", "options": {}},
        "artifact": "5" * 32,
        "size_bytes": 1234,
        "accuracy": Accuracy(
            metric="top-1",
            source=0.95,
            variant=0.94,
            drop=0.01,
            allowed_drop=0.02,
            samples=100,
            labels=True,
            measured_on="x86_64",
        ),
        "latency": build_latency(),
        "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
    }
    record = VariantRecord(**{**fields, **changes})
    (build / name).mkdir(parents=True, exist_ok=True)
    (build / name / "variant.json").write_bytes(pretty(record))
    return record


def build_latency(p50_ms: float = 0.5) -> dict[str, Any]:
    """What the build's step `latency` says."""
    times = {"median_ms": p50_ms, "p10_ms": p50_ms * 0.9, "p90_ms": p50_ms * 1.2, "runs": 100}
    return {
        "batch": 1,
        "threads": None,
        "native": {**times, "median_ms": 5.0},
        "variant": times,
        "speedup": 5.0 / p50_ms,
        "speedup_low": 4.0,
        "speedup_high": 11.0,
        "random": False,
        "machine": {"cpu": XEON, "cpus": 4, "architecture": "x86_64"},
    }


def image_record(name: str = "net", tag: str = "cpu-fp32") -> ImageRecord:
    """An image of one layer."""
    return ImageRecord(
        name=name,
        tag=tag,
        digest=DIGEST,
        platform="linux/amd64",
        size_bytes=50_000_000,
        base="debian",
        base_digest=DIGEST,
        layers=(),
    )


def write_bench(build: Path, record: VariantRecord, *benches: BenchRecord) -> Path:
    """The lines of `tf2aif bench` beside a variant."""
    path = build / record.recipe / record.variant / "bench.jsonl"
    path.write_bytes(b"".join(encode_record(one) + b"\n" for one in benches))
    return path


def bench_record(record: VariantRecord, p50_ms: float = 1.0, **changes: Any) -> BenchRecord:
    """A run of two scenarios: the engine takes half of the server's time."""
    load_1m, stable = changes.pop("load_1m", 0.1), changes.pop("stable", True)
    machine = Machine(
        cpu=XEON,
        architecture="x86_64",
        cores=4,
        governor="performance",
        gpu=changes.pop("gpu", None),
        memory_bytes=16 << 30,
        system="Debian GNU/Linux 12",
        kernel="6.1.0",
        python="3.11.7",
        load_average=(load_1m, 0.1, 0.1),
    )
    scenarios = (
        _scenario("single-stream", p50_ms, stable),
        _scenario("offline", p50_ms, True),
    )
    fields: dict[str, Any] = {
        "machine": machine,
        "scenarios": scenarios,
        "cold_starts_s": (0.5, 0.6, 0.7),
        "engine_version": "2.1",
        "threads": 4,
        "native": None,
        "random": False,
        "generator": "own",
        "measured_at": "2026-11-20T10:00:00Z",
        "memory_bytes": 60 << 20,
        "memory_peak_bytes": 64 << 20,
    }
    return make_record(record, **{**fields, **changes})


def _scenario(name: str, p50_ms: float, stable: bool) -> ScenarioFigures:
    return ScenarioFigures(
        scenario=name,  # type: ignore[arg-type]
        load=Load(scenario=name),  # type: ignore[arg-type]
        engine=_figures(name, p50_ms / 2, True),
        server=_figures(name, p50_ms, stable),
        native=_figures(name, p50_ms * 5, True),
        stages={},
        overhead_ms=p50_ms / 2,
        speedup=None,
        energy=Energy(sources=("rapl:package-0",), engine_j=0.001, server_j=0.002, native_j=0.01),
    )


def _figures(scenario: str, p50_ms: float, stable: bool) -> Figures:
    latency = Latency(
        mean_ms=p50_ms,
        min_ms=p50_ms / 2,
        max_ms=p50_ms * 4,
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.5,
        p95_ms=p50_ms * 1.7,
        p99_ms=p50_ms * 2,
        p99_9_ms=None,
    )
    return Figures(
        scenario=scenario,  # type: ignore[arg-type]
        stable=stable,
        latency=None if scenario == "offline" else latency,
        throughput=1000 / p50_ms,
        queries=500,
        samples=500,
        errors=0,
        failures={},
        windows=(),
    )
