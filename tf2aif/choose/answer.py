"""What `tf2aif select` answers: what is chosen with its figures, and why each other one is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from .catalogue import CatalogueImage, CatalogueVariant
from .match import (
    Conditions,
    Figure,
    find_figure,
    given_measurements,
    undeployable,
    value_in,
)
from .objective import QUANTITIES, Goal, Objective, Quantity
from .select import TIES, Asked, Candidate, Survey, dominates, pareto


class Chosen(Struct, frozen=True, kw_only=True):
    """One that is chosen."""

    variant: Annotated[str, Meta(description="recipe/variant")]
    image: Annotated[CatalogueImage | None, Meta(description="null: none was made")]
    nodes: Annotated[
        tuple[str, ...], Meta(description="kinds of nodes where these figures hold; none: any")
    ]
    figures: Annotated[
        dict[str, Figure], Meta(description="quantity -> its value, and what it rests on")
    ]


class Other(Struct, frozen=True, kw_only=True):
    """One that is not chosen."""

    variant: Annotated[str, Meta(description="recipe/variant")]
    why: Annotated[str, Meta(description="for people")]


class Miss(Struct, frozen=True, kw_only=True):
    """An objective that is missed."""

    quantity: Annotated[str, Meta(description="what is limited")]
    value: Annotated[float, Meta(description="what it is")]
    limit: Annotated[float, Meta(description="what it must be at worst")]
    share: Annotated[
        float | None, Meta(description="how far off, as a share of the limit; null: it is 0")
    ]
    doubt: Annotated[
        str, Meta(description="what is to be known of the value, such as that it is unstable")
    ] = ""


class Closest(Struct, frozen=True, kw_only=True):
    """Where nothing holds the objectives: what misses them least, by its worst miss."""

    variant: Annotated[str, Meta(description="recipe/variant")]
    node: Annotated[str | None, Meta(description="kind of node; null: any")]
    misses: Annotated[tuple[Miss, ...], Meta(description="in the order of the objectives")]


class Answer(Struct, frozen=True, kw_only=True):
    """The whole answer."""

    recipe: Annotated[str, Meta(description="whose variants")]
    objectives: Annotated[tuple[Objective, ...], Meta(description="that must hold")]
    goals: Annotated[tuple[Goal, ...], Meta(description="in the order of their weight")]
    conditions: Annotated[Conditions, Meta(description="which measurements are compared")]
    pareto: Annotated[bool, Meta(description="the Pareto set was asked for")]
    nodes: Annotated[
        str | None, Meta(description="the fleet's file; null: the machines that were measured on")
    ]
    chosen: Annotated[
        tuple[Chosen, ...], Meta(description="the best one, or the Pareto set; none: none holds")
    ]
    others: Annotated[tuple[Other, ...], Meta(description="each other variant, by name")]
    closest: Annotated[Closest | None, Meta(description="where none holds")] = None
    notes: Annotated[tuple[str, ...], Meta(description="what else is to be known")] = ()


def answer(recipe: str, found: Survey, asked: Asked, nodes: str | None = None) -> Answer:
    """The answer to what was asked, from a survey of the recipe's variants."""
    front = pareto(found.holding, asked.goals) if asked.pareto else found.best()
    chosen = tuple(_chosen(front, found, asked))
    names = {one.variant for one in chosen}
    return Answer(
        recipe=recipe,
        objectives=asked.objectives,
        goals=asked.goals,
        conditions=asked.conditions,
        pareto=asked.pareto,
        nodes=nodes,
        chosen=chosen,
        others=tuple(
            Other(variant=one.id, why=_why(one, found, asked, front))
            for one in found.variants
            if one.id not in names
        ),
        closest=None if chosen or not found.missing else _closest(found.missing[0], asked),
        notes=tuple(dict.fromkeys(_unused(found, asked))),
    )


def why_not(variant: CatalogueVariant, found: Survey, asked: Asked) -> str:
    """Why a variant holds the objectives on no node; empty where it does on one."""
    return undeployable(variant) or _unfit(variant, found, asked)


def _chosen(front: Iterable[Candidate], found: Survey, asked: Asked) -> Iterator[Chosen]:
    """Candidates, those of one variant whose goals are alike as one with all their nodes."""
    seen = set()
    for one in front:
        key = (one.variant.id, one.losses(asked.goals))
        if key in seen:
            continue
        seen.add(key)
        alike = [o for o in found.holding if (o.variant.id, o.losses(asked.goals)) == key]
        yield Chosen(
            variant=one.variant.id,
            image=one.variant.image,
            nodes=tuple(o.place.name for o in alike if o.place),
            figures=one.figures,
        )


def _closest(one: Candidate, asked: Asked) -> Closest:
    misses = tuple(
        Miss(
            quantity=o.quantity,
            value=one.figures[o.quantity].value,
            limit=o.limit,
            share=o.missed_by(one.figures[o.quantity].value) if o.limit else None,
            doubt=told_doubt(one.figures[o.quantity]).strip(" ()"),
        )
        for o in one.misses(asked.objectives)
    )
    return Closest(
        variant=one.variant.id, node=one.place.name if one.place else None, misses=misses
    )


def _unused(found: Survey, asked: Asked) -> Iterator[str]:
    """Figures that a user gave and that were measured too."""
    for place in found.places:
        for variant in found.variants:
            for given in given_measurements(place.node.figures, variant.id):
                for name in asked.quantities:
                    figure = find_figure(name, variant, place.node, asked.conditions)
                    used = isinstance(figure, str) or figure.given
                    measured = QUANTITIES[name].kind in ("latency", "load")
                    if measured and not used and value_in(name, given) is not None:
                        yield f"the given {name} of {variant.id} is not used: it was measured"


def _why(
    variant: CatalogueVariant, found: Survey, asked: Asked, front: tuple[Candidate, ...]
) -> str:
    own = next((one for one in found.holding if one.variant.id == variant.id), None)
    if own is None:
        return why_not(variant, found, asked)
    return _dominated(own, asked, front) if asked.pareto else _behind(own, asked, front[0])


def _dominated(own: Candidate, asked: Asked, front: tuple[Candidate, ...]) -> str:
    losses = own.losses(asked.goals)
    by = next(one for one in front if dominates(one.losses(asked.goals), losses))
    pairs = zip(asked.goals, by.losses(asked.goals), losses, strict=True)
    better = [goal.quantity for goal, theirs, ours in pairs if theirs < ours]
    return f"dominated by {by.variant.id}{_on(by, own)} in {_listed(better)}"


def _behind(own: Candidate, asked: Asked, best: Candidate) -> str:
    """In what the best one is better, first of all the goals, then of what breaks a tie."""
    for goal in (*asked.goals, *TIES):
        if goal.quantity not in own.figures or goal.quantity not in best.figures:
            continue
        ours, theirs = (one.figures[goal.quantity].value for one in (own, best))
        if ours != theirs:
            mine, other = apart(goal.of, ours, theirs)
            tie = "" if goal in asked.goals else f"as good in {_names(asked.goals)}, but "
            told = mine + told_doubt(own.figures[goal.quantity]) + _on(own, best)
            return f"{tie}{goal.quantity} {told}; {best.variant.id} has {other}"
    return f"the same figures as {best.variant.id}, which is the first by name"


def _unfit(variant: CatalogueVariant, found: Survey, asked: Asked) -> str:
    if any(one.variant.id == variant.id for one in found.holding):
        return ""
    near = next((one for one in found.missing if one.variant.id == variant.id), None)
    if near is not None:
        misses = (told_miss(near, objective) for objective in near.misses(asked.objectives))
        where = f" on {near.place.name}" if near.place and len(found.places) > 1 else ""
        return ", ".join(misses) + where
    if variant.id in found.unknown:
        return "; ".join(_by_place(found.unknown[variant.id], " (on {})"))
    if variant.id in found.misfits:
        measured = all(place.measured for place in found.places)
        return _nowhere(found.misfits[variant.id], measured=measured)
    return "there is no node to judge it on: nothing was measured"


def told_miss(one: Candidate, objective: Objective) -> str:
    """Such as `p99 12.3 ms > 10 ms`."""
    figure = one.figures[objective.quantity]
    value, limit = apart(objective.of, figure.value, objective.limit)
    sign = ">" if objective.of.better == "less" else "<"
    sign += "=" if objective.strict else ""
    return f"{objective.quantity} {value}{told_doubt(figure)} {sign} {limit}"


def told_doubt(figure: Figure) -> str:
    """What is to be known of a figure beside its value, in brackets."""
    measurement = figure.measurement
    if measurement is None:
        return ""
    if measurement.origin == "given":
        return " (given, not measured)"
    doubts = ["unstable"] if measurement.stable is False else []
    doubts += [doubt for doubt in measurement.doubts if doubt != "unstable"]
    return f" ({'; '.join(doubts)})" if doubts else ""


def apart(quantity: Quantity, one: float, other: float) -> tuple[str, str]:
    """Two values, with as many digits as it takes to tell them apart."""
    told = quantity.show(one), quantity.show(other)
    if one == other or told[0] != told[1]:
        return told
    unit = f" {quantity.unit}".rstrip()
    return f"{one:.9g}{unit}", f"{other:.9g}{unit}"


def _nowhere(misfits: Mapping[str, str], *, measured: bool) -> str:
    """Why no node can run it: nodes of another platform are left out where one is of its own."""
    others = {name: why for name, why in misfits.items() if not why.startswith("is ")}
    if not others:
        wanted = next(iter(misfits.values())).rpartition(" ")[2]
        return f"nothing was measured on {wanted}" if measured else f"no node is {wanted}"
    if len(set(others.values())) == 1 and len(others) > 1:
        return f"every node of its platform {next(iter(others.values()))}"
    return "; ".join(f"{_listed(names)} {why}" for why, names in _grouped(others).items())


def _by_place(reasons: Mapping[str, str], form: str) -> Iterator[str]:
    grouped = _grouped(reasons)
    for why, names in grouped.items():
        yield why if len(grouped) == 1 else why + form.format(_listed(names))


def _grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found


def _on(one: Candidate, other: Candidate) -> str:
    """Where a candidate is, if that is not where the other one is."""
    if one.place is None or (other.place and other.place.name == one.place.name):
        return ""
    return f" on {one.place.name}"


def _names(goals: Iterable[Goal]) -> str:
    return _listed([goal.quantity for goal in goals])


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shown(name: str, figure: Figure) -> str:
    """A figure's value as people read it."""
    return QUANTITIES[name].show(figure.value)
