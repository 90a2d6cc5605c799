"""The words of the command line about fleets: `place`, `simulate`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show, above_zero
from .errors import Fault, FilesError, Tf2aifError

if TYPE_CHECKING:
    from .choose.catalogue import Catalogue
    from .choose.fleet import Fleet
    from .choose.load import Load
    from .choose.place import Aim
    from .choose.placement import By, Group, Placement, ServicePlacement, Sum
    from .choose.problem import Problem
    from .choose.select import Place
    from .choose.services import Services
    from .choose.simulation import Simulation

POLICIES: tuple[By, ...] = ("solver", "cheapest", "fastest", "energy-first")
AIMS = ("energy", "cost")
_LINES = 30  # of what runs on nodes: more is for the file


def add_place_commands(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `place` and `simulate` to the command line."""
    place = command(commands, "place", None, "variants and replicas for services over a fleet")
    place.set_defaults(command=lambda arguments: _place(arguments, show_json))
    _add_inputs(place)
    place.add_argument("--why", action="store_true", help="why each one, and why not the others")
    place.add_argument(
        "-o", "--output", metavar="FILE", help="by default build/placement.json", type=Path
    )
    simulate = command(
        commands, "simulate", None, "compare policies of placing under a load, without machines"
    )
    simulate.set_defaults(command=lambda arguments: _simulate(arguments, show_json))
    _add_inputs(simulate)
    simulate.add_argument(
        "--load", metavar="FILE", help="recorded requests, CSV or JSON lines; else at random"
    )
    simulate.add_argument("--duration", type=above_zero, metavar="S", help="of requests at random")
    simulate.add_argument("--seed", type=_seed, default=0, metavar="N", help="of all that is drawn")
    simulate.add_argument(
        "-o", "--output", metavar="FILE", help="by default build/simulation.json", type=Path
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "services", nargs="?", default="services.yaml", metavar="SERVICES", help="a YAML file"
    )
    parser.add_argument("--nodes", default="fleet.yaml", metavar="FILE", help="the fleet")
    parser.add_argument(
        *("--minimise", "--minimize"),
        action="append",
        choices=AIMS,
        dest="order",
        help="after services without room; by default energy, then cost (repeatable)",
    )
    parser.add_argument(
        "--policy", action="append", choices=POLICIES, help="by default all of them (repeatable)"
    )
    parser.add_argument(
        "--utilisation",
        type=_share,
        metavar="SHARE",
        help="plan no replica to be busy for more of the time; by default 0.8",
    )
    parser.add_argument(
        "--effort", type=above_zero, metavar="E", help="of the solver; by default 1, some seconds"
    )
    parser.add_argument(
        "--measure", choices=("server", "engine"), default="server", help="whose figures"
    )
    parser.add_argument("--stable", action="store_true", help="only figures known to be stable")
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="FIGURES",
        help="what was not measured: VARIANT[@NODE]:p50=9ms,p99=12ms (repeatable)",
    )
    parser.add_argument(
        "--catalogue", metavar="FILE", help="by default build/catalogue.json", type=Path
    )


def _share(text: str) -> float:
    value = above_zero(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not below 1: a queue would grow for ever")
    return value


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 up")
    return int(text)


def _place(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .choose.place import place
    from .choose.placement import FILE, encode_placement

    problem, _, fleet = _problem(arguments)
    found = place(
        problem,
        _policies(arguments),
        _order(arguments),
        effort=_effort(arguments),
        utilisation=_utilisation(arguments),
        currency=fleet.currency,
    )
    path = arguments.output or Path("build") / FILE
    _write(path, encode_placement(found))
    if arguments.json:
        show_json(msgspec.to_builtins(found))
    else:
        print("\n".join(_placement_lines(found, arguments.why)))
        print(f"\nwrote {path}")
    return Tf2aifError.exit_code if found.unplaced else 0


def _simulate(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .choose.place import plans
    from .choose.simulate import simulate
    from .choose.simulation import FILE, encode_simulation

    problem, services, fleet = _problem(arguments)
    load = _load(arguments, services)
    order = _order(arguments)
    found, _ = plans(problem, _policies(arguments), order, _effort(arguments))
    result = simulate(problem, found, load, arguments.seed, order, fleet.currency)
    path = arguments.output or Path("build") / FILE
    _write(path, encode_simulation(result))
    if arguments.json:
        show_json(msgspec.to_builtins(result))
    else:
        print("\n".join(_simulation_lines(result)))
        print(f"\nwrote {path}")
    return 0


def _problem(arguments: argparse.Namespace) -> tuple[Problem, Services, Fleet]:
    """All that is given, with the faults of all files at once."""
    from .choose.catalogue import FILE, read_catalogue
    from .choose.match import Conditions
    from .choose.options import make_problem

    catalogue = read_catalogue(arguments.catalogue or Path("build") / FILE)
    services, fleet = _files(arguments, catalogue)
    conditions = Conditions(subject=arguments.measure, stable=arguments.stable)
    places = _places(arguments, fleet, catalogue)
    problem = make_problem(catalogue, places, services, _utilisation(arguments), conditions)
    return problem, services, fleet


def _files(arguments: argparse.Namespace, catalogue: Catalogue) -> tuple[Services, Fleet]:
    from .choose.fleet import convert_fleet, figure_faults
    from .choose.services import check_recipes, convert_services
    from .spec.document import read

    faults = []
    services = fleet = None
    recipes = tuple(dict.fromkeys(one.recipe for one in catalogue.variants))
    try:
        document = read(_there(arguments.services, "docs/place.md"))
        services = convert_services(document)
        faults += check_recipes(document, services, recipes)
    except FilesError as error:
        faults += error.faults
    try:
        document = read(_there(arguments.nodes, "docs/choose.md"))
        fleet = convert_fleet(document)
        faults += figure_faults(document, fleet, [one.id for one in catalogue.variants])
    except FilesError as error:
        faults += error.faults
    if faults or services is None or fleet is None:
        raise FilesError(faults)
    return services, fleet


def _there(name: str, page: str) -> Path:
    """A file that a user has to write. Raises FilesError where it is not there."""
    path = Path(name)
    if not path.exists():
        raise FilesError([Fault("no such file", name, f"{page} shows how one is written")])
    return path


def _places(arguments: argparse.Namespace, fleet: Fleet, catalogue: Catalogue) -> Sequence[Place]:
    from .choose.assume import parse_assumption
    from .choose.select import places_of

    names = [one.id for one in catalogue.variants]
    given = [parse_assumption(t, names, tuple(fleet.nodes), "--assume") for t in arguments.assume]
    return places_of(fleet, given)


def _load(arguments: argparse.Namespace, services: Services) -> Load:
    from .choose.load import poisson, recorded

    if arguments.load is None:
        return poisson(services, arguments.seed, arguments.duration)
    if arguments.duration is not None:
        raise Tf2aifError("a recorded load has its own duration", hint="leave --duration out")
    return recorded(Path(arguments.load), services)


def _order(arguments: argparse.Namespace) -> tuple[Aim, ...]:
    """What was asked first; the others still decide among equals."""
    return tuple(dict.fromkeys([*(arguments.order or ()), *AIMS]))


def _policies(arguments: argparse.Namespace) -> tuple[By, ...]:
    return tuple(one for one in POLICIES if one in (arguments.policy or POLICIES))


def _utilisation(arguments: argparse.Namespace) -> float:
    from .choose.options import UTILISATION

    return float(arguments.utilisation or UTILISATION)


def _effort(arguments: argparse.Namespace) -> float:
    from .choose.solver import EFFORT

    return float(arguments.effort or EFFORT)


def _write(path: Path, content: bytes) -> None:
    from .workspace import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


# What people read.


def _placement_lines(found: Placement, why: bool) -> Iterator[str]:
    from .table import align

    placed = [one for one in found.services if one.placed]
    yield (
        f"{len(placed)} of {len(found.services)} services on {found.total.nodes} nodes, "
        f"{found.total.replicas} replicas, by {_by(found)}"
    )
    yield ""
    rows = [_group_row(one.name, group) for one in placed for group in one.groups]
    header = ("service", "variant", "nodes", "replicas", "share", "each", "can", "busy", "late")
    if rows:
        yield align(header, rows, header[3:])
    yield from _notes(found)
    for one in found.services:
        if why or not one.placed:
            yield ""
            yield one.name if one.placed else f"not placed: {one.name}: {one.reason}"
            yield from (f"  {g.variant} on {g.nodes}: {g.why}" for g in one.groups)
            yield from _refused_lines(one)
    yield ""
    yield from _policy_lines(found)
    if not why:
        yield "\nwhy each one, and why not the others: --why"


def _by(found: Placement) -> str:
    if found.by != "solver":
        return found.by
    gaps = {bound.aim: bound.gap for bound in found.bounds}
    what = found.order[0]
    gap = gaps.get(what)
    if gaps.get("unplaced"):
        return "the solver: that no more services have room is not proven"
    if gap is None or not found.total.nodes:
        return "the solver"
    return f"the solver: {what} {'is the least' if gap == 0 else f'within {gap:.1%} of the least'}"


def _group_row(service: str, group: Group) -> tuple[str, ...]:
    late = max(group.late.values(), default=None)
    return (
        *(service, group.variant, group.nodes, str(group.replicas), f"{group.share:.1%}"),
        *(f"{group.rate:.3g}/s", f"{group.capacity:.3g}/s", f"{group.utilisation:.0%}"),
        "-" if late is None else f"<= {late:.2%}",
    )


def _refused_lines(service: ServicePlacement) -> Iterator[str]:
    """Why others were not taken; those of the same reason and nodes together."""
    reasons: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for other in service.refused:
        reasons.setdefault((other.nodes, other.why), []).append(other.variant)
    for (nodes, why), variants in reasons.items():
        where = f" on {', '.join(nodes)}" if nodes else ""
        names = ", ".join(name.partition("/")[2] for name in variants)
        yield f"  not {names}{where}: {why}"


def _notes(found: Placement) -> Iterator[str]:
    """What is to be known of the figures, each once with the variants that it is about."""
    notes: dict[str, dict[str, None]] = {}
    for one in found.services:
        for group in one.groups:
            for note in group.notes:
                notes.setdefault(note, {})[f"{group.variant} on {group.nodes}"] = None
    if notes:
        yield ""
    for note, names in notes.items():
        yield f"{note}\n    {', '.join(names)}"


def _policy_lines(found: Placement) -> Iterator[str]:
    from .table import align

    header = ("policy", "not placed", "nodes", "replicas", "power", "an hour")
    rows = [_policy_row(name, total, found.currency) for name, total in found.policies.items()]
    yield align(header, rows, header[1:])


def _policy_row(name: str, total: Sum, currency: str) -> tuple[str, ...]:
    power, cost = f"{total.power_w:.4g} W", f"{total.cost_per_hour:.4g} {currency}".strip()
    if total.power_unknown:
        power += f" + of {total.power_unknown:.3g}/s unknown"
    if total.cost_unknown:
        cost += f" + of {total.cost_unknown} nodes unknown"
    counts = (len(total.unplaced), total.nodes, total.replicas)
    return (name, *(str(count) for count in counts), power, cost)


def _simulation_lines(found: Simulation) -> Iterator[str]:
    from .client.report import milliseconds
    from .table import align

    what = "at random (Poisson)" if found.source is None else f"from {found.source}"
    yield f"{found.requests} requests {what}, {found.duration_s:.4g} s, seed {found.seed}"
    yield ""
    header = (
        *("policy", "p50 ms", "p95 ms", "p99 ms", "in time", "missed", "energy", "cost"),
        *("nodes", "replicas", "cores busy"),
    )
    rows = []
    for name, one in found.policies.items():
        latency = one.latency
        times = (latency.p50_ms, latency.p95_ms, latency.p99_ms) if latency else (None,) * 3
        energy, cost = f"{one.energy.joules / 3600:.4g} Wh", f"{one.cost:.4g} {found.currency}"
        energy += " + unknown" if one.energy.unknown_requests else ""
        cost = cost.strip() + (" + unknown" if one.cost_unknown else "")
        busy = "-" if one.utilisation is None else f"{one.utilisation:.0%}"
        rows.append(
            (
                *(name, *(milliseconds(time) for time in times), f"{one.in_time:.2%}"),
                *(str(len(one.missed)), energy, cost, str(one.nodes), str(one.replicas), busy),
            )
        )
    yield align(header, rows, header[1:])
    yield ""
    for name, one in found.policies.items():
        if one.missed:
            yield f"{name} misses the objectives of {', '.join(one.missed)}"
    yield "simulated: the service times were measured or given, the queues are reckoned"
