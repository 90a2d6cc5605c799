"""Records of measurements as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..client.figures import Figures
from ..client.machine import describe
from ..client.report import NOTE, align, milliseconds, verdict
from .record import BenchRecord, ScenarioFigures

HEADER = (
    *("variant", "scenario", "engine ms", "server ms", "added ms", "native ms", "speed-up"),
    *("engine/s", "server/s", "native/s", "figures"),
)


def bench_table(records: Mapping[str, BenchRecord]) -> str:
    """A line for each variant and scenario; medians, and samples a second."""
    rows = [_row(name, s) for name, record in records.items() for s in record.scenarios]
    machines = dict.fromkeys(describe(record.machine) for record in records.values())
    loads = dict.fromkeys(record.generator for record in records.values())
    lines = [align(HEADER, rows), ""]
    lines += [f"{name}: {what}" for name, what in _failures(records)]
    lines += [
        f"{name}: emulated, {record.engine.name} in place of {record.emulates}: these times "
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
    unstable = next((each for each in known if not each.stable), found.server)
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
