"""The four scenarios by MLPerf's own LoadGen, from its Python package `mlcommons-loadgen`.

Its trace says of each sample when it was due and when its answer came; that is what counts here,
so the times are LoadGen's own. It has wheels for x86-64 only.

Source: LoadGen's `test_settings.h` and `logging.cc`, release 6.0.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from .crew import Crew
from .generator import cut
from .load import Load, Pace, Window, target_qps

MODULE = "mlperf_loadgen"
SCENARIOS = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
SHORTEST = 4.0  # a stream's queries are drawn before it starts, for latencies that much shorter


def is_installed() -> bool:
    """Whether LoadGen is on this machine."""
    return find_spec(MODULE) is not None


def identity() -> str:
    """Its distribution and version."""
    return f"mlcommons-loadgen {version('mlcommons-loadgen')}"


def run(crew: Crew, load: Load, pace: Pace, number: int) -> Window:
    """Run one window of the load's scenario in mode PerformanceOnly."""
    crew.take_failures()
    with tempfile.TemporaryDirectory(prefix="tf2aif-loadgen-") as folder:
        window = run_in(Path(folder), crew, load, pace, number)
    return msgspec.structs.replace(window, failures=crew.take_failures())


def run_in(folder: Path, crew: Crew, load: Load, pace: Pace, number: int) -> Window:
    """Run one window, and leave LoadGen's logs in that folder."""
    lg = import_module(MODULE)  # it has no types
    under_test = _UnderTest(lg, crew)
    system = lg.ConstructSUT(under_test.issue, lambda: None)
    library = lg.ConstructQSL(crew.samples, crew.samples, lambda _: None, lambda _: None)
    settings, log = _settings(lg, load, pace, number), _log_settings(lg, folder)
    audit = str(folder / "audit.config")  # else one in the current folder is obeyed
    ended = threading.Event()

    def start() -> None:
        try:
            lg.StartTestWithLogSettings(system, library, settings, log, audit)
        except BaseException as error:  # raised again on the caller's thread
            under_test.raised = error
        finally:
            ended.set()

    # Ctrl-C raises on the main thread only; where LoadGen runs it would tear LoadGen apart. Nor
    # does `join` do: interrupted, it takes the thread for ended (Python 3.11, bpo-45274).
    threading.Thread(target=start, daemon=True).start()
    while not ended.is_set():
        try:
            ended.wait()
        except KeyboardInterrupt as error:
            under_test.raised = error  # what is still asked is answered at once
    lg.DestroyQSL(library)
    lg.DestroySUT(system)
    if under_test.raised is not None:
        raise under_test.raised
    return read_trace(folder / "mlperf_log_trace.json")


class _UnderTest:
    """What LoadGen calls. An exception that reached LoadGen would end the process."""

    def __init__(self, lg: Any, crew: Crew) -> None:
        self._lg = lg
        self._crew = crew
        self.raised: BaseException | None = None

    def issue(self, query: list[Any]) -> None:
        """Ask for one query's samples; where there is one thread, on LoadGen's own."""
        left = query
        try:
            for part in cut(query, self._crew.rows) if self.raised is None else ():
                indices = [sample.index for sample in part]
                if self._crew.size == 1:
                    self._crew.ask(indices)
                    self._complete(part)
                else:
                    self._crew.put(indices, self._completion(part))
                left = left[len(part) :]
        except BaseException as error:  # raised again when LoadGen is done
            self.raised = error
        if left:
            self._complete(left)

    def _completion(self, part: Sequence[Any]) -> Callable[[], None]:
        return lambda: self._complete(part)

    def _complete(self, samples: Sequence[Any]) -> None:
        respond = self._lg.QuerySampleResponse
        self._lg.QuerySamplesComplete([respond(sample.id, 0, 0) for sample in samples])


def _settings(lg: Any, load: Load, pace: Pace, number: int) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, SCENARIOS[load.scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = math.ceil(load.window_s * 1e3)
    settings.min_query_count = load.min_queries
    expected_ns = max(1000, int(pace.request_s * 1e9 / SHORTEST))
    settings.single_stream_expected_latency_ns = expected_ns
    settings.multi_stream_expected_latency_ns = expected_ns
    settings.multi_stream_samples_per_query = load.samples_per_query
    settings.offline_expected_qps = max(1.0, pace.throughput)
    settings.server_target_qps = target_qps(load, pace)
    settings.qsl_rng_seed = settings.sample_index_rng_seed = load.seed * 1000 + number
    settings.schedule_rng_seed = load.seed * 1000 + number
    return settings


def _log_settings(lg: Any, folder: Path) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    log = lg.LogSettings()
    log.log_output = output
    log.enable_trace = True
    log.log_mode_async_poll_interval_ms = 50
    return log


class _SampleTimes(Struct, frozen=True):
    query_seq: int
    complete_ns: int  # from when it was due


class SampleEvent(Struct, frozen=True):
    """One sample in a trace."""

    ts: float  # when it was due, microseconds
    args: _SampleTimes


def read_trace(path: Path) -> Window:
    """The queries of a trace; one's latency is that of its last sample."""
    latencies: dict[int, int] = {}
    samples, first_ns, last_ns = 0, math.inf, 0.0
    for event in sample_events(path):
        query, taken_ns = event.args.query_seq, event.args.complete_ns
        latencies[query] = max(latencies.get(query, 0), taken_ns)
        samples += 1
        first_ns = min(first_ns, event.ts * 1e3)
        last_ns = max(last_ns, event.ts * 1e3 + taken_ns)
    ordered = [latencies[query] for query in sorted(latencies)]
    return Window(
        latencies_ns=np.asarray(ordered, np.int64),
        samples=samples,
        duration_s=(last_ns - first_ns) / 1e9,
    )


def sample_events(path: Path) -> Iterator[SampleEvent]:
    """Each sample of a trace."""
    decode = msgspec.json.Decoder(SampleEvent).decode
    with path.open("rb") as lines:
        for line in lines:
            if line.startswith(b'{"name":"Sample","cat":"default","ph":"b"'):
                yield decode(line.rstrip(b",\r\n"))
