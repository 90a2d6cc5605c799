"""When requests come: at random, as many as the services say, or as they were recorded."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..errors import Fault, FilesError, Tf2aifError
from .services import Services

Seconds = NDArray[np.float64]

MOST = 20_000_000
"""Requests in one simulation: more would not fit in the memory of a small machine."""

LONGEST_S = 600.0
ENOUGH = 2_000_000
_FORM = 'columns time_s,service (CSV with a header), or lines {"time_s": 0.5, "service": "a"}'
_FAULTS = 20  # of a file: more say nothing new


class Load(Struct, frozen=True, kw_only=True):
    """The requests of each service: seconds from the start, in order."""

    arrivals: Mapping[str, Seconds]
    duration_s: float
    recorded: str | None = None  # the file; None: Poisson

    @property
    def requests(self) -> int:
        """How many there are."""
        return sum(len(times) for times in self.arrivals.values())


def poisson(services: Services, seed: int, duration_s: float | None = None) -> Load:
    """Arrivals at random (a Poisson process each), at the rates of the services.

    Without a duration: as long as gives enough requests, at most ten minutes. Raises Tf2aifError
    where they would be too many.
    """
    rate = sum(service.rate for service in services.services.values())
    duration = min(LONGEST_S, ENOUGH / rate) if duration_s is None else duration_s
    if rate * duration > MOST:
        raise Tf2aifError(
            f"{rate * duration:.3g} requests are more than fit: at most {MOST}",
            hint=f"--duration {math.floor(MOST / rate) or 1}",
        )
    arrivals = {}
    for index, (name, service) in enumerate(services.services.items()):
        random = np.random.default_rng([seed, index, 0])
        count = random.poisson(service.rate * duration)
        arrivals[name] = np.sort(random.uniform(0.0, duration, count))
    return Load(arrivals=arrivals, duration_s=duration)


def recorded(path: Path, services: Services) -> Load:
    """Arrivals from a file, CSV or JSON lines; the first one is at 0.

    Raises FilesError with the faults of the file, each with its line.
    """
    known = services.services
    times: dict[str, list[float]] = {name: [] for name in known}
    faults: list[Fault] = []
    for line, row in _rows(path):
        at = f"{path}:{line}"
        found = _request(row, known, at)
        if isinstance(found, Fault):
            faults.append(found)
            if len(faults) == _FAULTS:
                break
        else:
            times[found[1]].append(found[0])
    if faults:
        raise FilesError(faults)
    every = [time for own in times.values() for time in own]
    if len(every) < 2:
        raise FilesError([Fault("fewer than two requests are in it", str(path), _FORM)])
    if len(every) > MOST:
        raise FilesError([Fault(f"more than {MOST} requests are in it", str(path), "cut it")])
    first = min(every)
    arrivals = {
        name: np.sort(np.array(own, dtype=np.float64)) - first for name, own in times.items()
    }
    duration = max(every) - first
    if duration <= 0:
        raise FilesError([Fault("all its requests come at once", str(path))])
    return Load(arrivals=arrivals, duration_s=duration, recorded=str(path))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, what stands there) of CSV or JSON lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FilesError([Fault("no such file", str(path))]) from None
    except OSError as error:
        raise FilesError([Fault(f"cannot be read: {error.strerror}", str(path))]) from error
    except UnicodeDecodeError as error:
        raise FilesError([Fault("not UTF-8 text", str(path))]) from error
    lines = text.splitlines()
    if text.lstrip().startswith("{"):
        yield from _json_rows(lines)
        return
    yield from _csv_rows(lines, path)


def _json_rows(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, f"not JSON: {error.msg}"


def _csv_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(lines)
    names = [name.strip() for name in reader.fieldnames or ()]
    lacking = [name for name in ("time_s", "service") if name not in names]
    if lacking:
        message = f"its first line has no column {' and no '.join(lacking)}"
        raise FilesError([Fault(message, f"{path}:1", _FORM)])
    reader.fieldnames = names
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        yield reader.line_num, f"not CSV: {error}"


def _request(row: Any, known: Mapping[str, Any], at: str) -> tuple[float, str] | Fault:
    """(time, service) of one line, or what is wrong with it."""
    if not isinstance(row, dict):
        return Fault(row if isinstance(row, str) else "not a request", at, _FORM)
    name, written = row.get("service"), row.get("time_s")
    if not isinstance(name, str) or name.strip() not in known:
        from ..spec.words import nearest

        return Fault(f"unknown service '{name}'", at, nearest(str(name), known))
    try:
        time = math.nan if written is None or isinstance(written, bool) else float(written)
    except (TypeError, ValueError):
        time = math.nan
    if not math.isfinite(time):
        return Fault(f"'{written}' is no time", at, "seconds from any start, such as 12.5")
    return time, name.strip()
