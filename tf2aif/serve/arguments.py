"""The server's command line, made from the settings: each field of `config` is an option.

python -m tf2aif.serve FOLDER --port 8000 --max-size 16 --deadline-s 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from msgspec import NODEFAULT, Struct

from .config import Batching, Config, Limits

GROUPS: dict[str, type[Struct]] = {"batching": Batching, "limits": Limits}


def read_arguments(arguments: Sequence[str] | None = None) -> Config:
    """The settings of a command line; exits with 2 where it is wrong, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m tf2aif.serve", description="Serve one variant."
    )
    parser.add_argument("variant", help=_description(Config, "variant"))
    _add_options(parser, Config)
    for kind in GROUPS.values():
        _add_options(parser, kind)
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {group: _pick(given, kind) for group, kind in GROUPS.items()}
    values |= _pick(given, Config)
    try:
        return msgspec.convert(values, Config, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        parser.error(str(error))


def _add_options(parser: argparse.ArgumentParser, kind: type[Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        if field.name in GROUPS or field.default is NODEFAULT:
            continue
        text = f"{_description(kind, field.name)} (default: {field.default})"
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, dest=field.name, action="store_true", default=None, help=text)
        else:
            parser.add_argument(flag, dest=field.name, metavar="VALUE", help=text)


def _pick(given: dict[str, Any], kind: type[Struct]) -> dict[str, Any]:
    """What was given of that kind's fields; what was not keeps its default."""
    names = kind.__struct_fields__
    return {name: given[name] for name in names if given.get(name) is not None}


def _description(kind: type[Struct], name: str) -> str:
    hint = get_type_hints(kind, include_extras=True)[name]
    metas = getattr(hint, "__metadata__", ())
    return next((meta.description for meta in metas if meta.description), "")


def _path(kind: type[Any], value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
