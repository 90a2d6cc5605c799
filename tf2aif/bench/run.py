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
from ..client.load import Load, Subject, Window
from ..client.machine import Machine, this_machine
from ..client.measure import generator_name, measure, warm_up_all
from ..client.run import ServerSubject, Show, Silent, open_server, random_samples
from ..client.samples import Samples, read_samples
from ..client.stages import Stage, between
from ..errors import Tf2aifError
from ..workspace import write_atomically
from .baseline import Built, find_baseline, find_samples, read_built
from .engines import EngineSubject
from .record import FILE, BenchRecord, ScenarioFigures, SpeedUp, encode_bench
from .servers import serve

REQUEST_TIMEOUT_S = 60.0
STREAMS = ("single-stream", "multi-stream")


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


class _Trio(Struct, frozen=True):
    """The subjects of one variant."""

    variant: Built
    engine: str  # names of subjects
    server: str
    native: str | None
    native_id: str | None
    random: bool


def bench(
    variants: Sequence[Path], options: BenchOptions | None = None, show: Show | None = None
) -> dict[str, BenchRecord]:
    """Measure these variants' folders in one run; the records by id, as written to `bench.json`.

    Engine alone, server on loopback and native baseline take turns, window by window. Raises
    Tf2aifError where a variant is not built, or not for this machine, or does not run.
    """
    options, show = options or BenchOptions(), show or Silent()
    built = {each.id: each for each in (read_built(Path(folder)) for folder in variants)}
    if not built:
        raise Tf2aifError("no variant is named", hint="name variants' folders")
    machine = this_machine()  # before our own load is in its load average
    found: dict[str, list[ScenarioFigures]] = {name: [] for name in built}
    with tempfile.TemporaryDirectory(prefix="tf2aif-bench-") as scratch, ExitStack() as stack:
        show.stage("starting engines and servers")
        subjects: dict[str, Subject] = {}
        trios = [_start(each, options, Path(scratch), subjects, stack) for each in built.values()]
        for subject in subjects.values():
            if isinstance(subject, EngineSubject):
                subject.wait_ready()  # all of them load meanwhile
        for load in options.loads:
            show.stage(load.scenario)
            _measure(load, trios, subjects, show, found)
    return {trio.variant.id: _write(trio, options, machine, found) for trio in trios}


def _start(
    variant: Built,
    options: BenchOptions,
    scratch: Path,
    subjects: dict[str, Subject],
    stack: ExitStack,
) -> _Trio:
    """Start what a variant is measured with; a baseline that several share is started once."""
    log = scratch / f"{variant.id.replace('/', '-')}-server.log"
    url = stack.enter_context(serve(variant, threads=options.threads, log=log))
    evaluation = find_samples(variant)
    samples = read_samples(evaluation) if evaluation else None
    server = stack.enter_context(_server_subject(url, samples))
    if evaluation is None:
        # The same that the server is asked for: they depend on the model only.
        drawn = random_samples(server.model)
        evaluation = _write_samples(drawn, scratch / variant.id.replace("/", "-"))
    subjects[f"{variant.id} server"] = server
    # An emulation is not compared: its speed is none of the device's.
    native = None if variant.record.emulates else find_baseline(variant)
    for each in (variant, native):
        if each is not None and f"{each.id} engine" not in subjects:
            log = scratch / f"{each.id.replace('/', '-')}-engine.log"
            engine = EngineSubject(each, evaluation, options.threads, log)
            stack.enter_context(closing(engine))
            subjects[engine.name] = engine
    return _Trio(
        variant=variant,
        engine=f"{variant.id} engine",
        server=f"{variant.id} server",
        native=None if native is None else f"{native.id} engine",
        native_id=None if native is None else native.id,
        random=samples is None or samples.random,
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
    subjects: Mapping[str, Subject],
    show: Show,
    found: dict[str, list[ScenarioFigures]],
) -> None:
    """One scenario on all subjects, in turns."""
    paces = warm_up_all(subjects, load)
    servers = {n: s for n, s in subjects.items() if isinstance(s, ServerSubject)}
    before = {name: server.stages() for name, server in servers.items()}
    windows = measure(subjects, load, paces, show)
    for trio in trios:
        stages = between(before[trio.server], servers[trio.server].stages())
        found[trio.variant.id].append(_figures(load, trio, windows, stages))


def _figures(
    load: Load, trio: _Trio, windows: Mapping[str, list[Window]], stages: dict[str, Stage]
) -> ScenarioFigures:
    engine = figures_of(load.scenario, windows[trio.engine])
    server = figures_of(load.scenario, windows[trio.server])
    native = figures_of(load.scenario, windows[trio.native]) if trio.native else None
    return ScenarioFigures(
        scenario=load.scenario,
        load=load,
        engine=engine,
        server=server,
        native=native,
        stages=stages,
        overhead_ms=_cost(server) - _cost(engine) if load.scenario in STREAMS else None,
        speedup=None if native is None else speed_up(engine, native),
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


def _write(
    trio: _Trio,
    options: BenchOptions,
    machine: Machine,
    found: Mapping[str, list[ScenarioFigures]],
) -> BenchRecord:
    """Write the variant's record of the measurement, and return it."""
    variant = trio.variant
    record = BenchRecord(
        recipe=variant.record.recipe,
        variant=variant.record.variant,
        artifact=variant.record.artifact,
        engine=variant.record.engine,
        threads=options.threads,
        native=trio.native_id,
        random=trio.random,
        emulates=variant.record.emulates,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        generator=", ".join(dict.fromkeys(generator_name(load) for load in options.loads)),
        machine=machine,
        scenarios=tuple(found[variant.id]),
    )
    write_atomically(variant.folder / FILE, encode_bench(record))
    return record
