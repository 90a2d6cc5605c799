"""What a call of `tf2aif deploy` asks for, as workloads: variants, whole recipes, a placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from ..choose.catalogue import Catalogue, CatalogueVariant
from ..errors import Fault, FilesError, Tf2aifError
from ..oci.reference import Reference
from ..spec.target import Target
from ..spec.words import nearest
from .names import is_resource
from .workload import (
    DEPLOYABLE,
    Wish,
    Workload,
    container_of,
    extended,
    faults_of,
    notes_of,
    simulates,
    workload_of,
)

Targets = Mapping[str, Target]


class Chosen(Struct, frozen=True, kw_only=True):
    """The workloads of a call, and what people should know of them."""

    workloads: tuple[Workload, ...]
    notes: tuple[str, ...]


def choose_named(
    names: Sequence[str], catalogue: Catalogue, targets: Targets, wish: Wish
) -> Chosen:
    """The workloads of variants (`recipe/variant`), and of recipes: of all their variants that can
    be deployed and are no baseline.

    Raises FilesError with every reason why one cannot be.
    """
    faults = list(_wish_faults(wish))
    notes: list[str] = []
    found: dict[str, CatalogueVariant] = {}
    for name in names:
        for one in _of(name, catalogue, targets, faults, notes):
            found[one.id] = one
    for one in found.values():
        faults += faults_of(one, targets.get(one.target), wish)
    faults += _unused(found.values(), targets, wish)
    if faults:
        raise FilesError(faults)
    workloads = [workload_of(one, targets.get(one.target), wish) for one in found.values()]
    check_names(workloads)
    for one in found.values():
        notes += notes_of(one, targets.get(one.target), wish)
    return Chosen(workloads=tuple(workloads), notes=tuple(notes))


def check_names(workloads: Iterable[Workload]) -> None:
    """Raise FilesError where two workloads would be one object."""
    same = Counter(one.name for one in workloads)
    if clash := [name for name, count in same.items() if count > 1]:
        hint = "deploy them in two calls, each into a namespace of its own"
        raise FilesError([Fault(f"two workloads would be called {n}", hint=hint) for n in clash])


def _of(
    name: str,
    catalogue: Catalogue,
    targets: Targets,
    faults: list[Fault],
    notes: list[str],
) -> Iterator[CatalogueVariant]:
    """The variants of one name; what is wrong with it goes to `faults`."""
    if "/" in name:
        one = next((each for each in catalogue.variants if each.id == name), None)
        if one is None:
            faults.append(_unknown(name, "variant", [each.id for each in catalogue.variants]))
        else:
            yield one
        return
    every = catalogue.of(name)
    if not every:
        faults.append(_unknown(name, "recipe", {each.recipe for each in catalogue.variants}))
        return
    reasons = {one.id: _left_out(one, targets.get(one.target)) for one in every}
    if all(reasons.values()):
        told = ", ".join(f"{why}: {count}" for why, count in Counter(reasons.values()).items())
        hint = "tf2aif build --images, then tf2aif push; a baseline must be named"
        message = f"none of the {len(every)} variants of {name} can be deployed ({told})"
        faults.append(Fault(message, hint=hint))
        return
    notes += [f"{each} is left out: {why}" for each, why in reasons.items() if why]
    yield from (one for one in every if not reasons[one.id])


def _left_out(one: CatalogueVariant, target: Target | None) -> str:
    """Why a variant is not among those of its recipe; "" where it is."""
    if one.state not in DEPLOYABLE:
        return f"it is {one.state}"
    if one.baseline:
        return "it is a baseline"
    if simulates(one, target):
        return "its image simulates its device"
    return "" if one.image else "it has no image"


def _unknown(name: str, what: str, known: Iterable[str]) -> Fault:
    hint = nearest(name, sorted(known)) if known else "build first: tf2aif build --images"
    return Fault(f"no {what} '{name}' is in the catalogue", hint=hint)


def _wish_faults(wish: Wish) -> Iterator[Fault]:
    for name, count in wish.resources.items():
        if not is_resource(name) or count < 1:
            hint = "write a name with its domain and a number: amd.com/fpga=1"
            yield Fault(f"no extended resource: {name}={count}", at="--resource", hint=hint)
    yield from registry_faults(wish.registry)


def registry_faults(registry: str) -> Iterator[Fault]:
    """What is wrong with the name of a registry and a path in it."""
    try:
        Reference.parse(f"{registry.rstrip('/')}/recipe")
    except Tf2aifError:
        hint = "write HOST/PATH as for 'tf2aif push --to', in small letters and without a tag"
        yield Fault(f"'{registry}' is no registry with a path", at="--registry", hint=hint)


def _unused(variants: Iterable[CatalogueVariant], targets: Targets, wish: Wish) -> Iterator[Fault]:
    used = {
        name
        for one in variants
        for name in extended(one, container_of(targets.get(one.target)), wish)
    }
    for name in wish.resources:
        if name not in used:
            hint = "name what a variant's catalogue entry requires, or leave it out"
            yield Fault(f"no variant here needs {name}", at="--resource", hint=hint)
