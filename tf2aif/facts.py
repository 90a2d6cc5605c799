"""The list of facts that decides whether a step is stale: its key, and what changed in it.

`key` and `explain` walk the same list, so a key changes exactly when `explain` has something to
say. Facts are encoded with their names and their JSON types, so no two different lists give the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import xxhash

Value = Any  # what JSON can say: str, int, float, bool, None, lists and objects of these
Facts = dict[str, Value]  # in the order in which they are explained
"""Name -> value. Names are dotted paths such as `option.precision` or `input.model`."""

ABSENT = "(absent)"
SCHEMA = 1  # of a step's facts: raised when their meaning changes

_encoder = msgspec.json.Encoder(order="sorted")


def key(facts: Mapping[str, Value]) -> str:
    """The digest of a list of facts: 32 hexadecimal digits of xxh3_128 over its JSON form.

    >>> key({"step": "tflite", "version": 1}) == key({"version": 1, "step": "tflite"})
    True
    >>> key({"a": 1}) == key({"a": "1"})
    False
    """
    return xxhash.xxh3_128_hexdigest(_encoder.encode(facts))


class Change(msgspec.Struct, frozen=True):
    """One fact that differs between two lists."""

    name: str
    before: Value
    after: Value

    def render(self) -> str:
        """The change in one line, long values cut."""
        return f"{self.name}: {_short(self.before)} -> {_short(self.after)}"


def explain(before: Mapping[str, Value], after: Mapping[str, Value]) -> tuple[Change, ...]:
    """Which facts differ, in the order of `after`, then those that only `before` had.

    >>> [c.render() for c in explain({"version": 1}, {"version": 2})]
    ['version: 1 -> 2']
    """
    names = [*after, *(name for name in before if name not in after)]
    return tuple(
        Change(name, before.get(name, ABSENT), after.get(name, ABSENT))
        for name in names
        if name not in before
        or name not in after
        or _encoder.encode(before[name]) != _encoder.encode(after[name])
    )


def flatten(prefix: str, value: Value) -> Iterable[tuple[str, Value]]:
    """A nested value as dotted facts, so that `explain` can name the leaf that changed.

    An empty list or object is a fact of its own, and a dot inside a name is escaped.

    >>> list(flatten("option", {"a": {"b": 1}, "c": []}))
    [('option.a.b', 1), ('option.c', [])]
    """
    if isinstance(value, Mapping) and value:
        for name in sorted(value):
            escaped = str(name).replace("\\", "\\\\").replace(".", "\\.")
            yield from flatten(f"{prefix}.{escaped}", value[name])
    else:
        yield prefix, value


def step_facts(
    kind: str,
    version: int,
    options: Mapping[str, Value],
    *,
    files: Mapping[str, str],
    inputs: Mapping[str, str],
    seed: int | None,
) -> Facts:
    """What decides, on any machine, what a step makes: the digests of what it reads, and how.

    `files` and `inputs` are digests by name: of the user's files, and of other steps' artifacts.
    """
    facts: Facts = {"schema": SCHEMA, "step": kind, "version": version}
    facts.update(flatten("option", options))
    facts.update({f"file.{name}": digest for name, digest in sorted(files.items())})
    facts.update({f"input.{name}": digest for name, digest in sorted(inputs.items())})
    return facts if seed is None else {**facts, "seed": seed}


def _short(value: Value, width: int = 60) -> str:
    text = value if isinstance(value, str) else _encoder.encode(value).decode()
    return text if len(text) <= width else text[: width - 1] + "…"
