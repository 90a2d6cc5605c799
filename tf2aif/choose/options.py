"""From the catalogue, a fleet and services to a problem: which variant answers what, and where.

Only what was measured is an option, or what a user gave, which says so. A variant is left out for
a service with the reason, never in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from .catalogue import Catalogue, CatalogueVariant, Measurement
from .fleet import Node
from .match import Conditions, Figure, find_figure, misfit, undeployable
from .objective import QUANTITIES, Objective
from .problem import NodeClass, Option, Problem, Refusal, Wanted
from .queueing import LEVELS, ServiceTimes, highest_rate, service_times
from .select import Place
from .services import FleetService, Services

UTILISATION = 0.8
"""By default a replica is planned to be busy at most this share of the time."""

_MICRO = 10**6


def make_problem(
    catalogue: Catalogue,
    places: Sequence[Place],
    services: Services,
    utilisation: float = UTILISATION,
    conditions: Conditions | None = None,
) -> Problem:
    """All options of all services on all nodes."""
    classes = _classes(places)
    figures = _Figures(conditions or Conditions())
    options: list[Option] = []
    wanted = []
    for index, (name, service) in enumerate(services.services.items()):
        judge = _Judge(index, service, utilisation, figures)
        found, refused = judge.survey(catalogue.of(service.recipe), classes)
        first = len(options)
        options += found
        wanted.append(
            Wanted(
                name=name,
                service=service,
                rate_m=round(service.rate * 1000),
                options=tuple(range(first, len(options))),
                refused=tuple(refused),
            )
        )
    return Problem(services=tuple(wanted), classes=classes, options=tuple(options))


def _classes(places: Sequence[Place]) -> tuple[NodeClass, ...]:
    """Nodes that do not differ, in the order of the fleet."""
    names: dict[bytes, list[tuple[str, int]]] = {}
    nodes: dict[bytes, Node] = {}
    for place in places:
        plain = msgspec.structs.replace(place.node, count=1)
        key = msgspec.json.encode(plain, order="deterministic")
        nodes.setdefault(key, plain)
        names.setdefault(key, []).append((place.name, place.count or 1))
    return tuple(
        NodeClass(
            names=tuple(names[key]),
            node=node,
            count=sum(count for _, count in names[key]),
            cores=node.cores or 1,
            memory_mb=node.memory_mb,
            resources=node.resources,
            idle_uw=round((node.power.idle_w if node.power else 0) * _MICRO),
            cost_u=None if node.cost_per_hour is None else round(node.cost_per_hour * _MICRO),
        )
        for key, node in nodes.items()
    )


class _Figures:
    """What is known of variants on nodes; looked up once for all services."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._misfits: dict[tuple[str, int], str] = {}
        self._known: dict[tuple[str, str, int], Figure | str] = {}

    def misfit(self, variant: CatalogueVariant, node: Node) -> str:
        """As `match.misfit`."""
        key = variant.id, id(node)
        if key not in self._misfits:
            self._misfits[key] = misfit(variant, node)
        return self._misfits[key]

    def find(self, name: str, variant: CatalogueVariant, node: Node | None) -> Figure | str:
        """As `match.find_figure`."""
        key = name, variant.id, id(node)
        if key not in self._known:
            self._known[key] = find_figure(name, variant, node, self._conditions)
        return self._known[key]


class _Needs(Struct, frozen=True, kw_only=True):
    """What one replica takes of a node, and what is to be known of that."""

    cores: int
    memory_mb: int
    resources: Mapping[str, int]
    notes: tuple[str, ...]


class _Judge:
    """Which variants answer one service on which nodes."""

    def __init__(
        self, index: int, service: FleetService, utilisation: float, figures: _Figures
    ) -> None:
        self.index = index
        self.service = service
        self.utilisation = utilisation
        self.figures = figures
        limits = service.limits
        self.latency = [one for one in limits if one.of.kind == "latency"]
        self.others = [one for one in limits if one.of.kind != "latency"]

    def survey(
        self, variants: Sequence[CatalogueVariant], classes: Sequence[NodeClass]
    ) -> tuple[list[Option], list[Refusal]]:
        """The options, and why each other variant is none."""
        options: list[Option] = []
        refused: list[Refusal] = []
        for variant in variants:
            why = undeployable(variant) or self._fails(variant, None)
            if why:
                refused.append(Refusal(variant=variant.id, nodes=None, why=why))
                continue
            for index, nodes in enumerate(classes):
                found = self._judge(variant, nodes, index)
                if isinstance(found, Option):
                    options.append(found)
                else:
                    refused.append(Refusal(variant=variant.id, nodes=nodes.name, why=found))
        kept = list(_undominated(options, classes, refused))
        return kept, refused

    def _fails(self, variant: CatalogueVariant, node: Node | None) -> str:
        """The objective that a variant does not hold, or has no figure for; of itself or a node."""
        for objective in self.others:
            if (objective.of.kind == "variant") != (node is None):
                continue
            found = self.figures.find(objective.quantity, variant, node)
            if isinstance(found, str):
                return found
            if not objective.holds(found.value):
                return f"{objective.quantity} is {objective.of.show(found.value)}: not {objective}"
        return ""

    def _judge(self, variant: CatalogueVariant, nodes: NodeClass, index: int) -> Option | str:
        node = nodes.node
        if wrong := self.figures.misfit(variant, node):
            return f"the node {wrong}"
        if why := self._fails(variant, node):
            return why
        found = self._figure(variant, node)
        if isinstance(found, str):
            return found
        measurement = found.measurement
        times = None if measurement is None else service_times(measurement.latency)
        if measurement is None or times is None:
            return "its latency was not measured"
        rate = self._rate(times)
        if isinstance(rate, str):
            return rate
        needs = self._needs(variant, nodes, measurement)
        if isinstance(needs, str):
            return needs
        joules, note = _joules(variant, nodes, measurement, times, needs.cores)
        return Option(
            service=self.index,
            variant=variant.id,
            nodes=index,
            measurement=measurement,
            times=times,
            rate_m=rate,
            cores=needs.cores,
            memory_mb=needs.memory_mb,
            resources=needs.resources,
            request_j=joules,
            power_uw=None if joules is None else round(joules * self.service.rate * _MICRO),
            notes=(*_doubts(measurement), *needs.notes, *([note] if note else [])),
        )

    def _figure(self, variant: CatalogueVariant, node: Node) -> Figure | str:
        """The highest percentile that is limited: all figures are taken of that measurement.

        A higher one does as well, since a lower one is no more than it.
        """
        order = [name for name, one in QUANTITIES.items() if _field(name) in LEVELS]
        asked = max((o.quantity for o in self.latency), key=order.index, default="p50")
        found = [self.figures.find(name, variant, node) for name in order[order.index(asked) :]]
        return next((one for one in found if isinstance(one, Figure)), found[0])

    def _rate(self, times: ServiceTimes) -> int | str:
        """The most that a replica takes, thousandths of a request a second; or why nothing."""
        rate = highest_rate(times, None, 0.0, self.utilisation)
        for objective in self.latency:
            level = _level(objective)
            if level > times.known:
                return f"its {objective.quantity} was not measured"
            own = highest_rate(times, objective.limit, 1 - level, self.utilisation)
            if own * 1000 < 1:
                alone = objective.of.show(times.at(level))
                return f"{objective.quantity} is {alone} without any queue: {objective} leaves none"
            rate = min(rate, own)
        return max(1, int(rate * 1000))

    def _needs(
        self, variant: CatalogueVariant, nodes: NodeClass, measurement: Measurement
    ) -> _Needs | str:
        notes = []
        machine = measurement.machine
        cores = measurement.threads or (machine.cores if machine else nodes.cores)
        if nodes.node.cores is None:
            cores = 1
            notes.append("the node's cores are not stated: one replica a node")
        elif machine is None:
            notes.append("on how many cores is not known: one replica a node")
        memory = self.figures.find("memory", variant, nodes.node)
        if isinstance(memory, str):
            notes.append("its memory was not measured: not counted")
            mebibytes = 0
        else:
            mebibytes = -int(-memory.value // 2**20)
        if nodes.memory_mb is not None and mebibytes > nodes.memory_mb:
            return f"it takes {mebibytes} MiB, the node has {nodes.memory_mb}"
        resources = dict(_named(variant.requires.resources, nodes.resources))
        if any(nodes.resources.get(name, 0) < count for name, count in resources.items()):
            return f"the node has too little of {', '.join(resources)}"
        return _Needs(cores=cores, memory_mb=mebibytes, resources=resources, notes=tuple(notes))


def _field(quantity: str) -> str:
    return f"{quantity.replace('.', '_')}_ms"


def _level(objective: Objective) -> float:
    return LEVELS[_field(objective.quantity)]


def _named(wanted: Mapping[str, int], held: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """What is taken by its full name: `amd.com/xilinx_u250_*` is one of the node's own."""
    for name, count in wanted.items():
        own = [one for one in sorted(held) if name.endswith("*") and one.startswith(name[:-1])]
        yield max(own, key=lambda one: held[one], default=name), count


def _joules(
    variant: CatalogueVariant,
    nodes: NodeClass,
    measurement: Measurement,
    times: ServiceTimes,
    cores: int,
) -> tuple[float | None, str]:
    """Joules of one request beside what the node draws idle, and a note; None: not known.

    A measured figure holds the idle power of its own time, which is taken off. Without one, the
    cores draw their share between idle and busy, as the fleet says.
    """
    power = nodes.node.power
    seconds, share = times.mean_ms / 1000, cores / nodes.cores
    if measurement.energy_j is not None:
        idle = power.idle_w * seconds * share if power else 0.0
        return max(0.0, measurement.energy_j - idle), ""
    if power is None or variant.requires.resources:
        return None, "its energy was not measured"
    joules = (power.busy_w - power.idle_w) * seconds * share
    return joules, "energy from the power that the fleet says"


def _doubts(measurement: Measurement) -> Iterator[str]:
    if measurement.origin == "given":
        source = f": {measurement.source}" if measurement.source else ""
        yield f"its figures were given, not measured{source}"
    if measurement.subject == "engine":
        yield "figures of the engine alone, without its server"
    if measurement.stable is False and "unstable" not in measurement.doubts:
        yield "unstable"
    yield from measurement.doubts


def _undominated(
    options: Sequence[Option], classes: Sequence[NodeClass], refused: list[Refusal]
) -> Iterator[Option]:
    """The options that no other one on the same nodes is as good as in all; of equals the first."""
    alike: dict[int, list[Option]] = {}
    for one in options:
        alike.setdefault(one.nodes, []).append(one)
    for one in options:
        others, before = alike[one.nodes], True
        for other in others:
            if other is one:
                before = False
            elif _as_good(other, one) and (before or not _as_good(one, other)):
                why = f"{other.variant} is as good in all that counts"
                name = classes[one.nodes].name
                refused.append(Refusal(variant=one.variant, nodes=name, why=why))
                break
        else:
            yield one


def _as_good(one: Option, other: Option) -> bool:
    """Whether it takes as much load with no more of anything."""
    if (one.power_uw is None) != (other.power_uw is None):
        return False
    return (
        one.rate_m >= other.rate_m
        and one.cores <= other.cores
        and one.memory_mb <= other.memory_mb
        and (one.power_uw or 0) <= (other.power_uw or 0)
        and all(count <= other.resources.get(name, 0) for name, count in one.resources.items())
    )
