"""The plots of a report: accuracy against latency, and rows with a bar or an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from msgspec import Struct

from .labels import Box, place_labels
from .svg import COLOURS, FONT_PX, WIDTH, extent, fit, new_figure, render, style, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_PX = 17
NAME_PX = 122  # of a name, at most
NUMBER_PX = FONT_PX - 1  # the size of numbers beside marks, and of tick labels
DECADES = ((1, 2, 5), (1, 3), (1,))


class Point(Struct, frozen=True, kw_only=True):
    """A variant in the plot of accuracy against latency."""

    number: int
    latency_ms: float
    accuracy: float
    front: bool = False
    baseline: bool = False
    failed: bool = False
    tip: str = ""


class Row(Struct, frozen=True, kw_only=True):
    """A line of a plot: its name, its value in words, and where its interval or bar ends."""

    number: int | None = None
    name: str
    shown: str
    note: str = ""  # behind the value
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False
    failed: bool = False
    tip: str = ""


def accuracy_plot(
    name: str, points: Sequence[Point], metric: str, gate: float | None, label: str
) -> str:
    """Accuracy over latency: a mark and a number for each, and the front as a line.

    `gate` is the least accuracy that the recipe allows. The shape of a mark says what it is, its
    colour says it again.
    """
    with style():
        figure = new_figure(300 if len(points) <= 24 else 440)
        height = figure.bbox.height
        axes = figure.add_axes((0, 42 / height, 1, 1 - 68 / height))
        axes.set_xscale("log")
        axes.grid(True)
        axes.tick_params(length=0)
        axes.set_xlabel("latency, median of one run (ms)")
        _limits(axes, points, gate)
        label_left(axes, metric)
        spread_ticks(axes)
        taken = _front(axes, [point for point in points if point.front])
        taken += [_gate_line(axes, gate)] if gate is not None else []
        for point in points:
            _mark(axes, point)
        _numbers(axes, points, taken)
        tips = {f"p{point.number}": point.tip for point in points}
        return render(figure, name, label, tips)


def _limits(axes: Axes, points: Sequence[Point], gate: float | None) -> None:
    xs, ys = [p.latency_ms for p in points], [p.accuracy for p in points]
    low, high = min(xs), max(xs)
    room = max((high / low) ** 0.12, 1.25)
    axes.set_xlim(low / room, high * room)
    lowest, highest = min([*ys, *([gate] if gate is not None else [])]), max(ys)
    room_y = max((highest - lowest) * 0.15, abs(highest) * 1e-3, 1e-6)
    axes.set_ylim(lowest - room_y, highest + room_y)


def label_left(axes: Axes, title: str) -> None:
    """Give the y axis as much room as its tick labels need, and its title above it."""
    from matplotlib.ticker import FuncFormatter, ScalarFormatter

    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.ticklabel_format(axis="y", style="plain")
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    labels = axes.yaxis.get_major_formatter().format_ticks(ticks)
    left = max(text_width(label, NUMBER_PX) for label in [*labels, "0"]) + 8
    box, height = axes.get_position(), axes.bbox.height / axes.get_position().height
    axes.set_position((left / WIDTH, box.y0, 1 - (left + 10) / WIDTH, box.height))
    axes.figure.text(
        0, box.y1 + 16 / height, fit(title, WIDTH), color=COLOURS["muted"], va="center"
    )


def _front(axes: Axes, points: Sequence[Point]) -> list[Box]:
    """What is at least reached at each latency: a staircase through the front; where it lies."""
    ordered = sorted(points, key=lambda point: point.latency_ms)
    if not ordered:
        return []
    xs = [*(p.latency_ms for p in ordered), axes.get_xlim()[1]]
    ys = [*(p.accuracy for p in ordered), ordered[-1].accuracy]
    axes.plot(xs, ys, drawstyle="steps-post", color=COLOURS["front"], linewidth=1.5, zorder=2)
    places = axes.transData.transform(list(zip(xs, ys, strict=True)))
    boxes = []
    for (x, y), (next_x, next_y) in pairwise(places):
        boxes += [Box(x, y - 1, next_x, y + 1), Box(next_x - 1, y, next_x + 1, next_y)]
    return boxes


def _gate_line(axes: Axes, gate: float) -> Box:
    """The gate as a dashed line with a word at its right end; the word's place."""
    axes.axhline(gate, color=COLOURS["bad"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    word = axes.annotate(
        "gate", (1, gate), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", va="bottom", fontsize=NUMBER_PX,
        color=COLOURS["bad"],
    )  # fmt: skip
    return Box(*extent(word))


def _mark(axes: Axes, point: Point) -> None:
    shape = "X" if point.failed else "s" if point.baseline else "o"
    colour = "bad" if point.failed else "front" if point.front else "mark"
    (drawn,) = axes.plot(
        [point.latency_ms], [point.accuracy], marker=shape, markersize=7, linestyle="none",
        markeredgecolor=COLOURS[colour], markeredgewidth=1.4,
        markerfacecolor=COLOURS[colour if point.front else "surface"],
        zorder=3.5 if point.front else 3,
    )  # fmt: skip
    drawn.set_gid(f"p{point.number}")


def _numbers(axes: Axes, points: Sequence[Point], taken: Sequence[Box]) -> None:
    """A number for each mark, and a thin line to it where it stands farther off."""
    places = [tuple(axes.transData.transform((p.latency_ms, p.accuracy))) for p in points]
    sizes = [_number_size(point) for point in points]
    bounds = axes.get_window_extent()
    inside = Box(bounds.x0 + 1, bounds.y0 + 2, bounds.x1, bounds.y1)
    found = place_labels(places, sizes, inside, taken)
    for point, (x, y), place in zip(points, places, found, strict=True):
        if place is None:
            continue  # its table names it
        back = axes.transData.inverted()
        if abs(place[0] - x) + abs(place[1] - y) > 20:
            ends = back.transform([(x, y), place])
            axes.plot(ends[:, 0], ends[:, 1], color=COLOURS["muted"], linewidth=0.6, zorder=1.5)
        middle = back.transform(place)
        axes.text(
            middle[0], middle[1], str(point.number), ha="center", va="center_baseline",
            fontsize=NUMBER_PX, fontweight="bold" if point.front else "normal", zorder=4,
            color=COLOURS["front" if point.front else "ink"],
        )  # fmt: skip


def _number_size(point: Point) -> tuple[float, float]:
    width = text_width(str(point.number), NUMBER_PX, bold=True)
    return width + 4, NUMBER_PX + 4.0  # a browser's line is a little higher than the glyphs


def spread_ticks(axes: Axes, shown: Callable[[float], str] = "{:g}".format) -> None:
    """Ticks of a logarithmic x axis: as many as have room for their labels, at round numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = axes.get_xlim()
    candidates = [_decades(low, high, digits) for digits in DECADES]
    candidates += [_decades(low, high, (1,))[::step] for step in (2, 3, 4)]
    candidates = [ticks for ticks in candidates if len(ticks) >= 2]
    linear = [
        [t for t in MaxNLocator(n).tick_values(low, high) if low <= t <= high] for n in (5, 3)
    ]
    few = not candidates or len(candidates[0]) < 3
    ordered = [*linear, *candidates] if few else [*candidates, *linear]
    ticks = next((t for t in ordered if len(t) > 1 and _roomy(axes, t, shown)), [low, high])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if t > 0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))


def _decades(low: float, high: float, digits: Sequence[int]) -> list[float]:
    values = (digit * 10.0**power for power in range(-9, 10) for digit in digits)
    return [value for value in values if low <= value <= high]


def _roomy(axes: Axes, ticks: Sequence[float], shown: Callable[[float], str]) -> bool:
    """Whether the labels of all ticks stand apart."""
    end = 0.0
    for place, tick in enumerate(ticks):
        middle = axes.transData.transform((tick, 1))[0]
        half = text_width(shown(tick), NUMBER_PX) / 2
        if place and middle - half < end + 6:
            return False
        end = middle + half
    return True


# Rows.


def bar_plot(name: str, rows: Sequence[Row], label: str, unit: str) -> str:
    """A bar for each row, from 0, with its value in words behind it."""
    with style():
        figure, axes = _row_axes(rows, unit, axis=False)
        highest = max(row.value for row in rows) or 1.0
        axes.set_xlim(0, highest)
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
        for place, row in enumerate(rows):
            colour = COLOURS["front" if row.strong else "mark"]
            drawn = axes.barh(place, row.value, height=0.55, color=colour)
            drawn.patches[0].set_gid(f"r{place}")
        return render(figure, name, label, {f"r{i}": row.tip for i, row in enumerate(rows)})


def interval_plot(name: str, rows: Sequence[Row], label: str, unit: str) -> str:
    """A dot with its interval for each row, on a logarithmic axis; a line at 1."""
    with style():
        figure, axes = _row_axes(rows, unit, axis=True)
        axes.set_xscale("log")
        lows = [row.value if row.low is None else row.low for row in rows]
        highs = [row.value if row.high is None else row.high for row in rows]
        low, high = min([*lows, 1.0]), max([*highs, 1.0])
        room = max((high / low) ** 0.06, 1.1)
        axes.set_xlim(low / room, high * room)
        axes.axvline(1, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        spread_ticks(axes, "{:g}×".format)
        for place, row in enumerate(rows):
            _interval(axes, place, row, lows[place], highs[place])
        return render(figure, name, label, {f"r{i}": row.tip for i, row in enumerate(rows)})


def _interval(axes: Axes, place: int, row: Row, low: float, high: float) -> None:
    colour = COLOURS["bad" if row.failed else "front" if row.strong else "mark"]
    axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
    for end in (low, high):
        axes.plot([end], [place], marker="|", markersize=7, color=colour, markeredgewidth=1.5)
    (drawn,) = axes.plot(
        [row.value], [place], marker="X" if row.failed else "o", markersize=6, linestyle="none",
        markeredgecolor=colour, markerfacecolor=colour if row.strong else COLOURS["surface"],
        markeredgewidth=1.4,
    )  # fmt: skip
    drawn.set_gid(f"r{place}")


def _row_axes(rows: Sequence[Row], unit: str, *, axis: bool) -> tuple[Figure, Axes]:
    """Axes with a line for each row, its name to the left and its value to the right."""
    below = 38 if axis else 4
    height = ROW_PX * len(rows) + below + (6 if axis else 22)
    figure = new_figure(height)
    left, right = _row_text(figure, rows, 6 if axis else 22)
    box = (left / WIDTH, below / height, (right - left) / WIDTH, ROW_PX * len(rows) / height)
    axes = figure.add_axes(box)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(axis)
    axes.tick_params(length=0)
    axes.grid(axis, axis="x")
    if axis:
        place = (0.5, 10 / height)
        figure.text(*place, unit, color=COLOURS["muted"], ha="center", va="center")
    else:
        axes.set_xticks([])
        place = (left / WIDTH, 1 - 11 / height)
        figure.text(*place, unit, color=COLOURS["muted"], va="center")
    return figure, axes


def _row_text(figure: Figure, rows: Sequence[Row], above: float) -> tuple[float, float]:
    """Write number, name, value and note of each row; what is left between, from and to."""
    numbers, names, values, notes = _columns(rows)
    right = WIDTH - notes
    for place, row in enumerate(rows):
        y = 1 - (above + ROW_PX * (place + 0.5)) / figure.bbox.height
        name = fit(row.name, names, bold=True)
        cells = [
            (str(row.number or ""), numbers - 6, "right", "muted", FONT_PX, False),
            (name, numbers, "left", "ink", FONT_PX, row.strong),
            (row.shown, right, "right", "ink", FONT_PX, row.strong),
            (row.note, WIDTH, "right", "muted", NUMBER_PX, False),
        ]
        for text, x, ha, colour, pixels, strong in cells:
            figure.text(
                x / WIDTH, y, text, ha=ha, va="center_baseline", fontsize=pixels,
                color=COLOURS[colour], fontweight="bold" if strong else "normal",
            )  # fmt: skip
    return numbers + names + 10, right - values - 10


def _columns(rows: Sequence[Row]) -> tuple[float, float, float, float]:
    """The widths of numbers, names, values and notes, CSS pixels."""

    def widest(texts: Iterable[str], size: float = FONT_PX) -> float:
        return max(text_width(text, size, bold=True) for text in texts)

    numbered = [str(row.number) for row in rows if row.number is not None]
    notes = widest((row.note for row in rows), NUMBER_PX)
    return (
        widest(numbered) + 6 if numbered else 0.0,
        min(widest(row.name for row in rows) + 1, NAME_PX + (0 if numbered else 30)),
        widest(row.shown for row in rows),
        notes + 6 if notes else 0.0,
    )
