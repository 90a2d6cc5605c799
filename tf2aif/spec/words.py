"""Wording what is wrong in a recipe or a target: all faults at once, with line and nearest name.

Imported only when a file is wrong, because jsonschema is slow to import.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ..errors import Fault
from .document import Document, Key, locate, place
from .recipe import FUNCTION, NAME
from .schema import schema_of

_KINDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
_FORMS = {
    NAME: "a name: lower-case letters, digits, '.', '_' and '-', a letter or digit at both ends",
    FUNCTION: "file.py:function",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint that names the nearest known name, else all that are known.

    >>> nearest("arhc", ["arch", "engine"])
    "did you mean 'arch'?"
    """
    known = list(known)
    close = nearest_or_none(name, known)
    if close:
        return f"did you mean '{close}'?"
    return f"there are: {', '.join(known)}" if known else ""


def word_faults(
    document: Document,
    struct: type[msgspec.Struct],
    complaint: str,
    value: Any = msgspec.UNSET,
    root: Key = (),
) -> list[Fault]:
    """Every fault of what msgspec refused with `complaint`, in the order of lines.

    The value is the whole document, or `value`, which stands at `root` in it.
    """
    words = _Words(document, root)
    errors = _errors(document.value if value is msgspec.UNSET else value, struct)
    found = list(dict.fromkeys(fault for error in errors for fault in words.of(error)))
    if not found:
        return [Fault(complaint, document.at(root))]
    return [fault for _, fault in sorted(found, key=lambda one: one[0])]


def _errors(value: Any, struct: type[msgspec.Struct]) -> Iterator[Any]:
    import jsonschema

    base = jsonschema.Draft202012Validator
    whole = base.TYPE_CHECKER.redefine("integer", lambda _, one: type(one) is int)
    validator = jsonschema.validators.extend(base, type_checker=whole)
    yield from validator(schema_of(struct)).iter_errors(value)


_Found = tuple[int, Fault]


class _Words:
    """The words for each of jsonschema's errors; one document's lines are found once."""

    def __init__(self, document: Document, root: Key) -> None:
        self.document = document
        self.root = root
        self.lines = locate(document.text)

    def of(self, error: Any) -> Iterator[_Found]:
        """The faults that one error stands for."""
        if error.validator == "anyOf":
            yield from self._any(error)
            return
        key: Key = (*self.root, *error.absolute_path)
        for name, message, hint in self._say(error, key):
            full = (*key, *name)
            yield self._fault(full, message, hint)

    def _any(self, error: Any) -> Iterator[_Found]:
        """The faults in the branch that was meant; without one, all that could stand there."""
        branches: dict[int, list[Any]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        for inners in branches.values():
            if not any(_is_other_kind(inner, error) for inner in inners):
                for inner in inners:
                    yield from self.of(inner)
                return
        key: Key = (*self.root, *error.absolute_path)
        expected = dict.fromkeys(word for inner in error.context for word in _expected(inner))
        message, hint = self._mismatch(list(expected), error.instance, key)
        yield self._fault(key, message, hint)

    def _fault(self, key: Key, message: str, hint: str) -> _Found:
        known = key
        while known not in self.lines:
            known = known[:-1]
        line = self.lines[known]
        return line, Fault(message, place(self.document.shown, line, key), hint)

    def _say(self, error: Any, key: Key) -> Iterator[tuple[Key, str, str]]:
        """(what to add to the key, message, hint) for an error of one validator."""
        value, limit = error.instance, error.validator_value
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            for name in (name for name in value if name not in known):
                yield (name,), f"unknown key '{name}'", nearest(name, known)
        elif error.validator == "required":
            unknown = [name for name in value if name not in error.schema.get("properties", {})]
            for name in (name for name in limit if name not in value):
                if not nearest_or_none(name, unknown):  # else the unknown key's hint says it
                    yield (), f"missing key '{name}'", _about(error, name)
        elif error.validator in ("type", "enum", "const"):
            yield (), *self._mismatch(list(_expected(error)), value, key)
        elif error.validator == "pattern":
            inside = (value,) if "propertyNames" in error.schema_path else ()
            yield inside, *_wrong_form(value, limit)
        elif error.validator in _LIMITS:
            inside = (value,) if "propertyNames" in error.schema_path else ()
            yield inside, _LIMITS[error.validator].format(value=_short(value), limit=limit), ""

    def _mismatch(self, expected: list[str], value: Any, key: Key) -> tuple[str, str]:
        written = self.document.written(key) or _short(value)
        got = _got(value, written)
        choices = [word[1:-1] for word in expected if word.startswith("'")]
        message = f"expected {_join(expected)}, got {got}"
        if "text" in expected and isinstance(value, int | float):
            return message, f'write it in quotes: "{written}"'
        if isinstance(value, str):
            close = nearest_or_none(value, choices)
            if close:
                return message, f"did you mean '{close}'?"
            if "a number" in expected or "a whole number" in expected:
                return message, "leave the quotes out" if _is_number(value) else ""
        return message, ""


_LIMITS = {
    "minimum": "{value} is less than {limit}",
    "exclusiveMinimum": "{value} is not more than {limit}",
    "maximum": "{value} is more than {limit}",
    "maxLength": "'{value}' is longer than {limit} characters",
    "minItems": "a list of {limit} or more is wanted",
    "maxItems": "a list of at most {limit} is wanted",
    "minProperties": "a mapping of {limit} or more keys is wanted",
}


def nearest_or_none(name: str, known: Iterable[str]) -> str | None:
    """The nearest known name, if one is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _about(error: Any, name: str) -> str:
    return str(error.schema.get("properties", {}).get(name, {}).get("description", ""))


def _is_other_kind(inner: Any, outer: Any) -> bool:
    """Whether an error says that another branch was meant: the value itself is another kind."""
    own = len(inner.absolute_path) == len(outer.absolute_path)
    return own and inner.validator in ("type", "enum", "const", "anyOf")


def _expected(error: Any) -> Iterator[str]:
    if error.validator == "type":
        kinds = error.validator_value
        yield from (_KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
    elif error.validator == "enum":
        yield from (f"'{one}'" for one in error.validator_value if one is not None)
    elif error.validator == "const":
        yield f"'{error.validator_value}'"
    elif error.validator == "anyOf":
        for inner in error.context:
            yield from _expected(inner)
    elif error.validator == "pattern":
        yield _form(error.validator_value)


def _wrong_form(value: str, pattern: str) -> tuple[str, str]:
    close = nearest_or_none(value, _choices(pattern))
    return f"'{value}' is not {_form(pattern)}", f"did you mean '{close}'?" if close else ""


def _form(pattern: str) -> str:
    if pattern in _FORMS:
        return _FORMS[pattern]
    functions = [_FORMS[FUNCTION]] if FUNCTION[1:-1] in pattern else []
    choices = [*_choices(pattern), *functions]
    return f"one of: {', '.join(choices)}" if choices else f"of the form {pattern.strip('^$')}"


def _choices(pattern: str) -> list[str]:
    """The words of a pattern that is a choice of words: `^(a|b)$`, or `^prefix/(a|b)$`."""
    prefix, _, rest = pattern.strip("^$").partition("(")
    words = rest.removesuffix(")").replace(FUNCTION[1:-1], "").split("|")
    return [prefix + word for word in words if word]


def _join(words: list[str]) -> str:
    words = [word for word in words if word != "nothing"] or words
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _got(value: Any, written: str) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{written}"
    if isinstance(value, int | float):
        return f"the number {written}"
    if isinstance(value, str):
        return f"'{written}'"
    return _KINDS["array"] if isinstance(value, list) else _KINDS["object"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"
