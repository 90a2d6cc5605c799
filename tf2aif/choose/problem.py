"""What a placement is chosen from, in whole numbers: services, node classes, options, totals.

Everything that a solver or a policy compares is an integer (thousandths of a request a second,
microwatts, millionths of the currency an hour), so that all of them see the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from .catalogue import Measurement
from .fleet import Node
from .queueing import ServiceTimes
from .services import FleetService

SHARES = 1000
"""A service's load is split between options in parts of this."""


class NodeClass(Struct, frozen=True, kw_only=True):
    """Nodes that do not differ. Amounts that are not stated are not limited, but for cores."""

    names: tuple[tuple[str, int], ...]  # kinds of the fleet, and how many of each
    node: Node
    count: int
    cores: int  # 1 where they are not stated: then one replica takes a node
    memory_mb: int | None
    resources: Mapping[str, int]
    idle_uw: int  # of a node that is in use; 0 where it is not stated
    cost_u: int | None  # an hour, of a node that is in use

    @property
    def name(self) -> str:
        """For people."""
        first, rest = self.names[0][0], len(self.names) - 1
        return f"{first} and {rest} more" if rest else first


class Option(Struct, frozen=True, kw_only=True):
    """A variant as an answer to one service on one class of nodes."""

    service: int  # position in `Problem.services`
    variant: str  # recipe/variant
    nodes: int  # position in `Problem.classes`
    measurement: Measurement
    times: ServiceTimes
    rate_m: int  # the most that one replica takes, thousandths of a request a second
    cores: int
    memory_mb: int
    resources: Mapping[str, int]
    request_j: float | None  # joules of one request, beside idle nodes; None: not known
    power_uw: int | None  # of the service's whole load on it: the same in whole numbers
    notes: tuple[str, ...] = ()


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a variant does not answer a service on some nodes."""

    variant: str
    nodes: str | None  # None: on none
    why: str


class Wanted(Struct, frozen=True, kw_only=True):
    """One service, and what can answer it."""

    name: str
    service: FleetService
    rate_m: int
    options: tuple[int, ...]  # positions in `Problem.options`
    refused: tuple[Refusal, ...]


class Problem(Struct, frozen=True, kw_only=True):
    """All of it."""

    services: tuple[Wanted, ...]
    classes: tuple[NodeClass, ...]
    options: tuple[Option, ...]

    def replicas_for(self, option: Option, parts: int) -> int:
        """How many replicas take so many of SHARES parts of the service's load."""
        wanted = self.services[option.service].rate_m * parts
        return -(-wanted // (SHARES * option.rate_m))

    def parts_of(self, option: Option, replicas: int) -> int:
        """How many of SHARES parts of the service's load so many replicas take, at most all."""
        rate = self.services[option.service].rate_m
        return min(SHARES, replicas * option.rate_m * SHARES // rate)

    def fit(self, option: Option) -> int:
        """How many replicas of an option one empty node holds."""
        return Room(self.classes[option.nodes]).fit(option)


class Room:
    """What is left of one node, and what runs on it."""

    def __init__(self, nodes: NodeClass) -> None:
        self.cores = nodes.cores
        self.memory_mb = nodes.memory_mb
        self.resources = dict(nodes.resources)
        self.holds: dict[int, int] = {}  # option -> replicas

    def fit(self, option: Option) -> int:
        """How many replicas of an option there is still room for."""
        most = self.cores // option.cores
        if self.memory_mb is not None and option.memory_mb:
            most = min(most, self.memory_mb // option.memory_mb)
        for name, amount in option.resources.items():
            most = min(most, self.resources.get(name, 0) // amount)
        return most

    def put(self, index: int, option: Option, replicas: int) -> None:
        """Take room for replicas, or give it back where they are negative."""
        self.cores -= option.cores * replicas
        if self.memory_mb is not None:
            self.memory_mb -= option.memory_mb * replicas
        for name, amount in option.resources.items():
            self.resources[name] = self.resources.get(name, 0) - amount * replicas
        self.holds[index] = self.holds.get(index, 0) + replicas
        if not self.holds[index]:
            del self.holds[index]


class Plan(Struct, frozen=True, kw_only=True):
    """Replicas on nodes, and how each service's load is split."""

    nodes: tuple[tuple[Mapping[int, int], ...], ...]  # by class: of each node in use, what it holds
    parts: Mapping[int, int]  # option -> of SHARES parts of its service's load

    def replicas(self) -> dict[int, int]:
        """How many replicas of each option there are."""
        found: dict[int, int] = {}
        for holds in (holds for rooms in self.nodes for holds in rooms):
            for option, count in holds.items():
                found[option] = found.get(option, 0) + count
        return found


class Totals(Struct, frozen=True, kw_only=True):
    """What a plan comes to. Less is better in each."""

    unplaced: int  # weight of the services that found no room
    energy_unknown: int  # load whose energy is not known, millionths of a request a second
    energy_nw: int
    cost_unknown: int  # nodes in use whose cost is not stated
    cost_u: int  # an hour
    replicas: int

    def rank(self, order: Iterable[str]) -> tuple[int, ...]:
        """The numbers in the order in which they count: `energy` and `cost`."""
        tiers = {
            "energy": (self.energy_unknown, self.energy_nw),
            "cost": (self.cost_unknown, self.cost_u),
        }
        return (self.unplaced, *(one for name in order for one in tiers[name]), self.replicas)


def totals(problem: Problem, plan: Plan) -> Totals:
    """What a plan comes to."""
    placed = {problem.options[option].service for option in plan.parts}
    used = [(problem.classes[index], len(rooms)) for index, rooms in enumerate(plan.nodes)]
    energy = sum(nodes.idle_uw * SHARES * count for nodes, count in used)
    unknown = 0
    for index, parts in plan.parts.items():
        option = problem.options[index]
        if option.power_uw is None:
            unknown += parts * problem.services[option.service].rate_m
        else:
            energy += option.power_uw * parts
    return Totals(
        unplaced=sum(
            wanted.service.weight
            for index, wanted in enumerate(problem.services)
            if index not in placed
        ),
        energy_unknown=unknown,
        energy_nw=energy,
        cost_unknown=sum(count for nodes, count in used if nodes.cost_u is None),
        cost_u=sum(count * (nodes.cost_u or 0) for nodes, count in used),
        replicas=sum(plan.replicas().values()),
    )


def check(problem: Problem, plan: Plan) -> None:
    """Raise ValueError where a plan breaks a rule: it is a fault of ours, not a user's."""
    for index, rooms in enumerate(plan.nodes):
        if len(rooms) > problem.classes[index].count:
            raise ValueError(f"{len(rooms)} nodes of class {index} are in use: more than there are")
        for holds in rooms:
            room = Room(problem.classes[index])
            for number, count in holds.items():
                option = problem.options[number]
                if option.nodes != index or count > room.fit(option):
                    raise ValueError(f"{count} x option {number} have no room on class {index}")
                room.put(number, option, count)
    replicas = plan.replicas()
    split: dict[int, int] = {}
    many: dict[int, int] = {}
    for number, count in replicas.items():
        service = problem.options[number].service
        many[service] = many.get(service, 0) + count
    for number, parts in plan.parts.items():
        option = problem.options[number]
        split[option.service] = split.get(option.service, 0) + parts
        if parts > problem.parts_of(option, replicas.get(number, 0)):
            raise ValueError(f"option {number} takes more than its replicas can")
    for service, count in many.items():
        if split.get(service) != SHARES or count < problem.services[service].service.replicas:
            raise ValueError(f"service {service} is not placed wholly")
