"""Writing the catalogue: from the variants' records and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..errors import FilesError
from ..machine import oci_platform
from ..measurements import FILE as BENCH
from ..record import VariantRecord, read_record, variant_folders
from ..spec.load import load_targets
from ..spec.target import Target
from ..steps.latency import Result as BuildLatency
from ..workspace import write_atomically
from .catalogue import (
    FILE,
    Catalogue,
    CatalogueAccuracy,
    CatalogueImage,
    CatalogueVariant,
    MeasuredOn,
    Measurement,
    Percentiles,
    Subject,
    encode_catalogue,
)
from .match import machine_key
from .requires import requirements

if TYPE_CHECKING:
    from ..bench.record import BenchRecord, ScenarioFigures
    from ..client.figures import Figures, Latency


def refresh(build: Path) -> Catalogue:
    """Write `catalogue.json` into a build folder from what stands there now; a reader sees the
    old file or the new one. Raises OSError."""
    catalogue = collect(build)
    content, path = encode_catalogue(catalogue), build / FILE
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return catalogue


def collect(build: Path) -> Catalogue:
    """The catalogue of a build folder: the same records give the same value."""
    try:
        targets = load_targets(build.absolute().parent)
    except FilesError:  # what is built stays built; `tf2aif check` tells of targets
        targets = {}
    found = (_variant(folder, targets) for folder in variant_folders(build))
    variants = sorted((one for one in found if one is not None), key=lambda one: one.id)
    return Catalogue(variants=tuple(variants))


def _variant(folder: Path, targets: dict[str, Target]) -> CatalogueVariant | None:
    record = read_record(folder)
    if record is None:
        return None
    measurements = _measurements(folder, record) if record.artifact else ()
    memory = max((m.memory_mb for m in measurements if m.memory_mb is not None), default=None)
    return CatalogueVariant(
        id=f"{record.recipe}/{record.variant}",
        recipe=record.recipe,
        variant=record.variant,
        target=record.target,
        precision=record.precision,
        state=record.state,
        reason=record.reason,
        baseline=record.baseline,
        platform=record.platform,
        engine=str(record.engine.get("name", "")),
        batch=record.batch,
        artifact=record.artifact or None,
        size_bytes=record.size_bytes if record.artifact else None,
        image=image_of(record),
        accuracy=accuracy_of(record),
        requires=requirements(
            record.labels, targets.get(record.target), folder / "artifact", memory
        ),
        measurements=measurements,
    )


def image_of(record: VariantRecord) -> CatalogueImage | None:
    """The variant's image; None where none was made."""
    image = record.image
    if image is None:
        return None
    return CatalogueImage(
        name=f"{image.name}:{image.tag}", digest=image.digest, size_bytes=image.size_bytes
    )


def accuracy_of(record: VariantRecord) -> CatalogueAccuracy | None:
    """The variant's accuracy; None where it was not measured."""
    accuracy = record.accuracy
    if accuracy is None:
        return None
    return CatalogueAccuracy(
        metric=accuracy.metric,
        value=accuracy.variant,
        source=accuracy.source,
        drop=accuracy.drop,
        allowed_drop=accuracy.allowed_drop,
        samples=accuracy.samples,
        labels=accuracy.labels,
    )


def _measurements(folder: Path, record: VariantRecord) -> tuple[Measurement, ...]:
    """What was measured of the artifact: of runs under the same conditions the best to rely on."""
    found = [*_of_build(record), *_of_bench(folder)]
    kept: dict[object, Measurement] = {}
    for one in found:  # oldest first
        earlier = kept.get(_conditions(one))
        if earlier is None or _trust(one) >= _trust(earlier):
            kept[_conditions(one)] = one
    return tuple(sorted(kept.values(), key=msgspec.json.encode))


def _conditions(one: Measurement) -> object:
    machine = machine_key(one.machine) if one.machine else None
    return (one.origin == "build", machine, one.subject, one.scenario, one.batch, one.threads)


def _trust(one: Measurement) -> tuple[bool, bool]:
    return (one.stable is True, not one.doubts)


def _of_build(record: VariantRecord) -> Iterator[Measurement]:
    """The figures of the build's own latency step: the engine alone, one run after the other."""
    if record.latency is None:
        return
    try:
        found = msgspec.convert(record.latency, BuildLatency)
        machine = MeasuredOn(
            platform=oci_platform("linux", found.machine["architecture"]),
            cpu=found.machine["cpu"],
            cores=found.machine["cpus"],
        )
    except (msgspec.ValidationError, KeyError):
        return  # of another version
    yield Measurement(
        origin="build",
        subject="engine",
        scenario="single-stream",
        batch=found.batch,
        threads=found.threads,
        machine=machine,
        latency=Percentiles(
            p10_ms=found.variant.p10_ms,
            p50_ms=found.variant.median_ms,
            p90_ms=found.variant.p90_ms,
        ),
        emulates=record.emulates,
    )


def _of_bench(folder: Path) -> Iterator[Measurement]:
    """What `tf2aif bench` measured here, or elsewhere and was imported; oldest first."""
    if not (folder / BENCH).is_file():
        return
    from ..bench.record import read_records

    for record in read_records(folder):
        for scenario in record.scenarios:
            for subject in ("engine", "server"):
                yield from _of_scenario(record, scenario, subject)


def _of_scenario(
    record: BenchRecord, scenario: ScenarioFigures, subject: Subject
) -> Iterator[Measurement]:
    figures: Figures | None = getattr(scenario, subject)
    if figures is None:
        return
    served, energy, machine = subject == "server", scenario.energy, record.machine
    memory = record.memory_peak_bytes or record.memory_bytes
    yield Measurement(
        origin="imported" if record.imported_from else "bench",
        source=record.imported_from,
        subject=subject,
        scenario=scenario.scenario,
        batch=_batch(record, scenario),
        threads=record.threads,
        machine=MeasuredOn(
            platform=oci_platform("linux", machine.architecture),
            cpu=machine.cpu,
            cores=machine.cores,
            gpu=machine.gpu,
            governor=machine.governor,
            memory_mb=machine.memory_bytes // 2**20,
            system=machine.system,
            kernel=machine.kernel,
            load_1m=machine.load_average[0],
        ),
        measured_at=record.measured_at,
        latency=_percentiles(figures.latency),
        throughput=figures.throughput,
        energy_j=getattr(energy, f"{subject}_j") if energy else None,
        memory_mb=memory / 2**20 if served and memory else None,
        cold_start_s=record.cold_start_s if served else None,
        stable=figures.stable,
        doubts=tuple(_doubts(record, f"{scenario.scenario}, {subject}:")),
        emulates=record.emulates,
    )


def _batch(record: BenchRecord, scenario: ScenarioFigures) -> int | None:
    """Samples in a request; None where the model has no batch axis."""
    from ..client.load import rows_of

    if record.batch == "none":
        return None
    return rows_of(scenario.load, None if record.batch == "free" else record.batch)


def _percentiles(latency: Latency | None) -> Percentiles:
    if latency is None:
        return Percentiles()
    return Percentiles(
        mean_ms=latency.mean_ms,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        p95_ms=latency.p95_ms,
        p99_ms=latency.p99_ms,
        p99_9_ms=latency.p99_9_ms,
    )


def _doubts(record: BenchRecord, own: str) -> Iterable[str]:
    """What speaks against these very figures: of the whole run, and of their own windows."""
    others = tuple(f"{each.scenario}, " for each in record.scenarios)
    for doubt in record.doubts:
        if doubt.startswith(own):
            yield doubt.removeprefix(own).strip()
        elif not doubt.startswith(others):
            yield doubt
