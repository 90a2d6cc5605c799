"""Where services were placed, and what the simulator said of it: as `tf2aif place` wrote them."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from .data import Report
from .figures import FigureView


class PlaceSection(Struct, frozen=True, kw_only=True):
    """A section on placement or simulation."""

    name: str
    about: str
    tables: tuple[FigureView, ...] = ()
    figures: tuple[FigureView, ...] = ()


def place_sections(report: Report) -> Iterator[PlaceSection]:  # noqa: ARG001
    """Those that there are."""
    yield from ()
