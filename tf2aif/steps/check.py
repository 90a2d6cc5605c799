"""Step `check`: how much a variant loses against its source model on the evaluation set.

The artifact is run by its own engine over all samples. Its outputs are compared with the reference
(the source model's outputs for the same samples), and both are scored against the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:
    from ..engines import Array
    from ..metrics import Scorer

VERSION = 1
TOOLCHAIN = "python"  # the graph takes the toolchain of the engine in its place
INPUTS = ("artifact", "evaluation", "reference")


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the variant is run and scored."""

    engine: str
    engine_options: dict[str, Any] = {}
    metric: str | None = None  # None: outputs are compared, nothing is scored
    output: str | None = None  # which output is scored; None: the only one


class Difference(Struct, frozen=True, kw_only=True):
    """How far one output is from the reference, over all samples."""

    worst: float  # largest absolute difference
    mean: float  # mean absolute difference
    cosine: float  # mean over samples of the cosine similarity
    relative: float  # Euclidean norm of the difference over that of the reference


class Result(Struct, frozen=True, kw_only=True):
    """`check.json`. `drop` is positive where the variant is worse than its source."""

    metric: str | None
    source: float | None
    variant: float | None
    drop: float | None
    samples: int
    labels: bool
    random: bool
    outputs: dict[str, Difference]


class Score(Struct, frozen=True, kw_only=True):
    """The figure that a gate looks at."""

    metric: str
    source: float
    variant: float
    drop: float

    def lost(self, allowed: float) -> str:
        """What a gate that allows this drop has to say against it; nothing where it holds."""
        if self.drop <= allowed:
            return ""
        return (
            f"{self.metric} fell from {self.source:.4g} to {self.variant:.4g}, by "
            f"{self.drop:.4g}; the gate allows {allowed:.4g}"
        )


def scored(result: Result) -> Score:
    """The metric; without an evaluation set, the cosine of the output that is furthest off."""
    if result.metric is None:
        worst = min(output.cosine for output in result.outputs.values())
        return Score(metric="cosine", source=1.0, variant=worst, drop=1.0 - worst)
    assert result.source is not None  # noqa: S101  with a metric there are all three
    assert result.variant is not None and result.drop is not None  # noqa: S101, PT018
    return Score(
        metric=result.metric, source=result.source, variant=result.variant, drop=result.drop
    )


def run(job: Job) -> Mapping[str, Any]:
    """Compare and score; writes `check.json` and returns what is in it."""
    from ..sampleset import read_set

    options = msgspec.convert(job.options, Options)
    evaluation = read_set(job.inputs["evaluation"])
    found = _run_engine(job.inputs["artifact"], options, evaluation.inputs)
    outputs, reference = _finished(job, found, read_reference(job.inputs["reference"]))
    source, variant, drop = _score(
        job, options.metric, options.output, outputs, reference, evaluation.labels
    )
    result = Result(
        metric=options.metric,
        source=source,
        variant=variant,
        drop=drop,
        samples=evaluation.samples,
        labels=evaluation.labels is not None,
        random=evaluation.random,
        outputs={name: compare(outputs[name], reference[name]) for name in reference},
    )
    encoded = msgspec.json.format(msgspec.json.encode(result), indent=2)
    (job.out / "check.json").write_bytes(encoded + b"\n")
    built: dict[str, Any] = msgspec.to_builtins(result)
    return built


def score_outputs(
    job: Job,
    metric: str | None,
    output: str | None,
    outputs: Mapping[str, Array],
    reference: Mapping[str, Array],
    labels: Array | None,
) -> Score:
    """What the gate would look at, for outputs that a search has at hand and no artifact yet.

    `job.inputs` has the user's `hooks` and `metric` as `run` gets them.
    """
    outputs, reference = _finished(job, outputs, reference)
    source, variant, drop = _score(job, metric, output, outputs, reference, labels)
    if metric is None or source is None or variant is None or drop is None:
        worst = min(compare(outputs[name], reference[name]).cosine for name in reference)
        return Score(metric="cosine", source=1.0, variant=worst, drop=float(f"{1 - worst:.12g}"))
    return Score(metric=metric, source=source, variant=variant, drop=drop)


def read_reference(folder: Path) -> dict[str, Array]:
    """The source model's outputs, samples along axis 0, by output name."""
    import numpy as np

    names = msgspec.json.decode((folder / "outputs.json").read_bytes())["outputs"]
    return {name: np.load(folder / f"y{index}.npy") for index, name in enumerate(names)}


def compare(outputs: Array, reference: Array) -> Difference:
    """How far outputs are from the reference; arrays of one shape, samples along axis 0."""
    import numpy as np

    from ..metrics import cosine_each

    truth = reference.astype(np.float64)
    difference = np.abs(outputs.astype(np.float64) - truth)
    size, error = float(np.linalg.norm(truth)), float(np.linalg.norm(difference))
    return Difference(
        worst=float(difference.max(initial=0.0)),
        mean=float(difference.mean()),
        cosine=float(cosine_each(outputs, truth).mean()),
        relative=error / size if size else float(error > 0),
    )


def _run_engine(artifact: Path, options: Options, samples: Mapping[str, Array]) -> dict[str, Array]:
    from ..engines import engine_module
    from ..engines.batches import run_batches

    engine = engine_module(options.engine).load(artifact, **options.engine_options)
    try:
        return run_batches(engine, samples)
    finally:
        engine.close()


def _finished(
    job: Job, outputs: Mapping[str, Array], reference: Mapping[str, Array]
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Outputs and reference through the service's hooks, where it has any; they go together."""
    if "hooks" in job.inputs:
        from .hooked import finish, load_hooked

        path = job.inputs["hooks"]
        hooks = load_hooked(path)
        outputs = finish(hooks, dict(outputs), path)
        reference = finish(hooks, dict(reference), path)
    _check_outputs(outputs, reference)
    return outputs, reference


def _check_outputs(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
    import numpy as np

    if set(outputs) != set(reference):
        found, wanted = ", ".join(sorted(outputs)), ", ".join(sorted(reference))
        raise StepFailed(f"the variant's outputs are {found}; the source's are {wanted}")
    for name, values in outputs.items():
        if values.shape != reference[name].shape:
            shapes = f"{values.shape}, the source's {reference[name].shape}"
            raise StepFailed(f"output '{name}' of the variant has shape {shapes}")
        # Where the source gives NaN too, the model or the samples are at fault.
        for whose, array in (("source model", reference[name]), ("variant", values)):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                first = f"{bad.sum()} samples, the first is number {bad.argmax()}"
                raise StepFailed(f"NaN or infinity in output '{name}' of the {whose}: {first}")


def _score(
    job: Job,
    metric: str | None,
    wanted: str | None,
    outputs: Mapping[str, Array],
    reference: Mapping[str, Array],
    labels: Array | None,
) -> tuple[float | None, float | None, float | None]:
    """Source's score, variant's score and the drop."""
    from ..metrics import higher_is_better, scorer, truth_of

    if metric is None:
        return None, None, None
    name = _choose_output(wanted, list(reference))
    function: Scorer = scorer(metric, job.inputs.get("metric"))
    truth = truth_of(metric, reference[name]) if labels is None else labels
    source, variant = function(reference[name], truth), function(outputs[name], truth)
    better = higher_is_better(metric, function)
    drop = source - variant if better else variant - source
    # 0.913 - 0.893 is 0.02, which a gate of 0.02 allows: the last bits are rounding's.
    return source, variant, float(f"{drop:.12g}")


def _choose_output(wanted: str | None, names: list[str]) -> str:
    hint = f"set evaluation.output to one of: {', '.join(names)}"
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise StepFailed(f"the model has {len(names)} outputs, and one is scored", hint=hint)
    if wanted not in names:
        raise StepFailed(f"the model has no output '{wanted}'", hint=hint)
    return wanted
