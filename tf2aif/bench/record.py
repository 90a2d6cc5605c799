"""The record of a measurement: `build/<recipe>/<variant>/bench.json`.

It names the artifact that was measured by its digest: where the variant's record names another,
the figures are of an earlier build.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..client.figures import Figures
from ..client.load import Load, Scenario
from ..client.machine import Machine, describe
from ..client.report import NOTE, align, milliseconds, verdict
from ..client.stages import Stage

SCHEMA = 1
FILE = "bench.json"
HEADER = (
    *("variant", "scenario", "engine ms", "server ms", "added ms", "native ms", "speed-up"),
    *("engine/s", "server/s", "native/s", "figures"),
)


class SpeedUp(Struct, frozen=True, kw_only=True):
    """How many times faster the variant's engine is than the baseline's; over all rounds."""

    ratio: float
    low: float  # of the round where it was least
    high: float


class ScenarioFigures(Struct, frozen=True, kw_only=True):
    """One scenario: the engine alone, the server on loopback, the baseline's engine alone."""

    scenario: Scenario
    load: Load
    engine: Figures
    server: Figures
    native: Figures | None  # None: there is no baseline, or this is it
    stages: dict[str, Stage]  # within the server
    overhead_ms: float | None  # what the server adds to the median of a stream's query
    speedup: SpeedUp | None


class BenchRecord(Struct, frozen=True, kw_only=True):
    """All that was measured of one variant in one run."""

    schema: int = SCHEMA
    recipe: str
    variant: str
    artifact: str  # the digest of what was measured
    engine: dict[str, Any]
    threads: int | None  # of each engine; None: its own choice
    native: str | None  # the variant that is the baseline
    random: bool  # fed with random samples
    emulates: str | None = None  # what the engine stands in for: the times are not the device's
    measured_at: str  # ISO 8601, UTC
    generator: str
    note: str = NOTE
    machine: Machine
    scenarios: tuple[ScenarioFigures, ...]


def read_bench(folder: Path) -> BenchRecord | None:
    """The record in a variant's folder; None where there is none that we can read."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=BenchRecord)
    except (OSError, msgspec.DecodeError):
        return None


def encode_bench(record: BenchRecord) -> bytes:
    """The record as it is written."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def bench_table(records: Mapping[str, BenchRecord]) -> str:
    """A line for each variant and scenario; medians, and samples a second."""
    rows = [_row(name, s) for name, record in records.items() for s in record.scenarios]
    machines = dict.fromkeys(describe(record.machine) for record in records.values())
    loads = dict.fromkeys(record.generator for record in records.values())
    lines = [align(HEADER, rows), ""]
    lines += [f"{name}: {what}" for name, what in _failures(records)]
    lines += [
        f"{name}: emulated, {record.engine.get('name')} in place of {record.emulates}: these times "
        "say nothing of the device"
        for name, record in records.items()
        if record.emulates
    ]
    lines += [f"load: {', '.join(loads)}", *(f"on: {machine}" for machine in machines), NOTE]
    return "\n".join(lines)


def _row(name: str, found: ScenarioFigures) -> tuple[str, ...]:
    figures = [found.engine, found.server, found.native]
    engine, server, native = (_median(each) for each in figures)
    known = [each for each in figures if each is not None]
    unstable = next((each for each in known if not each.stable), found.engine)
    return (
        *(name, found.scenario, engine, server, milliseconds(found.overhead_ms), native),
        "-" if found.speedup is None else f"{found.speedup.ratio:.2f}x",
        *("-" if each is None else f"{each.throughput:.0f}" for each in figures),
        verdict(unstable),
    )


def _median(figures: Figures | None) -> str:
    return milliseconds(figures.latency.p50_ms if figures and figures.latency else None)


def _failures(records: Mapping[str, BenchRecord]) -> Iterable[tuple[str, str]]:
    for name, record in records.items():
        for each in record.scenarios:
            for what, count in each.server.failures.items():
                yield name, f"{each.scenario}: {count} x {what}"
