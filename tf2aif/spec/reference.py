"""`docs/reference.md`: one table for each struct of our YAML files, made from their schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from ..steps import STEPS, step_module
from .references import PLANNED
from .schema import KINDS, schema_of

_HEAD = """\
# Reference: every key of recipes, targets, settings, fleets and services

Made by `python -m tf2aif.spec.schema` from `recipe.py`, `target.py` and `config.py` in
`tf2aif/spec/`, and from `tf2aif/choose/fleet.py` and `tf2aif/choose/services.py`; do not edit.
Paths in a recipe are relative to its own folder, those of Config (it is `tf2aif.yaml`) to the
project's. The same as JSON Schema: `schemas/recipe.json`, `schemas/target.json`,
`schemas/config.json`, `schemas/fleet.json`, `schemas/services.json`.
"""

_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "nothing",
    "array": "list",
    "object": "mapping",
}


def reference_page() -> str:
    """The page as Markdown."""
    lines = [_HEAD.rstrip()]
    for kind, struct in KINDS.items():
        schema = schema_of(struct)
        definitions = schema["$defs"]
        lines += ["", f"## {kind.capitalize()}", "", *_table(schema)]
        for name in dict.fromkeys(_references(schema, definitions)):
            lines += ["", f"### {name}", "", *_table(definitions[name])]
    lines += ["", "## Options of the steps that a pipeline names"]
    for name in (name for name in STEPS if name not in PLANNED):
        lines += ["", f"### `step: {name}`", "", *_table(_options_schema(name))]
    return "\n".join(lines) + "\n"


def _options_schema(step: str) -> dict[str, Any]:
    options: type[msgspec.Struct] = step_module(step).Options
    return schema_of(options)


def _references(schema: Any, definitions: dict[str, Any]) -> Iterator[str]:
    """The structs below one, in the order in which they are met."""
    if isinstance(schema, list):
        for one in schema:
            yield from _references(one, definitions)
    elif isinstance(schema, dict):
        if "$ref" in schema:
            name = _name(schema)
            yield name
            yield from _references(definitions[name]["properties"], definitions)
        for key, one in schema.items():
            if key not in ("$defs", "default"):
                yield from _references(one, definitions)


def _table(schema: dict[str, Any]) -> Iterator[str]:
    yield str(schema.get("description", ""))
    properties = schema.get("properties", {})
    if not properties:
        return
    yield from ("", "| key | value | default | meaning |", "|---|---|---|---|")
    required = schema.get("required", [])
    for key, one in properties.items():
        default = "required" if key in required else _default(one)
        cells = (f"`{key}`", _type(one), default, one.get("description", ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    if default is None or default in ({}, [], "") or "$ref" in json.dumps(schema):
        return "–"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _type(schema: dict[str, Any]) -> str:
    """What may stand there, in words."""
    if "$ref" in schema:
        name = _name(schema)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one != {"type": "null"})
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    if schema.get("type") == "array":
        return _list_type(schema)
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"mapping of {_type(inner)}" if isinstance(inner, dict) and inner else "mapping"
    return _TYPES.get(str(schema.get("type")), "anything") + _limits(schema)


def _list_type(schema: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_type(schema['prefixItems'][0])}"
    return f"list of {_type(schema['items'])}" if schema.get("items") else "list"


def _limits(schema: dict[str, Any]) -> str:
    if "minimum" in schema:
        return f" ≥ {schema['minimum']}"
    return f" > {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else ""


def _name(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
