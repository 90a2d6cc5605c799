"""What the parts of the command line share: an action of a command, and the values of flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

AddCommand = Callable[..., argparse.ArgumentParser]
Show = Callable[[Any], None]


def add_action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """One more word after a command's own, such as `gc` after `cache`."""
    one: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary)
    # Before and after the action's name; SUPPRESS: the one must not undo the other.
    one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="write JSON")
    return one


def count(text: str) -> int:
    """A whole number of things. Raises ArgumentTypeError, as all here do for what they refuse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 up")
    return int(text)


def port(text: str) -> int:
    """A TCP port; 0: any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port")
    return int(text)


def above_zero(text: str) -> float:
    """A number such as a time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value
