"""Steps `calibration` and `evaluation`: a user's samples, checked against the model, as a folder.

The artifact is what `tf2aif.sampleset` writes. Labels exist only in evaluation sets.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from ..errors import StepFailed
from ..sources import Source
from . import Job

if TYPE_CHECKING:
    from ..engines import TensorSpec
    from ..samples import Samples

VERSION = 1
TOOLCHAIN = "python"
INPUTS = ("model",)

RANDOM_SAMPLES = 32  # drawn where the recipe does not say how many
HOOKS = "hooks"  # the key in Job.inputs of the service's hooks, which prepare evaluation samples
HOOK_BATCH = 32
_EMPTY = "return one sample at least, along axis 0; is there anything in what the function reads?"


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the samples are, and which of them are used."""

    inputs: dict[str, Source]  # model input name -> source; "" is the only input
    labels: Source | None = None
    samples: int | None = None  # None: all of them
    choose: Literal["first", "random"] = "first"
    seed: int = 0
    batched: bool = True  # whether axis 0 of the model's inputs is the batch


def run(job: Job) -> Mapping[str, Any]:
    """Read, check and write the samples. Result: `samples`, `random`, `labels`."""
    from ..engines.signature import read_signature
    from ..sampleset import Contents, sample_spec, write_contents

    options = msgspec.convert(job.options, Options)
    signature = read_signature(job.inputs["model"])
    specs = [sample_spec(spec, batched=options.batched) for spec in signature.inputs]
    if any(source.format == "random" for source in options.inputs.values()):
        count = _write_random(job.out, specs, options)
        random = True
    else:
        count = _write_chosen(job, specs, options)
        random = False
    contents = Contents(
        inputs=tuple(spec.name for spec in specs),
        samples=count,
        random=random,
        labels=options.labels is not None,
    )
    write_contents(job.out, contents)
    return {"samples": count, "random": random, "labels": contents.labels}


def _write_random(out: Path, specs: Sequence[TensorSpec], options: Options) -> int:
    import numpy as np

    from ..sampleset import draw

    if options.labels is not None:
        raise StepFailed("random samples have no labels", hint="leave `labels` out")
    count = options.samples or RANDOM_SAMPLES
    generator = np.random.default_rng(options.seed)
    for index, spec in enumerate(specs):
        np.save(out / f"x{index}.npy", draw(spec, count, generator))
    return count


def _write_chosen(job: Job, specs: Sequence[TensorSpec], options: Options) -> int:
    from ..sampleset import choose, write_labels, write_samples

    names = [spec.name for spec in specs]
    opened = _open_inputs(job, names, options.inputs)
    labels = _open_labels(job, options.labels) if options.labels is not None else None
    first = next(iter(opened.values()))
    order = _align(first.names, labels) if labels is not None else []
    _check_counts({**opened, **({"labels": labels} if labels and not order else {})})
    chosen = choose(first.count, options.samples, options.choose, options.seed, first.at)
    prepared, indices = opened, chosen
    if HOOKS in job.inputs:
        prepared, indices = _prepare(job.inputs[HOOKS], opened, chosen), list(range(len(chosen)))
        _check_names(prepared, names)
    for index, spec in enumerate(specs):
        write_samples(job.out / f"x{index}.npy", prepared[spec.name], indices, spec)
    if labels is not None:
        places = [order[index] for index in chosen] if order else chosen
        write_labels(job.out / "labels.npy", labels, places)
    return len(chosen)


def _open_inputs(
    job: Job, names: Sequence[str], sources: Mapping[str, Source]
) -> dict[str, Samples]:
    """The samples of each of the model's inputs, by its name."""
    opened: dict[str, Samples] = {}
    for name, source in sources.items():
        made = _open(job, source)
        if isinstance(made, dict):
            opened.update(made)
        else:
            opened[name] = made
    if set(opened) == {""} and len(names) == 1:
        return {names[0]: opened[""]}
    if HOOKS not in job.inputs:  # `preprocess` may take other names than the model
        _check_names(opened, names)
    return opened


def _prepare(
    hooks: Path, opened: Mapping[str, Samples], chosen: Sequence[int]
) -> dict[str, Samples]:
    """The chosen samples as the service's `preprocess` gives them to the model."""
    import numpy as np

    from ..samples import Samples
    from .hooked import load_hooked, prepare

    loaded, parts = load_hooked(hooks), []
    for start in range(0, len(chosen), HOOK_BATCH):
        batch = chosen[start : start + HOOK_BATCH]
        parts.append(prepare(loaded, {name: s.take(batch) for name, s in opened.items()}, hooks))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    at = f"{hooks}: preprocess"
    return {
        name: Samples(len(values), partial(np.take, values, axis=0), at=at)
        for name, values in whole.items()
    }


def _open(job: Job, source: Source, what: str = "") -> Samples | dict[str, Samples]:
    from ..samples import call_function, open_samples

    path = job.inputs[source.input]
    if source.format != "function":
        return open_samples(path, source)
    made = call_function(path, source)
    at = f"{path}:{source.function}"
    if made == {}:
        raise StepFailed("the function returned an empty dict", at=at, hint=_EMPTY)
    for samples in made.values() if isinstance(made, dict) else [made]:
        if not samples.count:
            what = what or f"{job.kind} set"
            raise StepFailed(f"the {what} is empty", at=samples.at, hint=_EMPTY)
    return made


def _open_labels(job: Job, source: Source) -> Samples:
    made = _open(job, source, "array of labels")
    if isinstance(made, dict):
        raise StepFailed(
            "the labels' function returned a dict",
            at=f"{job.inputs[source.input]}:{source.function}",
            hint="return one array, one label a sample",
        )
    return made


def _check_names(given: Mapping[str, Samples], names: Sequence[str]) -> None:
    wanted = f"the model's inputs are: {', '.join(names)}"
    if "" in given:
        raise StepFailed(
            f"one sample array for a model with {len(names)} inputs",
            at=given[""].at,
            hint=f"give `inputs:`, or return a dict of arrays; {wanted}",
        )
    for name, samples in given.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean '{near[0]}'?" if near else wanted
            raise StepFailed(f"the model has no input '{name}'", at=samples.at, hint=hint)
    missing = [name for name in names if name not in given]
    if missing:
        at = next((samples.at for samples in given.values()), "")
        raise StepFailed(f"no samples for input {', '.join(missing)}", at=at, hint=wanted)


def _check_counts(opened: Mapping[str, Samples]) -> None:
    if len({samples.count for samples in opened.values()}) > 1:
        counts = ", ".join(f"{name} {samples.count}" for name, samples in opened.items())
        places = ", ".join(dict.fromkeys(samples.at for samples in opened.values() if samples.at))
        hint = "every input, and the labels, need one entry a sample along axis 0"
        raise StepFailed(f"the numbers of samples differ: {counts}", at=places, hint=hint)


def _align(names: Sequence[str], labels: Samples) -> list[int]:
    """Where the label of each sample is, by file name; empty where they go by their order."""
    from ..sampleset import by_name

    if not names or not labels.names:
        return []
    if len(set(labels.names)) != len(labels.names):
        raise StepFailed("a name has two labels", at=labels.at)
    return by_name({name: place for place, name in enumerate(labels.names)}, names, labels.at)
