"""Services as frozen values: what is to run on a fleet, from a file such as `services.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ..errors import Fault, FilesError
from ..spec.document import Document, Key, read
from ..spec.recipe import Name
from .objective import Objective, parse_objective

_UNPLANNED = {
    "mean": "the mean with a queue is not bounded here: limit a percentile, such as p95",
    "throughput": "'rate' says how much the service has to take",
}


class FleetService(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One service: requests for one recipe's model, and what its answers have to hold."""

    recipe: Annotated[Name, Meta(description="whose variants can answer")]
    rate: Annotated[
        float, Meta(ge=0.001, le=1e7, description="requests a second, on average over its peak")
    ]
    objectives: Annotated[
        tuple[str, ...],
        Meta(
            description="such as p99<=10ms and accuracy>=0.9; latency: with the queue, from the "
            "request's arrival at its replica to the answer"
        ),
    ] = ()
    replicas: Annotated[int, Meta(ge=1, le=100_000, description="at least so many")] = 1
    weight: Annotated[
        int, Meta(ge=1, le=1000, description="how much it counts where not all services find room")
    ] = 1

    @property
    def limits(self) -> tuple[Objective, ...]:
        """The objectives as values. Raises FilesError for one that is wrong."""
        return tuple(parse_objective(text) for text in self.objectives)


class Services(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The services to place."""

    description: Annotated[str, Meta(description="for people")] = ""
    services: Annotated[
        dict[Name, FleetService], Meta(description="name of a service -> what it is", min_length=1)
    ]


def read_services(path: Path, shown: str | None = None) -> Services:
    """The services in a YAML file. Raises FilesError with all the faults of the file."""
    return convert_services(read(path, shown))


def convert_services(document: Document) -> Services:
    """A document as services. Raises FilesError with all its faults, each with its line."""
    try:
        services = msgspec.convert(document.value, Services)
    except msgspec.ValidationError as error:
        from ..spec.words import word_faults  # imports jsonschema

        raise FilesError(word_faults(document, Services, str(error))) from error
    faults = [
        fault
        for name, service in services.services.items()
        for fault in _faults(document, ("services", name, "objectives"), service)
    ]
    if faults:
        raise FilesError(faults)
    return services


def check_recipes(document: Document, services: Services, recipes: tuple[str, ...]) -> list[Fault]:
    """A fault for each service whose recipe is not in the catalogue."""
    from ..spec.words import nearest

    return [
        Fault(
            f"no variant of a recipe '{service.recipe}' is in the catalogue",
            document.at(("services", name, "recipe")),
            nearest(service.recipe, recipes) if recipes else "build it first: tf2aif build",
        )
        for name, service in services.services.items()
        if service.recipe not in recipes
    ]


def _faults(document: Document, at: Key, service: FleetService) -> Iterator[Fault]:
    """What is wrong with the objectives of one service."""
    seen: dict[str, str] = {}
    for index, text in enumerate(service.objectives):
        place = document.at((*at, index))
        try:
            objective = parse_objective(text, place)
        except FilesError as error:
            yield from error.faults
            continue
        name = objective.quantity
        if name in _UNPLANNED:
            yield Fault(f"{name} cannot be an objective of a service", place, _UNPLANNED[name])
        elif name in seen:
            hint = "keep one of them"
            yield Fault(f"{name} is limited twice: '{seen[name]}' and '{text}'", place, hint)
        seen.setdefault(name, text)
