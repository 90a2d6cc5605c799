"""Reading of sample sets: what a `Source` describes, as arrays with the samples along axis 0.

Nothing here loads TensorFlow. Large files are read only where samples of them are taken.
"""

from __future__ import annotations

import csv
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Fault, StepFailed
from .images import check_scaling, decode_image, list_images, read_image
from .sources import Source
from .tfrecord import read_feature, read_records

Array = NDArray[Any]
Shape = tuple[int, ...]

NAN_SCAN_BYTES = 256 * 2**20
SCANNED_IMAGES = 16

# What numpy lets through for damaged files: of its own, of zipfile, zlib, tokenize and mmap.
BROKEN_ARRAY = (
    ValueError,
    EOFError,
    NotImplementedError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)


@dataclass(frozen=True, slots=True)
class Samples:
    """A set of samples that is open for reading, one array of a model's several inputs."""

    count: int
    take: Callable[[Sequence[int]], Array]
    """Indices -> array of shape (len(indices), *shape)."""
    shape: Shape | None = None  # of one sample; None: not known before samples are taken
    dtype: str | None = None
    names: tuple[str, ...] = ()  # of files, where each sample is a file, or of a label's sample
    at: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a source without reading all of it; None where it is not known."""

    samples: int | None = None
    shape: Shape | None = None
    dtype: str | None = None


def open_samples(path: Path, source: Source) -> Samples:
    """Open one source that is a file or a folder.

    Raises StepFailed where it is missing, empty, or not what its ending says.
    """
    if not path.exists():
        raise StepFailed("no such file or folder", at=str(path))
    try:
        samples = _OPENERS[source.format](path, source)
    except OSError as error:
        raise StepFailed(f"cannot be read: {error.strerror or error}", at=str(path)) from error
    if not samples.count:
        raise StepFailed("the sample set is empty", at=samples.at)
    return samples


def call_function(path: Path, source: Source) -> Samples | dict[str, Samples]:
    """Call the function of a source: one array, or a dict of arrays by model input name.

    Raises StepFailed where it returns anything else; there may be no samples in what it returns.
    """
    from .usercode import load_function

    name = str(source.function)
    at = f"{path}:{name}"
    made = load_function(path, name)(**source.arguments)
    if isinstance(made, Mapping):
        return {str(key): _returned(value, f"{at}: {key}") for key, value in made.items()}
    return _returned(made, at)


def _returned(made: object, at: str) -> Samples:
    """What a user's function returned, as samples."""
    hint = "return a numpy array with samples along axis 0, or a dict of them by model input name"
    if isinstance(made, Iterator):
        raise StepFailed(f"the function returned {_kind(made)}, not an array", at=at, hint=hint)
    try:
        values = np.asarray(made)
    except (ValueError, TypeError) as error:
        message = f"what the function returned is no array: {str(error).partition('.')[0]}"
        more = "samples of unequal shape, or samples and labels together, are none"
        raise StepFailed(message, at=at, hint=f"{hint}; {more}") from error
    if values.dtype.kind == "O" and not values.ndim:
        raise StepFailed(f"the function returned {_kind(made)}, not an array", at=at, hint=hint)
    return _from_array(values, at)


def _kind(made: object) -> str:
    return "None" if made is None else f"a {type(made).__name__}"


def inspect(path: Path, source: Source) -> Header | list[Fault]:
    """The cheap facts of a source, or all that is seen to be wrong with it. Never raises for it.

    Arrays under 256 MiB are searched for NaN and infinity; of a folder of images only the first
    16 are decoded; of a function nothing is known, since it is not called.
    """
    if source.format in ("function", "random"):
        return Header()
    try:
        samples = open_samples(path, source)
        _scan(samples, source)
    except StepFailed as failure:
        return list(failure.faults)
    return Header(samples.count, samples.shape, samples.dtype)


def check_finite(values: Array, at: str, first: int = 0) -> None:
    """Raise StepFailed where floating-point samples hold NaN or infinity, naming the first."""
    if values.dtype.kind not in "fc" or np.isfinite(values).all():
        return
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    kind = "NaN" if np.isnan(values[bad[0]]).any() else "infinity"
    raise StepFailed(f"sample {first + bad[0]} holds {kind}", at=at)


def _scan(samples: Samples, source: Source) -> None:
    if source.images is not None:
        samples.take(range(min(samples.count, SCANNED_IMAGES)))
    elif samples.dtype is not None and samples.shape is not None:
        size = samples.count * math.prod(samples.shape) * np.dtype(samples.dtype).itemsize
        if size < NAN_SCAN_BYTES:
            check_finite(samples.take(range(samples.count)), samples.at)


def _from_array(values: Array, at: str, names: tuple[str, ...] = ()) -> Samples:
    if not values.ndim:
        raise StepFailed("a single value where samples along axis 0 are needed", at=at)
    if values.dtype.kind not in "fiub":
        hint = "samples are floating-point, integer or bool; samples of unequal shape make objects"
        raise StepFailed(f"samples of dtype {values.dtype} cannot be used", at=at, hint=hint)
    return Samples(
        count=len(values),
        take=lambda indices: np.ascontiguousarray(values[list(indices)]),
        shape=values.shape[1:],
        dtype=values.dtype.name,
        names=names,
        at=at,
    )


def _open_npy(path: Path, _: Source) -> Samples:
    try:
        return _from_array(np.load(path, mmap_mode="r", allow_pickle=False), str(path))
    except BROKEN_ARRAY as error:
        raise StepFailed(f"not a whole .npy file: {error}", at=str(path)) from error


def _open_npz(path: Path, source: Source) -> Samples:
    try:
        # Opened here, since np.load leaves a file open that it cannot read.
        with path.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise StepFailed("an .npy file under the ending .npz", at=str(path))
            name = _choose_array(arrays.files, source.array, path)
            return _from_array(arrays[name], f"{path}#{name}")
    except BROKEN_ARRAY as error:
        raise StepFailed(f"not a whole .npz file: {error}", at=str(path)) from error


def _choose_array(there: Sequence[str], name: str | None, path: Path) -> str:
    names = ", ".join(sorted(there)) or "none"
    if name is None and len(there) == 1:
        return there[0]
    if name is None:
        hint = f"write {path.name}#NAME; there are: {names}"
        raise StepFailed(f"the file has {len(there)} arrays", at=str(path), hint=hint)
    if name not in there:
        raise StepFailed(f"no array '{name}'", at=str(path), hint=f"there are: {names}")
    return name


def _open_images(path: Path, source: Source) -> Samples:
    how = source.images
    if how is None or not path.is_dir():
        what = "not a folder" if how is not None else "a folder of images needs `images:`"
        raise StepFailed(what, at=str(path))
    check_scaling(how)
    names = list_images(path)
    return Samples(
        count=len(names),
        take=lambda indices: np.stack([read_image(path / names[i], how) for i in indices]),
        shape=(*how.size, 1 if how.color == "gray" else 3),
        dtype=how.dtype,
        names=names,
        at=str(path),
    )


def _open_text(path: Path, _: Source) -> Samples:
    """Labels, one a line: a whole number, or the sample's name and a whole number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepFailed(f"not UTF-8 text: {error.reason}", at=str(path)) from error
    delimiter = "," if path.suffix.lower() == ".csv" or "," in text else None
    names: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, label = _read_label(line, delimiter, f"{path}:{number}")
        names += [name] if name else []
        labels.append(label)
    if len(names) not in (0, len(labels)):
        raise StepFailed("some lines have a name and others have none", at=str(path))
    return _from_array(np.asarray(labels, np.int64), str(path), tuple(names))


def _read_label(line: str, delimiter: str | None, at: str) -> tuple[str, int]:
    cells = next(csv.reader([line])) if delimiter else line.rsplit(None, 1)
    *name, label = (cell.strip() for cell in cells)
    if len(name) > 1:
        raise StepFailed(f"{len(cells)} columns", at=at, hint="write LABEL or NAME,LABEL")
    try:
        return (name[0] if name else ""), int(label)
    except ValueError as error:
        hint = "write the class as a whole number; a header line is not allowed"
        raise StepFailed(f"the label '{label}' is not a whole number", at=at, hint=hint) from error


def _open_tfrecord(path: Path, source: Source) -> Samples:
    """All records' feature; encoded images stay encoded until they are taken."""
    name = str(source.feature)
    at = f"{path}#{name}"
    features = []
    for number, record in enumerate(read_records(path)):
        try:
            features.append(read_feature(record, name))
        except KeyError as error:
            hint = f"there are: {', '.join(error.args) or 'none'}"
            raise StepFailed(
                f"record {number} has no feature '{name}'", at=at, hint=hint
            ) from error
        except ValueError as error:
            message = f"record {number} is not a tf.train.Example: {error}"
            raise StepFailed(message, at=at) from error
    if not features:
        return Samples(count=0, take=_take_none, at=at)

    def take(indices: Sequence[int]) -> Array:
        return _stack([_as_sample(features[i], source, f"{at}: record {i}") for i in indices], at)

    if source.images is not None:
        check_scaling(source.images)
        first = take([0])
        return Samples(len(features), take, first.shape[1:], first.dtype.name, at=at)
    return _from_array(take(range(len(features))), at)


def _take_none(_: Sequence[int]) -> Array:
    return np.empty((0,), np.float32)


def _stack(samples: list[Array], at: str) -> Array:
    shapes = sorted({sample.shape for sample in samples})
    if len(shapes) > 1:
        raise StepFailed(f"samples have unequal shapes, such as {shapes[0]} and {shapes[1]}", at=at)
    return np.stack(samples)


def _as_sample(feature: Array | list[bytes], source: Source, at: str) -> Array:
    if isinstance(feature, list):
        values = _from_bytes(feature, source, at)
        if source.images is not None:
            return values
    elif source.images is not None:
        raise StepFailed("the feature holds numbers, not an encoded image", at=at)
    else:
        values = feature
    if not source.shape:
        return values[0] if values.size == 1 else values
    if values.size != np.prod(source.shape):
        raise StepFailed(f"{values.size} values do not fill shape {tuple(source.shape)}", at=at)
    return values.reshape(source.shape)


def _from_bytes(feature: list[bytes], source: Source, at: str) -> Array:
    if len(feature) != 1:
        raise StepFailed(f"the feature has {len(feature)} byte strings, one is wanted", at=at)
    if source.images is not None:
        return decode_image(feature[0], source.images, at=at)
    if source.dtype is None or not source.shape:
        hint = "give dtype and shape (or `images:` where the bytes are an encoded image)"
        raise StepFailed("the feature holds raw bytes", at=at, hint=hint)
    try:
        return np.frombuffer(feature[0], np.dtype(source.dtype).newbyteorder("<"))
    except (TypeError, ValueError) as error:
        raise StepFailed(f"the bytes are not {source.dtype}: {error}", at=at) from error


_OPENERS: dict[str, Callable[[Path, Source], Samples]] = {
    "npy": _open_npy,
    "npz": _open_npz,
    "images": _open_images,
    "text": _open_text,
    "tfrecord": _open_tfrecord,
}
