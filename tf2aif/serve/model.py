"""A variant's model behind its door: real values in and out, any number of rows.

The door is the same for every variant of a recipe: where an artifact is quantised, its door still
takes and gives float32, rounded and saturated with the artifact's own scale and zero point. Stored
integers are taken as they are, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..engines import Array, Engine, TensorSpec, dequantize, engine_module, quantize
from ..engines.signature import Signature, read_signature
from .datatypes import datatype_of
from .failures import invalid
from .variant import VariantRecord, read_variant

PLATFORMS = {
    "litert": "litert_tflite",
    "tensorflow": "tensorflow_savedmodel",
    "openvino": "openvino_ir",
    "onnxruntime": "onnxruntime_onnx",
}
"""What the metadata calls an engine: `<project>_<format>`. Others are called by their own name."""


class Model:
    """A variant's name, door and, once loaded, engine.

    `inputs` and `outputs` are the door: what `check` takes and `run` gives. An axis 0 that is the
    batch is None there: any number of rows, at least one, is served.
    """

    def __init__(self, folder: Path) -> None:
        self.record: VariantRecord = read_variant(folder)
        self.artifact = folder / "artifact"
        self.signature: Signature = read_signature(self.artifact)
        self.name = self.record.recipe
        self.version = self.record.variant
        self.platform = _platform(self.record)
        self.batch = _batch(self.record, self.signature)
        self.inputs = tuple(_door(spec, self.batched) for spec in self.signature.inputs)
        self.outputs = tuple(_door(spec, self.batched) for spec in self.signature.outputs)
        self.hooks_file = None if self.record.hooks is None else folder / self.record.hooks
        self._doors = {spec.name: spec for spec in self.inputs}
        self._stored = {spec.name: spec for spec in self.signature.inputs}
        # Asking an array for its dtype's name takes longer than all other checks together.
        self._dtypes = {
            spec.name: (np.dtype(self._doors[spec.name].dtype), np.dtype(spec.dtype))
            for spec in self.signature.inputs
        }
        self._engine: Engine | None = None

    @property
    def batched(self) -> bool:
        """Whether axis 0 of every tensor is the batch."""
        return self.batch != 0

    def load(self, threads: int | None = None) -> None:
        """Load the engine. Raises Tf2aifError where the artifact cannot be loaded."""
        module = engine_module(self.record.engine.name)
        options = {**self.record.engine.options}
        if threads is not None:
            options["threads"] = threads
        self._engine = module.load(self.artifact, **options)

    def close(self) -> None:
        """Give the engine's memory back."""
        if self._engine is not None:
            self._engine.close()

    def check(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
        """The tensors as the model takes them, in its order, and their number of rows.

        Raises RequestFailed (INVALID) for unknown and missing names, other dtypes or shapes, no
        rows, and floats that are NaN or infinite.
        """
        for name in feeds:
            if name not in self._doors:
                raise invalid(f"there is no input '{name}'{_nearest(name, self._doors)}")
        checked = {name: self._check(door, feeds.get(name)) for name, door in self._doors.items()}
        if not self.batched:
            return checked, 1
        rows = {array.shape[0] for array in checked.values()}
        if len(rows) != 1 or 0 in rows:
            raise invalid(f"every input has the same number of rows, at least 1; there are {rows}")
        return checked, rows.pop()

    def adapt(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Tensors of a payload as the door wants them, where that loses nothing but precision.

        A single sample gets its batch axis; numbers get the door's dtype. What does not fit is
        left as it is, for `check` to refuse.
        """
        return {
            name: _adapt(array, self._doors[name], self.batched) if name in self._doors else array
            for name, array in feeds.items()
        }

    def run(self, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Run checked tensors of that many rows. Outputs are as `outputs` says."""
        stored = {name: self._to_stored(name, array) for name, array in feeds.items()}
        given = self._run_rows(stored, rows)
        return {spec.name: _from_stored(spec, given[spec.name]) for spec in self.signature.outputs}

    def zeros(self, rows: int = 1) -> dict[str, Array]:
        """Tensors that the door takes, all zero (free axes other than the batch are 1 long)."""
        found = {}
        for spec in self.inputs:
            shape = [1 if axis is None else axis for axis in spec.shape]
            if self.batched:
                shape[0] = rows
            filler = b"" if datatype_of(spec.dtype) == "BYTES" else 0
            found[spec.name] = np.full(shape, filler, dtype=spec.dtype)
        return found

    def _check(self, door: TensorSpec, array: Array | None) -> Array:
        where = f"input '{door.name}'"
        if array is None:
            raise invalid(f"{where} is missing")
        stored = self._stored[door.name]
        if array.dtype not in self._dtypes[door.name]:
            takes = " or ".join(dict.fromkeys((datatype_of(door.dtype), datatype_of(stored.dtype))))
            raise invalid(f"{where} takes {takes}, not {datatype_of(array.dtype)}")
        fits = len(array.shape) == len(door.shape) and all(
            wanted in (None, given) for wanted, given in zip(door.shape, array.shape, strict=True)
        )
        if not fits:
            raise invalid(f"{where} takes shape {shape_text(door)}, not {list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise invalid(f"{where} has NaN or infinity")
        # Binary tensors may start anywhere in a body; engines want them aligned.
        return array if array.flags.aligned else array.copy()

    def _to_stored(self, name: str, array: Array) -> Array:
        spec = self._stored[name]
        if spec.quantization is None or array.dtype == self._dtypes[name][1]:
            return array
        return quantize(array, spec.dtype, spec.quantization)

    def _run_rows(self, stored: dict[str, Array], rows: int) -> dict[str, Array]:
        """The engine over that many rows: at once, or in runs of the artifact's own batch."""
        if self._engine is None:
            raise RuntimeError("the model is not loaded")
        size = self.batch
        if not size or rows == size:
            return self._engine.run(stored)
        runs = []
        for start in range(0, rows, size):
            piece = {name: _piece(array, start, size) for name, array in stored.items()}
            runs.append(self._engine.run(piece))
        return {name: np.concatenate([run[name] for run in runs])[:rows] for name in runs[0]}


def _platform(record: VariantRecord) -> str:
    """The engine as the metadata names it; an emulation says what it stands in for."""
    name = PLATFORMS.get(record.engine.name, record.engine.name)
    return f"{record.emulates}_emulated_by_{name}" if record.emulates else name


def metadata(model: Model) -> dict[str, object]:
    """The model's metadata, as the protocol has it: a free axis is -1."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": model.platform,
        "inputs": [_tensor_metadata(spec) for spec in model.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.outputs],
    }


def shape_text(spec: TensorSpec) -> list[int]:
    """A shape as the protocol writes it: -1 for a free axis."""
    return [-1 if axis is None else axis for axis in spec.shape]


def _tensor_metadata(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": shape_text(spec)}


def _batch(record: VariantRecord, signature: Signature) -> int | None:
    """The artifact's batch: None where free, a number where fixed, 0 where there is none."""
    firsts = {
        spec.shape[0] if spec.shape else 0 for spec in (*signature.inputs, *signature.outputs)
    }
    if record.batch == "none" or 0 in firsts or len(firsts) != 1:
        return 0
    return firsts.pop()


def _adapt(array: Array, door: TensorSpec, batched: bool) -> Array:
    if batched and array.ndim == len(door.shape) - 1:
        array = array[np.newaxis]
    wanted = np.dtype(door.dtype)
    if array.dtype == wanted or array.dtype.kind not in "iuf" or wanted.kind not in "iuf":
        return array
    if wanted.kind == "f":
        with np.errstate(over="ignore"):  # an overflow is infinite, and refused as such
            return array.astype(wanted)
    if array.dtype.kind == "f" or not array.size:
        return array
    info = np.iinfo(wanted)
    return array.astype(wanted) if info.min <= array.min() and array.max() <= info.max else array


def _door(spec: TensorSpec, batched: bool) -> TensorSpec:
    shape = (None, *spec.shape[1:]) if batched else spec.shape
    dtype = spec.dtype if spec.quantization is None else "float32"
    return TensorSpec(name=spec.name, dtype=dtype, shape=shape)


def _from_stored(spec: TensorSpec, array: Array) -> Array:
    return array if spec.quantization is None else dequantize(array, spec.quantization)


def _piece(array: Array, start: int, size: int) -> Array:
    """Rows from `start`, exactly `size` of them: the last row is repeated where they end."""
    piece = array[start : start + size]
    short = size - len(piece)
    return piece if not short else np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)])


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"
