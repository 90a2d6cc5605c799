"""How many threads an engine uses when nobody says."""

from __future__ import annotations

import os

from ..errors import Tf2aifError


def thread_count(threads: int | None) -> int:
    """The threads asked for, or as many as this process has CPUs.

    Raises Tf2aifError for a number below one.
    """
    if threads is None:
        return len(os.sched_getaffinity(0))
    if threads < 1:
        raise Tf2aifError(f"threads is {threads}", hint="give 1 or more, or leave it out")
    return threads
