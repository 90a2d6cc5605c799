"""Checking the sample sets that a recipe names: their files, headers, and whether they fit.

Headers are read with numpy and PIL; of a function only the text is read, since it is not called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from ..engines import TensorSpec
from ..errors import Fault, StepFailed
from ..samples import Header, inspect
from ..sampleset import fit
from ..sources import Source
from .check_model import KnownModel, spec_of
from .document import Key
from .files import missing_file, resolve
from .load import LoadedRecipe
from .python_source import source_faults
from .recipe import Calibration, Data, Evaluation
from .references import planned, wanted_targets
from .words import nearest


def sample_faults(loaded: LoadedRecipe, model: KnownModel | None) -> Iterator[Fault]:
    """What is wrong with a recipe's samples; without a model, whether they fit is not looked at."""
    check = _Check(loaded, model)
    for key, spec in _sets(loaded):
        yield from check.set(key, spec)


def _sets(loaded: LoadedRecipe) -> Iterator[tuple[Key, Calibration | Evaluation]]:
    recipe = loaded.recipe
    if isinstance(recipe.calibration, Calibration):
        yield ("calibration",), recipe.calibration
    for name, override in wanted_targets(loaded).items():
        if isinstance(override.calibration, Calibration):
            yield ("targets", name, "calibration"), override.calibration
    if recipe.evaluation is not None:
        yield ("evaluation",), recipe.evaluation


class _Check:
    """The sample sets of one recipe; a file that several of them name is read once."""

    def __init__(self, loaded: LoadedRecipe, model: KnownModel | None) -> None:
        self.loaded = loaded
        self.model = model
        self.read: dict[tuple[Path, bytes], Header | list[Fault]] = {}

    def set(self, key: Key, spec: Calibration | Evaluation) -> Iterator[Fault]:
        """The faults of a calibration or evaluation set, its labels included."""
        at = self.loaded.at(*key, "data")
        faults: list[Fault] = []
        headers = self._headers(spec.data, at, faults)
        counts = {name or "samples": h.samples for name, h in headers.items() if h.samples}
        if self.model is not None and not faults:
            faults += self._fit(self.model, spec.data, headers, at)
        labels = spec.labels if isinstance(spec, Evaluation) else None
        if labels is not None:
            label_at = self.loaded.at(*key, "labels")
            header = self._headers(labels, label_at, faults).get("")
            if header and header.samples and not self._by_name(spec.data, labels):
                counts["labels"] = header.samples
        yield from faults
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            yield Fault(f"the numbers of samples differ: {listed}", at)
        elif counts and spec.samples and spec.samples > min(counts.values()):
            message = f"{spec.samples} samples are asked for, there are {min(counts.values())}"
            yield Fault(message, self.loaded.at(*key, "samples"))

    def _by_name(self, data: str | Data, labels: str | Data) -> bool:
        """Whether labels may go by the names of images, so that there may be more of them."""
        formats = {source.format for one in (data, labels) for source in planned(one)[0].values()}
        return formats == {"images", "text"}

    def _headers(self, data: str | Data, at: str, faults: list[Fault]) -> dict[str, Header]:
        """What is known of each source; what is wrong goes to `faults`."""
        sources, files = planned(data)
        headers: dict[str, Header] = {}
        gone = {name for name, path in files.items() if self._is_missing(path, at, faults)}
        for name, source in sources.items():
            if source.input in gone or source.format == "random":
                continue
            found = self._inspect(source, files[source.input], at)
            if isinstance(found, Header):
                headers[name] = found
            else:
                faults += found
        return headers

    def _is_missing(self, written: str, at: str, faults: list[Fault]) -> bool:
        found = missing_file(self.loaded, written, at)
        faults += found
        return bool(found)

    def _inspect(self, source: Source, written: str, at: str) -> Header | list[Fault]:
        path = resolve(self.loaded, written)
        if source.format == "function":
            wrong = source_faults(path, str(source.function), at, source.arguments)
            return wrong or Header()
        key = (path, msgspec.json.encode(source))
        if key not in self.read:
            self.read[key] = inspect(path, source)
        found = self.read[key]
        if isinstance(found, Header):
            return found
        return [
            Fault(f"{_part(fault.at, path)}: {fault.message}", at, fault.hint) for fault in found
        ]

    def _fit(
        self, model: KnownModel, spec: str | Data, headers: dict[str, Header], at: str
    ) -> Iterator[Fault]:
        """Whether the samples have the names, shapes and dtypes of the model's inputs."""
        inputs = {tensor.name: tensor for tensor in model.inputs}
        sources, _ = planned(spec)
        if any(source.format == "function" for source in sources.values()) or not inputs:
            return  # a function may give samples by name: what it returns is not known
        if set(headers) == {""} and len(inputs) == 1:
            yield from _fit_one(headers[""], spec_of(*model.inputs), at)
            return
        if not model.exact_names:
            return
        yield from _name_faults(headers, inputs, at)
        for name in (name for name in headers if name in inputs):
            yield from _fit_one(headers[name], spec_of(inputs[name]), at)


def _name_faults(
    given: Mapping[str, Header], inputs: Mapping[str, object], at: str
) -> Iterator[Fault]:
    listed = f"the model's inputs are: {', '.join(inputs)}"
    if "" in given:
        yield Fault(
            f"one array for a model with {len(inputs)} inputs", at, f"use `inputs:`; {listed}"
        )
        return
    for name in given:
        if name not in inputs:
            yield Fault(f"the model has no input '{name}'", at, nearest(name, inputs))
    without = [name for name in inputs if name not in given]
    if without and set(given) <= set(inputs):
        yield Fault(f"no samples for input {', '.join(without)}", at, listed)


def _fit_one(header: Header, spec: TensorSpec | None, at: str) -> Iterator[Fault]:
    """The faults that the build would raise, tried on one sample of zeros."""
    if spec is None or header.shape is None or header.dtype is None:
        return
    try:
        fit(np.zeros((1, *header.shape), header.dtype), spec, at)
    except StepFailed as failure:
        yield from failure.faults


def _part(at: str, path: Path) -> str:
    """Where in a sample file a fault is: `x.npz#y`, `faces/1.png`."""
    return at.replace(str(path), path.name) or path.name
