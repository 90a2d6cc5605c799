"""Variants as a table for people: plain text, the same on a terminal, in a pipe and in CI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from .measurements import FILE as BENCH
from .record import VariantRecord

if TYPE_CHECKING:
    from .bench.medians import Median

HEADER = (
    "variant",
    "state",
    "metric",
    "source",
    "variant is",
    "drop",
    "size",
    "median",
    "speed-up",
)
NUMBERS = frozenset(HEADER[3:])


def variants_table(
    records: Iterable[tuple[str, VariantRecord | None]],
    stale: Iterable[str] = (),
    medians: Mapping[str, Median] = MappingProxyType({}),
) -> str:
    """One line a variant, and below it why where it failed or is a bundle.

    `medians` are of variants that the build did not time.
    """
    old = frozenset(stale)
    rows: list[tuple[str, ...]] = []
    notes: dict[str, list[str]] = {}
    for name, record in records:
        median = medians.get(name)
        rows.append(_row(name, record, name in old, median))
        for note in (*_notes(record), *([f"{median.source}:"] if median else [])):
            notes.setdefault(note, []).append(name)
    below = [f"{note}\n    {', '.join(names)}" for note, names in notes.items()]
    return "\n".join([align(HEADER, rows), *(["", *below] if below else [])])


def _notes(record: VariantRecord | None) -> Iterator[str]:
    if record is not None and record.reason:
        yield f"{record.state}: {record.reason}"
    if record is not None and record.calibration == "random":
        yield "calibrated with random data, so the accuracy says nothing:"


def bench_medians(
    records: Mapping[str, VariantRecord | None], folder_of: Callable[[str], Path]
) -> dict[str, Median]:
    """What `tf2aif bench` measured of variants that the build did not time, here or elsewhere."""
    untimed = (name for name, record in records.items() if record and record.latency is None)
    folders = {name: folder_of(name) for name in untimed}
    there = {name: folder for name, folder in folders.items() if (folder / BENCH).is_file()}
    if not there:
        return {}
    from .bench.medians import read_median  # imports numpy

    found = {name: read_median(folder) for name, folder in there.items()}
    return {name: median for name, median in found.items() if median}


def _row(
    name: str, record: VariantRecord | None, stale: bool, median: Median | None
) -> tuple[str, ...]:
    if record is None:
        return (name, "not built", *[""] * (len(HEADER) - 2))
    state = f"{record.state}{' (stale)' if stale else ''}"
    accuracy, latency = record.accuracy, record.latency
    scores = ("", "", "", "")
    if accuracy is not None:
        scores = (
            accuracy.metric,
            f"{accuracy.source:.4f}",
            f"{accuracy.variant:.4f}",
            f"{accuracy.drop:+.4f}",
        )
    times = ("", "")
    if latency is not None:
        times = (f"{latency['variant']['median_ms']:.3f} ms", f"{latency['speedup']:.2f}x")
    elif median is not None:
        times = (f"{median.median_ms:.3f} ms", f"{median.speedup:.2f}x" if median.speedup else "")
    return (name, state, *scores, size(record.size_bytes) if record.size_bytes else "", *times)


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1024.

    >>> size(53936)
    '52.7 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def align(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[str] = NUMBERS
) -> str:
    """Columns of text, those in `numbers` to the right."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    right = frozenset(numbers)
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if title in right else cell.ljust(width)
            for cell, width, title in zip(row, widths, header, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
