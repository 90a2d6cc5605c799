"""Which layers' quantisation costs most, and the smallest set of them that is left out.

The layers are ranked by what each one costs when it alone is quantised. Ever more of the costliest
are left out, until the rest holds the gate; then those that need not be left out go back, the
cheapest first. A bisection would take fewer trials, but a metric on some hundred samples does not
fall evenly: it would often end at far more layers than need be.

Source: the sensitivity analysis of Wu et al., "Integer Quantization for Deep Learning Inference",
2020, section 6.1; ours is bounded, and its result is verified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Kept = frozenset[str]


class Cost(NamedTuple):
    """What a layer, or a group of neighbours, costs when it alone is quantised."""

    layers: tuple[str, ...]
    drop: float  # of the metric, on the samples of the search
    error: float  # Euclidean norm of the outputs' difference over that of the outputs

    @property
    def sqnr_db(self) -> float:
        """Ratio of signal to quantisation noise in the outputs, in decibels."""
        return -20 * math.log10(self.error) if self.error else math.inf


class Found(NamedTuple):
    """The result of a search."""

    kept: Kept  # layers that are not quantised
    costs: tuple[Cost, ...]  # costliest first
    trials: int
    finished: bool  # False: the trials ran out before the set was the smallest


class _OutOfTrials(Exception):
    """The search ends with what it has."""


class Search:
    """A search over `layers`, in the order of the graph.

    `judge` gives the drop of the metric with these layers kept out of int8, and `probe` the drop
    and the error with these alone in int8. A drop up to `limit` is held; a drop of a single layer
    up to `grain` is chance, on so few samples.
    """

    def __init__(
        self,
        layers: Sequence[str],
        judge: Callable[[Kept], float],
        probe: Callable[[Kept], tuple[float, float]],
        *,
        limit: float,
        grain: float,
        trials: int,
    ) -> None:
        self._layers = tuple(layers)
        self._judge, self._probe = judge, probe
        self._limit, self._grain, self._trials = limit, grain, trials
        self._known: dict[Kept, bool] = {}
        self._made = 0
        self.costs: tuple[Cost, ...] = ()

    def run(self) -> Found:
        """The fewest layers that have to be kept. That all of them are enough is known before."""
        self.costs = self._rank()
        everything = frozenset(self._layers)
        self._known[everything] = True
        kept, finished = everything, True
        try:
            kept = self._fewest()
            for cost in reversed(self.costs):
                smaller = kept - set(cost.layers)
                if smaller != kept and self._holds(smaller):
                    kept = smaller
        except _OutOfTrials:
            kept, finished = min((k for k, held in self._known.items() if held), key=len), False
        return Found(kept, self.costs, self._made, finished)

    def widen(self, kept: Kept) -> Kept:
        """The same set with the next costliest layers, for where a verification failed."""
        rest = [cost.layers for cost in self.costs if not kept.issuperset(cost.layers)]
        if not rest:
            return frozenset(self._layers)
        more = max(1, len(self.costs) // 16)
        return kept.union(*rest[:more])

    def _rank(self) -> tuple[Cost, ...]:
        room = max(self._trials // 2, self._trials - len(self._layers))
        costs = []
        for group in groups(self._layers, room):
            self._spend()
            drop, error = self._probe(frozenset(group))
            costs.append(Cost(group, drop, error))
            named = group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}"
            print(f"{named} alone in int8: drop {drop:.4f}, {costs[-1].sqnr_db:.1f} dB", flush=True)
        return tuple(sorted(costs, key=self._order, reverse=True))

    def _order(self, cost: Cost) -> tuple[float, float]:
        """The metric decides where it says more than chance does, else the outputs' error."""
        return (cost.drop if cost.drop > self._grain else 0.0, cost.error)

    def _fewest(self) -> Kept:
        """The fewest of the costliest that hold the limit when they are kept."""
        count = 0
        while count < len(self.costs):
            if self._holds(self._costliest(count)):
                break
            count = min(len(self.costs), count + max(1, count // 4))
        return self._costliest(count)

    def _costliest(self, count: int) -> Kept:
        return frozenset(name for cost in self.costs[:count] for name in cost.layers)

    def _holds(self, kept: Kept) -> bool:
        if kept not in self._known:
            self._spend()
            drop = self._judge(kept)
            self._known[kept] = drop <= self._limit
            told = "holds" if self._known[kept] else "does not hold"
            quantised = len(self._layers) - len(kept)
            print(
                f"trial {self._made}: {quantised} of {len(self._layers)} layers in int8, "
                f"drop {drop:.4f}: {told}",
                flush=True,
            )
        return self._known[kept]

    def _spend(self) -> None:
        if self._made >= self._trials:
            raise _OutOfTrials
        self._made += 1


def groups(layers: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """At most `count` groups of neighbours, of equal size but for one.

    >>> groups("abcde", 3)
    [('a', 'b'), ('c', 'd'), ('e',)]
    """
    size = max(1, math.ceil(len(layers) / count))
    return [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]
