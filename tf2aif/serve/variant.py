"""A built variant as the server finds it on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..errors import Tf2aifError


class EngineRecord(Struct, frozen=True):
    """Which engine loads the artifact, and its options."""

    name: str
    options: dict[str, Any] = {}


class VariantRecord(Struct, frozen=True, kw_only=True):
    """What the server reads of `variant.json`; other fields are for others."""

    recipe: str
    variant: str
    engine: EngineRecord
    artifact: str = ""  # its digest
    state: str = ""  # built, emulated, verified-on-device
    emulates: str | None = None  # the device's engine, which this one stands in for
    hooks: str | None = None  # the hooks file, relative to the variant's folder
    batch: int | Literal["free", "none"] | None = None  # None: told from the signature


def read_variant(folder: Path) -> VariantRecord:
    """The record of the variant in that folder. Raises Tf2aifError where there is none."""
    path = folder / "variant.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=VariantRecord)
    except OSError as error:
        hint = "name a variant's folder, such as build/RECIPE/VARIANT"
        raise Tf2aifError(
            f"no variant is there: {error.strerror}", at=str(path), hint=hint
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Tf2aifError(f"not the record of a variant: {error}", at=str(path)) from error
