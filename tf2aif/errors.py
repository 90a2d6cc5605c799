"""Every failure a user can meet, and its exit code.

A class exists only where the exit code differs. Nothing below the command line prints or exits;
it raises one of these, and `tf2aif.__main__` renders it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: what, where, and what to try."""

    message: str
    at: str = ""
    hint: str = ""

    def render(self) -> str:
        """The fault as a user reads it, one to three lines."""
        lines = [f"error: {self.message}"]
        if self.at:
            lines.append(f"   at: {self.at}")
        if self.hint:
            lines.append(f" hint: {self.hint}")
        return "\n".join(lines)


class Tf2aifError(Exception):
    """A failure with one clear message; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, message: str, *, at: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.faults: tuple[Fault, ...] = (Fault(message, at, hint),)

    def render(self) -> str:
        """All faults as a user reads them."""
        return "\n\n".join(fault.render() for fault in self.faults)

    def __str__(self) -> str:
        return self.render()


class StepFailed(Tf2aifError):
    """A step ran and did not succeed."""


class FilesError(Tf2aifError):
    """The recipe, a target, or data that they name is wrong: all faults of all files at once."""

    exit_code = 2

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        if not self.faults:
            raise ValueError("a FilesError needs at least one fault")
        super(Tf2aifError, self).__init__(self.faults[0].message)


class ToolchainMissing(Tf2aifError):
    """A toolchain that was asked for is not on this machine."""

    exit_code = 3


class GateFailed(Tf2aifError):
    """A variant lost more accuracy against its source model than its gate allows."""

    exit_code = 4
