"""What a machine of the farm says of an errand: one word, and never the bytes of an artifact."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ..worker import Failure

TOPIC = "tf2aif"
"""Of dask's events: what machines tell while a step runs, for who waits for it."""
LOG_BYTES = 256 << 10


What = Literal["ran", "found", "failed", "refused", "trouble", "inputs-gone"]


class Word(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What came of an errand."""

    machine: str
    what: What
    """`found`: it had been done before. `trouble`: the machine could not, another one may."""
    failure: Failure | None = None
    log: str = ""
    """What the step printed, its middle left out where that is long."""
    peak_mb: float = 0.0


class News(Struct, frozen=True, kw_only=True):
    """What is told while a step runs."""

    key: str
    machine: str
    what: Literal["start", "log"] = "start"
    text: str = ""
    worker: str = ""
    """dask's own name of the machine, which it adds."""


def cut(text: str, limit: int = LOG_BYTES) -> str:
    """A log that fits into a word.

    >>> cut("0123456789", 4)
    '01\\n[6 characters are left out]\\n89'
    """
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters are left out]\n{text[-half:]}"
