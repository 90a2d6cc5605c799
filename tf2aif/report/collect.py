"""A report's data from what lies in `build/`: no recipe is read, nothing is planned or run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from .. import __version__, timeline
from ..choose import placement as placed
from ..choose import simulation as simulated
from ..choose.collect import accuracy_of, image_of
from ..errors import Fault, FilesError
from ..record import VariantRecord, read_record, variant_folders
from ..records import decode
from ..steps.latency import Result as BuildLatency
from .data import (
    Bench,
    BuiltStep,
    Interval,
    LastBuild,
    Report,
    ReportVariant,
    StepTime,
    Timing,
)
from .front import with_fronts

if TYPE_CHECKING:
    from ..bench.record import BenchRecord, ScenarioFigures
    from ..client.machine import Machine


def collect(build: Path, project: str, made_at: datetime) -> Report:
    """All that a build folder tells; `made_at` is in UTC. Raises FilesError where it is empty."""
    folders = variant_folders(build)
    variants = {str(folder.relative_to(build)): _variant(folder) for folder in folders}
    unread = [name for name, variant in variants.items() if variant is None]
    found = [variant for variant in variants.values() if variant]
    if not found:
        hint = "build first: tf2aif build"
        if unread:
            hint = f"{len(unread)} were built by another version: build again"
        raise FilesError([Fault("there is no variant to report", str(build), hint)])
    placement = _written(build / placed.FILE, placed.read_placement, unread)
    simulation = _written(build / simulated.FILE, simulated.read_simulation, unread)
    return Report(
        made_at=made_at.astimezone(UTC).isoformat(timespec="seconds"),
        project=project,
        version=__version__,
        variants=tuple(_numbered(found)),
        unread=tuple(unread),
        steps=tuple(_steps(build)),
        build=_last_build(build),
        placement=placement,
        simulation=simulation,
    )


def _numbered(found: Iterable[ReportVariant]) -> Iterator[ReportVariant]:
    """Sorted by recipe, the baseline last; each recipe with its fronts."""
    recipes: dict[str, list[ReportVariant]] = {}
    for one in sorted(found, key=lambda one: (one.recipe, one.baseline, one.variant)):
        recipes.setdefault(one.recipe, []).append(one)
    ordered = (one for variants in recipes.values() for one in with_fronts(variants))
    for number, one in enumerate(ordered, 1):
        yield msgspec.structs.replace(one, number=number)


def _variant(folder: Path) -> ReportVariant | None:
    """What stands in a variant's folder; None where it is of another version, or damaged."""
    record = read_record(folder)
    try:
        return _described(record, _benches(folder)) if record else None
    except (msgspec.ValidationError, KeyError):
        return None


def _described(record: VariantRecord, benches: tuple[BenchRecord, ...]) -> ReportVariant:
    return ReportVariant(
        number=1,
        id=f"{record.recipe}/{record.variant}",
        recipe=record.recipe,
        variant=record.variant,
        target=record.target,
        precision=record.precision,
        platform=record.platform,
        state=record.state,
        reason=record.reason,
        engine=str(record.engine.get("name", "")),
        emulates=record.emulates,
        baseline=record.baseline,
        calibration=record.calibration,
        artifact=record.artifact or None,
        size_bytes=record.size_bytes or None,
        image=image_of(record),
        accuracy=accuracy_of(record),
        timings=tuple(_timings(record, benches)),
        bench=tuple(_newest(bench for each in benches for bench in _bench(each))),
    )


# Times.


def _timings(record: VariantRecord, benches: Iterable[BenchRecord]) -> Iterator[Timing]:
    """The build's own first, then one for each other machine."""
    seen = set()
    if record.latency:
        timing = _build_timing(msgspec.convert(record.latency, BuildLatency), record.emulates)
        seen.add(timing.machine)
        yield timing
    for bench in benches:
        machine = bench.machine
        place = machine_name(machine.cpu, machine.cores, machine.architecture)
        for figures in bench.scenarios:
            timing_of = _bench_timing(bench, figures)
            if timing_of and not {place, timing_of.machine} & seen:
                seen.add(timing_of.machine)
                yield timing_of


def _build_timing(found: BuildLatency, emulates: str | None) -> Timing:
    """What the step `latency` wrote."""
    machine = found.machine
    return Timing(
        origin="build",
        machine=machine_name(machine["cpu"], machine["cpus"], machine["architecture"]),
        batch=found.batch,
        threads=found.threads,
        median_ms=found.variant.median_ms,
        low_ms=found.variant.p10_ms,
        high_ms=found.variant.p90_ms,
        native_ms=found.native.median_ms,
        speedup=Interval(ratio=found.speedup, low=found.speedup_low, high=found.speedup_high),
        random=found.random,
        emulates=emulates,
    )


def _bench_timing(record: BenchRecord, figures: ScenarioFigures) -> Timing | None:
    """A stream of single samples is the time of one run; no other scenario is."""
    engine = figures.engine
    if figures.scenario != "single-stream" or engine is None or engine.latency is None:
        return None
    if engine.latency.p50_ms is None:
        return None
    return Timing(
        origin="imported" if record.imported_from else "bench",
        machine=describe(record.machine),
        batch=record.batch if isinstance(record.batch, int) else 1,
        threads=record.threads,
        median_ms=engine.latency.p50_ms,
        high_ms=engine.latency.p90_ms,
        native_ms=_latency(figures.native, "p50_ms"),
        speedup=_interval(figures),
        stable=engine.stable,
        random=record.random,
        emulates=record.emulates,
    )


def machine_name(cpu: str, cores: int, architecture: str) -> str:
    """A machine in a few words."""
    return f"{cpu}, {cores} core{'s' * (cores != 1)}, {architecture}"


def describe(machine: Machine) -> str:
    """A machine that was benched on; its GPU too, where it has one."""
    name = machine_name(machine.cpu, machine.cores, machine.architecture)
    return f"{name}, {machine.gpu}" if machine.gpu else name


# What `tf2aif bench` left.


def _benches(folder: Path) -> tuple[BenchRecord, ...]:
    """What was measured of the variant that stands there, newest first."""
    from ..bench.record import read_records  # imports numpy

    return tuple(sorted(read_records(folder), key=lambda one: one.measured_at, reverse=True))


def _newest(benches: Iterable[Bench]) -> Iterable[Bench]:
    """The first of each scenario on each machine."""
    found: dict[tuple[str, str], Bench] = {}
    for bench in benches:
        found.setdefault((bench.machine, bench.scenario), bench)
    return found.values()


def _bench(record: BenchRecord) -> Iterator[Bench]:
    for figures in record.scenarios:
        yield Bench(
            scenario=figures.scenario,
            machine=describe(record.machine),
            measured_at=record.measured_at,
            imported_from=record.imported_from,
            engine_p50_ms=_latency(figures.engine, "p50_ms"),
            engine_p99_ms=_latency(figures.engine, "p99_ms"),
            engine_throughput=figures.engine.throughput if figures.engine else None,
            server_p50_ms=_latency(figures.server, "p50_ms"),
            server_p99_ms=_latency(figures.server, "p99_ms"),
            server_throughput=figures.server.throughput,
            speedup=_interval(figures),
            energy_j=figures.energy.engine_j if figures.energy else None,
            cold_start_s=record.cold_start_s,
            memory_bytes=record.memory_bytes,
            stable=figures.server.stable and (figures.engine is None or figures.engine.stable),
            doubts=tuple(_doubts(record, figures.scenario)),
            emulates=record.emulates,
        )


def _doubts(record: BenchRecord, scenario: str) -> Iterator[str]:
    """What speaks against this scenario: what is of another one does not."""
    others = tuple(f"{one.scenario}, " for one in record.scenarios if one.scenario != scenario)
    yield from (doubt for doubt in record.doubts if not doubt.startswith(others))


def _interval(figures: ScenarioFigures) -> Interval | None:
    found = figures.speedup
    return Interval(ratio=found.ratio, low=found.low, high=found.high) if found else None


def _latency(figures: Any, name: str) -> float | None:
    latency = figures.latency if figures else None
    return getattr(latency, name) if latency else None


# The build.


def _steps(build: Path) -> Iterator[StepTime]:
    """What each step took, from what stands beside its artifact."""
    for path in sorted(build.glob("*/.steps/*.json")):
        try:
            record = decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            continue  # being written, or of another version
        wall = record.timing.get("wall_s")
        if record.kind == "variant" or wall is None:
            continue
        yield StepTime(
            step=f"{path.parent.parent.name}/{path.stem}",
            kind=record.kind,
            seconds=wall,
            cpu_s=record.timing.get("cpu_s"),
            peak_mb=record.timing.get("peak_mb"),
        )


def _last_build(build: Path) -> LastBuild | None:
    """What the last build left; None where none did, or another version."""
    found = timeline.read_last(build / ".tf2aif")
    if found is None:
        return None
    started = datetime.fromtimestamp(found.started, UTC).isoformat(timespec="seconds")
    return LastBuild(
        started=started,
        seconds=found.seconds,
        ran=found.ran,
        restored=found.restored,
        fresh=found.fresh,
        failed=found.failed,
        jobs=found.jobs,
        steps=tuple(_built(step) for step in found.steps),
    )


def _built(step: timeline.BuiltStep) -> BuiltStep:
    return BuiltStep(
        name=step.name,
        kind=step.kind,
        start_s=step.start_s,
        seconds=step.seconds,
        waited_s=step.waited_s,
        done=step.done,
        lane=step.lane,
        peak_mb=step.peak_mb or None,
        where=step.where,
    )


Shape = TypeVar("Shape")


def _written(path: Path, read: Callable[[Path], Shape], unread: list[str]) -> Shape | None:
    """What another command wrote; None where it did not. What cannot be read goes to `unread`."""
    if not path.exists():
        return None
    try:
        return read(path)
    except FilesError:
        unread.append(path.name)
        return None
