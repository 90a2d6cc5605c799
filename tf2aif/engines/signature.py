"""`signature.json`: the names, dtypes and shapes of an artifact's inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec

FILE = "signature.json"
T = TypeVar("T")


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an artifact takes and gives, in the order of its source model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_signature(artifact: Path) -> Signature:
    """The signature of the artifact in that folder.

    Raises Tf2aifError where the file is missing or not one.
    """
    return read_beside(artifact / FILE, Signature, "a signature")


def write_signature(artifact: Path, signature: Signature) -> None:
    """Write `signature.json` into that folder; the same signature gives the same bytes."""
    write_beside(artifact / FILE, signature)


def read_beside(path: Path, kind: type[T], what: str) -> T:
    """What a step wrote beside the model. Raises Tf2aifError: no file, or not `what`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise Tf2aifError(
            f"no {path.name} in the artifact: {error.strerror}",
            at=str(path),
            hint="build the variant again; an artifact is a whole folder",
        ) from error
    except msgspec.MsgspecError as error:
        raise Tf2aifError(f"not {what}: {error}", at=str(path)) from error


def write_beside(path: Path, value: msgspec.Struct) -> None:
    """Write it as JSON for people; the same value gives the same bytes."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def artifact_file(artifact: Path, name: str) -> Path:
    """The file or folder of that name in an artifact; raises Tf2aifError where it is missing."""
    path = artifact / name
    if not path.exists():
        raise Tf2aifError(
            f"no {name} in the artifact",
            at=str(path),
            hint="build the variant again, or name the engine that this artifact is for",
        )
    return path


def check_feeds(feeds: Tensors, specs: Iterable[TensorSpec]) -> dict[str, Array]:
    """The feeds in the order of `specs`, C-contiguous.

    Raises Tf2aifError for a name that is missing or not there, a dtype or a shape that differs.
    """
    import numpy as np

    specs = tuple(specs)
    names = {spec.name for spec in specs}
    if feeds.keys() != names:
        unknown = sorted(feeds.keys() - names)
        missing = sorted(names - feeds.keys())
        told = [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        told += [f"missing: {', '.join(missing)}"] * bool(missing)
        raise Tf2aifError(
            f"wrong input names ({'; '.join(told)})", hint=f"the inputs are: {_listed(specs)}"
        )
    return {spec.name: _checked(np.asarray(feeds[spec.name]), spec) for spec in specs}


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether an array of that shape fits a specified shape, where None is any length."""
    return len(shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(shape, wanted, strict=True)
    )


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts names as people count: `output_2` before `output_10`."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _checked(array: Array, spec: TensorSpec) -> Array:
    import numpy as np

    if array.dtype.name != spec.dtype:
        raise Tf2aifError(
            f"input '{spec.name}' is {array.dtype.name}, the model wants {spec.dtype}"
        )
    if not fits(array.shape, spec.shape):
        raise Tf2aifError(
            f"input '{spec.name}' has shape {_shape(array.shape)}, "
            f"the model wants {_shape(spec.shape)}"
        )
    # `ascontiguousarray` alone would make a scalar a vector.
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _listed(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {_shape(spec.shape)}" for spec in specs)


def _shape(shape: Iterable[int | None]) -> str:
    return f"({', '.join('?' if length is None else str(length) for length in shape)})"
