"""The choice: the best variant for a service objective, or the Pareto set, and why not the others.

A candidate is a variant on a kind of node that can run it, with a figure for all that is asked.
Those that hold every objective are ranked by the goals in their order; among equals by accuracy,
then size, then name, so that the same catalogue and fleet always give the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..errors import Fault, FilesError
from .catalogue import Catalogue, CatalogueAccuracy, CatalogueVariant, Subject
from .fleet import Fleet, Given, Node
from .match import (
    Conditions,
    Figure,
    find_figure,
    machine_key,
    misfit,
    undeployable,
)
from .objective import QUANTITIES, Goal, Objective

TIES = (Goal(quantity="accuracy"), Goal(quantity="size"))
"""What decides between candidates that the goals leave equal; then it is the name."""


class Place(Struct, frozen=True, kw_only=True):
    """A kind of node, or where no fleet is given a machine that something was measured on."""

    name: str
    node: Node
    count: int | None = None  # None: no fleet says it
    measured: bool = False  # it is such a machine: what a variant needs is not looked at


class Asked(Struct, frozen=True, kw_only=True):
    """What is wanted."""

    objectives: tuple[Objective, ...] = ()
    goals: tuple[Goal, ...] = (Goal(quantity="p50"),)
    pareto: bool = False
    conditions: Conditions = Conditions()

    @property
    def quantities(self) -> tuple[str, ...]:
        """All that must be known of a candidate, each once."""
        names = [*(o.quantity for o in self.objectives), *(g.quantity for g in self.goals)]
        return tuple(dict.fromkeys(names))


class Candidate(Struct, frozen=True, kw_only=True):
    """A variant on a node that can run it, with all the figures that are asked."""

    variant: CatalogueVariant
    place: Place | None  # None: where no figure hangs on a node
    figures: dict[str, Figure]

    def losses(self, goals: Iterable[Goal]) -> tuple[float, ...]:
        """Of each goal a number of which less is better."""
        return tuple(goal.loss(self.figures[goal.quantity].value) for goal in goals)

    def misses(self, objectives: Iterable[Objective]) -> tuple[Objective, ...]:
        """The objectives that it does not hold."""
        return tuple(o for o in objectives if not o.holds(self.figures[o.quantity].value))

    def missed_by(self, objectives: Iterable[Objective]) -> tuple[float, ...]:
        """By which shares it misses objectives, the worst first."""
        shares = (o.missed_by(self.figures[o.quantity].value) for o in objectives)
        return tuple(sorted(shares, reverse=True))


class Survey(Struct, frozen=True, kw_only=True):
    """Every variant of a recipe, judged on every node."""

    variants: tuple[CatalogueVariant, ...]
    places: tuple[Place, ...]
    holding: tuple[Candidate, ...]  # best first
    missing: tuple[Candidate, ...]  # an objective each at least; nearest first
    misfits: Mapping[str, Mapping[str, str]]  # variant -> place -> why it cannot run there
    unknown: Mapping[str, Mapping[str, str]]  # variant -> place -> which figure is not there

    def best(self) -> tuple[Candidate, ...]:
        """The best candidate, if one holds the objectives."""
        return self.holding[:1]


def survey(variants: Sequence[CatalogueVariant], places: Sequence[Place], asked: Asked) -> Survey:
    """Judge each variant on each place. Variants that cannot be deployed are in no list."""
    candidates: list[Candidate] = []
    misfits: dict[str, dict[str, str]] = {}
    unknown: dict[str, dict[str, str]] = {}
    spots: Sequence[Place | None] = list(places) if hangs_on_nodes(asked, places) else [None]
    for variant in variants:
        if undeployable(variant):
            continue
        for place in spots:
            name = place.name if place else ""
            why = _misfit(variant, place)
            if why:
                misfits.setdefault(variant.id, {})[name] = why
                continue
            found = _figures(variant, place, asked)
            if isinstance(found, Candidate):
                candidates.append(found)
            else:
                unknown.setdefault(variant.id, {})[name] = found
    holding = [one for one in candidates if not one.misses(asked.objectives)]
    missing = [one for one in candidates if one.misses(asked.objectives)]
    order = {place.name: index for index, place in enumerate(places)}
    return Survey(
        variants=tuple(variants),
        places=tuple(places),
        holding=tuple(sorted(holding, key=lambda one: _rank(one, asked, order))),
        missing=tuple(sorted(missing, key=lambda one: _nearness(one, asked, order))),
        misfits=misfits,
        unknown=unknown,
    )


def pareto(candidates: Iterable[Candidate], goals: Sequence[Goal]) -> tuple[Candidate, ...]:
    """Those that no other one dominates: is as good in every goal, and better in one.

    In the order of the first goal. One that is dominated at all is dominated by one of those
    before it in that order that are in the set, so each is compared with these alone.
    """
    front: list[tuple[tuple[float, ...], Candidate]] = []
    for losses, one in sorted(
        ((one.losses(goals), one) for one in candidates), key=lambda pair: pair[0]
    ):
        if not any(dominates(other, losses) for other, _ in front):
            front.append((losses, one))
    return tuple(one for _, one in front)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether losses are nowhere larger than others, and somewhere smaller.

    >>> dominates((1, 2), (1, 3)), dominates((1, 2), (1, 2)), dominates((0, 9), (1, 3))
    (True, False, False)
    """
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def hangs_on_nodes(asked: Asked, places: Sequence[Place]) -> bool:
    """Whether it matters which node a variant is on: a fleet is given, or a figure is of one."""
    if any(not place.measured for place in places):
        return True
    return any(QUANTITIES[name].kind != "variant" for name in asked.quantities)


def places_of(fleet: Fleet, assumed: Sequence[tuple[str, Given]] = ()) -> tuple[Place, ...]:
    """The kinds of nodes of a fleet, with what a user assumes: of one of them, or "" for all."""
    return tuple(
        Place(name=name, node=_assume(node, name, assumed), count=node.count)
        for name, node in fleet.nodes.items()
    )


def measured_places(
    variants: Iterable[CatalogueVariant], assumed: Sequence[tuple[str, Given]] = ()
) -> tuple[Place, ...]:
    """Where no fleet is given: each machine that a variant was measured on; for what is assumed
    of a variant of another platform, any machine of that."""
    found: dict[str, Node] = {}
    for variant in variants:
        for machine in (m.machine for m in variant.measurements if m.machine and not m.emulates):
            platform, cpu, cores, gpu = machine_key(machine)
            name = f"{cpu}, {cores} cores{f', {gpu}' if gpu else ''}"
            found[name] = Node(platform=platform, cpu=cpu, cores=cores, gpu=gpu or None)
    measured_on = {node.platform for node in found.values()}
    for variant in variants:
        given = any(one.variant == variant.id for _, one in assumed)
        if given and variant.platform not in measured_on:
            found[f"any {variant.platform}"] = Node(platform=variant.platform)
    return tuple(
        Place(name=name, node=_assume(found[name], "", assumed), measured=True)
        for name in sorted(found)
    )


def with_subject(
    variants: Sequence[CatalogueVariant], places: Sequence[Place], asked: Asked
) -> Asked:
    """What is asked, of the subject of which more variants have all the figures; of the server
    where both have as many, since it is what a service is."""

    def judged(subject: Subject) -> tuple[int, Asked]:
        conditions = replace(asked.conditions, subject=subject)
        one = replace(asked, conditions=conditions)
        found = survey(variants, places, one)
        return len({each.variant.id for each in (*found.holding, *found.missing)}), one

    server, engine = judged("server"), judged("engine")
    return server[1] if server[0] >= engine[0] else engine[1]


def check_asked(recipe: str, catalogue: Catalogue, asked: Asked) -> None:
    """Raise FilesError for a recipe that is not there, and what cannot be asked of its metric."""
    variants = catalogue.of(recipe)
    if not variants:
        from ..spec.words import nearest

        known = list(dict.fromkeys(one.recipe for one in catalogue.variants))
        hint = nearest(recipe, known) if known else "build one first: tf2aif build"
        if (own := recipe.partition("/")[0]) in known:
            hint = f"name the recipe alone: {own}"
        raise FilesError([Fault(f"no recipe '{recipe}' is in the catalogue", hint=hint)])
    known_by = [one.accuracy for one in variants if one.accuracy is not None]
    metric = next((one.metric for one in known_by if _less_is_better(one)), None)
    if metric and "accuracy" in asked.quantities:
        message = f"{recipe} is measured by {metric}, of which less is better"
        raise FilesError([Fault(message, hint="ask for what was lost: 'drop<=LIMIT'")])


def _less_is_better(accuracy: CatalogueAccuracy) -> bool:
    """A user's metric tells by its drop, which is positive where the variant is worse."""
    grew = accuracy.value > accuracy.source
    return accuracy.metric == "mse" or (accuracy.drop != 0 and (accuracy.drop > 0) == grew)


def _assume(node: Node, name: str, assumed: Sequence[tuple[str, Given]]) -> Node:
    own = tuple(given for where, given in assumed if where in ("", name))
    return replace(node, figures=(*own, *node.figures)) if own else node


def _misfit(variant: CatalogueVariant, place: Place | None) -> str:
    if place is None:
        return ""
    if not place.measured:
        return misfit(variant, place.node)
    other = variant.platform != place.node.platform
    return f"is {place.node.platform}, not {variant.platform}" if other else ""


def _figures(variant: CatalogueVariant, place: Place | None, asked: Asked) -> Candidate | str:
    found: dict[str, Figure] = {}
    node = place.node if place else None
    for name in asked.quantities:
        figure = find_figure(name, variant, node, asked.conditions)
        if isinstance(figure, str):
            return figure
        found[name] = figure
    for goal in TIES:
        figure = find_figure(goal.quantity, variant, node, asked.conditions)
        if not isinstance(figure, str):
            found.setdefault(goal.quantity, figure)
    return Candidate(variant=variant, place=place, figures=found)


def _rank(one: Candidate, asked: Asked, order: Mapping[str, int]) -> tuple[object, ...]:
    ties = tuple(
        goal.loss(one.figures[goal.quantity].value) if goal.quantity in one.figures else 0.0
        for goal in TIES
    )
    return (one.losses(asked.goals), ties, one.variant.id, _position(one, order))


def _nearness(one: Candidate, asked: Asked, order: Mapping[str, int]) -> tuple[object, ...]:
    return (one.missed_by(asked.objectives), one.variant.id, _position(one, order))


def _position(one: Candidate, order: Mapping[str, int]) -> int:
    return order[one.place.name] if one.place else 0
