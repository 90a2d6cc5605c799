"""The figures of a report: each a plot, what it says in a sentence, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from msgspec import Struct

from .data import LastBuild, Report, ReportVariant, Timing
from .front import machines_of, timing_on
from .plots import Point, Row, accuracy_plot, bar_plot, interval_plot
from .words import bytes_of, conditions, interval, milliseconds, ratio, score, seconds, tip

MOST_ROWS = 12  # of the plot of the longest steps
MOST_TABLE_ROWS = 500  # of its table; `report.json` has all of them

Cells = tuple[str, ...]


class FigureView(Struct, frozen=True, kw_only=True):
    """A plot as the page shows it."""

    title: str
    svg: str
    caption: str
    head: Cells
    rows: tuple[Cells, ...]
    numbers: int = 1
    """From which column on there are numbers."""


class Section(Struct, frozen=True, kw_only=True):
    """The figures of one recipe."""

    name: str
    about: str
    figures: tuple[FigureView, ...]


def sections(report: Report) -> Iterator[Section]:
    """One for each recipe, in the order of the table."""
    for place, (name, variants) in enumerate(report.recipes.items()):
        found = tuple(_recipe(f"r{place}", name, variants))
        if found:
            yield Section(name=name, about=_about(variants), figures=found)


def _about(variants: Sequence[ReportVariant]) -> str:
    """What the variants are compared on."""
    checked = next((v.accuracy for v in variants if v.accuracy), None)
    if checked is None:
        return "No variant was checked yet."
    truth = "" if checked.labels else ", the source model's own answers being the truth"
    return (
        f"{checked.metric} of the source model {score(checked.source)}, on {checked.samples} "
        f"samples{truth}; its gate allows a drop of {checked.allowed_drop:g}."
    )


def _recipe(prefix: str, name: str, variants: Sequence[ReportVariant]) -> Iterator[FigureView]:
    machines = machines_of(variants)
    for place, machine in enumerate(machines):
        timed = [(v, t) for v in variants if (t := timing_on(v, machine))]
        others = [(v, t) for v, t in timed if not v.baseline]
        where = f" on {machine}" if len(machines) > 1 else ""
        if checked := [(v, t) for v, t in timed if v.accuracy and isfinite(v.accuracy.value)]:
            yield _accuracy(f"{prefix}a{place}", name, machine, where, checked)
        if compared := [(v, t) for v, t in others if t.speedup and t.speedup.low > 0]:
            yield _speedup(f"{prefix}s{place}", name, machine, where, compared)
    if sized := [v for v in variants if v.size_bytes]:
        yield _artifacts(f"{prefix}z", name, sized)
    if packed := [v for v in variants if v.image]:
        yield _images(f"{prefix}i", name, packed)


Timed = Sequence[tuple[ReportVariant, Timing]]


def _accuracy(name: str, recipe: str, machine: str, where: str, timed: Timed) -> FigureView:
    first = timed[0][0].accuracy
    assert first is not None  # noqa: S101  (the caller leaves out what has none)
    gates = {v.accuracy.source - v.accuracy.allowed_drop for v, _ in timed if v.accuracy}
    points = [
        Point(
            number=v.number,
            latency_ms=t.median_ms,
            accuracy=v.accuracy.value,
            front=machine in v.front_on,
            baseline=v.baseline,
            failed=v.state == "failed",
            tip=tip(v, t),
        )
        for v, t in timed
        if v.accuracy
    ]
    gate = gates.pop() if len(gates) == 1 else None
    front = ", ".join(v.variant for v, _ in timed if machine in v.front_on)
    label = f"{recipe}: {first.metric} against latency on {machine}. On the front: {front}."
    return FigureView(
        title=f"Accuracy against latency{where}",
        svg=accuracy_plot(name, points, first.metric, gate, label),
        caption=f"On the front (filled, bold): {front or 'none'}. A square is native TensorFlow"
        + (", a cross failed its gate." if any(p.failed for p in points) else "."),
        head=("no.", "variant", "latency", first.metric, "on the front", "conditions"),
        rows=tuple(
            (
                str(v.number), v.variant, milliseconds(t.median_ms),
                score(v.accuracy.value) if v.accuracy else "",
                "yes" if machine in v.front_on else "no", conditions(t),
            )
            for v, t in timed
        ),
        numbers=2,
    )  # fmt: skip


def _speedup(name: str, recipe: str, machine: str, where: str, timed: Timed) -> FigureView:
    rows = [
        Row(
            number=v.number,
            name=v.variant,
            shown=ratio(t.speedup.ratio),
            note=interval(t.speedup),
            value=t.speedup.ratio,
            low=t.speedup.low,
            high=t.speedup.high,
            strong=machine in v.front_on,
            failed=v.state == "failed",
            tip=tip(v, t),
        )
        for v, t in timed
        if t.speedup
    ]
    crosses = " A cross failed its gate." if any(row.failed for row in rows) else ""
    fastest = max(rows, key=lambda row: row.value)
    most = f"Most: {fastest.name}, {fastest.shown}."
    label = f"{recipe}: speed-up over native TensorFlow on {machine}. {most}"
    return FigureView(
        title=f"Speed-up over native TensorFlow{where}",
        svg=interval_plot(name, rows, label, "times as fast, run in turns"),
        caption="With its interval: of the build's own timing 95%, of bench from the least round "
        f"to the greatest. Bold: on the front.{crosses}",
        head=("no.", "variant", "speed-up", "at least", "at most", "native", "conditions"),
        rows=tuple(
            (
                str(v.number), v.variant, ratio(t.speedup.ratio), ratio(t.speedup.low),
                ratio(t.speedup.high), milliseconds(t.native_ms), conditions(t),
            )
            for v, t in timed
            if t.speedup
        ),
        numbers=2,
    )  # fmt: skip


def _artifacts(name: str, recipe: str, variants: Sequence[ReportVariant]) -> FigureView:
    rows = [
        Row(number=v.number, name=v.variant, shown=bytes_of(v.size_bytes), value=v.size_bytes or 0)
        for v in variants
    ]
    return FigureView(
        title="Size of the artifact",
        svg=bar_plot(name, rows, f"{recipe}: {_sizes(rows)}", "what the engine loads"),
        caption="The model as its engine loads it, with its signature.",
        head=("no.", "variant", "artifact", "bytes"),
        rows=tuple(
            (str(v.number), v.variant, bytes_of(v.size_bytes), str(v.size_bytes)) for v in variants
        ),
        numbers=2,
    )


def _images(name: str, recipe: str, variants: Sequence[ReportVariant]) -> FigureView:
    packed = [(v, v.image) for v in variants if v.image]
    rows = [
        Row(number=v.number, name=v.variant, shown=bytes_of(i.size_bytes), value=i.size_bytes)
        for v, i in packed
    ]
    return FigureView(
        title="Size of the image",
        svg=bar_plot(name, rows, f"{recipe}: {_sizes(rows)}", "layers as they are sent"),
        caption="Of all layers, compressed; layers that images share are sent once.",
        head=("no.", "variant", "image", "digest"),
        rows=tuple((str(v.number), v.variant, bytes_of(i.size_bytes), i.digest) for v, i in packed),
        numbers=2,
    )


def _sizes(rows: Sequence[Row]) -> str:
    least, most = (f(rows, key=lambda row: row.value) for f in (min, max))
    return f"sizes from {least.shown} ({least.name}) to {most.shown} ({most.name})."


# The build.


def build_figures(report: Report) -> Iterator[FigureView]:
    """What the last build found in caches, and what steps take."""
    if report.build:
        yield _cache_hits(report.build)
    if report.steps:
        yield _kinds(report)
        yield _longest(report)


def _cache_hits(build: LastBuild) -> FigureView:
    counts = {
        "ran": build.ran,
        "restored": build.restored,
        "up to date": build.fresh,
        "failed": build.failed,
    }
    rows = [Row(name=name, shown=str(count), value=count) for name, count in counts.items()]
    total = sum(counts.values())
    saved = build.restored + build.fresh
    share = f"{saved} of {total} steps ({saved / total:.0%})" if total else "0 steps"
    return FigureView(
        title="Cache hits of the last build",
        svg=bar_plot("b0", rows, f"{share} did not have to run.", "steps"),
        caption=f"{share} did not have to run: they were up to date, or restored from a cache. The "
        f"build took {seconds(build.seconds)}" + f" on {build.jobs} core{'s' * (build.jobs != 1)}.",
        head=("steps that", "count"),
        rows=tuple((name, str(count)) for name, count in counts.items()),
    )


def _kinds(report: Report) -> FigureView:
    totals: dict[str, list[float]] = {}
    for step in report.steps:
        totals.setdefault(step.kind, []).append(step.seconds)
    ordered = sorted(totals.items(), key=lambda item: (-sum(item[1]), item[0]))
    rows = [
        Row(name=kind, shown=seconds(sum(times)), note=f"{len(times)} steps", value=sum(times))
        for kind, times in ordered
    ]
    whole = sum(step.seconds for step in report.steps)
    said = f"{len(report.steps)} steps took {seconds(whole)} in all"
    label = f"{said}; most: {rows[0].name}, {rows[0].shown}."
    return FigureView(
        title="Build time by kind of step",
        svg=bar_plot("b1", rows, label, "of all steps, when each last ran"),
        caption=f"{len(report.steps)} steps, {seconds(whole)} one after the other.",
        head=("kind", "steps", "seconds in all", "longest"),
        rows=tuple(
            (kind, str(len(times)), seconds(sum(times)), seconds(max(times)))
            for kind, times in ordered
        ),
    )


def _longest(report: Report) -> FigureView:
    ordered = sorted(report.steps, key=lambda step: (-step.seconds, step.step))
    shown = ordered[:MOST_ROWS]
    rows = [Row(name=s.step, shown=seconds(s.seconds), value=s.seconds) for s in shown]
    more = f"{MOST_TABLE_ROWS}" if len(ordered) > MOST_TABLE_ROWS else "all of them"
    label = f"The longest step is {rows[0].name}: {rows[0].shown}."
    return FigureView(
        title="Longest steps",
        svg=bar_plot("b2", rows, label, "wall time"),
        caption=f"The longest {len(rows)} of {len(ordered)}; the table has {more}.",
        head=("step", "kind", "wall time", "CPU time", "peak memory"),
        rows=tuple(
            (
                s.step, s.kind, seconds(s.seconds), seconds(s.cpu_s),
                "–" if s.peak_mb is None else f"{s.peak_mb:.0f} MiB",
            )
            for s in ordered[:MOST_TABLE_ROWS]
        ),
        numbers=2,
    )  # fmt: skip
