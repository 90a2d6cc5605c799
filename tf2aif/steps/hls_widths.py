"""hls-widths: the narrowest fixed-point types of every layer that hold the recipe's gate.

Each trial computes the whole evaluation set with the exact arithmetic of the hardware, in numpy;
step `hls` then compiles the true C simulation with the types that were found, and the gate is held
with that. What comes out is the network with `widths.json`, and the curve of all trials.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:
    from ..engines import Array
    from ..engines.signature import Signature
    from ..hls.search import Found, Verdict
    from ..hls.stages import Pipeline
    from ..hls.types import Types

VERSION = 1
TOOLCHAIN = "python"
INPUTS = ("model", "calibration", "evaluation", "reference")
SCORES = True

CURVE = "curve.json"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long is searched, and what is held."""

    trials: Annotated[int, msgspec.Meta(ge=1)] = (
        120  # at most so many; one computes the whole evaluation set
    )
    allowed_drop: float = 0.01
    metric: str | None = None  # None: the cosine of the output that is furthest off
    output: str | None = None


def run(job: Job) -> Mapping[str, Any]:
    """Write the network's files as they are, `widths.json` and `curve.json`.

    Raises StepFailed where no width holds the gate.
    """
    from ..engines.network import read_network
    from ..hls.emulate import ranges
    from ..hls.lower import lower
    from ..hls.search import search
    from ..hls.types import write_types
    from ..sampleset import read_set

    options = msgspec.convert(job.options, Options)
    pipeline = lower(read_network(job.inputs["model"]))
    calibration = read_set(job.inputs["calibration"]).inputs
    seen = ranges(pipeline, _batched(pipeline, calibration))
    judge = _Judge(job, options, pipeline)
    found = search(pipeline, seen, judge.judge, options.trials)
    for file in sorted(job.inputs["model"].iterdir()):
        if file.is_file():
            shutil.copyfile(file, job.out / file.name)
    write_types(job.out, found.types)
    return _report(job.out, found, judge, options)


def _report(out: Path, found: Found, judge: _Judge, options: Options) -> Mapping[str, Any]:
    told = {
        "metric": judge.metric,
        "source": judge.source,
        "allowed_drop": options.allowed_drop,
        "points": msgspec.to_builtins(found.curve),
    }
    encoded = msgspec.json.format(msgspec.json.encode(told), indent=1)
    (out / CURVE).write_bytes(encoded + b"\n")
    held = [point for point in found.curve if point.holds]
    return {
        "bits": min(point.bits for point in held),
        "bits_of_16": found.curve[0].bits,
        "score": found.verdict.score,
        "drop": found.verdict.drop,
        "trials": len(found.curve),
        "finished": found.finished,
        "curve": told,
    }


class _Judge:
    """Scores one set of types as step `check` would score the compiled simulation."""

    def __init__(self, job: Job, options: Options, pipeline: Pipeline) -> None:
        from ..engines.signature import read_signature
        from ..sampleset import read_set
        from ..trials import Trials, trials_folder
        from .check import read_reference

        evaluation = read_set(job.inputs["evaluation"])
        self.job, self.options, self.pipeline = job, options, pipeline
        self.signature: Signature = read_signature(job.inputs["model"])
        self.inputs = _batched(pipeline, evaluation.inputs)
        self.labels = evaluation.labels
        self.reference: dict[str, Array] = read_reference(job.inputs["reference"])
        self.metric = options.metric or "cosine"
        self.trials = Trials(trials_folder(), _facts(job, options))
        self.source = self._score(self.reference)[0]

    def judge(self, types: Types) -> Verdict:
        """What these types give, from an earlier run where it was computed there."""
        from ..hls.search import Verdict

        tried = msgspec.to_builtins(types)
        kept = self.trials.look(tried)
        if kept is None:
            score, drop = self._score(self._outputs(types))
            kept = {"score": score, "drop": drop}
            self.trials.keep(tried, kept)
        holds = kept["drop"] <= self.options.allowed_drop
        return Verdict(score=kept["score"], drop=kept["drop"], holds=holds)

    def _outputs(self, types: Types) -> dict[str, Array]:
        from ..engines.hls import DOORS
        from ..hls.emulate import emulate

        raw = emulate(self.pipeline, types, self.inputs)
        doors = {output.name: DOORS[output.door] for output in self.pipeline.outputs}
        return {
            spec.name: doors[spec.name](raw[spec.name]).astype(spec.dtype)
            for spec in self.signature.outputs
        }

    def _score(self, outputs: dict[str, Array]) -> tuple[float, float]:
        """The metric of these outputs, and how much worse it is than the source model's."""
        from ..metrics import higher_is_better, scorer, truth_of

        outputs, reference = self._finished(outputs)
        if self.options.metric is None:
            from .check import compare

            worst = min(compare(outputs[name], reference[name]).cosine for name in reference)
            return worst, float(f"{1.0 - worst:.12g}")
        name = _scored_output(self.options.output, list(reference))
        function = scorer(self.options.metric, self.job.inputs.get("metric"))
        truth = self.labels
        if truth is None:
            truth = truth_of(self.options.metric, reference[name])
        source, variant = function(reference[name], truth), function(outputs[name], truth)
        better = higher_is_better(self.options.metric, function)
        drop = source - variant if better else variant - source
        return float(variant), float(f"{drop:.12g}")  # as step `check` rounds it

    def _finished(self, outputs: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Outputs and reference through the service's hooks, where it has any."""
        path = self.job.inputs.get("hooks")
        if path is None:
            return outputs, self.reference
        from .hooked import finish, load_hooked

        hooks = load_hooked(path)
        return finish(hooks, outputs, path), finish(hooks, self.reference, path)


def _facts(job: Job, options: Options) -> dict[str, Any]:
    """All that a trial's score depends on besides its types."""
    from ..digest import digest_tree

    return {
        "step": job.kind,
        "version": VERSION,
        "metric": options.metric,
        "output": options.output,
        "inputs": {
            name: digest_tree(path)
            for name, path in sorted(job.inputs.items())
            if name != "calibration"
        },
    }


def _batched(pipeline: Pipeline, inputs: Mapping[str, Array]) -> dict[str, Array]:
    missing = [name for name in pipeline.inputs if name not in inputs]
    if missing:
        raise StepFailed(
            f"the samples lack the input '{missing[0]}'", hint=f"they have: {', '.join(inputs)}"
        )
    return {name: inputs[name] for name in pipeline.inputs}


def _scored_output(wanted: str | None, names: list[str]) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        told = f"the model has {len(names)} outputs, and one is scored"
        raise StepFailed(told, hint=f"set evaluation.output to one of: {', '.join(names)}")
    return wanted
