"""Matplotlib's figures as SVG that lives inside a page: text as text, colours from its style sheet.

A figure is `WIDTH` CSS pixels wide, which fits a telephone; a page puts several beside each other.
Text is laid out with DejaVu Sans, which Matplotlib brings and which is wider than the fonts that
browsers take, so what does not overlap here does not overlap there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 320
FONT_PX = 11
COLOURS = {
    "ink": "#101112",
    "muted": "#606162",
    "grid": "#d0d1d2",
    "surface": "#fafbfc",
    "mark": "#3a5a7a",
    "front": "#0a6a4a",
    "bad": "#a02030",
    "warn": "#8a6010",
    "shade": "#b0c4d8",
}
"""What Matplotlib draws with, by the name of the page's own colour that takes its place."""

_UNUSED = ("metadata", "style")


@contextmanager
def style() -> Iterator[None]:
    """Our settings of Matplotlib, and nobody else's, while it lasts."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "tf2aif",
                "font.family": "DejaVu Sans",
                "font.size": FONT_PX,
                "text.color": COLOURS["ink"],
                "axes.edgecolor": COLOURS["muted"],
                "axes.labelcolor": COLOURS["muted"],
                "axes.facecolor": "none",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.linewidth": 0.8,
                "axes.axisbelow": True,
                "axes.formatter.useoffset": False,
                "xtick.color": COLOURS["muted"],
                "ytick.color": COLOURS["muted"],
                "xtick.labelsize": FONT_PX - 1,
                "ytick.labelsize": FONT_PX - 1,
                "grid.color": COLOURS["grid"],
                "grid.linewidth": 0.8,
                "figure.facecolor": "none",
                "path.simplify": False,
            }
        )
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of so many CSS pixels: at 72 dots an inch a point is one."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    return figure


def render(figure: Figure, name: str, label: str, tips: Mapping[str, str] = {}) -> str:
    """The figure as an `<svg>` element.

    `name` is unique in the page, since ids must be; `label` is what is read out in place of it;
    `tips` are shown over what was drawn with such a gid.
    """
    raw = BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(raw, format="svg", metadata=nothing)
    root = ElementTree.fromstring(raw.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    _remove(root)
    _add_tips(root, tips)
    _tidy_ids(root, name)
    _paint(root)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    return re.sub(r">\s+<", "><", text)


def _remove(root: ElementTree.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _UNUSED:
                parent.remove(child)


def _add_tips(root: ElementTree.Element, tips: Mapping[str, str]) -> None:
    for element in list(root.iter("g")):
        if tip := tips.get(element.get("id", "")):
            title = ElementTree.Element("title")
            title.text = tip
            element.insert(0, title)


def _tidy_ids(root: ElementTree.Element, name: str) -> None:
    """Ids that something refers to begin with the plot's name; the others go."""
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used |= set(re.findall(r"url\(#([^)]+)\)|^#(.+)$", value))
    known = {one for pair in used for one in pair if one}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id" and value not in known:
                del element.attrib[key]
            elif key == "id":
                element.attrib[key] = f"{name}-{value}"
            else:
                element.attrib[key] = re.sub(r"url\(#|^#(?=\w+$)", rf"\g<0>{name}-", value)


def _paint(root: ElementTree.Element) -> None:
    """The page's colours and its font in place of those that were drawn with."""
    for element in root.iter():
        value = element.get("style")
        if value is None:
            continue
        for colour, drawn in COLOURS.items():
            value = value.replace(drawn, f"var(--{colour})")
        element.set("style", re.sub(r"'DejaVu Sans'[^;]*", "var(--font)", value))


@cache
def _ruler() -> Any:
    """What measures text; its own size does not matter."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, 72)  # type: ignore[no-untyped-call]


def extent(artist: Any) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of what a figure holds, CSS pixels from its lower left corner."""
    box = artist.get_window_extent(_ruler())
    return float(box.x0), float(box.y0), float(box.x1), float(box.y1)


@cache
def text_width(text: str, size: float = FONT_PX, *, bold: bool = False) -> float:
    """How wide a text is in the font that figures are laid out with, CSS pixels."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn = Text(0, 0, text, fontsize=size, fontweight="bold" if bold else "normal")
    drawn.set_figure(Figure(dpi=72))
    left, _, right, _ = extent(drawn)
    return right - left


def fit(text: str, width: float, *, bold: bool = False) -> str:
    """The text, its middle left out where it is wider than that: both its ends tell it apart."""
    if text_width(text, bold=bold) <= width:
        return text
    for keep in range(len(text) - 1, 1, -1):
        short = f"{text[: (keep + 1) // 2]}…{text[-(keep // 2) :]}"
        if text_width(short, bold=bold) <= width:
            return short
    return "…"
