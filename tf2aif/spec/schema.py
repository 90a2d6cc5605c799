"""The JSON Schemas of recipes and targets, generated from the structs.

`python -m tf2aif.spec.schema` writes `schemas/*.json` and the tables of `docs/reference.md` of a
checkout; a test compares them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .recipe import Recipe
from .target import Target

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS: dict[str, type[msgspec.Struct]] = {"recipe": Recipe, "target": Target}


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a struct."""
    made = msgspec.json.schema(struct)
    root = made["$defs"].pop(struct.__name__)
    return {"$schema": DIALECT, **root, "$defs": made["$defs"]}
