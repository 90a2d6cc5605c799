"""What is sent: an evaluation set, an `.npz` or `.npy` of samples, or raw files.

An evaluation set is the artifact of step `evaluation`: `set.json`, `x0.npy`, `x1.npy`, ... and
`labels.npy`; the source model's answers to it are that of step `reference`: `outputs.json`,
`y0.npy`, .... They are read here by what is written of them, since what makes them does not ship.
"""

from __future__ import annotations

import mimetypes
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..errors import Tf2aifError

Array = NDArray[Any]

LABELS = "labels"  # the array of an .npz that holds them


class Samples(Struct, frozen=True, kw_only=True):
    """Arrays by the model's input names, samples along axis 0; an unnamed one is called ""."""

    inputs: dict[str, Array]
    labels: Array | None = None
    random: bool = False

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))


class Payload(Struct, frozen=True):
    """A raw file, as a server's hooks take it."""

    name: str
    content_type: str
    body: bytes


class _SetFile(Struct, frozen=True):
    inputs: tuple[str, ...]
    samples: int
    random: bool = False
    labels: bool = False


class _OutputsFile(Struct, frozen=True):
    outputs: tuple[str, ...]


def read_samples(path: Path) -> Samples:
    """A set's folder, an `.npz` with an array for each input (and `labels`), or one `.npy`.

    Raises Tf2aifError where it is none of them, or its arrays are not as many samples each.
    """
    try:
        samples = _read(path)
    except (OSError, ValueError, zipfile.BadZipFile, msgspec.DecodeError) as error:
        raise _unreadable(path, error) from error
    arrays = [*samples.inputs.values(), *([] if samples.labels is None else [samples.labels])]
    counts = {len(array) if array.ndim else 0 for array in arrays}
    if len(counts) != 1 or 0 in counts:
        raise Tf2aifError(
            f"every array has the same number of samples, at least 1; there are {sorted(counts)}",
            at=str(path),
        )
    return samples


def read_reference(folder: Path) -> dict[str, Array]:
    """The source model's outputs by name, samples along axis 0. Raises Tf2aifError."""
    try:
        names = _decode(folder / "outputs.json", _OutputsFile).outputs
        return {name: np.load(folder / f"y{index}.npy") for index, name in enumerate(names)}
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise _unreadable(folder, error, "the artifact of step `reference` is wanted") from error


def read_payloads(paths: Iterable[Path]) -> tuple[Payload, ...]:
    """Files as they are, their content types from their names. Raises Tf2aifError."""
    found = []
    for path in paths:
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            found.append(Payload(path.name, content_type, path.read_bytes()))
        except OSError as error:
            raise _unreadable(path, error) from error
    return tuple(found)


def _read(path: Path) -> Samples:
    if path.is_dir():
        contents = _decode(path / "set.json", _SetFile)
        return Samples(
            inputs={
                name: np.load(path / f"x{index}.npy", mmap_mode="r")
                for index, name in enumerate(contents.inputs)
            },
            labels=np.load(path / "labels.npy") if contents.labels else None,
            random=contents.random,
        )
    loaded = np.load(path)
    if isinstance(loaded, np.ndarray):
        return Samples(inputs={"": loaded})
    with loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    labels = arrays.pop(LABELS, None)
    if not arrays:
        raise ValueError("it holds no samples")
    return Samples(inputs=arrays, labels=labels)


def _decode(path: Path, kind: type[Any]) -> Any:
    return msgspec.json.decode(path.read_bytes(), type=kind)


def _unreadable(path: Path, error: Exception, hint: str = "") -> Tf2aifError:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    hint = hint or "a set's folder, an .npz with an array for each input, or one .npy is wanted"
    return Tf2aifError(f"cannot be read: {text}", at=str(path), hint=hint)
