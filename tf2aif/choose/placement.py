"""A placement as it is written, `build/placement.json`: what runs where, how much, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from .catalogue import MeasuredOn, Origin, Percentiles
from .written import read_written

SCHEMA: Literal[1] = 1
FILE = "placement.json"

Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
By = Literal["solver", "cheapest", "fastest", "energy-first"]


class Group(Struct, frozen=True, kw_only=True):
    """Equal replicas of one service: a variant on one kind of nodes."""

    variant: Annotated[str, Meta(description="recipe/variant")]
    nodes: Annotated[str, Meta(description="kind of node in the fleet")]
    replicas: Annotated[Count, Meta(description="how many")]
    share: Annotated[Share, Meta(description="of the service's requests that go to the group")]
    rate: Annotated[float, Meta(description="of one replica, requests a second")]
    capacity: Annotated[
        float, Meta(description="the most that one replica can take and hold the objectives")
    ]
    utilisation: Annotated[Share, Meta(description="of the time that a replica is busy")]
    late: Annotated[
        dict[str, Share],
        Meta(description="latency objective -> the share that is over it, at most"),
    ]
    alone: Annotated[Percentiles, Meta(description="latency without a queue, as measured")]
    origin: Annotated[Origin, Meta(description="of the figures; given: a user's own word")]
    machine: Annotated[MeasuredOn | None, Meta(description="where they were measured")]
    energy_j: Annotated[
        float | None,
        Meta(description="of one request beside idle nodes, joules; null: not known"),
    ]
    cores: Annotated[Count, Meta(description="of one replica")]
    memory_mb: Annotated[Count, Meta(description="of one replica; 0: not measured, not counted")]
    resources: Annotated[dict[str, Count], Meta(description="extended resources of one replica")]
    why: Annotated[str, Meta(description="why this one")]
    notes: Annotated[tuple[str, ...], Meta(description="what is to be known of the figures")] = ()


class Refused(Struct, frozen=True, kw_only=True):
    """What does not answer a service, or was not taken."""

    variant: Annotated[str, Meta(description="recipe/variant")]
    nodes: Annotated[tuple[str, ...], Meta(description="kinds of nodes; none: on no node at all")]
    why: Annotated[str, Meta(description="in words")]


class ServicePlacement(Struct, frozen=True, kw_only=True):
    """One service: where it runs, or why not."""

    name: Annotated[str, Meta(description="as the services file has it")]
    recipe: Annotated[str, Meta(description="whose variants answer")]
    rate: Annotated[float, Meta(description="requests a second")]
    objectives: Annotated[tuple[str, ...], Meta(description="as written")]
    weight: Annotated[Count, Meta(description="how much it counts")]
    placed: Annotated[bool, Meta(description="wholly; else nothing of it runs")]
    reason: Annotated[str, Meta(description="why it is not placed")] = ""
    groups: Annotated[tuple[Group, ...], Meta(description="its replicas")] = ()
    refused: Annotated[
        tuple[Refused, ...], Meta(description="what else there is, and why not")
    ] = ()


class UsedNodes(Struct, frozen=True, kw_only=True):
    """Nodes of one kind that hold the same."""

    nodes: Annotated[str, Meta(description="kind of node in the fleet")]
    count: Annotated[Count, Meta(description="how many")]
    holds: Annotated[
        dict[str, dict[str, Count]],
        Meta(description="of each: service -> recipe/variant -> replicas"),
    ]
    cores_used: Annotated[Share, Meta(description="of the cores of each that replicas take")]


class Sum(Struct, frozen=True, kw_only=True):
    """What a plan comes to."""

    unplaced: Annotated[tuple[str, ...], Meta(description="services that found no room")]
    power_w: Annotated[
        float, Meta(description="of nodes in use and of requests, watts; what is known of it")
    ]
    power_unknown: Annotated[
        float, Meta(description="requests a second whose energy is not known, and not in it")
    ]
    cost_per_hour: Annotated[float, Meta(description="of nodes in use; what is known of it")]
    cost_unknown: Annotated[Count, Meta(description="nodes in use whose cost is not stated")]
    nodes: Annotated[Count, Meta(description="in use")]
    replicas: Annotated[Count, Meta(description="in all")]


class Bound(Struct, frozen=True, kw_only=True):
    """How good an aim's value is: of all plans that hold the aims before it as well."""

    aim: Annotated[
        Literal["unplaced", "energy_unknown", "energy", "cost_unknown", "cost", "replicas"],
        Meta(description="what was minimised"),
    ]
    gap: Annotated[
        Share | None,
        Meta(description="the best plan is less by at most this share; null: not looked for"),
    ]


class Placement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All services on a fleet."""

    schema: Annotated[Literal[1], Meta(description="the version of this shape")] = SCHEMA
    by: Annotated[By, Meta(description="what made the plan; a greedy one where it was the best")]
    order: Annotated[
        tuple[Literal["energy", "cost"], ...],
        Meta(description="what was minimised, after services without room"),
    ]
    utilisation: Annotated[Share, Meta(description="no replica is planned to be busier")]
    currency: Annotated[str, Meta(description="of costs")] = ""
    total: Annotated[Sum, Meta(description="of the plan")]
    bounds: Annotated[tuple[Bound, ...], Meta(description="the solver's, where it ran")] = ()
    exact: Annotated[
        bool | None,
        Meta(description="each node was looked at by itself, not as one of its kind"),
    ] = None
    policies: Annotated[
        dict[By, Sum], Meta(description="what each policy comes to, the greedy ones too")
    ]
    services: Annotated[tuple[ServicePlacement, ...], Meta(description="in the file's order")]
    nodes: Annotated[tuple[UsedNodes, ...], Meta(description="that are in use, by what they hold")]

    @property
    def unplaced(self) -> tuple[str, ...]:
        """The services that found no room."""
        return self.total.unplaced


def encode_placement(placement: Placement) -> bytes:
    """The placement as it is written: the same value gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(placement), indent=2) + b"\n"


def read_placement(path: Path) -> Placement:
    """The placement in a file. Raises FilesError that says what is wrong and what to try."""
    return read_written(path, Placement, SCHEMA, "placement", "'tf2aif place' writes it")
