"""The record of a measurement: a line of `build/<recipe>/<variant>/bench.jsonl`, one for each run.

It holds the figures with all that they depend on: what was measured by its digests, the machine,
engine, threads and load. What could not be measured is None, with the reason in `unmeasured`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..client.figures import Figures, verdict
from ..client.load import NOTE, Load, Scenario
from ..client.machine import Machine
from ..client.stages import Stage
from ..measurements import FILE, read_lines
from ..record import VariantRecord, read_record

SCHEMA = 2
NO_IMAGE = "no image was made: tf2aif build --images"
NO_ACCURACY = "the variant was not checked"

Share = Annotated[float, Meta(description="of the evaluation set, in the metric's own terms")]


class SpeedUp(Struct, frozen=True, kw_only=True):
    """How many times faster the variant's engine is than the baseline's; over all rounds."""

    ratio: Annotated[float, Meta(description="of medians; offline of throughput")]
    low: Annotated[float, Meta(description="of the round where it was least")]
    high: Annotated[float, Meta(description="of the round where it was most")]


class Energy(Struct, frozen=True, kw_only=True):
    """Joules for one sample, of the last three windows.

    Whole packages and devices are counted, what idles in them too; other processes' share as well.
    """

    sources: Annotated[
        tuple[str, ...], Meta(description="counters that are summed, such as rapl:package-0")
    ]
    engine_j: Annotated[float | None, Meta(description="the engine alone")]
    server_j: Annotated[
        float | None, Meta(description="the server, and on the same machine its client")
    ]
    native_j: Annotated[float | None, Meta(description="the baseline's engine alone")]


class ScenarioFigures(Struct, frozen=True, kw_only=True):
    """One scenario: the engine alone, the server, the baseline's engine alone."""

    scenario: Annotated[Scenario, Meta(description="of MLPerf LoadGen")]
    load: Annotated[Load, Meta(description="how it was asked, and for how long")]
    engine: Annotated[
        Figures | None, Meta(description="the engine alone; null: only the server was asked")
    ]
    server: Annotated[Figures, Meta(description="the server, asked from the same machine")]
    native: Annotated[
        Figures | None, Meta(description="the baseline; null: there is none, or this is it")
    ]
    stages: Annotated[dict[str, Stage], Meta(description="where the time goes within the server")]
    overhead_ms: Annotated[
        float | None, Meta(description="what the server adds to the median of a stream's query")
    ]
    speedup: Annotated[SpeedUp | None, Meta(description="baseline over variant")]
    energy: Annotated[Energy | None, Meta(description="null: `unmeasured` says why")] = None


class EngineUsed(Struct, frozen=True, kw_only=True):
    """What ran the artifact."""

    name: Annotated[str, Meta(description="as in the table of engines")]
    options: Annotated[dict[str, Any], Meta(description="of the target")] = {}
    version: Annotated[str | None, Meta(description="null: it does not tell")] = None


class ImageUsed(Struct, frozen=True, kw_only=True):
    """The variant's image when it was measured."""

    digest: Annotated[str, Meta(description="of its manifest, sha256:…")]
    size_bytes: Annotated[int, Meta(description="of its layers as they are sent, compressed")]


class Accuracy(Struct, frozen=True, kw_only=True):
    """What the variant's answers were worth when it was checked."""

    metric: Annotated[str, Meta(description="such as top-1")]
    value: Annotated[Share, Meta(description="of the variant")]
    source: Annotated[Share, Meta(description="of the source model on the same samples")]
    drop: Annotated[float, Meta(description="positive: the variant is worse")]
    allowed_drop: Annotated[float, Meta(description="the recipe's gate")]
    samples: Annotated[int, Meta(description="in the evaluation set")]


class BenchRecord(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that was measured of one variant in one run."""

    schema: Annotated[int, Meta(description="of this record")] = SCHEMA
    recipe: Annotated[str, Meta(description="its name")]
    variant: Annotated[str, Meta(description="its name within the recipe")]
    target: Annotated[str, Meta(description="what it was built for")]
    precision: Annotated[str, Meta(description="such as int8")]
    platform: Annotated[str, Meta(description="of its image, such as linux/arm64")]
    artifact: Annotated[str, Meta(description="the digest of what was measured")]
    size_bytes: Annotated[int, Meta(description="of the artifact")]
    image: Annotated[ImageUsed | None, Meta(description="null: none was made")] = None
    engine: Annotated[EngineUsed, Meta(description="what ran it")]
    batch: Annotated[
        int | Literal["free", "none"],
        Meta(description="of the model; how many samples a request held is in the load's `rows`"),
    ]
    threads: Annotated[
        int | None, Meta(description="of each engine; null: as the engine chooses by itself")
    ]
    native: Annotated[str | None, Meta(description="the variant that is the baseline")]
    random: Annotated[bool, Meta(description="fed with random samples")]
    emulates: Annotated[
        str | None,
        Meta(description="what the engine stands in for: the times are not the device's"),
    ] = None
    accuracy: Annotated[Accuracy | None, Meta(description="of the variant's own record")] = None
    measured_at: Annotated[str, Meta(description="when it ended, ISO 8601, UTC")]
    imported_from: Annotated[
        str | None, Meta(description="the file that it came in; null: measured here")
    ] = None
    generator: Annotated[str, Meta(description="what made the load")]
    cold_start_s: Annotated[
        float | None,
        Meta(description="from the server's command to `ready`, the median of `cold_starts_s`"),
    ] = None
    cold_starts_s: Annotated[
        tuple[float, ...],
        Meta(description="each start of a new process; files may be in the system's cache"),
    ] = ()
    memory_bytes: Annotated[
        int | None,
        Meta(
            description="resident memory of the server when it is ready; of what a client "
            "reported, after the run"
        ),
    ] = None
    memory_peak_bytes: Annotated[
        int | None, Meta(description="the most that it had, after all scenarios")
    ] = None
    machine: Annotated[Machine, Meta(description="where, and its load before the run")]
    scenarios: Annotated[tuple[ScenarioFigures, ...], Meta(description="in the order of the run")]
    stable: Annotated[
        bool, Meta(description="the last three windows of all figures agree, without a failure")
    ]
    doubts: Annotated[
        tuple[str, ...],
        Meta(description="what speaks against the figures: those unstable, a busy machine"),
    ] = ()
    unmeasured: Annotated[
        dict[str, str], Meta(description="a field that is null -> why it was not measured")
    ] = {}
    note: Annotated[str, Meta(description="what these figures are not")] = NOTE

    @property
    def id(self) -> str:
        """The variant as people write it: `kws/cpu-int8`."""
        return f"{self.recipe}/{self.variant}"


def make_record(
    variant: VariantRecord,
    *,
    engine_version: str | None,
    machine: Machine,
    scenarios: tuple[ScenarioFigures, ...],
    cold_starts_s: tuple[float, ...] = (),
    unmeasured: Mapping[str, str] = MappingProxyType({}),
    **others: Any,
) -> BenchRecord:
    """A record with what the variant's own record says of it; `others` are fields as they are."""
    engine = EngineUsed(**variant.engine, version=engine_version)
    image, accuracy = _image(variant), _accuracy(variant)
    reasons = {"image": "" if image else NO_IMAGE, "accuracy": "" if accuracy else NO_ACCURACY}
    return BenchRecord(
        recipe=variant.recipe,
        variant=variant.variant,
        target=variant.target,
        precision=variant.precision,
        platform=variant.platform,
        artifact=variant.artifact,
        size_bytes=variant.size_bytes,
        image=image,
        engine=engine,
        batch=variant.batch,
        emulates=variant.emulates,
        accuracy=accuracy,
        machine=machine,
        scenarios=scenarios,
        cold_start_s=median(cold_starts_s) if cold_starts_s else None,
        cold_starts_s=cold_starts_s,
        stable=is_stable(scenarios),
        doubts=doubts_of(machine, scenarios),
        unmeasured={name: why for name, why in {**reasons, **unmeasured}.items() if why},
        **others,
    )


def encode_record(record: BenchRecord) -> bytes:
    """The record as one line, without its end."""
    return msgspec.json.encode(record)


def read_records(folder: Path) -> tuple[BenchRecord, ...]:
    """What was measured of the variant that stands in that folder, oldest first.

    Left out are records of another artifact or engine, and of another schema.
    """
    variant = read_record(folder)
    if variant is None:
        return ()
    found = (_decoded(line) for line in read_lines(folder / FILE))
    return tuple(record for record in found if record and is_of(record, variant))


def is_of(record: BenchRecord, variant: VariantRecord) -> bool:
    """Whether the figures are of this very variant: what it is, and what runs it how."""
    ours = (variant.recipe, variant.variant, variant.artifact, variant.engine)
    engine = {"name": record.engine.name, "options": record.engine.options}
    return (record.recipe, record.variant, record.artifact, engine) == ours


def doubts_of(machine: Machine, scenarios: Iterable[ScenarioFigures]) -> tuple[str, ...]:
    """What speaks against figures: a machine that was busy, and windows that do not agree."""
    found = []
    if machine.load_average[0] > machine.cores:
        found.append(
            f"the machine was busy: load {machine.load_average[0]:.2f} before the run, "
            f"on {machine.cores} cores"
        )
    for each in scenarios:
        subjects = {"engine": each.engine, "server": each.server, "native": each.native}
        found += [
            f"{each.scenario}, {name}: {verdict(figures)}"
            for name, figures in subjects.items()
            if figures is not None and not figures.stable
        ]
    return tuple(found)


def is_stable(scenarios: Iterable[ScenarioFigures]) -> bool:
    """Whether the last three windows of all figures agree, without a failure."""
    figures = (f for each in scenarios for f in (each.engine, each.server, each.native))
    return all(each.stable for each in figures if each is not None)


def _decoded(line: bytes) -> BenchRecord | None:
    try:
        record = msgspec.json.decode(line, type=BenchRecord)
    except msgspec.DecodeError:
        return None
    return record if record.schema == SCHEMA else None


def _image(variant: VariantRecord) -> ImageUsed | None:
    image = variant.image
    return None if image is None else ImageUsed(digest=image.digest, size_bytes=image.size_bytes)


def _accuracy(variant: VariantRecord) -> Accuracy | None:
    found = variant.accuracy
    if found is None:
        return None
    names = ("metric", "source", "drop", "allowed_drop", "samples")
    return Accuracy(value=found.variant, **{name: getattr(found, name) for name in names})
