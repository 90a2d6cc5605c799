"""The files that a recipe names: where they are, and what to say where one is not."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import Fault
from .load import LoadedRecipe
from .words import nearest_or_none

_FROM = "paths are relative to the recipe's own folder"


def resolve(loaded: LoadedRecipe, written: str) -> Path:
    """A path as a recipe writes it: from the recipe's own folder."""
    return loaded.resolve(written)


def missing_file(loaded: LoadedRecipe, written: str, at: str) -> list[Fault]:
    """The fault of a file or folder that is not there, with the nearest name beside it."""
    path = resolve(loaded, written)
    if path.exists():
        return []
    if path.is_symlink():
        return [Fault(f"'{written}' is a link to nothing", at, f"it says {path.readlink()}")]
    parent = path.parent
    if not parent.is_dir():
        hint = f"there is no folder '{os.path.dirname(written)}'; {_FROM}"
        return [Fault(f"no file or folder '{written}'", at, hint)]
    close = nearest_or_none(path.name, sorted(os.listdir(parent)))
    return [
        Fault(f"no file or folder '{written}'", at, f"did you mean '{close}'?" if close else _FROM)
    ]
