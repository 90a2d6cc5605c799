"""A simulation as it is written, `build/simulation.json`: what each policy came to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from ..client.figures import Latency
from .placement import By, Count, Share
from .written import read_written

SCHEMA: Literal[1] = 1
FILE = "simulation.json"

Amount = Annotated[float, Meta(ge=0)]


class Energy(Struct, frozen=True, kw_only=True):
    """Over the whole simulation."""

    joules: Annotated[Amount, Meta(description="of nodes in use and of requests; what is known")]
    idle_joules: Annotated[Amount, Meta(description="of it, what nodes in use draw idle")]
    unknown_requests: Annotated[
        Count, Meta(description="requests whose energy is not known, and not in it")
    ]


class ServiceResult(Struct, frozen=True, kw_only=True):
    """One service under one policy."""

    placed: Annotated[bool, Meta(description="else none of its requests was answered")]
    met: Annotated[
        bool,
        Meta(description="placed, and each latency objective held within three standard errors"),
    ]
    requests: Annotated[Count, Meta(description="that came")]
    latency: Annotated[Latency | None, Meta(description="with the queue; null: no answer")] = None
    within: Annotated[
        dict[str, Share], Meta(description="latency objective -> share of requests within it")
    ] = {}
    busiest: Annotated[
        Amount | None, Meta(description="share of the time that its busiest replica works")
    ] = None


class Series(Struct, frozen=True, kw_only=True):
    """Equal pieces of time, by when requests came; null: none came."""

    start_s: Annotated[tuple[float, ...], Meta(description="of each piece")]
    rate: Annotated[tuple[float, ...], Meta(description="requests a second that came")]
    p50_ms: Annotated[tuple[float | None, ...], Meta(description="median latency")]
    p99_ms: Annotated[tuple[float | None, ...], Meta(description="99th percentile of latency")]
    in_time: Annotated[
        tuple[Share | None, ...], Meta(description="share answered within the latency objective")
    ]


class PolicyResult(Struct, frozen=True, kw_only=True):
    """What one policy came to."""

    latency: Annotated[Latency | None, Meta(description="of all answers, with the queue")]
    in_time: Annotated[
        Share,
        Meta(
            description="of all requests: answered within the latency objective of the highest "
            "percentile, or answered where there is none"
        ),
    ]
    missed: Annotated[
        tuple[str, ...], Meta(description="services not placed, or over a latency objective")
    ]
    missed_weight: Annotated[Count, Meta(description="their weight")]
    energy: Annotated[Energy, Meta(description="over the whole simulation")]
    cost: Annotated[Amount, Meta(description="of nodes in use, over the whole simulation")]
    cost_unknown: Annotated[Count, Meta(description="nodes in use whose cost is not stated")]
    nodes: Annotated[Count, Meta(description="in use")]
    replicas: Annotated[Count, Meta(description="in all")]
    utilisation: Annotated[
        Amount | None, Meta(description="share of the cores of nodes in use that work")
    ]
    services: Annotated[dict[str, ServiceResult], Meta(description="by name")]
    series: Annotated[Series, Meta(description="over time, all services together")]


class Simulation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One load, and what each policy came to under it. Simulated: nothing here was measured."""

    schema: Annotated[Literal[1], Meta(description="the version of this shape")] = SCHEMA
    load: Annotated[Literal["poisson", "recorded"], Meta(description="when requests came")]
    source: Annotated[str | None, Meta(description="recorded: the file")] = None
    seed: Annotated[int, Meta(description="of all that was drawn")]
    duration_s: Annotated[Amount, Meta(description="of the load")]
    requests: Annotated[Count, Meta(description="in all")]
    order: Annotated[
        tuple[Literal["energy", "cost"], ...],
        Meta(description="what counts, after services whose objectives are missed"),
    ]
    currency: Annotated[str, Meta(description="of costs")] = ""
    policies: Annotated[dict[By, PolicyResult], Meta(description="by name")]


def encode_simulation(simulation: Simulation) -> bytes:
    """The simulation as it is written: the same value gives the same bytes."""
    return msgspec.json.encode(simulation) + b"\n"


def read_simulation(path: Path) -> Simulation:
    """The simulation in a file. Raises FilesError that says what is wrong and what to try."""
    return read_written(path, Simulation, SCHEMA, "simulation", "'tf2aif simulate' writes it")
