"""The workloads of a placement: for each group of replicas one, held to its kind of nodes.

They ask for what the placement has reckoned with, so that they fit where it has put them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from msgspec.structs import replace

from ..choose.catalogue import Catalogue, CatalogueVariant
from ..choose.fleet import Fleet
from ..choose.placement import Group, Placement, ServicePlacement
from ..errors import Fault, FilesError
from ..spec.target import Target
from .asked import Chosen, check_names, registry_faults
from .workload import Wish, Workload, faults_of, notes_of, workload_of

AGAIN = "place them again: tf2aif place"
Targets = Mapping[str, Target]


def choose_placed(
    placement: Placement,
    catalogue: Catalogue,
    targets: Targets,
    registry: str,
    fleet: Fleet,
    *,
    shares: bool = False,
) -> Chosen:
    """The workloads of all services that were placed; `fleet` is the one that they were placed on.

    `shares`: something sends each workload its share; else a Service sends each pod as much.

    Raises FilesError with every reason why one cannot be deployed.
    """
    known = {one.id: one for one in catalogue.variants}
    wishes = [
        (
            service,
            group,
            Wish(registry=registry, replicas=group.replicas, resources=group.resources),
        )
        for service in placement.services
        for group in service.groups
    ]
    faults = list(registry_faults(registry))
    for service, group, wish in wishes:
        faults += _faults(service, group, wish, known, targets, fleet)
    if not wishes:
        faults.append(Fault("nothing was placed", hint="tf2aif place --why says why not"))
    if faults:
        raise FilesError(dict.fromkeys(faults))
    workloads = []
    notes = [f"{s.name} is not placed: {s.reason}" for s in placement.services if not s.placed]
    for service, group, wish in wishes:
        one = known[group.variant]
        target = targets.get(one.target)
        base = workload_of(one, target, wish, service=service.name)
        workloads.append(_held(base, one, group, fleet))
        notes += [] if group.memory_mb else list(notes_of(one, target, wish))[:1]
    check_names(workloads)
    if not shares:
        notes += chain.from_iterable(_uneven(service) for service in placement.services)
    notes += _elsewhere(workloads, fleet)
    return Chosen(workloads=tuple(workloads), notes=tuple(dict.fromkeys(notes)))


def _faults(
    service: ServicePlacement,
    group: Group,
    wish: Wish,
    known: Mapping[str, CatalogueVariant],
    targets: Targets,
    fleet: Fleet,
) -> Iterator[Fault]:
    one = known.get(group.variant)
    if group.nodes not in fleet.nodes:
        message = f"the fleet has no kind of nodes '{group.nodes}', on which {service.name} is"
        yield Fault(message, hint=f"--nodes names the fleet of the placement; or {AGAIN}")
    if one is None:
        message = f"the catalogue has no {group.variant}, which answers {service.name}"
        yield Fault(message, hint=AGAIN)
    else:
        yield from faults_of(one, targets.get(one.target), wish)


def _held(base: Workload, one: CatalogueVariant, group: Group, fleet: Fleet) -> Workload:
    """The workload on its nodes, with the cores and the memory that were reckoned with."""
    known = base.resources
    limit = known.memory_limit_mb
    resources = replace(
        known,
        cpus=min(group.cores, known.cpu_limit or group.cores),
        memory_mb=min(group.memory_mb, limit or group.memory_mb) or known.memory_mb,
        extended=dict(sorted(group.resources.items())),
    )
    labels = {**one.requires.labels, **fleet.nodes[group.nodes].labels}
    threads = _threads(one, group)
    return replace(
        base,
        group=group.nodes,
        share=group.share,
        labels=labels,
        resources=resources,
        threads=threads,
    )


def _threads(one: CatalogueVariant, group: Group) -> int | None:
    """Those of the figures that the group was planned with; None: the engine's own choice."""
    same = (f for f in one.measurements if (f.machine, f.latency) == (group.machine, group.alone))
    return next((figure.threads for figure in same), None)


def _uneven(service: ServicePlacement) -> Iterator[str]:
    """Pods that are sent more than they can take, where each of a service gets as many."""
    replicas = sum(group.replicas for group in service.groups)
    for group in service.groups:
        each = service.rate / replicas
        if each > group.capacity:
            yield (
                f"{service.name}: a Service sends each of its {replicas} pods about {each:.4g} "
                f"requests a second, {group.variant} on {group.nodes} can take "
                f"{group.capacity:.4g}: --mesh writes a route with the shares of the placement"
            )


def _elsewhere(workloads: Iterable[Workload], fleet: Fleet) -> Iterator[str]:
    """Other kinds of nodes that labels do not tell apart from those that were planned."""
    for one in workloads:
        planned = replace(fleet.nodes[one.group], count=1)
        for name, node in fleet.nodes.items():
            asked = one.resources.extended
            alike = one.labels.items() <= node.all_labels.items() and all(
                node.resources.get(each, 0) >= count for each, count in asked.items()
            )
            if alike and replace(node, count=1) != planned:
                yield (
                    f"nodes '{name}' have every label that {one.id} asks of nodes '{one.group}': "
                    "the cluster may run it there too, until labels in the fleet tell them apart"
                )
