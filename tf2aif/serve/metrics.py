"""What the server measures of itself, in OpenMetrics.

Each server has a registry of its own: nothing is global, several servers can live in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from .energy import find_gpu_memory

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The server's metrics; every duration is in seconds."""

    def __init__(self, name: str, version: str, engine: str, **more: str) -> None:
        """The metrics of that model; what is empty of `more` is no label of it."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._info(name=name, version=version, engine=engine, **more)
        self._requests = Counter(
            "tf2aif_requests",
            "Requests for inference that got an answer, by door and outcome",
            ["door", "outcome"],
            registry=self.registry,
        )
        self._outcomes: dict[tuple[str, str], Counter] = {}
        self.request_s = self._seconds("request", "From the whole request to its answer")
        self.queue_s = self._seconds("queue", "Waiting for the engine")
        self.preprocess_s = self._seconds("preprocess", "Decoding, checking and preprocess hooks")
        self.inference_s = self._seconds(
            "inference", "The engine, for all rows given to it at once"
        )
        self.postprocess_s = self._seconds("postprocess", "Postprocess hooks and encoding")
        self.batch_rows = Histogram(
            "tf2aif_batch_rows",
            "Rows given to the engine at once",
            registry=self.registry,
            buckets=ROWS,
        )
        self.load_s = self._gauge("model_load_seconds", "How long loading the model took")
        self.warmup_s = self._gauge("model_warmup_seconds", "How long the runs before ready took")
        self.ready = self._gauge("ready", "1 while the server takes requests")
        self._energy: Counter | None = None
        self._watch_gpu_memory(find_gpu_memory())

    def count(self, door: str, outcome: str) -> None:
        """One more request at that door ("infer", "predict") ended so ("ok", a failure's kind)."""
        known = self._outcomes.get((door, outcome))
        if known is None:
            known = self._outcomes[door, outcome] = self._requests.labels(door, outcome)
        known.inc()

    def watch_in_flight(self, read: Callable[[], int]) -> None:
        """Read the number of requests in the server from there, whenever metrics are asked for."""
        self._gauge("requests_in_flight", "Requests in the server now").set_function(read)

    def add_energy(self, source: str, joules: float) -> None:
        """That many joules more were used, as that source says."""
        if self._energy is None:
            self._energy = Counter(
                "tf2aif_energy_joules",
                "Energy that the whole package or device used while the server ran",
                ["source"],
                registry=self.registry,
            )
        self._energy.labels(source).inc(joules)

    def render(self) -> bytes:
        """All metrics as OpenMetrics text; its content type is `CONTENT_TYPE`."""
        rendered: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return rendered

    def _info(self, **labels: str) -> None:
        info = Info("tf2aif_model", "The variant that is served", registry=self.registry)
        info.info({name: value for name, value in labels.items() if value})

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(f"tf2aif_{name}_seconds", what, registry=self.registry, buckets=SECONDS)

    def _watch_gpu_memory(self, gpus: Mapping[str, Callable[[], float]]) -> None:
        """Read the memory of each GPU whenever metrics are asked for; nothing without a GPU."""
        if gpus:
            what = "Memory of the GPU in use, by all processes"
            name = "tf2aif_gpu_memory_used_bytes"
            gauge = Gauge(name, what, ["source"], registry=self.registry)
            for source, read in gpus.items():
                gauge.labels(source).set_function(read)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"tf2aif_{name}", what, registry=self.registry)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe how long the block took, also where it raises."""
    start = time.perf_counter()
    try:
        yield
    finally:
        histogram.observe(time.perf_counter() - start)
