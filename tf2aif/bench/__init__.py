"""What a variant's speed is on this machine: its engine alone, its server, and the baseline.

`bench` measures all three in turns, window by window, so that what else the machine does falls on
all of them, and writes `bench.json` into each variant's folder.

    baseline     the native variant of the same recipe and platform
    engines      an engine alone, in a process of its own
    servers      a variant's server on loopback
    record       the figures, with the machine that they hold for
    run          all of it together
"""

from __future__ import annotations

from .record import BenchRecord, bench_table, read_bench
from .run import BenchOptions, bench

__all__ = ["BenchOptions", "BenchRecord", "bench", "bench_table", "read_bench"]
