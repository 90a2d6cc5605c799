"""Where the time goes inside the server: its histograms before and after, from `/metrics`.

Source: the OpenMetrics text format 1.0; quantiles are interpolated within a bucket, as
Prometheus' `histogram_quantile` does.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from msgspec import Meta, Struct

STAGES = ("queue", "preprocess", "inference", "postprocess", "request")
_LINE = re.compile(
    r'^tf2aif_(?P<stage>[a-z]+)_seconds_(?P<part>count|sum|bucket)(\{le="(?P<le>[^"]+)"\})? '
    r"(?P<value>\S+)",
    re.MULTILINE,
)
_MODEL = re.compile(r"^tf2aif_model_info\{(?P<labels>[^}]*)\}", re.MULTILINE)
_MEMORY = re.compile(r"^process_resident_memory_bytes (?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Stage(Struct, frozen=True, kw_only=True):
    """One stage of all requests between two looks at the metrics, milliseconds."""

    count: Annotated[int, Meta(description="how often it was gone through")]
    mean_ms: Annotated[float, Meta(description="of all of them")]
    p50_ms: Annotated[float | None, Meta(description="null: beyond the last bucket")]
    p99_ms: Annotated[float | None, Meta(description="null: beyond the last bucket")]


class Histogram(Struct, frozen=True):
    """Count, sum of seconds, and cumulative counts by upper bound."""

    count: float
    sum_s: float
    buckets: tuple[tuple[float, float], ...]


def read_stages(text: str) -> dict[str, Histogram]:
    """The histograms of the stages in a server's metrics; empty where it is not ours."""
    parts: dict[str, dict[str, float]] = {}
    buckets: dict[str, dict[float, float]] = {}
    for line in _LINE.finditer(text):
        stage, value = line["stage"], float(line["value"])
        if line["part"] == "bucket":
            buckets.setdefault(stage, {})[float(line["le"])] = value
        else:
            parts.setdefault(stage, {})[line["part"]] = value
    return {
        stage: Histogram(
            parts[stage].get("count", 0.0),
            parts[stage].get("sum", 0.0),
            tuple(sorted(buckets.get(stage, {}).items())),
        )
        for stage in STAGES
        if stage in parts
    }


def between(before: dict[str, Histogram], after: dict[str, Histogram]) -> dict[str, Stage]:
    """What each stage took of the requests between two looks."""
    found = {}
    for name, late in after.items():
        early = before.get(name, Histogram(0.0, 0.0, ()))
        count = late.count - early.count
        if count <= 0:
            continue
        known = dict(early.buckets)
        buckets = [(bound, total - known.get(bound, 0.0)) for bound, total in late.buckets]
        found[name] = Stage(
            count=int(count),
            mean_ms=(late.sum_s - early.sum_s) / count * 1e3,
            p50_ms=quantile(buckets, 0.5),
            p99_ms=quantile(buckets, 0.99),
        )
    return found


def quantile(buckets: list[tuple[float, float]], q: float) -> float | None:
    """A quantile in milliseconds from cumulative counts by upper bound in seconds."""
    rank = q * (buckets[-1][1] if buckets else 0.0)
    below, seen = 0.0, 0.0
    for bound, total in buckets:
        if total >= rank and total > seen:
            if math.isinf(bound):
                return None
            return (below + (bound - below) * (rank - seen) / (total - seen)) * 1e3
        below, seen = bound, total
    return None


def read_info(text: str) -> dict[str, str]:
    """What one of our servers says of its model, from its metrics; empty for others."""
    line = _MODEL.search(text)
    return dict(_LABEL.findall(line["labels"])) if line else {}


def find_model(text: str) -> tuple[str | None, str | None]:
    """Name and version of the model that one of our servers serves, from its metrics."""
    labels = read_info(text)
    return labels.get("name"), labels.get("version")


def read_memory(text: str) -> int | None:
    """Bytes of resident memory of the server's process; None where it does not say."""
    line = _MEMORY.search(text)
    return int(float(line["value"])) if line else None
