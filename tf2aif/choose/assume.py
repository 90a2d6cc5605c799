"""Figures that a user gives in words: `digits/arm-int8@edge:p99=12ms,throughput=80/s`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from ..errors import Fault, FilesError
from .fleet import Given
from .objective import QUANTITIES, parse_amount

_WRITTEN = re.compile(r"([^/@:=,\s]+/[^/@:=,\s]+)(?:@([^:=,\s]+))?:(.+)")
_FIELDS = {
    **{name: f"{name.replace('.', '_')}_ms" for name in ("p50", "p90", "p95", "p99", "p99.9")},
    **{"throughput": "throughput", "energy": "energy_j", "memory": "memory_mb"},
    "cold-start": "cold_start_s",
}
_FORM = "VARIANT[@NODE]:FIGURE=VALUE,..., such as 'digits/arm-int8@edge:p99=12ms'"


def parse_assumption(
    text: str, variants: Collection[str], nodes: Collection[str], at: str = ""
) -> tuple[str, Given]:
    """(kind of node, or "" for all; figures) that a text says. Raises FilesError.

    >>> node, given = parse_assumption("a/b@edge:p99=0.01s,memory=64MiB", ["a/b"], ["edge"])
    >>> node, given.p99_ms, given.memory_mb
    ('edge', 10.0, 64.0)
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise FilesError([Fault(f"'{text}' is no figure of a variant", at, _FORM)])
    variant, node, figures = found.groups()
    _known(variant, "variant", variants, at)
    if node:
        _known(node, "kind of node", nodes, at)
    values = dict(_figure(one, at) for one in figures.split(","))
    return node or "", msgspec.convert({"variant": variant, "source": at, **values}, Given)


def _figure(text: str, at: str) -> tuple[str, Any]:
    name, sign, written = (part.strip() for part in text.partition("="))
    if not sign:
        raise FilesError([Fault(f"'{text}' gives no value", at, _FORM)])
    _known(name, "figure", _FIELDS, at)
    value = parse_amount(QUANTITIES[name], written, at)
    if value <= 0:
        raise FilesError([Fault(f"a {name} of {written}?", at, "it is more than 0")])
    return _FIELDS[name], value / 2**20 if name == "memory" else value


def _known(name: str, what: str, known: Collection[str], at: str) -> None:
    if name not in known:
        from ..spec.words import nearest

        hint = nearest(name, known) if known else "kinds of nodes are those of --nodes FILE"
        raise FilesError([Fault(f"unknown {what} '{name}'", at, hint)])
