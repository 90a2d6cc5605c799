"""The report as one HTML page: nothing is fetched, no script but our own may run.

The template escapes all that comes from users. A Content-Security-Policy in the page allows the one
script by its digest, so that what slipped through all the same would not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import Struct

from ..record import State
from .data import Bench, Report, ReportVariant, Timing
from .figures import Cells, Section, build_figures, sections
from .places import PlaceSection, place_sections
from .words import (
    NOTHING,
    bytes_of,
    digits,
    gain,
    interval,
    milliseconds,
    number,
    ratio,
    score,
    seconds,
)

HERE = Path(__file__).parent
STATES: tuple[State, ...] = ("verified-on-device", "built", "emulated", "bundled", "failed")
ICONS = {"verified-on-device": "✔", "built": "●", "emulated": "◐", "bundled": "▢", "failed": "✖"}
MEANINGS = {
    "verified-on-device": "its own engine was checked on a machine of its platform",
    "built": "by the real converter",
    "emulated": "the device's compiler is not here, its arithmetic was run",
    "bundled": "what a missing toolchain needs is packed",
    "failed": "the reason stands beside it",
}
VERDICTS = {"better": "▲ better", "worse": "▼ worse", "neither": "neither"}
COLUMNS = (
    ("no.", "n"), ("variant", ""), ("state", ""), ("engine", ""), ("accuracy", "n"),
    ("latency", "n"), ("speed-up", "n"), ("artifact", "n"), ("image", "n"),
)  # fmt: skip


class Tile(Struct, frozen=True):
    """A figure for the first glance."""

    name: str
    value: str
    note: str = ""


class TableView(Struct, frozen=True, kw_only=True):
    """A table as the page shows it."""

    head: Cells
    rows: tuple[Cells, ...]
    numbers: int = 1


def render_page(report: Report) -> str:
    """The page. The same report gives the same page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "day": _day,
        "digits": digits,
        "gain": gain,
        "interval": interval,
        "milliseconds": milliseconds,
        "ratio": ratio,
        "score": score,
        "size": bytes_of,
    }
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        **_views(report),
        script=_trusted(script),
        script_sha256=digest,
        css=_trusted((HERE / "page.css").read_text(encoding="utf-8")),
        icons=ICONS,
        meanings=MEANINGS,
        states=STATES,
        verdicts=VERDICTS,
        columns=COLUMNS,
    )


def _trusted(text: str) -> Any:
    """A file of ours, which goes into the page as it is."""
    from markupsafe import Markup

    return Markup(text)


def _views(report: Report) -> dict[str, Any]:
    recipes = tuple(sections(report))
    bench = _bench_table(report)
    places = tuple(place_sections(report))
    build = tuple(build_figures(report))
    best, note = _best(report)
    return {
        "report": report,
        "contents": tuple(_contents(recipes, bench, places, bool(build))),
        "tiles": tuple(_tiles(report)),
        "best": best,
        "best_note": note,
        "sections": recipes,
        "bench": bench,
        "places": places,
        "build_figures": build,
    }


def _contents(
    recipes: Sequence[Section], bench: TableView, places: Sequence[PlaceSection], build: bool
) -> Iterator[tuple[str, str]]:
    yield from (("overview", "Overview"), ("changes", "What changed"), ("variants", "Variants"))
    for turn, section in enumerate(recipes, 1):
        yield f"recipe-{turn}", section.name
    if bench.rows:
        yield "bench", "Measurements"
    for place in places:
        yield place.name.lower(), place.name
    if build:
        yield "build", "The build"


def _day(moment: str) -> str:
    """A time as people read it: `21 November 2026, 10:15 UTC`."""
    at = datetime.fromisoformat(moment)
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


# The first glance.


def _tiles(report: Report) -> Iterator[Tile]:
    count = len(report.recipes)
    recipes = f"of {count} recipe{'s' * (count != 1)}"
    yield Tile("variants", str(len(report.variants)), recipes)
    for state in STATES:
        found = sum(variant.state == state for variant in report.variants)
        if found:
            yield Tile(f"{ICONS[state]} {state}", str(found))
    if report.build:
        made = report.build
        done = f"{made.ran} ran, {made.restored} restored, {made.fresh} up to date"
        failed = f", {made.failed} failed" if made.failed else ""
        yield Tile("last build", seconds(made.seconds), f"{done}{failed}")


def _best(report: Report) -> tuple[TableView, str]:
    """The fastest of each recipe that holds its gate, and what they come to."""
    found = [(name, fast) for name, ones in report.recipes.items() if (fast := _fastest(ones))]
    rows = tuple(
        (
            name, v.variant, ratio(t.speedup.ratio), interval(t.speedup),
            milliseconds(t.median_ms), _checked(v), t.machine,
        )
        for name, (v, t) in found
        if t.speedup
    )  # fmt: skip
    head = ("recipe", "variant", "speed-up", "interval", "latency", "accuracy", "on")
    note = ""
    if len(rows) > 1:
        mean = fmean(t.speedup.ratio for _, (_, t) in found if t.speedup)
        note = f"{ratio(mean)} as fast as native TensorFlow on average over {len(rows)} recipes."
    return TableView(head=head, rows=rows, numbers=2), note


def _fastest(variants: Sequence[ReportVariant]) -> tuple[ReportVariant, Timing] | None:
    """By speed-up, among those whose accuracy was seen to hold the gate, on a device of theirs."""
    held = [
        (v, t)
        for v in variants
        for t in v.timings
        if t.speedup and not t.emulates and not v.baseline and v.state != "failed"
        if v.accuracy and v.accuracy.drop <= v.accuracy.allowed_drop
    ]
    return max(held, key=lambda pair: pair[1].speedup.ratio if pair[1].speedup else 0, default=None)


def _checked(variant: ReportVariant) -> str:
    found = variant.accuracy
    return f"{found.metric} {score(found.value)}" if found else NOTHING


# What `tf2aif bench` measured.


def _bench_table(report: Report) -> TableView:
    head = (
        "variant", "scenario", "engine median", "engine 99%", "engine/s", "server median",
        "server 99%", "server/s", "speed-up", "energy", "cold start", "memory", "figures", "on",
    )  # fmt: skip
    rows = tuple(_bench_row(v, one) for v in report.variants for one in v.bench)
    return TableView(head=head, rows=rows, numbers=2)


def _bench_row(variant: ReportVariant, one: Bench) -> Cells:
    speedup = f"{ratio(one.speedup.ratio)} ({interval(one.speedup)})" if one.speedup else NOTHING
    doubts = "; ".join(one.doubts) or ("stable" if one.stable else "unstable")
    if one.emulates:
        doubts += f"; emulates {one.emulates}: not the device's times"
    source = f", from {one.imported_from}" if one.imported_from else ""
    return (
        variant.id,
        one.scenario,
        milliseconds(one.engine_p50_ms),
        milliseconds(one.engine_p99_ms),
        number(one.engine_throughput),
        milliseconds(one.server_p50_ms),
        milliseconds(one.server_p99_ms),
        number(one.server_throughput),
        speedup,
        "not measured" if one.energy_j is None else f"{digits(one.energy_j)} J",
        seconds(one.cold_start_s),
        bytes_of(one.memory_bytes),
        doubts,
        f"{one.machine}, {one.measured_at}{source}",
    )
