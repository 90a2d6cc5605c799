"""onnx-mixed: int8 but for the layers whose quantisation costs most accuracy.

Which ones these are is searched on samples of the evaluation set, with ONNX Runtime on the CPU;
what was found is verified on the whole set, as step `check` will score it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ..engines import Array
from ..engines.signature import write_signature
from ..errors import StepFailed
from . import Job
from .onnx_int8 import Prepared, Ranges

if TYPE_CHECKING:
    from .check import Score
    from .onnx_search import Cost, Found, Kept

VERSION = 1
TOOLCHAIN = "onnx"
INPUTS = ("model", "calibration", "evaluation", "reference")
SCORES = True

CHANCE = 4  # samples that may change sides for no reason of a single layer's


class Options(Ranges, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long is searched, and what is held. `rest` is the type of the layers that are kept."""

    rest: Literal["fp32", "fp16"] = "fp16"
    trials: Annotated[int, Meta(ge=8)] = 150
    """At most so many runs over the samples; with fewer than layers, neighbours are one group."""
    samples: Annotated[int, Meta(ge=1)] = 256
    """Of the evaluation set, evenly spread, for the search; the result is verified on all."""
    margin: Annotated[float, Meta(ge=0, lt=1)] = 0.25
    """Share of the allowed drop that the search leaves unused, for what its samples do not show."""
    allowed_drop: float = 0.01
    metric: str | None = None  # None: the cosine of the output that is furthest off
    output: str | None = None


def run(job: Job) -> Mapping[str, Any]:
    """Write what `onnx-int8` writes; the result tells what each layer costs.

    Raises StepFailed where the calibration set is not for this model, where the model has no layer
    to quantise, and where the gate does not hold with any of them in int8.
    """
    from .onnx_int8 import prepare
    from .onnx_written import write_quantised

    options = msgspec.convert(job.options, Options)
    ready = prepare(job, options)
    judge = _Judge(job, options, ready)
    none, every = frozenset[str](), frozenset(ready.chosen)
    quantised = judge.verify(none)
    if quantised.drop <= options.allowed_drop:
        found, score = None, quantised
    else:
        found, score = _search(judge, ready.chosen, options, judge.verify(every))
    kept = found.kept if found else none
    result = write_quantised(ready.quantised(every - kept), ready.signature, job.out, options.rest)
    write_signature(job.out, ready.signature)
    return {
        "calibration": options.calibration,
        "layers": len(ready.placement.layers),
        "kept": [x.name for x in ready.placement.layers if x.name not in every - kept],
        **result,
        "metric": score.metric,
        "source": score.source,
        "mixed": {"score": score.variant, "drop": score.drop},
        "all_int8": {"score": quantised.variant, "drop": quantised.drop},
        "trials": found.trials if found else 0,
        "finished": found.finished if found else True,
        "costs": [_told(cost, kept) for cost in found.costs] if found else [],
    }


def _search(
    judge: _Judge, layers: Sequence[str], options: Options, nothing: Score
) -> tuple[Found, Score]:
    """The layers that are kept, and the score of the rest on the whole evaluation set."""
    from .onnx_search import Search

    if nothing.drop > options.allowed_drop:
        raise StepFailed(
            f"without any int8 layer, {nothing.lost(options.allowed_drop)}",
            hint=f"that is what {options.rest} alone loses: widen the gate, or take rest: fp32",
        )
    search = Search(
        layers,
        judge.drop,
        judge.alone,
        limit=options.allowed_drop * (1 - options.margin),
        grain=judge.grain,
        trials=options.trials,
    )
    found = search.run()
    while len(found.kept) < len(layers):
        score = judge.verify(found.kept)
        if score.drop <= options.allowed_drop:
            return found, score
        print(f"on the whole evaluation set {score.lost(options.allowed_drop)}", flush=True)
        found = found._replace(kept=search.widen(found.kept))
    raise StepFailed(
        f"the gate does not hold with any int8 layer: it allows {options.allowed_drop:.4g}",
        hint=f"take precision {options.rest}, widen the gate, or try another 'calibration'",
    )


def _told(cost: Cost, kept: Kept) -> dict[str, Any]:
    return {
        "layers": list(cost.layers),
        "drop": cost.drop,
        "sqnr_db": round(cost.sqnr_db, 2) if math.isfinite(cost.sqnr_db) else None,
        "kept": kept.issuperset(cost.layers),
    }


class _Judge:
    """Scores a choice of int8 layers as step `check` would score its artifact.

    On the samples of the search, what is not int8 stays float32: that is several times faster than
    its emulation, and half precision loses far less than int8. `verify` leaves nothing out.
    """

    def __init__(self, job: Job, options: Options, ready: Prepared) -> None:
        from ..sampleset import read_set
        from ..trials import Trials, trials_folder
        from .check import read_reference

        self._job, self._options, self._ready = job, options, ready
        whole = read_set(job.inputs["evaluation"])
        reference = read_reference(job.inputs["reference"])
        self._all = _Samples(dict(whole.inputs), reference, whole.labels)
        self._some = self._all.evenly(options.samples, whole.samples)
        few = CHANCE / min(options.samples, whole.samples) if options.metric else 0.0
        self.grain = max(few, options.allowed_drop)
        self._exact: dict[str, Array] | None = None
        self._trials = Trials(trials_folder(), _facts(job, options))

    def drop(self, kept: Kept) -> float:
        """Drop of the metric on the samples of the search, with these layers kept."""
        chosen = frozenset(self._ready.chosen) - kept
        return float(self._try("some", chosen)["drop"])

    def alone(self, chosen: Kept) -> tuple[float, float]:
        """Drop of the metric and error of the outputs, with these layers alone in int8."""
        found = self._try("some", chosen)
        return float(found["drop"]), float(found["error"])

    def verify(self, kept: Kept) -> Score:
        """The score of what would be written, on the whole evaluation set."""
        from .check import Score

        found = self._try("all", frozenset(self._ready.chosen) - kept)
        return msgspec.convert(found["score"], Score)

    def _try(self, which: str, chosen: Kept) -> Any:
        """A trial, from an earlier run of the search where it was made there."""
        tried = {"on": which, "int8": sorted(chosen)}
        known = self._trials.look(tried)
        if known is None:
            known = self._measure(chosen) if which == "some" else self._verify(chosen)
            self._trials.keep(tried, known)
        return known

    def _measure(self, chosen: Kept) -> dict[str, float]:
        if self._exact is None:
            self._exact = self._outputs(self._ready.model, self._some.inputs)
        outputs = self._outputs(self._ready.quantised(chosen), self._some.inputs)
        return {
            "drop": self._score(outputs, self._some).drop,
            "error": relative_error(outputs, self._exact),
        }

    def _verify(self, chosen: Kept) -> dict[str, Any]:
        from .onnx_written import computed

        model = computed(self._ready.quantised(chosen), self._ready.signature, self._options.rest)
        score = self._score(self._outputs(model, self._all.inputs), self._all)
        return {"score": msgspec.to_builtins(score)}

    def _outputs(self, model: Any, samples: Mapping[str, Array]) -> dict[str, Array]:
        from ..engines.batches import run_batches
        from ..engines.onnxruntime import OnnxRuntime
        from .onnx_ranges import make_session

        engine = OnnxRuntime(self._ready.signature, make_session(model))
        return run_batches(engine, samples)

    def _score(self, outputs: Mapping[str, Array], samples: _Samples) -> Score:
        from .check import score_outputs

        metric, output = self._options.metric, self._options.output
        return score_outputs(self._job, metric, output, outputs, samples.reference, samples.labels)


class _Samples(NamedTuple):
    """Samples of the evaluation set, along axis 0 everywhere."""

    inputs: Mapping[str, Array]
    reference: Mapping[str, Array]
    labels: Array | None

    def evenly(self, wanted: int, count: int) -> _Samples:
        """So many of them, spread evenly over the set, or all."""
        import numpy as np

        if wanted >= count:
            return self
        at = np.linspace(0, count - 1, wanted).round().astype(int)
        return _Samples(
            {name: np.asarray(array[at]) for name, array in self.inputs.items()},
            {name: array[at] for name, array in self.reference.items()},
            None if self.labels is None else self.labels[at],
        )


def relative_error(outputs: Mapping[str, Array], exact: Mapping[str, Array]) -> float:
    """Euclidean norm of all outputs' differences over that of the outputs."""
    import numpy as np

    wide = [(exact[n].astype(np.float64), outputs[n].astype(np.float64)) for n in sorted(exact)]
    size = sum(float(np.square(truth).sum()) for truth, _ in wide)
    lost = sum(float(np.square(found - truth).sum()) for truth, found in wide)
    return math.sqrt(lost / size) if size else math.sqrt(lost)


def _facts(job: Job, options: Options) -> dict[str, Any]:
    """All that a trial depends on besides the layers that are int8 in it."""
    from ..digest import digest_tree

    searched = {"trials", "margin", "allowed_drop"}
    told = {k: v for k, v in msgspec.to_builtins(options).items() if k not in searched}
    inputs = {name: digest_tree(path) for name, path in sorted(job.inputs.items())}
    return {"step": "onnx-mixed", "version": VERSION, "options": told, "inputs": inputs}
