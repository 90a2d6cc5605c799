"""A fleet as a frozen value: the kinds of nodes there are, from a file such as `fleet.yaml`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ..errors import Fault, FilesError
from ..spec.document import Document, read
from ..spec.recipe import Name
from ..spec.target import Platform

ARCH = "kubernetes.io/arch"
OS = "kubernetes.io/os"
GPU = "nvidia.com/gpu"
GPU_PRESENT = "nvidia.com/gpu.present"
GPU_PRODUCT = "nvidia.com/gpu.product"
_ARCHITECTURES = {"arm/v7": "arm"}  # where Kubernetes names it in another way than OCI

Amount = Annotated[float, Meta(gt=0)]


class Power(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node draws, as its owner has measured it or read it in its data sheet."""

    idle_w: Annotated[float, Meta(ge=0, description="with nothing to do, watts")]
    busy_w: Annotated[float, Meta(ge=0, description="with all of its cores busy, watts")]


class Given(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Figures that nobody measured with tf2aif: a user's own word, and labelled so everywhere."""

    variant: Annotated[str, Meta(description="recipe/variant", pattern=r"^[^/]+/[^/]+$")]
    source: Annotated[str, Meta(description="where they come from, for people")] = ""
    p50_ms: Annotated[Amount | None, Meta(description="latency, 50th percentile")] = None
    p90_ms: Annotated[Amount | None, Meta(description="latency, 90th percentile")] = None
    p95_ms: Annotated[Amount | None, Meta(description="latency, 95th percentile")] = None
    p99_ms: Annotated[Amount | None, Meta(description="latency, 99th percentile")] = None
    p99_9_ms: Annotated[Amount | None, Meta(description="latency, 99.9th percentile")] = None
    throughput: Annotated[Amount | None, Meta(description="samples a second")] = None
    energy_j: Annotated[Amount | None, Meta(description="an inference, joules")] = None
    memory_mb: Annotated[Amount | None, Meta(description="resident memory, MiB")] = None
    cold_start_s: Annotated[Amount | None, Meta(description="until it is ready, seconds")] = None


class Node(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of node. What it does not state is not compared with a measurement's machine."""

    platform: Annotated[
        Platform, Meta(description="operating system and architecture, as OCI names them")
    ]
    count: Annotated[int, Meta(ge=1, description="how many of this kind there are")] = 1
    labels: Annotated[
        dict[str, str],
        Meta(
            description="labels, as Kubernetes names them; those of its platform and GPU are known"
        ),
    ] = {}
    resources: Annotated[
        dict[str, Annotated[int, Meta(ge=0)]],
        Meta(description="extended resources of each node, such as nvidia.com/gpu: 1"),
    ] = {}
    cpu: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="model of its processor: then only figures of the same one count"),
    ] = None
    gpu: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="model of its GPU: then only figures of the same one count"),
    ] = None
    cores: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="of its processor: figures of more cores than it has do not count"),
    ] = None
    memory_mb: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="memory for containers, MiB")
    ] = None
    cost_per_hour: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="of one node, in a currency of your own"),
    ] = None
    power: Annotated[Power | None, Meta(description="what it draws, where that is known")] = None
    figures: Annotated[
        tuple[Given, ...],
        Meta(description="figures of variants on it that were never measured with tf2aif"),
    ] = ()

    @property
    def all_labels(self) -> dict[str, str]:
        """Its labels with those that a cluster sets from its platform and its GPU."""
        system, _, machine = self.platform.partition("/")
        found = {OS: system, ARCH: _ARCHITECTURES.get(machine, machine)}
        if self.resources.get(GPU):
            found[GPU_PRESENT] = "true"
        if self.gpu:
            found[GPU_PRODUCT] = self.gpu.replace(" ", "-")
        return {**found, **self.labels}

    @property
    def gpu_model(self) -> str | None:
        """The model of its GPU: as stated, or as NVIDIA's feature discovery labels it."""
        return self.gpu or self.labels.get(GPU_PRODUCT)


class Fleet(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The nodes that variants can be put on."""

    description: Annotated[str, Meta(description="for people")] = ""
    currency: Annotated[str, Meta(description="of every cost, for people")] = ""
    nodes: Annotated[
        dict[Name, Node], Meta(description="name of a kind of node -> what it is", min_length=1)
    ]


def read_fleet(path: Path, shown: str | None = None) -> Fleet:
    """The fleet in a YAML file. Raises FilesError with all the faults of the file."""
    return convert_fleet(read(path, shown))


def convert_fleet(document: Document) -> Fleet:
    """A document as a fleet. Raises FilesError with all its faults, each with its line."""
    try:
        fleet = msgspec.convert(document.value, Fleet)
    except msgspec.ValidationError as error:
        from ..spec.words import word_faults  # imports jsonschema

        raise FilesError(word_faults(document, Fleet, str(error))) from error
    faults = [
        fault for name, node in fleet.nodes.items() for fault in _faults(document, name, node)
    ]
    if faults:
        raise FilesError(faults)
    return fleet


def _faults(document: Document, name: str, node: Node) -> Iterator[Fault]:
    """What the shape of one node does not forbid, and what is wrong all the same."""
    at = ("nodes", name)
    derived = Node(platform=node.platform).all_labels
    for label, value in derived.items():
        stated = node.labels.get(label, value)
        if stated != value:
            message = (
                f"label {label} is '{stated}', but the platform {node.platform} says '{value}'"
            )
            yield Fault(message, document.at((*at, "labels", label)), "leave the label out")
    if node.power and node.power.busy_w < node.power.idle_w:
        message = f"busy at {node.power.busy_w:g} W, which is less than idle"
        yield Fault(message, document.at((*at, "power", "busy_w")))


def figure_faults(document: Document, fleet: Fleet, known: Iterable[str]) -> list[Fault]:
    """Figures of variants that are not there, though their recipe is: most often a slip."""
    from ..spec.words import nearest

    names = list(known)
    recipes = {name.partition("/")[0] for name in names}
    return [
        Fault(
            f"no variant '{given.variant}' is in the catalogue",
            document.at(("nodes", name, "figures", index, "variant")),
            nearest(given.variant, names),
        )
        for name, node in fleet.nodes.items()
        for index, given in enumerate(node.figures)
        if given.variant not in names and given.variant.partition("/")[0] in recipes
    ]
