"""A sample set that fits a model, and its folder.

The folder holds `set.json`, `x0.npy`, `x1.npy`, ... in the order of the model's inputs, and
`labels.npy` where there are labels. Samples are along axis 0. The bytes depend on the samples only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .engines import TensorSpec
from .engines.signature import fits
from .errors import StepFailed
from .samples import Samples, check_finite

Array = NDArray[Any]

CHUNK_BYTES = 64 * 2**20  # of samples that are in memory at once while a set is written


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """`set.json`."""

    inputs: tuple[str, ...]
    samples: int
    random: bool
    labels: bool


class SampleSet(msgspec.Struct, frozen=True, kw_only=True):
    """A set as read back: arrays by model input name, mapped from their files, not loaded."""

    inputs: dict[str, Array]
    labels: Array | None
    samples: int
    random: bool


def read_set(folder: Path) -> SampleSet:
    """Read the artifact of a calibration or evaluation step."""
    contents = msgspec.json.decode((folder / "set.json").read_bytes(), type=Contents)
    return SampleSet(
        inputs={
            name: np.load(folder / f"x{index}.npy", mmap_mode="r")
            for index, name in enumerate(contents.inputs)
        },
        labels=np.load(folder / "labels.npy") if contents.labels else None,
        samples=contents.samples,
        random=contents.random,
    )


def write_contents(folder: Path, contents: Contents) -> None:
    """Write `set.json`."""
    (folder / "set.json").write_bytes(msgspec.json.encode(contents) + b"\n")


def write_samples(path: Path, samples: Samples, indices: Sequence[int], spec: TensorSpec) -> None:
    """Write the chosen samples as an `.npy` of `spec.dtype`, in chunks.

    `spec` is that of one sample: see `sample_spec`. Raises StepFailed for shapes that do not fit,
    for a cast that loses something, and for NaN and infinity.
    """
    first = fit(samples.take(indices[:1]), spec, samples.at, indices[0])
    whole = np.lib.format.open_memmap(
        path, mode="w+", dtype=first.dtype, shape=(len(indices), *first.shape[1:])
    )
    step = max(1, CHUNK_BYTES // max(1, first.nbytes))
    for start in range(0, len(indices), step):
        chosen = indices[start : start + step]
        whole[start : start + len(chosen)] = fit(samples.take(chosen), spec, samples.at, chosen[0])
    whole.flush()


def write_labels(path: Path, samples: Samples, indices: Sequence[int]) -> None:
    """Write the labels of the chosen samples, as they are."""
    labels = samples.take(indices)
    check_finite(labels, samples.at)
    np.save(path, labels, allow_pickle=False)


def sample_spec(spec: TensorSpec, *, batched: bool) -> TensorSpec:
    """An input's spec without its batch axis."""
    if not batched or not spec.shape:
        return spec
    return msgspec.structs.replace(spec, shape=spec.shape[1:])


def fit(values: Array, spec: TensorSpec, at: str, first: int = 0) -> Array:
    """Samples, axis 0, in the dtype of one sample's spec, their shape and values checked."""
    found, wanted = values.shape[1:], spec.shape
    if not fits(found, wanted):
        message = f"a sample has shape {found}, input '{spec.name}' wants {_render(wanted)}"
        raise StepFailed(message, at=at, hint=_shape_hint(found, wanted))
    check_finite(values, at, first)
    return cast(values, spec.dtype, f"input '{spec.name}'", at)


def cast(values: Array, dtype: str, what: str, at: str) -> Array:
    """Values in another dtype, where nothing but floating-point rounding is lost.

    Between floating-point dtypes the values are rounded; integers must come out exactly; floating
    point becomes an integer only where every value is whole. Raises StepFailed otherwise.
    """
    target = np.dtype(dtype)
    if values.dtype == target:
        return values
    if values.dtype.kind not in "fiub" or target.kind not in "fiub":
        raise StepFailed(f"{what}: samples of {values.dtype} cannot become {target}", at=at)
    with np.errstate(all="ignore"):
        changed = values.astype(target)
        if values.dtype.kind == "f" and target.kind == "f":
            same = bool(np.isfinite(changed).all())
        else:
            same = np.array_equal(changed.astype(values.dtype), values) and _in_range(
                values, target
            )
    if not same:
        hint = f"make the samples {target} yourself, in a file or in file.py:function"
        raise StepFailed(f"{what}: {values.dtype} samples do not fit {target}", at=at, hint=hint)
    return changed


def _in_range(values: Array, target: np.dtype[Any]) -> bool:
    # A round trip alone does not show overflow: -1 as uint8 and back as int8 is -1 again.
    if target.kind not in "iu" or not values.size:
        return True
    info = np.iinfo(target)
    return int(values.min()) >= info.min and int(values.max()) <= info.max


def choose(count: int, samples: int | None, how: str, seed: int, at: str) -> list[int]:
    """Which samples of `count` are used, ascending: all, the first ones, or drawn with a seed."""
    if samples is None or samples == count:
        return list(range(count))
    if samples > count:
        raise StepFailed(f"{samples} samples are asked for, there are {count}", at=at)
    if how == "first":
        return list(range(samples))
    drawn = np.random.default_rng(seed).choice(count, samples, replace=False)
    return sorted(int(index) for index in drawn)


def _render(shape: Sequence[int | None]) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _shape_hint(found: Sequence[int], wanted: Sequence[int | None]) -> str:
    if None not in wanted and np.prod(found) == np.prod([size or 0 for size in wanted]):
        return "the number of values agrees: reshape them (in a TFRecord, with `shape:`)"
    return ""


def draw(spec: TensorSpec, count: int, generator: np.random.Generator) -> Array:
    """Random samples for an untrained model: shape (count, *spec.shape), spec of one sample.

    Floating point is drawn from the standard normal distribution, bytes from their whole range,
    wider integers are 0 or 1 (they are often indices into a table of unknown length).
    """
    if None in spec.shape:
        message = f"input '{spec.name}' has the open shape {_render(spec.shape)}"
        raise StepFailed(f"cannot draw random samples: {message}", hint="state it in model.inputs")
    shape = (count, *(int(size or 0) for size in spec.shape))
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        info = np.iinfo(dtype)
        return generator.integers(info.min, info.max, shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    raise StepFailed(f"cannot draw random samples of {dtype} for input '{spec.name}'")


def by_name(mapping: Mapping[str, int], names: Sequence[str], at: str) -> list[int]:
    """Where each of `names` is in a mapping of names; StepFailed where some have no entry."""
    missing = [name for name in names if name not in mapping]
    if missing:
        message = f"{len(missing)} samples have no label, such as '{missing[0]}'"
        raise StepFailed(message, at=at)
    return [mapping[name] for name in names]
