"""YAML as we read it: strict, with the line of every key.

The rules are those of YAML 1.2's core schema, so that text stays text: `no`, `12:30` and
`2026-11-20` are strings, `1e-3` is a number. What would be lost or guessed is refused: two equal
keys, keys that are not text, tags, numbers that JSON cannot say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import yaml

from ..errors import Fault, FilesError

Key = tuple[str | int, ...]
"""Where a value stands in a document: names and positions, outermost first."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000

_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
_RESOLVERS = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
        "-+.0123456789",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^(?:<<)$", "<"),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader (libyaml's where it is there: nine times faster), core schema."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


_FORMS = {_TAG + kind: re.compile(pattern) for kind, pattern, _ in _RESOLVERS}

for _kind, _, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _kind, _FORMS[_TAG + _kind], list(_first))


class Document(msgspec.Struct, frozen=True):
    """One YAML file: the name shown to the user, its text, and the mapping that it says."""

    shown: str
    text: str
    value: dict[str, Any]

    def at(self, key: Key = ()) -> str:
        """Where a key stands, as faults say it: `recipes/kws.yaml:3: model.path`."""
        lines, known = locate(self.text), key
        while known and known not in lines:
            known = known[:-1]
        return place(self.shown, lines.get(known, 1), key)

    def written(self, key: Key) -> str:
        """A scalar as it is written in the file: `10.10`, where its value is 10.1."""
        node = _compose(self.text)
        for name in key:
            children = dict(_children(node))
            if name not in children:
                return ""
            node = children[name][1]
        return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def read(path: Path, shown: str | None = None) -> Document:
    """Read a YAML file. Raises FilesError with every fault that stands in its text."""
    shown = shown or str(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FilesError([Fault("no such file", shown)]) from None
    except OSError as error:
        raise FilesError([Fault(f"cannot be read: {error.strerror}", shown)]) from error
    return parse(decode(raw, shown), shown)


def decode(raw: bytes, shown: str) -> str:
    """The text of a file, UTF-8 with or without a byte order mark."""
    if len(raw) > MAX_BYTES:
        fault = Fault(f"{len(raw)} bytes is too long for a recipe or a target", shown)
        raise FilesError([fault])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        hint = "save the file as UTF-8"
        raise FilesError([Fault("not UTF-8 text", f"{shown}:{line}", hint)]) from error


def parse(text: str, shown: str) -> Document:
    """Text as a document. Raises FilesError with every fault that stands in it."""
    try:
        _refuse_depth(text, shown)
        loader = _Loader(text)
        node = loader.get_single_node()
        faults = _faults(node, shown)
        if faults:
            raise FilesError(faults)
        return Document(shown, text, loader.construct_document(node))
    except yaml.YAMLError as error:
        raise FilesError([_syntax_fault(error, text, shown)]) from error


def locate(text: str) -> dict[Key, int]:
    """The line of every key and list item, from 1. The text must be one that `parse` took."""
    lines: dict[Key, int] = {(): 1}
    todo: list[tuple[Key, Any]] = [((), _compose(text))]
    while todo:
        key, node = todo.pop()
        for name, (mark, child) in _children(node):
            lines[(*key, name)] = _line(mark)
            todo.append(((*key, name), child))
    return lines


def place(shown: str, line: int, key: Key = ()) -> str:
    """`file:line: dotted.key`, as faults say where they are."""
    return f"{shown}:{line}: {dotted(key)}" if key else f"{shown}:{line}"


def dotted(key: Key) -> str:
    """A key as a user writes it.

    >>> dotted(("precisions", "int8", 0, "step"))
    'precisions.int8[0].step'
    """
    parts = (f"[{name}]" if isinstance(name, int) else f".{name}" for name in key)
    return "".join(parts).removeprefix(".")


def _compose(text: str) -> Any:
    return yaml.compose(text, Loader=_Loader)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _children(node: Any) -> Iterator[tuple[str | int, tuple[Any, Any]]]:
    """(name, (the node that carries its line, the value's node)); merged mappings come first."""
    if isinstance(node, yaml.SequenceNode):
        yield from ((index, (child, child)) for index, child in enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            if name.tag == _TAG + "merge":
                merged = child.value if isinstance(child, yaml.SequenceNode) else [child]
                for one in reversed(merged):
                    yield from _children(one)
        for name, child in node.value:
            if name.tag != _TAG + "merge":
                yield str(name.value), (name, child)


def _faults(root: Any, shown: str) -> list[Fault]:
    if root is None:
        return [Fault("the file is empty", shown)]
    if not isinstance(root, yaml.MappingNode):
        return [Fault("expected `key: value` lines", place(shown, _line(root)))]
    found = sorted(_walk(root), key=lambda one: one[1])
    return [Fault(message, place(shown, line, key), hint) for message, line, key, hint in found]


_Found = tuple[str, int, Key, str]  # message, line, key, hint


def _walk(root: Any) -> Iterator[_Found]:
    """Everything in the tree of nodes that we refuse. Aliases are walked where they are used."""
    count = 0
    todo: list[tuple[Key, Any]] = [((), root)]
    while todo:
        key, node = todo.pop()
        count += 1
        if count > MAX_NODES or len(key) > MAX_DEPTH:
            yield "aliases make this too large", _line(node), key[:3], "write it out, or less of it"
            return
        if node.tag not in _PLAIN:
            tag = node.tag.replace(_TAG, "!!")
            yield f"tag '{tag}' is not known here", _line(node), key, "leave the tag out"
        elif isinstance(node, yaml.ScalarNode):
            yield from _check_scalar(key, node)
        elif isinstance(node, yaml.SequenceNode):
            todo += (((*key, index), child) for index, child in enumerate(node.value))
        else:
            yield from _check_keys(key, node)
            todo += (((*key, str(name.value)), child) for name, child in node.value)


def _check_keys(key: Key, node: Any) -> Iterator[_Found]:
    seen: dict[str, int] = {}
    for name, _ in node.value:
        if name.tag == _TAG + "merge":
            continue
        if not isinstance(name, yaml.ScalarNode):
            yield "a key must be text", _line(name), key, ""
            continue
        text, line = name.value, _line(name)
        if name.tag != _TAG + "str":
            hint = f'write it in quotes: "{text}"'
            yield f"key {text or 'with no name'} is not text", line, (*key, text), hint
        if text in seen:
            hint = f"it stands in line {seen[text]} too: keep one of them"
            yield f"duplicate key '{text}'", line, (*key, text), hint
        seen.setdefault(text, line)


def _check_scalar(key: Key, node: Any) -> Iterator[_Found]:
    text, form = node.value, _FORMS.get(node.tag)
    if form and not form.match(text):  # `!!int x`
        kind = node.tag.replace(_TAG, "!!")
        yield f"'{text}' is not what tag '{kind}' says", _line(node), key, "leave the tag out"
    elif node.tag == _TAG + "float":
        if text.lower().endswith(("inf", "nan")) or math.isinf(float(text)):
            yield f"{text} is not a finite number", _line(node), key, ""
    elif node.tag == _TAG + "int" and (len(text) > 20 or not _MIN <= int(text, 0) <= _MAX):
        yield f"{text[:40]} does not fit in 64 bits", _line(node), key, "write it in quotes"


_MIN, _MAX = -(1 << 63), (1 << 63) - 1

_NESTING = re.compile(r"[\[{]|[-?][ \t]+(?=[-?][ \t])")


def _refuse_depth(text: str, shown: str) -> None:
    """Refuse nesting beyond reason before the composer, which recurses in C, meets it."""
    if len(_NESTING.findall(text)) <= MAX_DEPTH:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise FilesError([Fault("nested too deep", place(shown, _line(event)))])


def _syntax_fault(error: yaml.YAMLError, text: str, shown: str) -> Fault:
    """PyYAML's complaint in one line, with the line where it was noticed."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        return Fault("a character that YAML does not allow", place(shown, line))
    content = text.splitlines()[mark.line : mark.line + 1]
    if content and content[0][: mark.column + 1].strip(" ").startswith("\t"):
        return Fault("a tab where YAML wants spaces", place(shown, mark.line + 1), "use spaces")
    problem = str(getattr(error, "problem", None) or error)
    if "another document" in problem:
        return Fault("more than one document", place(shown, mark.line + 1), "keep one of them")
    hint = ""
    if "mapping values are not allowed" in problem:
        hint = "a text with ': ' in it needs quotes"
    elif "cannot start any token" in problem:
        hint = "a text that starts with this character needs quotes"
    return Fault(f"not YAML: {problem}", place(shown, mark.line + 1), hint)
