"""What a person who waits sees: what runs, what waits and for what, and how long it may last yet.

On a terminal a bar that keeps itself up to date, elsewhere a line for each step that did something.
All of it goes to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .admission import Standing
from .build import Build, Event

if TYPE_CHECKING:
    from rich.console import Group

QUIET_S = 30.0
"""Without a terminal: how long nothing may be heard of a build that runs."""
SHOWN = 8  # running steps on a terminal
_REFRESH_S = 0.25


@contextmanager
def follow(build: Build, *, quiet: bool = False) -> Iterator[None]:
    """Show the build's events while it lasts."""
    if quiet:
        yield
        return
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with (_bar if terminal and not os.environ.get("CI") else _lines)(build):
        yield


def describe(event: Event) -> str:
    """What happened, in one line; empty where nothing did."""
    if event.what == "failed":
        first = event.error.partition("\n")[0].removeprefix("error: ")
        return f"failed    {first}"
    if event.result is not None and event.result.done != "fresh":
        where = f" on {event.result.machine}" if event.result.machine else ""
        return f"{event.result.done:<9} {event.name}  {event.result.wall_s:.1f} s{where}"
    return ""


def duration(seconds: float) -> str:
    """How long as people say it: the more, the rounder.

    >>> duration(7.4), duration(95), duration(4000)
    ('7 s', '1 min 35 s', '1 h 7 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def left(standing: Standing) -> str:
    """How long it may last yet; empty where that would be a guess, or is over."""
    if standing.left_s is None or standing.left_s < 1:
        return ""
    return f"about {duration(standing.left_s)} left"


def waits(standing: Standing) -> str:
    """What steps wait for, the most first; steps before them last, since that goes by itself."""
    order = sorted(standing.waiting.items(), key=lambda w: (w[0] == "steps before", -w[1], w[0]))
    return ", ".join(f"{count} for {what}" for what, count in order)


# Without a terminal.


@contextmanager
def _lines(build: Build) -> Iterator[None]:
    lines = _Lines(build)
    build.listen = lines
    over = threading.Event()
    thread = threading.Thread(target=lines.break_silence, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Lines:
    """One line for each step that did something, and now and then one for those that still run."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.total, self.seen = len(build.runnable), set[str]()
        self.lock = threading.Lock()
        self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        with self.lock:
            if event.what in ("done", "failed"):
                self.seen.add(event.name)
            if line := describe(event):
                self._print(line)

    def break_silence(self, over: threading.Event) -> None:
        """Say what runs where nothing was heard for long: some CIs end what is silent."""
        while not over.wait(QUIET_S / 10):
            admission = self.build.workspace.admission
            if admission is None or time.monotonic() - self.last < QUIET_S:
                continue
            standing = admission.standing()
            names = [f"{name} {duration(s)}" for name, s in standing.running.items()]
            with self.lock:
                self._print("; ".join(["runs      " + ", ".join(names), *_more(standing)]))

    def _print(self, line: str) -> None:
        self.last = time.monotonic()
        # Variants may fail too, and are no steps: the count never goes past the total.
        count = min(len(self.seen), self.total)
        print(f"[{count}/{self.total}] {line}", file=sys.stderr, flush=True)


def _more(standing: Standing) -> list[str]:
    waiting = waits(standing)
    return [part for part in (waiting and f"waiting: {waiting}", left(standing)) if part]


# On a terminal.


@contextmanager
def _bar(build: Build) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)  # honours NO_COLOR
    view = _View(build)

    def show(event: Event) -> None:
        if line := describe(event):
            live.console.print(line, highlight=False, markup=False)

    with Live(
        get_renderable=view.render,
        console=console,
        refresh_per_second=1 / _REFRESH_S,
        transient=True,
    ) as live:
        build.listen = show
        yield


class _View:
    """The bar, the steps that run and the line of those that wait, as they are when drawn."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.start = time.monotonic()

    def render(self) -> Group:
        """What is drawn now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        admission = self.build.workspace.admission
        if admission is None:
            return Group()
        standing = admission.standing()
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, standing.total), completed=standing.finished, width=30)
        count = f"{standing.finished}/{standing.total}"
        spent = duration(time.monotonic() - self.start)
        head.add_row(bar, count, spent, Text(left(standing), style="cyan"))
        rows = [
            Text(f"  {name}  {duration(seconds)}", overflow="ellipsis", no_wrap=True)
            for name, seconds in list(standing.running.items())[:SHOWN]
        ]
        hidden = len(standing.running) - SHOWN
        if hidden > 0:
            rows.append(Text(f"  and {hidden} more", style="dim"))
        if waiting := waits(standing):
            rows.append(Text(f"waiting: {waiting}", style="dim", overflow="ellipsis", no_wrap=True))
        return Group(head, *rows)
