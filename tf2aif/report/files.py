"""The report's files: the page, and beside it the same as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import FilesError
from ..workspace import write_atomically
from .changes import compare, read_report
from .collect import collect
from .data import FILE, Report, ReportVariant, encode_report
from .page import render_page

CSV = "report.csv"


class Written(Struct, frozen=True, kw_only=True):
    """What was written, and what it says."""

    page: Path
    json: Path
    csv: Path
    report: Report


def write_report(
    build: Path, page: Path, project: str, *, since: Path | None = None, now: datetime | None = None
) -> Written:
    """Report on a build folder; the files beside the page are `report.json` and `report.csv`.

    It is compared with the report in `since`, by default with the one that is overwritten; where
    that is of another version it is not. Raises FilesError: nothing is built, or `since` is wrong.
    """
    report = collect(build, project, now or datetime.now(UTC))
    before = read_report(since) if since else _last(page.with_name(FILE))
    if before:
        report = msgspec.structs.replace(report, changes=compare(before, report))
    written = Written(page=page, json=page.with_name(FILE), csv=page.with_name(CSV), report=report)
    html = render_page(report)
    write_atomically(written.csv, csv_of(report).encode())
    write_atomically(written.page, html.encode())
    write_atomically(written.json, encode_report(report))
    return written


def _last(path: Path) -> Report | None:
    """The report that stands there. One of another version is as none: it is made anew anyway."""
    try:
        return read_report(path)
    except FilesError:
        return None


def csv_of(report: Report) -> str:
    """A line for each variant; empty: not measured. Its columns are those of `_row`."""
    rows = [dict(_row(variant)) for variant in report.variants]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _row(variant: ReportVariant) -> Iterator[tuple[str, Any]]:
    """Name of a column -> its value; the time is the first of the variant's timings."""
    for name in ("number", "recipe", "variant", "target", "precision", "platform", "state"):
        yield name, getattr(variant, name)
    for name in ("engine", "emulates", "baseline", "calibration", "artifact", "size_bytes"):
        yield name, getattr(variant, name)
    accuracy, timing, image = variant.accuracy, variant.timing, variant.image
    for name in ("metric", "value", "source", "drop", "allowed_drop", "samples"):
        column = name if name == "metric" else f"accuracy_{name}"
        yield column, getattr(accuracy, name, None)
    for name in ("median_ms", "low_ms", "high_ms", "native_ms", "batch", "threads", "origin"):
        yield f"latency_{name}", getattr(timing, name, None)
    for name in ("ratio", "low", "high"):
        column = "speedup" if name == "ratio" else f"speedup_{name}"
        yield column, getattr(timing and timing.speedup, name, None)
    yield "machine", timing.machine if timing else None
    yield "on_front", bool(variant.front_on)
    yield "image", image.name if image else None
    yield "image_digest", image.digest if image else None
    yield "image_size_bytes", image.size_bytes if image else None
    yield "reason", variant.reason or None
