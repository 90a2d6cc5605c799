"""Which steps a build's farm does, told from what its machines offer: for planning alone.

A build keeps the offers in `build/`, so that `plan`, `why` and `list` see its steps as it did,
without asking anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from ..errors import StepFailed
from ..graph import Graph, Step
from ..machine import this_platform
from ..records import ActionRecord
from ..toolchains import Identity, Missing
from ..workspace import Workspace, write_atomically
from .offer import Offer
from .seats import Seat, Seats

REMEMBERED = "farm.json"


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The farm of the last build."""

    offers: tuple[Offer, ...]
    chosen: dict[str, str] = {}


class Done(msgspec.Struct, frozen=True):
    """What the farm made of a step; it is in the store here."""

    record: ActionRecord
    machine: str
    ran: bool
    """False: it had been made before."""


class FarmPlan:
    """Who runs which step. Its methods may be called from several threads."""

    def __init__(
        self,
        workspace: Workspace,
        offers: Iterable[Offer],
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        """`chosen`: see `Seats`."""
        self.workspace = workspace
        self.chosen = dict(chosen or {})
        self.seats = Seats(offers, self.look, chosen)

    def seat(self, step: Step) -> Seat | None:
        """Where the step runs in the farm; None: here, or nowhere."""
        return self.seats.seat(step)

    def missing(self, step: Step) -> Missing | None:
        """What a step that the farm cannot do lacks here, and what was seen there."""
        if step.machine and step.platform not in (None, this_platform()):
            what = f"a machine of {step.platform} with {step.toolchain}"
            return Missing(what, self.seats.explain(step.toolchain))
        for name in (step.toolchain, *step.engines):
            tool = self.workspace.places.identity(name)
            if isinstance(tool, Missing):
                return Missing(tool.what, f"{tool.hint}; {self.seats.explain(name)}")
        return None

    def has_others(self, graph: Graph) -> bool:
        """Whether a step's toolchain is another one than this machine's: no stat tells of it."""
        seats = (self.seat(step) for step in graph.steps.values())
        return any(seat is not None and not seat.here for seat in seats)

    def look(self, toolchain: str) -> Identity | Missing | None:
        """What it is here; None where the project has given it a place of its own."""
        places = self.workspace.places
        return None if places.place(toolchain) else places.identity(toolchain)

    def run(self, step: Step, seat: Seat) -> Done:
        """Have a step done. Raises StepFailed: a plan alone runs nothing."""
        raise StepFailed(f"{step.id} belongs to {seat.label}", hint="tf2aif build --farm ADDRESS")

    def report(self) -> dict[str, int]:
        """Machine -> how many steps it did."""
        return {}

    def close(self) -> None:
        """Leave the farm, where one was joined."""

    def remember(self) -> None:
        """Keep what was offered for later plans."""
        value = Remembered((*self.seats.offers, *self.seats.strangers), self.chosen)
        write_atomically(self.workspace.private / REMEMBERED, msgspec.json.encode(value))


def remembered(workspace: Workspace) -> FarmPlan:
    """The farm of the last build, as it was then; without machines where that cannot be read."""
    try:
        data = (workspace.private / REMEMBERED).read_bytes()
        found = msgspec.json.decode(data, type=Remembered)
    except (OSError, msgspec.DecodeError):  # of another version of tf2aif
        found = Remembered(())
    workspace.farm = FarmPlan(workspace, found.offers, found.chosen)
    return workspace.farm
