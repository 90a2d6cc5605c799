"""Lines over time, one for each policy: they differ in their dashes, not in colour alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .plots import label_left
from .svg import COLOURS, WIDTH, new_figure, render, style, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES: tuple[dict[str, Any], ...] = (
    {"color": COLOURS["front"], "linewidth": 2.2, "linestyle": "-"},
    {"color": COLOURS["mark"], "linewidth": 1.5, "linestyle": (0, (5, 2))},
    {"color": COLOURS["warn"], "linewidth": 1.5, "linestyle": (0, (1.5, 1.5))},
    {"color": COLOURS["muted"], "linewidth": 1.5, "linestyle": (0, (6, 2, 1.5, 2))},
)
SAMPLE_PX = 28
LINE_PX = 18


def series_plot(
    name: str,
    start: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    unit: str,
    label: str,
    *,
    log: bool = False,
) -> str:
    """Values over seconds; where one is None the line is interrupted."""
    with style():
        rows = _key_rows(list(series))
        above = LINE_PX * len(rows) + 32
        height = above + 220
        figure = new_figure(height)
        axes = figure.add_axes((0, 40 / height, 1, 1 - (above + 40) / height))
        axes.grid(True)
        axes.tick_params(length=0)
        axes.set_xlabel("seconds since the start")
        for how, values in zip(_styles(len(series)), series.values(), strict=True):
            axes.plot(start, [float("nan") if v is None else v for v in values], **how)
        if log:
            _logarithmic(axes, series)
        label_left(axes, unit)
        _key(figure, rows, dict(zip(series, _styles(len(series)), strict=True)))
        return render(figure, name, label)


def _styles(count: int) -> list[dict[str, Any]]:
    return [LINES[place % len(LINES)] for place in range(count)]


def _logarithmic(axes: Any, series: Mapping[str, Sequence[float | None]]) -> None:
    """A logarithmic scale where values spread over more than one power of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    known = [value for values in series.values() for value in values if value]
    if len(known) < 2 or max(known) < 10 * min(known):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())


def _key_rows(names: Sequence[str]) -> list[list[str]]:
    """The names in as many lines as they need."""
    rows: list[list[str]] = [[]]
    room = float(WIDTH)
    for name in names:
        wide = SAMPLE_PX + 6 + text_width(name) + 14
        if rows[-1] and wide > room:
            rows.append([])
            room = float(WIDTH)
        rows[-1].append(name)
        room -= wide
    return rows


def _key(
    figure: Figure, rows: Sequence[Sequence[str]], styles: Mapping[str, dict[str, Any]]
) -> None:
    """Above the plot: each name behind a piece of its line."""
    from matplotlib.lines import Line2D

    height = figure.bbox.height
    for line, names in enumerate(rows):
        x, y = 0.0, 1 - (LINE_PX * (line + 0.5)) / height
        for name in names:
            ends = [x / WIDTH, (x + SAMPLE_PX) / WIDTH]
            figure.add_artist(Line2D(ends, [y, y], **styles[name]))
            x += SAMPLE_PX + 6
            figure.text(x / WIDTH, y, name, va="center_baseline", color=COLOURS["ink"])
            x += text_width(name) + 14
