"""The scenarios of MLPerf LoadGen as settings, and what one window of them gives.

Source: MLPerf Inference Rules, "Scenarios"; Reddi et al., "MLPerf Inference Benchmark", ISCA 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

NOTE = (
    "These are no MLPerf results: the scenarios are MLPerf's, but the runs are short, and nobody "
    "has reviewed them."
)
Scenario = Literal["single-stream", "multi-stream", "server", "offline"]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Nanoseconds = NDArray[np.int64]


class Load(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a subject is asked, and for how long."""

    scenario: Annotated[
        Scenario,
        Meta(
            description="single-stream: one sample after the other; multi-stream: several at once, "
            "one query after the other; server: Poisson arrivals; offline: all that it can"
        ),
    ] = "single-stream"
    window_s: Annotated[Seconds, Meta(description="of one window")] = 1.0
    max_windows: Annotated[int, Meta(ge=3, description="until the last three agree")] = 10
    warmup_s: Annotated[Seconds, Meta(description="before the first window")] = 1.0
    min_queries: Annotated[int, Meta(ge=2, description="in one window")] = 16
    qps: Annotated[
        Seconds | None,
        Meta(description="server: queries a second; by default half of what the warm-up reaches"),
    ] = None
    samples_per_query: Annotated[Count, Meta(description="multi-stream")] = 8
    connections: Annotated[
        Count | None, Meta(description="at once; by default 1, and 32 for server and offline")
    ] = None
    rows: Annotated[
        Count | None,
        Meta(
            description="samples in one request, where the model has a batch axis; by default all "
            "of a multi-stream query, 32 for offline, and 1"
        ),
    ] = None
    generator: Annotated[
        Literal["auto", "loadgen", "own"],
        Meta(description="MLPerf's LoadGen, or our own; auto: LoadGen where it is installed"),
    ] = "auto"
    seed: Annotated[int, Meta(ge=0, description="of samples drawn and of arrivals")] = 0


class Pace(Struct, frozen=True, kw_only=True):
    """What the warm-up saw: seconds of the median request, and samples a second of all threads."""

    request_s: float
    throughput: float


class Window(Struct, frozen=True, kw_only=True):
    """One window: the latency of each query, from when it was due, and what went wrong."""

    latencies_ns: Nanoseconds
    samples: int
    duration_s: float  # from the first query to the last answer
    failures: dict[str, int] = {}  # what was wrong -> how many requests


class Asker(Protocol):
    """One thread's way to ask."""

    def ask(self, indices: Sequence[int]) -> str | None:
        """Ask for these samples in one request and wait; what went wrong, in words, or None."""

    def close(self) -> None:
        """Give back what it holds."""


class Subject(Protocol):
    """What is measured."""

    name: str

    def warm_up(self, load: Load) -> Pace:
        """Ask for `load.warmup_s`, as fast as the answers come."""

    def run(self, load: Load, pace: Pace, number: int) -> Window:
        """Run one window; its `number` varies what is drawn."""

    def close(self) -> None:
        """Give back what it holds."""


Connect = Callable[[], Asker]


def connections_of(load: Load) -> int:
    """How many requests may be under way at once."""
    return load.connections or (32 if load.scenario in ("server", "offline") else 1)


def rows_of(load: Load, most: int | None) -> int:
    """Samples in one request; `most` is what the model takes, None: any number."""
    by_default = {"multi-stream": load.samples_per_query, "offline": 32}
    wanted = load.rows or by_default.get(load.scenario, 1)
    return wanted if most is None else min(wanted, most)


def target_qps(load: Load, pace: Pace) -> float:
    """Queries a second in the scenario `server`."""
    return load.qps or max(1.0, pace.throughput / 2)


def generator_of(seed: int, number: int) -> np.random.Generator:
    """Random numbers of one window."""
    return np.random.default_rng([seed, number])
