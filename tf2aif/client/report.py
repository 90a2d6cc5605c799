"""One value for all that a run of the client found; as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from .answers import Accuracy
from .figures import PERCENTILES, Figures, verdict
from .load import NOTE, Load
from .machine import Machine, describe
from .stages import Stage

SCHEMA = 1
HEADER = (
    *("server", "model", "scenario", "accuracy", "right", "p50 ms", "p90 ms", "p99 ms"),
    *("p99.9 ms", "samples/s", "queries", "errors", "figures"),
)


class Run(Struct, frozen=True, kw_only=True):
    """One scenario on one server."""

    load: Load
    figures: Figures
    stages: dict[str, Stage]  # in the server, of these requests; empty where it does not say


class Served(Struct, frozen=True, kw_only=True):
    """What one of our servers says of itself, beside the protocol."""

    artifact: str  # the digest of what it serves; empty: it does not know
    engine: str
    engine_version: str = ""
    emulates: str = ""
    threads: int | None = None  # of the engine; None: its own choice
    memory_bytes: int | None = None  # resident, after the run


class ServerReport(Struct, frozen=True, kw_only=True):
    """One server: what it serves, what its answers are worth, and how fast they come."""

    url: str
    model: str = ""
    version: str = ""
    platform: str = ""
    served: Served | None = None  # None: it is not one of ours
    accuracy: Accuracy | None = None
    runs: tuple[Run, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """All that a run of the client found."""

    schema: int = SCHEMA
    note: str = NOTE
    measured_at: str  # ISO 8601, UTC
    client: str  # its version
    generator: str
    encoding: str  # binary, json, or raw: files through the server's hooks
    machine: Machine  # the client's own
    servers: tuple[ServerReport, ...]


def to_json(report: Report) -> bytes:
    """The whole report."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def to_csv(report: Report) -> str:
    """One line for each server and scenario, numbers as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    stage_names = ("queue", "preprocess", "inference", "postprocess", "request")
    writer.writerow(
        [
            *("url", "model", "version", "platform", "encoding", "generator", "scenario"),
            *("stable", "queries", "samples", "errors", "throughput", "mean_ms"),
            *(f"{name}_ms" for name in PERCENTILES),
            *("metric", "accuracy", "source_accuracy", "accuracy_samples", "right"),
            *(f"server_{name}_mean_ms" for name in stage_names),
        ]
    )
    for server, run in _lines(report):
        figures, accuracy = (run.figures if run else None), server.accuracy
        latency = figures.latency if figures else None
        cells: list[object] = [server.url, server.model, server.version, server.platform]
        cells += [report.encoding, report.generator, figures.scenario if figures else ""]
        names = ("stable", "queries", "samples", "errors", "throughput")
        cells += [getattr(figures, name, "") for name in names]
        cells += [getattr(latency, name, "") for name in _latency_fields()]
        names = ("metric", "served", "source", "samples", "right")
        cells += [getattr(accuracy, name, "") for name in names]
        stages = run.stages if run else {}
        cells += [stages[name].mean_ms if name in stages else "" for name in stage_names]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


def to_table(report: Report) -> str:
    """A line for each server and scenario, where the time goes, and what is to be known."""
    rows = [_row(server, run) for server, run in _lines(report)]
    lines = [align(HEADER, rows), ""]
    for server, run in _lines(report):
        lines += _notes(server, run)
    lines += [f"load: {report.generator}, {report.encoding}", f"on: {describe(report.machine)}"]
    return "\n".join([*lines, report.note])


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text; those that hold numbers only are to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def milliseconds(value: float | None) -> str:
    """A time as people read it, four digits; '-' where there is none."""
    return "-" if value is None else f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def _lines(report: Report) -> Iterable[tuple[ServerReport, Run | None]]:
    for server in report.servers:
        runs: Sequence[Run | None] = server.runs or (None,)
        for run in runs:
            yield server, run


def _latency_fields() -> list[str]:
    return ["mean_ms", *(f"{name}_ms" for name in PERCENTILES)]


def _row(server: ServerReport, run: Run | None) -> tuple[str, ...]:
    model = "/".join(part for part in (server.model, server.version) if part)
    found = server.accuracy
    accuracy = "-" if found is None or found.served is None else f"{found.served:.4f}"
    right = "-" if found is None or found.right is None else f"{found.right}/{found.samples}"
    if run is None:
        return (server.url, model, "-", accuracy, right, *["-"] * 8)
    figures = run.figures
    latency = figures.latency
    times = [getattr(latency, f"{name}_ms", None) for name in ("p50", "p90", "p99", "p99_9")]
    return (
        *(server.url, model, figures.scenario, accuracy, right),
        *(milliseconds(each) for each in times),
        *(f"{figures.throughput:.1f}", str(figures.queries), str(figures.errors)),
        verdict(figures),
    )


def _notes(server: ServerReport, run: Run | None) -> list[str]:
    """What a table has no room for."""
    if run is None:
        return []
    at = f"{server.url} {run.figures.scenario}"
    lines = []
    if run.stages:
        parts = (f"{name} {milliseconds(s.mean_ms)}" for name, s in run.stages.items())
        lines.append(f"{at}: in the server, mean ms: {', '.join(parts)}")
    if not run.figures.stable and not run.figures.errors:
        lines.append(f"{at}: unstable: the last three windows are not within 10% of each other")
    lines += [f"{at}: {count} x {what}" for what, count in run.figures.failures.items()]
    return lines


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace("-", "", 1).replace("/", "", 1).isdigit() or cell == "-"
