"""What one Deployment runs: a variant's image, how often, and what its pods need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from ..errors import Fault
from ..serve.config import Limits
from ..spec.target import Container, Target
from .names import object_name

if TYPE_CHECKING:
    from ..choose.catalogue import CatalogueVariant, Measurement

DEPLOYABLE = ("built", "verified-on-device")
MEMORY_SLACK = 1.25
"""Over the resident memory that was measured: allocators differ from run to run."""
_STEP_MB = 16
_NVIDIA = "nvidia.com/"
_ALL_GPUS = "NVIDIA_VISIBLE_DEVICES"


class Resources(Struct, frozen=True, kw_only=True):
    """What a container asks for, and may have; None: not known, so not written."""

    cpus: float | None = None
    cpu_limit: float | None = None
    memory_mb: int | None = None
    memory_limit_mb: int | None = None
    extended: dict[str, int] = {}


class Workload(Struct, frozen=True, kw_only=True):
    """One variant of a service on one kind of node."""

    service: str
    recipe: str
    variant: str
    image: str  # by digest
    artifact: str  # the digest of what it serves
    replicas: int = 1
    group: str = ""  # of nodes; "": any that has the labels
    share: float | None = None  # of the service's requests, as it was placed
    labels: dict[str, str] = {}  # that its node must have
    resources: Resources = Resources()
    threads: int | None = None  # of the engine; None: its own choice
    cold_start_s: float | None = None  # measured
    environment: dict[str, str] = {}
    groups: tuple[int, ...] = ()  # supplementary

    @property
    def name(self) -> str:
        """What its Deployment is called."""
        parts = (self.service, self.variant, *([self.group] if self.group else []))
        return object_name(*parts)

    @property
    def id(self) -> str:
        """The variant's name with its recipe's."""
        return f"{self.recipe}/{self.variant}"


class Wish(Struct, frozen=True, kw_only=True):
    """What the user said of all workloads of a call."""

    registry: str
    replicas: int = 1
    threads: int | None = None
    resources: dict[str, int] = {}  # names that a cluster has, in place of patterns


def container_of(target: Target | None) -> Container:
    """What a target's containers need; nothing, where the target is not known here."""
    return target.container if target else Container()


def simulates(one: CatalogueVariant, target: Target | None) -> bool:
    """Whether what an image of it runs is no device, but the device's simulation."""
    return bool(target and target.runs_emulated) or any(f.emulates for f in one.measurements)


def faults_of(one: CatalogueVariant, target: Target | None, wish: Wish) -> Iterator[Fault]:
    """Why a variant cannot be deployed: every reason, each with what to do."""
    if one.state not in DEPLOYABLE:
        because = f": {one.reason}" if one.reason else ""
        hint = "tf2aif list shows what is built"
        if one.state in ("bundled", "emulated"):
            hint = (
                "run its bundle where the device's tools are, and tf2aif import-bundle the result"
            )
        yield Fault(f"{one.id} is {one.state}{because}", hint=hint)
    elif simulates(one, target):
        hint = "for the simulation itself write a target whose platform is that of a plain server"
        yield Fault(f"the image of {one.id} simulates its device", hint=hint)
    elif one.image is None:
        yield Fault(
            f"{one.id} has no image", hint=f"tf2aif build --images --target {one.target}, then push"
        )
    for group in container_of(target).groups:
        if not group.isdecimal():
            yield Fault(
                f"{one.id}: group '{group}' is a name, Kubernetes takes numbers",
                at=f"target {one.target}: container.groups",
            )
    for name in one.requires.resources:
        if name.endswith("*") and not _named(name, wish.resources):
            hint = "kubectl describe node shows it; say --resource NAME=1"
            message = f"{one.id} needs the resource {name}, which each cluster names in its own way"
            yield Fault(message, at=one.id, hint=hint)


def workload_of(
    one: CatalogueVariant, target: Target | None, wish: Wish, *, service: str = ""
) -> Workload:
    """The workload of a variant that has no faults."""
    if one.image is None:
        raise ValueError(f"{one.id} has no image: see faults_of")
    container, figure = container_of(target), chosen(one)
    threads = wish.threads or (figure.threads if figure else None)
    return Workload(
        service=service or one.recipe,
        recipe=one.recipe,
        variant=one.variant,
        image=f"{wish.registry.rstrip('/')}/{one.recipe}@{one.image.digest}",
        artifact=one.artifact or "",
        replicas=wish.replicas,
        labels=dict(one.requires.labels),
        resources=_resources(one, container, wish, threads),
        threads=threads,
        cold_start_s=max((f.cold_start_s or 0.0 for f in one.measurements), default=0.0) or None,
        environment=_environment(one, container),
        groups=tuple(sorted(int(group) for group in container.groups)),
    )


def notes_of(one: CatalogueVariant, target: Target | None, wish: Wish) -> Iterator[str]:
    """What a manifest could not be told, for people: one line each."""
    container = container_of(target)
    if one.requires.memory_mb is None and container.memory_mb is None:
        yield (
            f"{one.id}: its memory was not measured, so none is asked for; 'tf2aif bench {one.id}' "
            "measures it, 'memory_mb' of the target's 'container:' states it"
        )
    figure = chosen(one)
    if wish.threads is None and container.cpus is None and not (figure and figure.threads):
        yield (
            f"{one.id}: no figure says with how many threads, so no CPU is asked for; "
            "--threads N gives the engine so many, and asks for them"
        )
    if container.devices and not one.requires.resources and not wish.resources:
        yield (
            f"{one.id}: its target needs {', '.join(container.devices)}; a pod gets device files "
            "from a device plug-in only: name its resource with --resource NAME=1"
        )


def chosen(one: CatalogueVariant) -> Measurement | None:
    """The figure whose conditions the pods are given: of the server before the engine alone, a
    stable one before others, then the last.
    """

    def rank(figure: Measurement) -> tuple[bool, bool, bool, str]:
        last = figure.measured_at or ""
        return figure.threads is not None, figure.subject == "server", bool(figure.stable), last

    return max(one.measurements, key=rank, default=None)


def _resources(
    one: CatalogueVariant, container: Container, wish: Wish, threads: int | None
) -> Resources:
    limit, request = container.memory_mb, None
    if one.requires.memory_mb is not None:
        request = _round_up(one.requires.memory_mb * MEMORY_SLACK)
        # All that requests may hold at once, by the server's own limit.
        limit = limit or request + Limits().bodies_bytes // 2**20
        request = min(request, limit)
    cpus = [amount for amount in (threads, container.cpus) if amount is not None]
    return Resources(
        cpus=min(cpus, default=None),
        cpu_limit=container.cpus,
        memory_mb=request or limit,
        memory_limit_mb=limit,
        extended=extended(one, container, wish),
    )


def extended(one: CatalogueVariant, container: Container, wish: Wish) -> dict[str, int]:
    """The extended resources of a pod; the user's names and counts go before the catalogue's.

    A variant that only has device files gets all that the user named.
    """
    if not one.requires.resources:
        return dict(sorted(wish.resources.items())) if container.devices else {}
    found: dict[str, int] = {}
    for name, count in one.requires.resources.items():
        real = _named(name, wish.resources)
        found |= {each: wish.resources[each] for each in real} if real else {name: count}
    return dict(sorted(found.items()))


def _named(pattern: str, names: Mapping[str, int]) -> list[str]:
    if pattern.endswith("*"):
        return [name for name in names if name.startswith(pattern[:-1])]
    return [pattern] if pattern in names else []


def _environment(one: CatalogueVariant, container: Container) -> dict[str, str]:
    """The target's variables; which GPUs a container sees is the device plug-in's to say."""
    plugged = any(name.startswith(_NVIDIA) for name in one.requires.resources)
    kept = {n: v for n, v in container.environment.items() if not (plugged and n == _ALL_GPUS)}
    return dict(sorted(kept.items()))


def _round_up(megabytes: float) -> int:
    return math.ceil(megabytes / _STEP_MB) * _STEP_MB
