"""Records of measurements as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..client.figures import Figures, verdict
from ..client.load import NOTE
from ..client.machine import describe
from ..client.report import align, milliseconds
from .record import BenchRecord, ScenarioFigures

HEADER = (
    *("variant", "scenario", "engine ms", "server ms", "added ms", "native ms", "speed-up"),
    *("engine/s", "server/s", "native/s", "figures"),
)


def bench_table(records: Iterable[BenchRecord]) -> str:
    """For each machine a line for each variant and scenario: medians, and samples a second.

    Below it what there is once for each variant, and what speaks against the figures.
    """
    machines: dict[str, list[BenchRecord]] = {}
    for record in records:
        machines.setdefault(describe(record.machine), []).append(record)
    parts = [_of_machine(machine, found) for machine, found in machines.items()]
    return "\n".join(["\n\n".join(parts), NOTE])


def _of_machine(machine: str, records: Sequence[BenchRecord]) -> str:
    rows = [_row(record.id, each) for record in records for each in record.scenarios]
    lines = [align(HEADER, rows), ""]
    for record in records:
        lines += [f"{record.id}: {text}" for text in _notes(record)]
    loads = dict.fromkeys(record.generator for record in records)
    return "\n".join([*lines, f"load: {', '.join(loads)}", f"on: {machine}"])


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


def _notes(record: BenchRecord) -> Iterable[str]:
    """What is there once for a variant, and what is to be known of its figures."""
    found = []
    if record.cold_start_s is not None:
        found.append(f"ready after {record.cold_start_s:.2f} s")
    sizes = (record.memory_bytes, record.memory_peak_bytes)
    shown = [f"{size / 2**20:.0f} MiB" for size in sizes if size is not None]
    if shown:
        found.append(f"{shown[0]} of memory" + f", {shown[-1]} under load" * (len(shown) > 1))
    if found:
        yield ", ".join(found)
    for each in record.scenarios:
        if each.energy and each.energy.server_j is not None:
            yield f"{each.scenario}: {each.energy.server_j * 1e3:.3g} mJ a sample, the server"
        for what, count in each.server.failures.items():
            yield f"{each.scenario}: {count} x {what}"
    yield from record.doubts
    if record.emulates:
        yield (
            f"emulated, {record.engine.name} in place of {record.emulates}: these times say "
            "nothing of the device"
        )
