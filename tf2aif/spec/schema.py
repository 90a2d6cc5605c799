"""The JSON Schemas of what users write and of what tf2aif writes, generated from the structs.

`python -m tf2aif.spec.schema` writes `schemas/*.json` and `docs/reference.md` in a checkout; a
test compares them.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

from ..choose.fleet import Fleet
from ..choose.services import Services
from .config import Config
from .recipe import Recipe
from .target import Target

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS: dict[str, type[msgspec.Struct]] = {
    "recipe": Recipe,
    "target": Target,
    "config": Config,
    "fleet": Fleet,
    "services": Services,
}
"""What users write in YAML; its keys are in the reference."""
WRITTEN: dict[str, str] = {
    "bench-record": "tf2aif.bench.record:BenchRecord",
    "catalogue": "tf2aif.choose.catalogue:Catalogue",
    "placement": "tf2aif.choose.placement:Placement",
    "report": "tf2aif.report.data:Report",
    "simulation": "tf2aif.choose.simulation:Simulation",
}
"""What tf2aif writes; imported only to make the schemas."""


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a struct."""
    made = msgspec.json.schema(struct)
    for definition in made["$defs"].values():
        definition["description"] = inspect.cleandoc(definition.get("description", ""))
    root = made["$defs"].pop(struct.__name__)
    return {"$schema": DIALECT, **root, "$defs": made["$defs"]}


def written_struct(kind: str) -> type[msgspec.Struct]:
    """The struct of one kind of what tf2aif writes."""
    module, _, name = WRITTEN[kind].partition(":")
    struct: type[msgspec.Struct] = getattr(importlib.import_module(module), name)
    return struct


def generated_files() -> dict[str, str]:
    """What is generated from the structs: path in a checkout -> text."""
    from .reference import reference_page

    structs = {**KINDS, **{kind: written_struct(kind) for kind in WRITTEN}}
    schemas = {
        f"schemas/{kind}.json": json.dumps(schema_of(struct), indent=2, ensure_ascii=False) + "\n"
        for kind, struct in structs.items()
    }
    return {**schemas, "docs/reference.md": reference_page()}


def write(checkout: Path) -> None:
    """Write every generated file."""
    for name, text in generated_files().items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parents[2])
