"""The search for the narrowest fixed-point types that hold a gate.

Integer bits follow from the ranges of the values, so that nothing overflows on the calibration
set; what is searched are the bits behind the binary point, one number for each layer's results and
one for its weights. First one width for all is lowered as far as the gate holds, then each number
for itself, the one that saves most first. The same network and samples give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import msgspec

from ..errors import StepFailed
from .fixed import Fixed, integer_bits
from .stages import SAME_TYPE, WEIGHTED, Pipeline, Stage
from .types import Chosen, cost_bits, is_exact

Ranges = Mapping[str, tuple[float, float]]
Knob = tuple[str, Literal["result", "weight"]]
"""A stage, and which of its types."""

UNIFORM = (16, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3)
WIDER = (18, 20, 22, 24)
BIAS_BITS = 3  # a bias has so many more fraction bits than the result that it is part of
LEAST_WIDTH = 2


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one trial gave."""

    score: float
    """The metric."""
    drop: float
    """Against the source model; what the gate is held with."""
    holds: bool


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One trial, for a plot of accuracy against bits."""

    bits: int
    """Of all weights, biases and results of one inference."""
    score: float
    drop: float
    holds: bool
    changed: str
    """What was tried: `all 8 bits`, or the stage and which type."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a search."""

    types: dict[str, Chosen]
    verdict: Verdict
    curve: tuple[Point, ...]
    finished: bool
    """Whether nothing is left to try; else the trials were used up."""


Judge = Callable[[Mapping[str, Chosen]], Verdict]


def search(pipeline: Pipeline, ranges: Ranges, judge: Judge, trials: int) -> Found:
    """The narrowest types that hold, within a number of trials.

    Raises StepFailed where no uniform width does.
    """
    return _Search(pipeline, ranges, judge, trials).run()


class _Search:
    def __init__(self, pipeline: Pipeline, ranges: Ranges, judge: Judge, trials: int) -> None:
        self.pipeline = pipeline
        self.judge = judge
        self.left = trials
        self.curve: list[Point] = []
        self.layout = Layout(pipeline, ranges)

    def run(self) -> Found:
        best, verdict = self._uniform()
        finished = True
        for knob in sorted(best, key=lambda k: (-self.layout.saving(k), k)):
            while self.layout.may_shrink(best, knob):
                if not self.left:
                    finished = False
                    break
                tried = {**best, knob: best[knob] - 1}
                found = self._try(tried, f"{knob[0]}.{knob[1]}")
                if not found.holds:
                    break
                best, verdict = tried, found
        return Found(
            types=self.layout.types(best),
            verdict=verdict,
            curve=tuple(self.curve),
            finished=finished,
        )

    def _uniform(self) -> tuple[dict[Knob, int], Verdict]:
        """The narrowest width for all that holds: from 16 bits down, or up where 16 do not."""
        held: tuple[dict[Knob, int], Verdict] | None = None
        for width in self._widths():
            tried = self.layout.uniform(width)
            if not is_exact(self.pipeline, self.layout.types(tried)):
                continue
            verdict = self._try(tried, f"all {width} bits")
            if verdict.holds:
                held = tried, verdict
                if width > UNIFORM[0]:
                    return held
            elif held is not None:
                return held
        if held is None:
            best = min(self.curve, key=lambda point: point.drop)
            raise StepFailed(
                f"no fixed-point width up to {WIDER[-1]} bits holds the gate: the best loses "
                f"{best.drop:.4g}, with {best.changed}",
                hint="raise the gate, or give a calibration set that is like the evaluation set",
            )
        return held

    def _widths(self) -> Iterator[int]:
        yield UNIFORM[0]
        yield from UNIFORM[1:] if self.curve[0].holds else WIDER

    def _try(self, state: Mapping[Knob, int], changed: str) -> Verdict:
        types = self.layout.types(state)
        verdict = self.judge(types)
        self.left = max(0, self.left - 1)
        point = Point(
            bits=cost_bits(self.pipeline, types),
            score=verdict.score,
            drop=verdict.drop,
            holds=verdict.holds,
            changed=changed,
        )
        self.curve.append(point)
        what = "holds" if verdict.holds else "does not hold"
        print(f"{changed}: {point.bits} bits, drop {point.drop:.4g}, {what}", flush=True)
        return verdict


class Layout:
    """Which types there are to choose, and how many integer bits each has."""

    def __init__(self, pipeline: Pipeline, ranges: Ranges) -> None:
        self.pipeline = pipeline
        self.stages = pipeline.named()
        self.ranges = ranges
        self.relu = _behind(pipeline)
        """A stage -> the ReLU that alone reads it: both have the same fraction bits."""

    def uniform(self, width: int) -> dict[Knob, int]:
        """Fraction bits with which every type has that width."""
        return {knob: width - self._reach(knob) for knob in self._knobs()}

    def may_shrink(self, state: Mapping[Knob, int], knob: Knob) -> bool:
        """Whether one bit less leaves a type."""
        return self._reach(knob) + state[knob] > LEAST_WIDTH

    def saving(self, knob: Knob) -> int:
        """Bits of an inference that one fraction bit less saves."""
        stage = self.stages[knob[0]]
        if knob[1] == "weight":
            return int(stage.constants()[0].size)
        return stage.size * (2 if stage.name in self.relu else 1)

    def types(self, state: Mapping[Knob, int]) -> dict[str, Chosen]:
        """The types of all stages."""
        made: dict[str, Chosen] = {}
        followers = {relu: stage for stage, relu in self.relu.items()}
        for stage in self.pipeline.stages:
            if stage.kind in SAME_TYPE:
                continue
            fraction = state[(followers.get(stage.name, stage.name), "result")]
            made[stage.name] = self._chosen(stage, fraction, state)
        return made

    def _chosen(self, stage: Stage, fraction: int, state: Mapping[Knob, int]) -> Chosen:
        reach = self._reach((stage.name, "result"))
        signed = self._signed(stage.name)
        result = Fixed(
            width=max(reach + fraction, 1),
            integer=reach,
            signed=signed,
            rounding="RND",
            overflow="SAT",
        )
        if stage.kind not in WEIGHTED:
            return Chosen(result=result)
        _, bias = stage.constants()
        reach_bias = integer_bits(float(bias.min()), float(bias.max()))
        return Chosen(
            result=result,
            weight=_constant(self._reach((stage.name, "weight")), state[(stage.name, "weight")]),
            bias=_constant(reach_bias, fraction + BIAS_BITS),
        )

    def _knobs(self) -> Iterator[Knob]:
        followers = set(self.relu.values())
        for stage in self.pipeline.stages:
            if stage.kind not in SAME_TYPE and stage.name not in followers:
                yield stage.name, "result"
            if stage.kind in WEIGHTED:
                yield stage.name, "weight"

    def _signed(self, name: str) -> bool:
        # What goes into a ReLU keeps its sign, though nothing below zero counts.
        return name in self.relu or self.ranges[name][0] < 0

    def _reach(self, knob: Knob) -> int:
        """Integer bits, the sign's among them."""
        name, which = knob
        if which == "weight":
            weight, _ = self.stages[name].constants()
            return integer_bits(float(weight.min()), float(weight.max()))
        low, high = self.ranges[self.relu.get(name, name)]
        return integer_bits(low, high, signed=self._signed(name))


def _constant(reach: int, fraction: int) -> Fixed:
    return Fixed(width=max(reach + fraction, LEAST_WIDTH), integer=reach)


def _behind(pipeline: Pipeline) -> dict[str, str]:
    outputs = {output.stage for output in pipeline.outputs}
    users: dict[str, list[Stage]] = {stage.name: [] for stage in pipeline.stages}
    for stage in pipeline.stages:
        for name in stage.inputs:
            users[name].append(stage)
    return {
        name: found[0].name
        for name, found in users.items()
        if len(found) == 1 and found[0].kind == "relu" and name not in outputs
    }
