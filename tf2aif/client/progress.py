"""A progress bar on a terminal, one line a stage elsewhere, without a library.

It goes to the stream that is given, so that standard output holds the result alone.
"""

from __future__ import annotations

import os
import shutil
from typing import TextIO

from .measure import Step

WIDTH = 24


class Bar:
    """Shows how far each stage is. Call it with each step, and `stage` when another begins."""

    def __init__(self, out: TextIO, *, quiet: bool = False) -> None:
        self._out = out
        self._quiet = quiet
        dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("CI"))
        self._live = out.isatty() and not dumb and not quiet
        self._stage = ""

    def stage(self, name: str) -> None:
        """Something else begins."""
        self._stage = name
        if self._live:
            self._draw(f"{name} ...")
        elif not self._quiet:
            self._out.write(f"{name}\n")
            self._out.flush()

    def __call__(self, step: Step) -> None:
        """One more window is measured."""
        if self._live:
            full = round(WIDTH * step.done / step.total)
            bar = "#" * full + "." * (WIDTH - full)
            text = f"[{bar}] {self._stage}: window {step.done} of at most {step.total}, {step.name}"
            self._draw(text)

    def close(self) -> None:
        """Take the bar away."""
        if self._live:
            self._draw("")

    def _draw(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        self._out.write(f"\r\x1b[K{text[:columns]}")
        self._out.flush()
