"""The one time of a variant that a table has room for, from what was measured of it."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from .record import BenchRecord, ScenarioFigures, read_records


class Median(Struct, frozen=True, kw_only=True):
    """The median of one sample after the other, and where it is from."""

    median_ms: float
    speedup: float | None  # None: the baseline was not measured with it
    source: str  # in words


def read_median(folder: Path) -> Median | None:
    """That of the newest record with a single stream: of the engine, or where only the server was
    asked, of the server. None where there is no such record of the artifact in that folder.
    """
    for record in reversed(read_records(folder)):
        for scenario in record.scenarios:
            if scenario.scenario == "single-stream" and (found := _median(record, scenario)):
                return found
    return None


def _median(record: BenchRecord, found: ScenarioFigures) -> Median | None:
    figures = found.engine or found.server
    if figures.latency is None or figures.latency.p50_ms is None:
        return None
    source = f"measured by tf2aif bench on {record.machine.cpu}, {record.machine.cores} cores"
    if found.engine is None:
        source += ", with its server"
    return Median(
        median_ms=figures.latency.p50_ms,
        speedup=found.speedup.ratio if found.speedup else None,
        source=source if figures.stable else f"{source}, unstable",
    )
