"""Where services were placed, and what the simulator said of it: as `tf2aif place` wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from ..choose.placement import Placement, ServicePlacement, Sum
from ..choose.simulation import PolicyResult, Simulation
from .data import Report
from .figures import Cells, FigureView
from .plots import Row, bar_plot
from .series import series_plot
from .words import NOTHING, digits, milliseconds, number, seconds

MOST_REFUSED = 300  # rows; `placement.json` has all of them


class TableView(Struct, frozen=True, kw_only=True):
    """A table as the page shows it."""

    title: str
    caption: str = ""
    head: Cells
    rows: tuple[Cells, ...]
    numbers: int = 1
    """From which column on there are numbers."""
    open: bool = True


class PlaceSection(Struct, frozen=True, kw_only=True):
    """A section on placement or simulation."""

    name: str
    about: str
    tables: tuple[TableView, ...] = ()
    figures: tuple[FigureView, ...] = ()


def place_sections(report: Report) -> Iterator[PlaceSection]:
    """Those that there are."""
    if report.placement:
        yield _placement(report.placement)
    if report.simulation:
        yield _simulation(report.simulation)


# Placement.


def _placement(found: Placement) -> PlaceSection:
    total = found.total
    order = " and then ".join(("services without room", *found.order))
    about = (
        f"{len(found.services)} services on {total.nodes} nodes in {total.replicas} replicas, "
        f"planned by {_by(found.by)}, which makes {order} least; no replica is planned to be "
        f"busier than {found.utilisation:.0%}."
    )
    if total.unplaced:
        about += f" Found no room: {', '.join(total.unplaced)}."
    return PlaceSection(
        name="Placement",
        about=about,
        tables=(_services(found), _nodes(found), _refused(found)),
        figures=tuple(_policy_bars(found)),
    )


def _by(policy: str) -> str:
    return "the solver" if policy == "solver" else f"the policy {policy}"


def _services(found: Placement) -> TableView:
    return TableView(
        title="Where each service runs",
        head=("service", "recipe", "runs", "objectives", "why", "requests/s", "busiest"),
        rows=tuple(_service(service) for service in found.services),
        numbers=5,
    )


def _service(service: ServicePlacement) -> Cells:
    runs = "; ".join(
        f"{g.replicas} × {g.variant.partition('/')[2]} on {g.nodes}"
        + (" (figures given, not measured)" if g.origin == "given" else "")
        for g in service.groups
    )
    why = "; ".join(dict.fromkeys(group.why for group in service.groups))
    busiest = max((group.utilisation for group in service.groups), default=None)
    return (
        service.name,
        service.recipe,
        runs or "not placed",
        ", ".join(service.objectives) or NOTHING,
        (why if service.placed else service.reason) or NOTHING,
        digits(service.rate),
        NOTHING if busiest is None else f"{busiest:.0%}",
    )


def _nodes(found: Placement) -> TableView:
    return TableView(
        title="What nodes hold",
        head=("nodes", "each holds", "count", "cores taken"),
        rows=tuple(
            (used.nodes, _held(used.holds), str(used.count), f"{used.cores_used:.0%}")
            for used in found.nodes
        ),
        numbers=2,
    )


def _held(holds: dict[str, dict[str, int]]) -> str:
    return "; ".join(
        f"{service}: {count} × {variant}"
        for service, variants in holds.items()
        for variant, count in variants.items()
    )


def _refused(found: Placement) -> TableView:
    rows = tuple(
        (service.name, one.variant, ", ".join(one.nodes) or "any", one.why)
        for service in found.services
        for one in service.refused
    )
    more = f"The first {MOST_REFUSED} of {len(rows)}; placement.json has all of them."
    return TableView(
        title="What else there was, and why not",
        caption=more if len(rows) > MOST_REFUSED else "",
        head=("service", "variant", "nodes", "why not"),
        rows=rows[:MOST_REFUSED],
        numbers=4,
        open=False,
    )


def _policy_bars(found: Placement) -> Iterator[FigureView]:
    """Power and cost of the plan that each policy would make."""
    unit = f"{found.currency} an hour".strip()
    yield _sums("q0", "Power by policy", "watts, of what is known", found, lambda one: one.power_w)
    if any(total.cost_per_hour for total in found.policies.values()):
        yield _sums("q1", "Cost by policy", unit, found, lambda one: one.cost_per_hour)


def _sums(
    name: str, title: str, unit: str, found: Placement, value: Callable[[Sum], float]
) -> FigureView:
    rows = [
        Row(
            name=policy,
            shown=digits(value(total)),
            note=f"{len(total.unplaced)} unplaced" if total.unplaced else "",
            value=value(total),
            strong=policy == found.by,
        )
        for policy, total in found.policies.items()
    ]
    said = ", ".join(f"{row.name} {row.shown}" for row in rows)
    return FigureView(
        title=title,
        svg=bar_plot(name, rows, f"{title}, {unit}: {said}.", unit),
        caption=f"Bold: the plan above, by {_by(found.by)}. A plan that leaves services out draws "
        "less, and is worse.",
        head=("policy", "services unplaced", "watts", "cost an hour", "nodes", "replicas"),
        rows=tuple(_sum(policy, total) for policy, total in found.policies.items()),
    )


def _sum(policy: str, total: Sum) -> Cells:
    power = digits(total.power_w)
    if total.power_unknown:
        power += f", without {digits(total.power_unknown)} requests/s"
    cost = digits(total.cost_per_hour)
    if total.cost_unknown:
        cost += f", without {total.cost_unknown} nodes"
    unplaced = str(len(total.unplaced))
    return (policy, unplaced, power, cost, str(total.nodes), str(total.replicas))


# Simulation.


def _simulation(found: Simulation) -> PlaceSection:
    load = "Poisson arrivals" if found.load == "poisson" else f"arrivals recorded in {found.source}"
    about = (
        f"Simulated, from measured figures: {found.requests} requests in "
        f"{seconds(found.duration_s)}, {load}, seed {found.seed}. Nothing here was measured."
    )
    return PlaceSection(
        name="Simulation",
        about=about,
        tables=(_results(found),),
        figures=tuple(_over_time(found)),
    )


def _results(found: Simulation) -> TableView:
    head = (
        "policy", "in time", "median", "99%", "energy", f"cost {found.currency}".strip(),
        "cores busy", "nodes", "services missed",
    )  # fmt: skip
    rows = tuple(_result(policy, result) for policy, result in found.policies.items())
    return TableView(title="What each policy came to", head=head, rows=rows)


def _result(policy: str, found: PolicyResult) -> Cells:
    unknown = found.energy.unknown_requests
    energy = f"{digits(found.energy.joules / 1e3)} kJ"
    return (
        policy,
        f"{found.in_time:.2%}",
        milliseconds(found.latency.p50_ms if found.latency else None),
        milliseconds(found.latency.p99_ms if found.latency else None),
        f"{energy}, without {unknown} requests" if unknown else energy,
        digits(found.cost)
        + (f", without {found.cost_unknown} nodes" if found.cost_unknown else ""),
        NOTHING if found.utilisation is None else f"{found.utilisation:.0%}",
        str(found.nodes),
        ", ".join(found.missed) or "none",
    )


def _over_time(found: Simulation) -> Iterator[FigureView]:
    first = next(iter(found.policies.values()), None)
    if first is None or len(first.series.start_s) < 2:
        return
    start = first.series.start_s
    late: dict[str, Sequence[float | None]] = {
        name: one.series.p99_ms for name, one in found.policies.items()
    }
    if any(value for values in late.values() for value in values):
        yield _series("t0", "99th percentile over time", "ms", start, late, log=True)
    shares: dict[str, Sequence[float | None]] = {
        name: tuple(None if share is None else share * 100 for share in one.series.in_time)
        for name, one in found.policies.items()
    }
    if any(value is not None for values in shares.values() for value in values):
        yield _series("t1", "Answered in time, over time", "% of requests", start, shares)


def _series(
    name: str,
    title: str,
    unit: str,
    start: tuple[float, ...],
    series: Mapping[str, Sequence[float | None]],
    *,
    log: bool = False,
) -> FigureView:
    said = "; ".join(f"{policy} {_range(values)}" for policy, values in series.items())
    return FigureView(
        title=title,
        svg=series_plot(name, start, series, unit, f"{title}, {unit}: {said}.", log=log),
        caption=f"Each point is of the requests that came in {seconds(start[1] - start[0])}.",
        head=("from", *series),
        rows=tuple(
            (seconds(at), *(number(values[place]) for values in series.values()))
            for place, at in enumerate(start)
        ),
    )


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{digits(min(known))} to {digits(max(known))}" if known else "none"
