"""Results of a search's trials, kept between runs: one small file for each.

A search that tries hundreds of settings is run again when one input changes, or ends halfway. What
a trial gives depends on what is tried and on what it is tried with: both are in its key, so that
what is found again is what would be computed again. The folder may be deleted at any time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from .facts import Value, key

VARIABLE = "TF2AIF_TRIALS"


def trials_folder() -> Path:
    """Where trials are kept: the folder that the build names, else one in the current folder."""
    return Path(os.environ.get(VARIABLE) or "trials")


def kept_trials() -> str:
    """Where a build has its steps keep them: beside the store, if no variable names a folder."""
    from .store import default_root

    return os.environ.get(VARIABLE) or str(default_root() / "trials")


class Trials:
    """The trials of one search. `base` is all that they have in common: digests, versions."""

    def __init__(self, folder: Path, base: Mapping[str, Value]) -> None:
        self._folder = folder
        self._base = dict(base)
        self.found = 0
        """How many were found."""

    def look(self, tried: Value) -> Any:
        """What the trial gave, or None where it was not made, or its file is damaged."""
        try:
            value = msgspec.json.decode(self._path(tried).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        self.found += 1
        return value

    def keep(self, tried: Value, value: Value) -> None:
        """Note what the trial gave: whole, or not at all. A full disk loses it, no more."""
        path = self._path(tried)
        beside = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(value))
            os.replace(beside, path)
        except OSError:
            with suppress(OSError):
                beside.unlink()

    def _path(self, tried: Value) -> Path:
        name = key({"base": self._base, "tried": tried})
        return self._folder / name[:2] / f"{name}.json"
