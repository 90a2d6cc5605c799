"""The generated files are those that are committed, and the schema agrees with the structs."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from tf2aif.spec.load import packaged_targets
from tf2aif.spec.recipe import Recipe
from tf2aif.spec.schema import KINDS, WRITTEN, generated_files, schema_of, written_struct
from tf2aif.spec.target import Target

ROOT = Path(__file__).parents[1]
STRUCTS = {**KINDS, **{kind: written_struct(kind) for kind in WRITTEN}}


@pytest.mark.parametrize("name", list(generated_files()))
def test_generated_files_are_committed(name: str) -> None:
    made = generated_files()[name]
    assert (ROOT / name).read_text(encoding="utf-8") == made, "run python -m tf2aif.spec.schema"


@pytest.mark.parametrize("kind", list(STRUCTS))
def test_schemas_are_schemas(kind: str) -> None:
    schema = schema_of(STRUCTS[kind])
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("kind", list(STRUCTS))
def test_every_field_says_what_it_means(kind: str) -> None:
    schema = schema_of(STRUCTS[kind])
    for definition in (schema, *schema["$defs"].values()):
        assert definition["description"]
        for name, field in definition["properties"].items():
            assert field.get("description"), f"{definition['title']}.{name} has no description"


@pytest.mark.parametrize("path", sorted(packaged_targets().glob("*.yaml")), ids=lambda p: p.stem)
def test_targets_satisfy_their_schema(path: Path) -> None:
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.validate(value, schema_of(Target), jsonschema.Draft202012Validator)


CHANGES = [
    {"model": {}},
    {"model": {"batch": 0}},
    {"model": {"batch": "all"}},
    {"model": {"batch": 1.0}},
    {"model": {"batch": True}},
    {"targets": []},
    {"targets": {}},
    {"targets": {"cpu": None}},
    {"targets": {"cpu": {"precisions": []}}},
    {"targets": ["CPU"]},
    {"name": "a" * 64},
    {"gate": {"drop": -1}},
    {"gate": {"targets": {"cpu": "0.1"}}},
    {"calibration": "random"},
    {"calibration": "all"},
    {"calibration": {"data": {"images": {"size": [1]}}}},
    {"evaluation": {"data": "x.npy", "metric": "a.py:f"}},
    {"evaluation": {"data": "x.npy", "metric": "f"}},
    {"evaluation": None},
    {"extra": 1},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_schema_and_struct_refuse_the_same(change: dict[str, object]) -> None:
    recipe = {"model": {"path": "m"}, "targets": ["cpu"], **change}
    try:
        msgspec.convert(recipe, Recipe)
        converts = True
    except msgspec.ValidationError:
        converts = False
    whole = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    )
    validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=whole)
    assert validator(schema_of(Recipe)).is_valid(recipe) == converts
