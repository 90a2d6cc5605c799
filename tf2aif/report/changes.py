"""What differs between two reports, as far as it is more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..errors import Fault, FilesError
from ..table import size
from .data import SCHEMA, Changes, Difference, Report, ReportVariant, Timing, Verdict
from .words import interval, milliseconds, ratio, score

_RANK = ("failed", "bundled", "emulated", "built", "verified-on-device")


def read_report(path: Path) -> Report:
    """A report that was written before. Raises FilesError that says what is wrong with it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        hint = "name the report.json of an earlier report"
        raise FilesError([Fault(f"cannot be read: {error.strerror}", str(path), hint)]) from error
    try:
        value = msgspec.json.decode(raw)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            message = f"a report of schema {schema}; this tf2aif reads schema {SCHEMA}"
            raise FilesError([Fault(message, str(path), "make it again: tf2aif report")])
        return msgspec.convert(value, Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "name the report.json of an earlier report"
        raise FilesError([Fault(f"not a report: {error}", str(path), hint)]) from error


def compare(before: Report, now: Report) -> Changes:
    """What differs since a report.

    Where nothing does, what that report itself told of is told again: making a report twice does
    not hide what the last build changed.
    """
    found = tuple(differences(before, now))
    if not found and before.changes is not None:
        return before.changes
    return Changes(since=before.made_at, differences=found)


def differences(before: Report, now: Report) -> Iterator[Difference]:
    """One after the other, by variant."""
    old = {one.id: one for one in before.variants}
    new = {one.id: one for one in now.variants}
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield Difference(id=name, what="new", now=new[name].state)
        elif name not in new:
            yield Difference(id=name, what="gone", before=old[name].state)
        else:
            yield from _of_one(old[name], new[name])


def _of_one(old: ReportVariant, new: ReportVariant) -> Iterator[Difference]:
    if old.state != new.state:
        better = _better(_RANK.index(new.state) - _RANK.index(old.state))
        yield Difference(id=new.id, what="state", before=old.state, now=new.state, verdict=better)
    if old.artifact != new.artifact:
        yield Difference(
            id=new.id, what="artifact", before=_short(old.artifact), now=_short(new.artifact)
        )
    yield from _accuracy(old, new)
    yield from _times(old, new)
    yield from _sizes(old, new)


def _accuracy(old: ReportVariant, new: ReportVariant) -> Iterator[Difference]:
    was, is_now = old.accuracy, new.accuracy
    if was is None or is_now is None or was.metric != is_now.metric or was.value == is_now.value:
        return
    yield Difference(
        id=new.id,
        what="accuracy",
        before=f"{was.metric} {score(was.value)}",
        now=f"{is_now.metric} {score(is_now.value)}",
        verdict=_better(was.drop - is_now.drop if was.source == is_now.source else 0.0),
    )


def _times(old: ReportVariant, new: ReportVariant) -> Iterator[Difference]:
    """On each machine that both were timed on, where the intervals do not meet."""
    known = {timing.machine: timing for timing in old.timings}
    for timing in new.timings:
        was = known.get(timing.machine)
        if was is None or (was.batch, was.threads) != (timing.batch, timing.threads):
            continue
        if apart(_range(was), _range(timing)):
            yield Difference(
                id=new.id,
                what="latency",
                before=milliseconds(was.median_ms),
                now=milliseconds(timing.median_ms),
                verdict=_better(was.median_ms - timing.median_ms),
            )
        a, b = was.speedup, timing.speedup
        if a and b and apart((a.low, a.high), (b.low, b.high)):
            yield Difference(
                id=new.id,
                what="speed-up",
                before=f"{ratio(a.ratio)} ({interval(a)})",
                now=f"{ratio(b.ratio)} ({interval(b)})",
                verdict=_better(b.ratio - a.ratio),
            )


def _sizes(old: ReportVariant, new: ReportVariant) -> Iterator[Difference]:
    if old.size_bytes and new.size_bytes and old.size_bytes != new.size_bytes:
        yield Difference(
            id=new.id,
            what="size",
            before=size(old.size_bytes),
            now=size(new.size_bytes),
            verdict=_better(old.size_bytes - new.size_bytes),
        )
    if (old.image and old.image.digest) != (new.image and new.image.digest):
        yield Difference(
            id=new.id,
            what="image",
            before=_image(old),
            now=_image(new),
        )


def apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two ranges have no value in common."""
    return a[1] < b[0] or b[1] < a[0]


def _range(timing: Timing) -> tuple[float, float]:
    """Within which eight of ten runs were; the median alone where no more is known."""
    low = timing.median_ms if timing.low_ms is None else timing.low_ms
    return low, timing.median_ms if timing.high_ms is None else timing.high_ms


def _better(gain: float) -> Verdict:
    return "better" if gain > 0 else "worse" if gain < 0 else "neither"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


def _image(variant: ReportVariant) -> str:
    if variant.image is None:
        return "none"
    return (
        f"{_short(variant.image.digest.removeprefix('sha256:'))}, {size(variant.image.size_bytes)}"
    )
