"""The answer of `tf2aif select` as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from ..table import align
from .answer import Answer, Chosen, Closest, Miss, apart, shown, told_doubt
from .match import Figure
from .objective import QUANTITIES, Better


def render(answer: Answer) -> str:
    """What is chosen with its figures and what they rest on; then why each other one is not."""
    lines = [_title(answer), *_compared(answer), ""]
    if not answer.chosen:
        lines += _none(answer)
    elif len(answer.chosen) == 1:
        lines += _one(answer.chosen[0])
    else:
        lines += _several(answer)
    if answer.others:
        width = max(len(one.variant) for one in answer.others)
        lines += ["", "not chosen:"]
        for one in answer.others:
            lines += _wrapped(f"  {one.variant:<{width}}  ", one.why)
    lines += ["", *answer.notes] if answer.notes else []
    return "\n".join(lines)


def _title(answer: Answer) -> str:
    wanted = ", ".join(str(objective) for objective in answer.objectives)
    goals = [str(goal) for goal in answer.goals]
    names = {*(one.variant for one in answer.chosen), *(one.variant for one in answer.others)}
    count = len(names)
    if not answer.chosen:
        what = f"holds {wanted}" if wanted else f"can be judged by {' and '.join(goals)}"
        return f"{answer.recipe}: none of {count} variants {what}"
    held = f" with {wanted}" if wanted else ""
    if answer.pareto:
        by = " and ".join(goals)
        return f"{answer.recipe}: the Pareto set of {count} variants{held}, by {by}"
    return f"{answer.recipe}: the best of {count} variants{held}, by {', then '.join(goals)}"


def _compared(answer: Answer) -> Iterator[str]:
    """Whose figures were looked at, where some had to be measured."""
    asked = (*(o.of for o in answer.objectives), *(g.of for g in answer.goals))
    if any(quantity.kind in ("latency", "load") for quantity in asked):
        subject = "the engine alone" if answer.conditions.subject == "engine" else "the server"
        yield f"measured: {subject}, {answer.conditions.scenario}"


def _one(chosen: Chosen) -> Iterator[str]:
    yield f"  {chosen.variant}{_on(chosen.nodes)}"
    rows = [
        (f"    {name}", shown(name, figure), _basis(figure))
        for name, figure in chosen.figures.items()
    ]
    names, values = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, value, basis in rows:
        yield from _wrapped(f"{name:<{names}}  {value:>{values}}  ", basis)
    if chosen.image:
        yield f"    image {chosen.image.name}@{chosen.image.digest}"


def _several(answer: Answer) -> Iterator[str]:
    names = list(dict.fromkeys(name for one in answer.chosen for name in one.figures))
    header = ("variant", "on", *names)
    rows = [
        (one.variant, _listed(one.nodes), *(_cell(name, one.figures) for name in names))
        for one in answer.chosen
    ]
    yield from textwrap.indent(align(header, rows, names), "  ").splitlines()
    bases = {name: _bases(name, answer.chosen) for name in names}
    for name, basis in bases.items():
        for one in basis:
            yield from _wrapped(f"  {name}: ", one)


def _cell(name: str, figures: dict[str, Figure]) -> str:
    figure = figures.get(name)
    return "" if figure is None else shown(name, figure) + told_doubt(figure)


def _bases(name: str, chosen: Iterable[Chosen]) -> list[str]:
    found = (_basis(one.figures[name]) for one in chosen if name in one.figures)
    return [one for one in dict.fromkeys(found) if one]


def _none(answer: Answer) -> Iterator[str]:
    if answer.closest is None:
        yield "  no variant has all the figures that this asks for, on a node that can run it"
        yield "  'tf2aif bench' measures them there; --assume gives what you know already"
        return
    yield from _near(answer.closest)


def _near(closest: Closest) -> Iterator[str]:
    where = f" on {closest.node}" if closest.node else ""
    yield f"  the closest is {closest.variant}{where}:"
    for miss in closest.misses:
        quantity = QUANTITIES[miss.quantity]
        value, limit = apart(quantity, miss.value, miss.limit)
        doubt = f" ({miss.doubt})" if miss.doubt else ""
        far = f"{_far(miss, quantity.better)} the limit of {limit}"
        yield from _wrapped(f"    {miss.quantity} {value}: ", far + doubt)


def _far(miss: Miss, better: Better) -> str:
    """How far a miss is from its limit: `12.5% over`, `40 times`."""
    if miss.share is None:
        return "over" if better == "less" else "under"
    if miss.share >= 1 and better == "less":
        return f"{miss.value / miss.limit:.3g} times"
    return f"{miss.share:.1%} {'over' if better == 'less' else 'under'}"


def _basis(figure: Figure) -> str:
    """What a figure rests on, in words."""
    one = figure.measurement
    if one is None:
        return figure.note
    if one.origin == "given":
        return f"given, not measured{f': {one.source}' if one.source else ''}"
    subject = "engine alone" if one.subject == "engine" else "server"
    parts = [f"{subject}, {one.scenario}"]
    parts += [f"batch {one.batch}"] if one.batch else []
    parts += [f"{one.threads} threads"] if one.threads else []
    where = f"; on {one.machine.cpu}, {one.machine.cores} cores" if one.machine else ""
    when = f", {one.measured_at[:10]}" if one.measured_at else ", by the build"
    source = f", imported from {one.source}" if one.origin == "imported" else ""
    return f"{', '.join(parts)}{where}{when}{source}{told_doubt(figure)}"


def _on(nodes: tuple[str, ...]) -> str:
    return f" on {_listed(nodes)}" if nodes else ""


def _listed(nodes: tuple[str, ...]) -> str:
    return (
        ", ".join(nodes) if len(nodes) < 4 else f"{', '.join(nodes[:3])} and {len(nodes) - 3} more"
    )


def _wrapped(start: str, text: str) -> list[str]:
    """A line whose text goes on below itself."""
    if not text:
        return [start.rstrip()]
    return textwrap.wrap(text, 100, initial_indent=start, subsequent_indent=" " * len(start))
