"""What a variant's speed is on this machine: its engine alone, its server, and the baseline.

`bench` measures all three in turns, window by window, so that what else the machine does falls on
all of them, and adds a line to `bench.jsonl` in each variant's folder.

    baseline     the native variant of the same recipe and platform
    engines      an engine alone, in a process of its own
    servers      a variant's server on loopback, its start and its memory
    energy       what a window costs in joules
    record       the figures, with all that they depend on
    run          all of it together
    imports      records from devices elsewhere
    table        records for people
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .record import BenchRecord, read_records

if TYPE_CHECKING:
    from .imports import Imported, import_records
    from .run import BenchOptions, bench
    from .table import bench_table

__all__ = [
    "BenchOptions",
    "BenchRecord",
    "Imported",
    "bench",
    "bench_table",
    "import_records",
    "read_records",
]
_CLIENTS = {
    **dict.fromkeys(("Imported", "import_records"), "imports"),
    **dict.fromkeys(("BenchOptions", "bench"), "run"),
    "bench_table": "table",
}


def __getattr__(name: str) -> Any:
    """What measures needs the client's libraries; whoever reads records does not have them."""
    if name not in _CLIENTS:
        raise AttributeError(f"module {__name__} has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_CLIENTS[name]}", __name__), name)
