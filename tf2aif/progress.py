"""What a person who waits sees: a progress bar on a terminal, one line a step elsewhere.

All of it goes to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .build import Build, Event


@contextmanager
def follow(build: Build, *, quiet: bool = False) -> Iterator[None]:
    """Show the build's events while it lasts."""
    if quiet:
        yield
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI"):
        with _bar(build):
            yield
    else:
        build.listen = _Lines(len(build.runnable))
        yield


class _Lines:
    """One line for each step that did something."""

    def __init__(self, total: int) -> None:
        self.total, self.seen = total, set[str]()
        self.lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self.lock:
            if event.what != "start":
                self.seen.add(event.name)
            line = describe(event)
            if line:
                print(f"[{len(self.seen)}/{self.total}] {line}", file=sys.stderr, flush=True)


def describe(event: Event) -> str:
    """What happened, in one line; empty where nothing did."""
    if event.what == "failed":
        first = event.error.partition("\n")[0].removeprefix("error: ")
        return f"failed    {first}"
    if event.result is not None and event.result.done != "fresh":
        return f"{event.result.done:<9} {event.name}  {event.result.wall_s:.1f} s"
    return ""


@contextmanager
def _bar(build: Build) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)  # honours NO_COLOR
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(build.runnable))
        running: list[str] = []
        done: set[str] = set()

        def show(event: Event) -> None:
            if event.what == "start":
                running.append(event.name)
            else:
                if event.name in running:
                    running.remove(event.name)
                done.add(event.name)
                if line := describe(event):
                    progress.console.print(line, highlight=False, markup=False)
            progress.update(task, completed=len(done), description=", ".join(running[:3]))

        build.listen = show
        yield
