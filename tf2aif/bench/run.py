"""Measuring variants: engines, servers and baselines in turns, and the record of each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from ..client.address import read_address
from ..client.figures import Figures, figures_of
from ..client.load import Load, Window
from ..client.machine import Machine, this_machine
from ..client.measure import generator_name, measure, warm_up_all
from ..client.run import ServerSubject, Show, Silent, open_server, random_samples
from ..client.samples import Samples, read_samples
from ..client.stages import Stage, between
from ..errors import Tf2aifError
from ..measurements import add_lines
from ..store import default_root
from .baseline import Built, find_baseline, find_samples, read_built
from .energy import EMULATED, Meter, Metered, energy_of
from .engines import EngineSubject
from .record import BenchRecord, ScenarioFigures, SpeedUp, encode_record, make_record
from .servers import Started, serve

REQUEST_TIMEOUT_S = 60.0
STREAMS = ("single-stream", "multi-stream")
NO_PROC = "this system does not tell the memory of a process: /proc is not there"


class BenchOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is measured, and how."""

    loads: Annotated[tuple[Load, ...], Meta(description="scenarios, one after the other")] = (
        Load(window_s=0.5, max_windows=8),
        Load(window_s=0.5, max_windows=8, scenario="offline"),
    )
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="of each engine; by default its own choice"),
    ] = None
    starts: Annotated[
        int, Meta(ge=1, description="of each server, for its cold start; the last one is measured")
    ] = 3


class _Trio(Struct, frozen=True):
    """The subjects of one variant."""

    variant: Built
    engine: str  # names of subjects
    server: str
    native: str | None
    native_id: str | None
    random: bool
    started: Started
    starts_s: tuple[float, ...]


class _Subjects:
    """What is measured in one run, by name; with the counters of energy around each window."""

    def __init__(self) -> None:
        self.engines: dict[str, EngineSubject] = {}
        self.servers: dict[str, ServerSubject] = {}
        self.metered: dict[str, Metered] = {}
        self.meter = Meter()

    def add_server(self, name: str, subject: ServerSubject) -> None:
        """A variant's server; on loopback its address names it to nobody."""
        self.servers[name] = subject
        self.metered[name] = Metered(subject, self.meter.sources)

    def add_engine(self, subject: EngineSubject) -> None:
        """An engine alone."""
        self.engines[subject.name] = subject
        self.metered[subject.name] = Metered(subject, self.meter.sources)


def bench(
    variants: Sequence[Path],
    options: BenchOptions | None = None,
    show: Show | None = None,
    cache: Path | None = None,
) -> dict[str, BenchRecord]:
    """Measure these variants' folders in one run; the records by id, as added to `bench.jsonl`.

    Engine alone, server on loopback and native baseline take turns, window by window. The records
    are kept in the store, too: `cache`, by default that of this machine. Raises Tf2aifError where a
    variant is not built, or not for this machine, or does not run.
    """
    options, show = options or BenchOptions(), show or Silent()
    built = {each.id: each for each in (read_built(Path(folder)) for folder in variants)}
    if not built:
        raise Tf2aifError("no variant is named", hint="name variants' folders")
    machine = this_machine()  # before our own load is in its load average
    found: dict[str, list[ScenarioFigures]] = {name: [] for name in built}
    with tempfile.TemporaryDirectory(prefix="tf2aif-bench-") as scratch, ExitStack() as stack:
        subjects = _Subjects()
        trios = _start(list(built.values()), options, Path(scratch), subjects, stack, show)
        for load in options.loads:
            show.stage(load.scenario)
            _measure(load, trios, subjects, show, found)
        records = {
            trio.variant.id: _record(trio, options, machine, found[trio.variant.id], subjects)
            for trio in trios
        }
    for trio in trios:
        line = encode_record(records[trio.variant.id])
        add_lines(trio.variant.folder, cache or default_root(), [line])
    return records


def _start(
    variants: Sequence[Built],
    options: BenchOptions,
    scratch: Path,
    subjects: _Subjects,
    stack: ExitStack,
    show: Show,
) -> list[_Trio]:
    """Start everything. Servers first and one by one: their starts are timed."""
    show.stage("starting servers")
    started = [_start_server(each, options, scratch, stack) for each in variants]
    show.stage("starting engines")
    trios = [
        _start_trio(variant, times, options, scratch, subjects, stack)
        for variant, times in zip(variants, started, strict=True)
    ]
    for engine in subjects.engines.values():
        engine.wait_ready()  # all of them load meanwhile
    return trios


def _start_server(
    variant: Built, options: BenchOptions, scratch: Path, stack: ExitStack
) -> list[Started]:
    """Start the variant's server several times; the last one stays."""
    log = scratch / f"{variant.id.replace('/', '-')}-server.log"
    times = []
    for _ in range(options.starts - 1):
        with serve(variant, threads=options.threads, log=log) as server:
            times.append(server)
    times.append(stack.enter_context(serve(variant, threads=options.threads, log=log)))
    return times


def _start_trio(
    variant: Built,
    started: Sequence[Started],
    options: BenchOptions,
    scratch: Path,
    subjects: _Subjects,
    stack: ExitStack,
) -> _Trio:
    """What a variant is measured with; a baseline that several share is started once."""
    evaluation = find_samples(variant)
    samples = read_samples(evaluation) if evaluation else None
    server = stack.enter_context(_server_subject(started[-1].url, samples))
    if evaluation is None:
        # The same that the server is asked for: they depend on the model only.
        drawn = random_samples(server.model)
        evaluation = _write_samples(drawn, scratch / variant.id.replace("/", "-"))
    subjects.add_server(f"{variant.id} server", server)
    # An emulation is not compared: its speed is none of the device's.
    native = None if variant.record.emulates else find_baseline(variant)
    for each in (variant, native):
        if each is not None and f"{each.id} engine" not in subjects.engines:
            log = scratch / f"{each.id.replace('/', '-')}-engine.log"
            engine = EngineSubject(each, evaluation, options.threads, log)
            stack.enter_context(closing(engine))
            subjects.add_engine(engine)
    return _Trio(
        variant=variant,
        engine=f"{variant.id} engine",
        server=f"{variant.id} server",
        native=None if native is None else f"{native.id} engine",
        native_id=None if native is None else native.id,
        random=samples is None or samples.random,
        started=started[-1],
        starts_s=tuple(each.start_s for each in started),
    )


@contextmanager
def _server_subject(url: str, samples: Samples | None) -> Iterator[ServerSubject]:
    subject = open_server(
        read_address(url), samples, binary=True, timeout_s=REQUEST_TIMEOUT_S, ready_s=5.0
    )
    with closing(subject):
        subject.answers()  # what comes under load is held to them
        yield subject


def _write_samples(samples: Samples, folder: Path) -> Path:
    """Samples as a set that an engine's process can read."""
    folder.mkdir()
    for index, array in enumerate(samples.inputs.values()):
        np.save(folder / f"x{index}.npy", array)
    contents = {"inputs": list(samples.inputs), "samples": samples.count, "random": True}
    (folder / "set.json").write_bytes(msgspec.json.encode(contents))
    return folder


def _measure(
    load: Load,
    trios: Sequence[_Trio],
    subjects: _Subjects,
    show: Show,
    found: dict[str, list[ScenarioFigures]],
) -> None:
    """One scenario on all subjects, in turns."""
    paces = warm_up_all(subjects.metered, load)
    for each in subjects.metered.values():
        each.restart()
    before = {name: server.stages() for name, server in subjects.servers.items()}
    windows = measure(subjects.metered, load, paces, show)
    for trio in trios:
        stages = between(before[trio.server], subjects.servers[trio.server].stages())
        found[trio.variant.id].append(_figures(load, trio, windows, stages, subjects))


def _figures(
    load: Load,
    trio: _Trio,
    windows: Mapping[str, list[Window]],
    stages: dict[str, Stage],
    subjects: _Subjects,
) -> ScenarioFigures:
    engine = figures_of(load.scenario, windows[trio.engine])
    server = figures_of(load.scenario, windows[trio.server])
    native = figures_of(load.scenario, windows[trio.native]) if trio.native else None
    metered, variant = subjects.metered, trio.variant.record
    counted = not variant.emulates and not subjects.meter.reason(variant.labels)
    return ScenarioFigures(
        scenario=load.scenario,
        load=load,
        engine=engine,
        server=server,
        native=native,
        stages=stages,
        overhead_ms=_cost(server) - _cost(engine) if load.scenario in STREAMS else None,
        speedup=None if native is None else speed_up(engine, native),
        energy=energy_of(
            subjects.meter.names_for(variant.labels),
            metered[trio.engine],
            metered[trio.server],
            metered[trio.native] if trio.native else None,
        )
        if counted
        else None,
    )


def speed_up(engine: Figures, native: Figures) -> SpeedUp | None:
    """Baseline over variant, of medians; offline of throughput. The range is that of the rounds.

    None in the scenario server: there the rate is given, and not what is measured.
    """
    if engine.scenario == "server":
        return None
    if engine.scenario == "offline":
        ratios = [
            e.throughput / n.throughput for e, n in zip(engine.windows, native.windows, strict=True)
        ]
        ratio = engine.throughput / native.throughput
    else:
        ratios = [n.p50_ms / e.p50_ms for e, n in zip(engine.windows, native.windows, strict=True)]
        ratio = _cost(native) / _cost(engine)
    return SpeedUp(ratio=ratio, low=min(ratios), high=max(ratios))


def _cost(figures: Figures) -> float:
    """The median latency; a window has 16 queries at least, so there is one."""
    latency: Any = figures.latency
    return float(latency.p50_ms)


def _record(
    trio: _Trio,
    options: BenchOptions,
    machine: Machine,
    scenarios: Sequence[ScenarioFigures],
    subjects: _Subjects,
) -> BenchRecord:
    """The variant's record; its server still runs."""
    variant = trio.variant.record
    peak = trio.started.peak_bytes()
    reasons = {
        "energy": EMULATED if variant.emulates else subjects.meter.reason(variant.labels),
        "memory_bytes": "" if trio.started.memory_bytes else NO_PROC,
        "memory_peak_bytes": "" if peak else NO_PROC,
    }
    return make_record(
        variant,
        engine_version=subjects.engines[trio.engine].version,
        threads=options.threads,
        native=trio.native_id,
        random=trio.random,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        generator=", ".join(dict.fromkeys(generator_name(load) for load in options.loads)),
        machine=machine,
        scenarios=tuple(scenarios),
        cold_starts_s=trio.starts_s,
        memory_bytes=trio.started.memory_bytes,
        memory_peak_bytes=peak,
        unmeasured={name: why for name, why in reasons.items() if why},
    )
