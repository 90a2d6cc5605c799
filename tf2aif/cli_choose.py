"""The words of the command line about choosing: `catalogue`, `select`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show
from .errors import Fault, FilesError, Tf2aifError

if TYPE_CHECKING:
    from .choose.catalogue import Catalogue, CatalogueVariant
    from .choose.fleet import Fleet, Given
    from .choose.objective import Better, Goal, Objective
    from .choose.select import Asked, Place

SCENARIOS = ("single-stream", "multi-stream", "server", "offline")


def add_choose_commands(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `catalogue` and `select` to the command line."""
    catalogue = command(
        commands, "catalogue", None, "write build/catalogue.json: variants and their figures"
    )
    catalogue.set_defaults(command=lambda arguments: _catalogue(arguments, show_json))
    select = command(
        commands, "select", None, "the best variant for an objective, and why not the others"
    )
    select.set_defaults(command=lambda arguments: _select(arguments, show_json))
    select.add_argument("recipe", metavar="RECIPE", help="its name in the catalogue")
    select.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar="LIMIT",
        help="in quotes: 'p99<=10ms', 'accuracy>=0.9' (repeatable)",
    )
    _add_goals(select)
    select.add_argument(
        "--nodes", metavar="FILE", help="the fleet; without it: the machines measured on"
    )
    select.add_argument("--pareto", action="store_true", help="all that no other one dominates")
    _add_conditions(select)


def _add_goals(parser: argparse.ArgumentParser) -> None:
    """Both lead to one list, since their order is the order of their weight."""
    options: tuple[tuple[tuple[str, str], Better, str], ...] = (
        (("--minimise", "--minimize"), "less", "cost, energy, latency, size"),
        (("--maximise", "--maximize"), "more", "throughput, accuracy"),
    )
    for words, better, example in options:
        parser.add_argument(
            *words,
            action="append",
            type=partial(_goal, better),
            dest="goals",
            metavar="QUANTITY",
            help=f"{example} (repeatable: then the next one decides among equals)",
        )


def _goal(better: Better, name: str) -> tuple[Better, str]:
    return better, name


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure",
        choices=("server", "engine"),
        help="whose figures; by default of which more variants have them",
    )
    parser.add_argument(
        "--scenario", choices=SCENARIOS, default="single-stream", help="of latency and energy"
    )
    parser.add_argument("--stable", action="store_true", help="only figures known to be stable")
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="FIGURES",
        help="what was not measured: VARIANT[@NODE]:p99=12ms,throughput=80/s (repeatable)",
    )
    parser.add_argument(
        "--catalogue", metavar="FILE", help="by default build/catalogue.json", type=Path
    )


def _catalogue(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .choose.catalogue import FILE
    from .choose.collect import refresh
    from .record import variant_folders

    build = Path("build")
    folders = variant_folders(build)
    if not folders:
        raise FilesError([Fault("no variant is built here", str(build), "tf2aif build")])
    catalogue = refresh(build)
    if arguments.json:
        show_json(msgspec.to_builtins(catalogue))
        return 0
    measured = sum(bool(one.measurements) for one in catalogue.variants)
    unread = len(folders) - len(catalogue.variants)
    print(f"wrote {build / FILE}: {len(catalogue.variants)} variants, {measured} measured")
    if unread:
        print(f"left out: {unread} of another version of tf2aif; 'tf2aif build' writes them again")
    return 0


def _select(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .choose.answer import answer
    from .choose.select import check_asked, survey
    from .choose.show import render

    catalogue = _read(arguments.catalogue)
    recipe = Path(arguments.recipe).stem if _is_file(arguments.recipe) else arguments.recipe
    objectives, goals = _wanted(arguments)
    asked = _asked(arguments, objectives, goals)
    check_asked(recipe, catalogue, asked)
    variants = catalogue.of(recipe)
    places = _places(arguments, variants)
    asked = _with_subject(arguments, asked, variants, places)
    _check_costs(arguments, asked, places)
    found = answer(recipe, survey(variants, places, asked), asked, arguments.nodes)
    if arguments.json:
        show_json(msgspec.to_builtins(found))
    else:
        print(render(found))
    return 0 if found.chosen else Tf2aifError.exit_code


def _read(path: Path | None) -> Catalogue:
    from .choose.catalogue import FILE, read_catalogue

    return read_catalogue(path or Path("build") / FILE)


def _is_file(recipe: str) -> bool:
    return recipe.endswith((".yaml", ".yml"))


def _wanted(
    arguments: argparse.Namespace,
) -> tuple[tuple[Objective, ...], tuple[Goal, ...]]:
    """The objectives and goals; by default the least latency, and for a Pareto set the most
    accuracy with it. Raises FilesError with all that is wrong with them."""
    from .choose.objective import LATENCY, parse_goal, parse_objective, resolve_goal

    faults: list[Fault] = []
    objectives, names = [], []
    for text in arguments.objective:
        try:
            objectives.append(parse_objective(text, "--objective"))
        except FilesError as error:
            faults += error.faults
    for better, name in arguments.goals or ():
        try:
            names.append(parse_goal(name, better, _goal_option(better)))
        except FilesError as error:
            faults += error.faults
    if faults:
        raise FilesError(faults)
    names = names or [LATENCY, *(["accuracy"] if arguments.pareto else [])]
    goals = dict.fromkeys(resolve_goal(name, tuple(objectives)) for name in names)
    return tuple(objectives), tuple(goals)


def _goal_option(better: str) -> str:
    return "--minimise" if better == "less" else "--maximise"


def _asked(
    arguments: argparse.Namespace, objectives: tuple[Objective, ...], goals: tuple[Goal, ...]
) -> Asked:
    from .choose.match import Conditions
    from .choose.select import Asked

    kinds = {*(one.of.kind for one in objectives), *(one.of.kind for one in goals)}
    if arguments.scenario == "offline" and "latency" in kinds:
        hint = "leave --scenario out: throughput is of the scenario offline by itself"
        raise FilesError([Fault("the scenario offline has no latency", "--scenario", hint)])
    conditions = Conditions(
        subject=arguments.measure or "server",
        scenario=arguments.scenario,
        stable=arguments.stable,
    )
    return Asked(objectives=objectives, goals=goals, pareto=arguments.pareto, conditions=conditions)


def _places(
    arguments: argparse.Namespace, variants: Sequence[CatalogueVariant]
) -> tuple[Place, ...]:
    """Where variants can be put: the nodes of the fleet, else the machines measured on."""
    from .choose.select import measured_places, places_of

    names = [one.id for one in variants]
    if arguments.nodes is None:
        return measured_places(variants, _assumed(arguments.assume, names, ()))
    fleet = _fleet(Path(arguments.nodes), names)
    return places_of(fleet, _assumed(arguments.assume, names, tuple(fleet.nodes)))


def _fleet(path: Path, variants: Sequence[str]) -> Fleet:
    from .choose.fleet import convert_fleet, figure_faults
    from .spec.document import read

    document = read(path)
    fleet = convert_fleet(document)
    if faults := figure_faults(document, fleet, variants):
        raise FilesError(faults)
    return fleet


def _assumed(
    texts: Sequence[str], variants: Sequence[str], nodes: Sequence[str]
) -> list[tuple[str, Given]]:
    from .choose.assume import parse_assumption

    return [parse_assumption(text, variants, nodes, "--assume") for text in texts]


def _with_subject(
    arguments: argparse.Namespace,
    asked: Asked,
    variants: Sequence[CatalogueVariant],
    places: Sequence[Place],
) -> Asked:
    from .choose.select import with_subject

    return asked if arguments.measure else with_subject(variants, places, asked)


def _check_costs(arguments: argparse.Namespace, asked: Asked, places: Sequence[Place]) -> None:
    if "cost" in asked.quantities and all(one.node.cost_per_hour is None for one in places):
        at = arguments.nodes or "--nodes"
        hint = "a fleet's nodes say it: cost_per_hour, see docs/choose.md"
        raise FilesError([Fault("no node says what it costs", at, hint)])
