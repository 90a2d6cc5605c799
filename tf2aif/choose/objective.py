"""Service objectives in words, such as `p99<=10ms`, and goals, such as `minimise cost`.

Each quantity has one direction that is better, so an objective that asks for the worse one is a
slip, and is told.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from msgspec import Struct

from ..errors import Fault, FilesError

Better = Literal["less", "more"]
Kind = Literal["latency", "load", "variant", "node"]

_TIMES = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {
    **{"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
}
_JOULES = {"uJ": 1e-6, "µJ": 1e-6, "mJ": 1e-3, "J": 1.0, "kJ": 1e3}
_RATES = {"/s": 1.0, "rps": 1.0, "qps": 1.0}
_SHARES = {"": 1.0, "%": 0.01}
_COSTS = {"": 1.0, "/h": 1.0}
_SECONDS = {"ms": 1e-3, "s": 1.0}


class Quantity(Struct, frozen=True, kw_only=True):
    """Something that an objective can limit."""

    name: str
    better: Better
    kind: Kind  # of whom it is told: a measurement of latency, another measurement, ...
    meaning: str
    unit: str  # that its values are in
    units: dict[str, float]  # as they can be written -> how many of `unit` that is
    bare: bool = True  # a number without a unit is in `unit`

    def show(self, value: float) -> str:
        """A value as people read it.

        >>> QUANTITIES["p99"].show(12.345)
        '12.3 ms'
        """
        if self.unit == "B":
            from ..table import size

            return size(value)
        text = f"{value:.4f}" if self.units is _SHARES else f"{value:.3g}"
        if abs(value) >= 1000 and self.units is not _SHARES:
            text = f"{value:.0f}"
        return f"{text}{'' if self.unit[:1] in ('/', '') else ' '}{self.unit}"


def _quantities() -> dict[str, Quantity]:
    found = [
        Quantity(
            name=name,
            better="less",
            kind="latency",
            meaning=f"{what} latency of a query",
            unit="ms",
            units=_TIMES,
        )
        for name, what in (
            ("mean", "mean"),
            ("p50", "median"),
            *((f"p{share}", f"{share}th percentile of the") for share in ("90", "95", "99")),
            ("p99.9", "99.9th percentile of the"),
        )
    ]
    rest: list[tuple[str, Better, Kind, str, str, dict[str, float]]] = [
        ("throughput", "more", "load", "samples a second, offline", "/s", _RATES),
        ("energy", "less", "load", "joules an inference", "J", _JOULES),
        ("memory", "less", "load", "resident memory of the server", "B", _BYTES),
        ("cold-start", "less", "load", "from start to ready", "s", _SECONDS),
        ("accuracy", "more", "variant", "the recipe's metric on its evaluation set", "", _SHARES),
        ("drop", "less", "variant", "what it lost against the source model", "", _SHARES),
        ("size", "less", "variant", "of the artifact", "B", _BYTES),
        ("image", "less", "variant", "size of the image as it is sent", "B", _BYTES),
        ("cost", "less", "node", "of the node, an hour", "/h", _COSTS),
    ]
    found += [
        Quantity(
            name=name,
            better=better,
            kind=kind,
            meaning=meaning,
            unit=unit,
            units=units,
            bare=unit != "B",
        )
        for name, better, kind, meaning, unit, units in rest
    ]
    return {one.name: one for one in found}


QUANTITIES = _quantities()
"""All that can be limited, minimised or maximised, by name."""

LATENCY = "latency"
"""In a goal: the highest percentile that an objective limits, else the median."""

_WRITTEN = re.compile(r"\s*([^<>=≤≥:\s]+)\s*(<=|>=|=<|=>|≤|≥|<|>|==?|:)\s*(.*?)\s*")
_VALUE = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(.*)")
_BETTER = {"less": "a smaller", "more": "a larger"}
_AT_MOST = frozenset({"<=", "=<", "≤", "<"})
_AT_LEAST = frozenset({">=", "=>", "≥", ">"})


class Objective(Struct, frozen=True, kw_only=True):
    """A limit that a service has to hold. `limit` is in the quantity's own unit."""

    quantity: str
    limit: float
    strict: bool = False  # the limit itself does not hold

    @property
    def of(self) -> Quantity:
        """What it limits."""
        return QUANTITIES[self.quantity]

    @property
    def sign(self) -> str:
        """As it is written."""
        return ("<" if self.of.better == "less" else ">") + ("" if self.strict else "=")

    def holds(self, value: float) -> bool:
        """Whether a value is within it."""
        if value == self.limit:
            return not self.strict
        return value < self.limit if self.of.better == "less" else value > self.limit

    def missed_by(self, value: float) -> float:
        """By which share of the limit a value misses it; 0 where it holds.

        >>> parse_objective("p99<=10ms").missed_by(12.5)
        0.25
        """
        if self.holds(value):
            return 0.0
        return abs(value - self.limit) / abs(self.limit) if self.limit else math.inf

    def __str__(self) -> str:
        return f"{self.quantity} {self.sign} {self.of.show(self.limit)}"


class Goal(Struct, frozen=True, kw_only=True):
    """What is made as small, or as large, as the objectives allow."""

    quantity: str

    @property
    def of(self) -> Quantity:
        """What it is about."""
        return QUANTITIES[self.quantity]

    def loss(self, value: float) -> float:
        """A value as a number of which less is better."""
        return value if self.of.better == "less" else -value

    def __str__(self) -> str:
        return f"{'least' if self.of.better == 'less' else 'most'} {self.quantity}"


def parse_objective(text: str, at: str = "") -> Objective:
    """The objective that a text says. Raises FilesError with what is wrong with it, at `at`.

    >>> str(parse_objective("p99<=10ms"))
    'p99 <= 10 ms'
    >>> parse_objective("accuracy >= 91%").limit
    0.91
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise _fault(*_no_limit(text), at)
    name, sign, written = found.groups()
    quantity = _quantity(name, at, limit=True)
    _check_sign(quantity, sign, written, at)
    limit = _value(quantity, written, text, at)
    return Objective(quantity=quantity.name, limit=limit, strict=sign in ("<", ">"))


def parse_goal(name: str, better: Better, at: str = "") -> str:
    """The quantity of `--minimise` (`less`) or `--maximise` (`more`); LATENCY stays as it is.

    Raises FilesError for what is unknown, or better the other way.
    """
    name = name.strip()
    quantity = QUANTITIES["p50"] if name == LATENCY else _quantity(name, at, limit=False)
    if quantity.better != better:
        other = "maximise" if quantity.better == "more" else "minimise"
        message = f"{_BETTER[quantity.better]} {name} is better"
        raise _fault(message, f"--{other} {name}", at)
    return LATENCY if name == LATENCY else quantity.name


def resolve_goal(name: str, objectives: tuple[Objective, ...]) -> Goal:
    """A goal, with `latency` as the highest percentile that an objective limits, else p50."""
    if name != LATENCY:
        return Goal(quantity=name)
    order = [one for one in QUANTITIES if QUANTITIES[one].kind == "latency"]
    limited = [o.quantity for o in objectives if o.of.kind == "latency"]
    return Goal(quantity=max(limited, key=order.index, default="p50"))


def parse_amount(quantity: Quantity, written: str, at: str = "") -> float:
    """A number with its unit, such as `10ms`, in the quantity's unit. Raises FilesError."""
    return _value(quantity, written, written, at)


def _quantity(name: str, at: str, *, limit: bool) -> Quantity:
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name == LATENCY:
        raise _fault(
            "latency of which share of the queries?", "p99, or another of p50 to p99.9", at
        )
    from ..spec.words import nearest

    known = [*QUANTITIES, *([] if limit else [LATENCY])]
    raise _fault(f"unknown quantity '{name}'", nearest(_plain(name), known), at)


def _plain(name: str) -> str:
    """A name as it might have been meant: `P99_9` is p99.9."""
    name = name.lower()
    return re.sub(r"^p(\d+)[_-](\d+)$", r"p\1.\2", name).replace("_", "-")


def _no_limit(text: str) -> tuple[str, str]:
    """(message, hint) where there is no sign: most often the shell took it away."""
    name = text.strip()
    quantity = QUANTITIES.get(name)
    if quantity is None:
        return f"'{text}' is not an objective", "such as 'p99<=10ms' or 'accuracy>=0.9', in quotes"
    example = f"{name}{'<=' if quantity.better == 'less' else '>='}LIMIT"
    return f"'{text}' has no limit", f"'{example}', in quotes: the shell takes < and > for itself"


def _check_sign(quantity: Quantity, sign: str, written: str, at: str) -> None:
    right = "<=" if quantity.better == "less" else ">="
    if sign not in _AT_MOST | _AT_LEAST:
        raise _fault(f"'{sign}' is no limit", f"'{quantity.name}{right}{written}'", at)
    if (sign in _AT_MOST) != (quantity.better == "less"):
        better = f"{_BETTER[quantity.better]} {quantity.name}"
        message = f"{better} is better, so '{sign}' asks for nothing good"
        raise _fault(message, f"'{quantity.name}{right}{written}'", at)


def _value(quantity: Quantity, written: str, text: str, at: str) -> float:
    found = _VALUE.fullmatch(written.strip())
    example = _example(quantity)
    if found is None:
        problem = "is negative" if written.startswith("-") else "is not a number with a unit"
        raise _fault(f"'{written or text}' {problem}", f"such as {example}", at)
    number, unit = found.groups()
    if not unit and not quantity.bare:
        raise _fault(f"'{written}' of what unit?", f"such as {example}", at)
    if unit and unit not in quantity.units:
        from ..spec.words import nearest

        known = [one for one in quantity.units if one]
        message = f"unknown unit '{unit}' of {quantity.name}"
        raise _fault(message, nearest(unit, known) if known else "it has none", at)
    value = float(number) * (quantity.units[unit] if unit else 1.0)
    if not math.isfinite(value):
        raise _fault(f"'{written}' is too large", f"such as {example}", at)
    return value


def _example(quantity: Quantity) -> str:
    examples = {"ms": "10ms", "B": "10MiB", "/s": "100/s", "J": "5mJ", "s": "2s", "/h": "0.5"}
    return examples.get(quantity.unit, "0.9")


def _fault(message: str, hint: str, at: str) -> FilesError:
    return FilesError([Fault(message, at, hint)])
