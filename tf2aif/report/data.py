"""What a report says, as frozen values. `report.json` is their JSON, of `schemas/report.json`.

Only what was measured stands here; null is "not measured".
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from ..choose.catalogue import CatalogueAccuracy, CatalogueImage
from ..choose.placement import Placement
from ..choose.simulation import Simulation
from ..record import State

SCHEMA: Literal[1] = 1
FILE = "report.json"

Origin = Literal["build", "bench", "imported"]
Change = Literal[
    "new", "gone", "state", "artifact", "accuracy", "latency", "speed-up", "size", "image"
]
Verdict = Literal["better", "worse", "neither"]
Milliseconds = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0)]


class Interval(Struct, frozen=True, kw_only=True):
    """A ratio, and between what it lies."""

    ratio: Annotated[float, Meta(description="native over variant: more than 1 is faster")]
    low: Annotated[float, Meta(description="the least that it may be")]
    high: Annotated[float, Meta(description="the most that it may be")]


class Timing(Struct, frozen=True, kw_only=True):
    """The engine's time for one run on one machine, and how it compares with native TensorFlow."""

    origin: Annotated[
        Origin,
        Meta(
            description="build: by the step `latency`; bench: by `tf2aif bench`; imported: by it, "
            "elsewhere"
        ),
    ]
    machine: Annotated[str, Meta(description="processor, cores, architecture")]
    batch: Annotated[int | None, Meta(description="samples in a run; null: no batch axis")] = None
    threads: Annotated[int | None, Meta(description="null: the engine's own choice")] = None
    median_ms: Annotated[Milliseconds, Meta(description="of all runs")]
    low_ms: Annotated[Milliseconds | None, Meta(description="10th percentile")] = None
    high_ms: Annotated[Milliseconds | None, Meta(description="90th percentile")] = None
    native_ms: Annotated[
        Milliseconds | None, Meta(description="median of the baseline, run in turns with it")
    ] = None
    speedup: Annotated[
        Interval | None,
        Meta(
            description="build: with its 95% interval (bootstrap over rounds); bench: with its "
            "least and its greatest round"
        ),
    ] = None
    stable: Annotated[
        bool | None, Meta(description="whether repeated windows agreed; null: not looked at")
    ] = None
    random: Annotated[bool, Meta(description="fed with random samples")] = False
    emulates: Annotated[
        str | None, Meta(description="what it stands in for: the time is not the device's")
    ] = None


class Bench(Struct, frozen=True, kw_only=True):
    """One scenario of the newest run of `tf2aif bench` on a machine."""

    scenario: Annotated[str, Meta(description="of MLPerf's LoadGen")]
    machine: Annotated[str, Meta(description="processor, cores, architecture")]
    measured_at: Annotated[str, Meta(description="ISO 8601, UTC")]
    imported_from: Annotated[str | None, Meta(description="null: measured here")] = None
    engine_p50_ms: Annotated[Milliseconds | None, Meta(description="the engine alone, median")]
    engine_p99_ms: Annotated[Milliseconds | None, Meta(description="99th percentile")]
    engine_throughput: Annotated[Amount | None, Meta(description="samples a second")]
    server_p50_ms: Annotated[Milliseconds | None, Meta(description="the server, median")]
    server_p99_ms: Annotated[Milliseconds | None, Meta(description="99th percentile")]
    server_throughput: Annotated[float, Meta(ge=0, description="samples a second")]
    speedup: Annotated[Interval | None, Meta(description="against the baseline; null: none")]
    energy_j: Annotated[Amount | None, Meta(description="of the engine for one sample, joules")] = (
        None
    )
    cold_start_s: Annotated[
        Seconds | None, Meta(description="from the server's command to `ready`")
    ] = None
    memory_bytes: Annotated[Bytes | None, Meta(description="resident, of the ready server")] = None
    stable: Annotated[bool, Meta(description="whether the figures of this scenario agreed")]
    doubts: Annotated[
        tuple[str, ...], Meta(description="what speaks against the figures of the run")
    ] = ()
    emulates: Annotated[
        str | None, Meta(description="what it stands in for: the time is not the device's")
    ] = None


class ReportVariant(Struct, frozen=True, kw_only=True):
    """One variant as it stands in `build/`."""

    number: Annotated[int, Meta(ge=1, description="what plots call it; by its place in the list")]
    id: Annotated[str, Meta(description="recipe/variant")]
    recipe: Annotated[str, Meta(description="its recipe")]
    variant: Annotated[str, Meta(description="its name within the recipe")]
    target: Annotated[str, Meta(description="its target")]
    precision: Annotated[str, Meta(description="its precision")]
    platform: Annotated[str, Meta(description="as OCI names it")]
    state: Annotated[State, Meta(description="how far it got; see docs/tour.md")]
    reason: Annotated[str, Meta(description="why it failed or is bundled or emulated")] = ""
    engine: Annotated[str, Meta(description="what runs it")]
    emulates: Annotated[str | None, Meta(description="what the engine stands in for")] = None
    baseline: Annotated[bool, Meta(description="native TensorFlow, what others are compared with")]
    calibration: Annotated[str, Meta(description="none, data or random")] = "none"
    artifact: Annotated[str | None, Meta(description="its digest; null: none was made")] = None
    size_bytes: Annotated[Bytes | None, Meta(description="of the artifact")] = None
    image: Annotated[CatalogueImage | None, Meta(description="null: none was made")] = None
    accuracy: Annotated[CatalogueAccuracy | None, Meta(description="null: not measured")] = None
    timings: Annotated[
        tuple[Timing, ...], Meta(description="one for each machine; empty: not measured")
    ] = ()
    front_on: Annotated[
        tuple[str, ...],
        Meta(
            description="machines where no other variant of the recipe is as accurate and faster, "
            "or as fast and more accurate"
        ),
    ] = ()
    bench: Annotated[tuple[Bench, ...], Meta(description="of this very artifact")] = ()

    @property
    def timing(self) -> Timing | None:
        """The time to show where there is room for one."""
        return self.timings[0] if self.timings else None


class StepTime(Struct, frozen=True, kw_only=True):
    """What a step took when it last ran, on whatever machine that was."""

    step: Annotated[str, Meta(description="recipe/step")]
    kind: Annotated[str, Meta(description="what kind of step it is")]
    seconds: Annotated[Seconds, Meta(description="wall time")]
    cpu_s: Annotated[Seconds | None, Meta(description="of all its threads")] = None
    peak_mb: Annotated[Amount | None, Meta(description="most resident memory, MiB")] = None


class BuiltStep(Struct, frozen=True, kw_only=True):
    """A step that the last build ran or restored."""

    name: Annotated[str, Meta(description="recipe/step")]
    kind: Annotated[str, Meta(description="what kind of step it is")]
    start_s: Annotated[Seconds, Meta(description="when it had its turn, after the build's start")]
    seconds: Annotated[Seconds, Meta(description="until it was over")]
    waited_s: Annotated[Seconds, Meta(description="for its turn, when all that it reads was there")]
    done: Annotated[
        Literal["fresh", "restored", "ran", "failed"], Meta(description="what came of it")
    ]
    lane: Annotated[int, Meta(ge=0, description="steps in one lane did not overlap")]
    peak_mb: Annotated[
        Amount | None, Meta(description="most resident memory, MiB; null: it did not run")
    ] = None
    where: Annotated[str, Meta(description="the machine, if another one")] = ""


class LastBuild(Struct, frozen=True, kw_only=True):
    """The last build that ran or restored something."""

    started: Annotated[str, Meta(description="ISO 8601, UTC")]
    seconds: Annotated[Seconds, Meta(description="wall time of all of it")]
    ran: Annotated[int, Meta(ge=0, description="steps that ran")]
    restored: Annotated[int, Meta(ge=0, description="steps taken from a cache")]
    fresh: Annotated[int, Meta(ge=0, description="steps that were up to date")]
    failed: Annotated[int, Meta(ge=0, description="steps that failed")]
    jobs: Annotated[int, Meta(ge=0, description="how many cores it was given")]
    steps: Annotated[
        tuple[BuiltStep, ...], Meta(description="that it ran or restored, by their start")
    ] = ()


class Difference(Struct, frozen=True, kw_only=True):
    """One thing that is not as it was in the report before."""

    id: Annotated[str, Meta(description="recipe/variant")]
    what: Annotated[Change, Meta(description="what differs")]
    before: Annotated[str, Meta(description="in words; empty: it was not there")] = ""
    now: Annotated[str, Meta(description="in words; empty: it is not there")] = ""
    verdict: Annotated[Verdict, Meta(description="for whoever uses the variant")] = "neither"


class Changes(Struct, frozen=True, kw_only=True):
    """What differs from an earlier report."""

    since: Annotated[str, Meta(description="when that one was made, ISO 8601, UTC")]
    differences: Annotated[tuple[Difference, ...], Meta(description="sorted by variant")] = ()


class Report(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a report says."""

    schema: Annotated[Literal[1], Meta(description="the version of this shape")] = SCHEMA
    made_at: Annotated[str, Meta(description="ISO 8601, UTC")]
    project: Annotated[str, Meta(description="the name of the project's folder")]
    version: Annotated[str, Meta(description="of tf2aif")]
    variants: Annotated[tuple[ReportVariant, ...], Meta(description="sorted by recipe and name")]
    unread: Annotated[
        tuple[str, ...], Meta(description="records of another version, or damaged: not in here")
    ] = ()
    steps: Annotated[tuple[StepTime, ...], Meta(description="sorted by name")] = ()
    build: Annotated[LastBuild | None, Meta(description="null: it left no record")] = None
    changes: Annotated[Changes | None, Meta(description="null: there was no report before")] = None
    placement: Annotated[
        Placement | None, Meta(description="as `tf2aif place` wrote it; null: it did not")
    ] = None
    simulation: Annotated[
        Simulation | None, Meta(description="as `tf2aif simulate` wrote it; null: it did not")
    ] = None

    @property
    def recipes(self) -> dict[str, tuple[ReportVariant, ...]]:
        """The variants of each recipe."""
        names = dict.fromkeys(one.recipe for one in self.variants)
        return {name: tuple(v for v in self.variants if v.recipe == name) for name in names}


def encode_report(report: Report) -> bytes:
    """The report as JSON; the same value gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
