"""Whether the images of workloads are what was built here, and are in the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import Fault, FilesError, Tf2aifError
from ..oci.reference import Reference
from ..oci.registry import Registry
from ..record import read_record
from .workload import Workload

_TRIES = 2  # somebody waits, and --offline needs no answer


def check_current(workloads: Iterable[Workload], build: Path) -> None:
    """Raise FilesError for images that were built again since the catalogue was written."""
    faults = []
    for one in workloads:
        record = read_record(build / one.id)
        if record and record.image and record.image.digest != one.image.partition("@")[2]:
            message = f"the catalogue has an older image of {one.id} than build/ has"
            hint = "tf2aif catalogue writes it again; then push the image"
            faults.append(Fault(message, at=str(build / one.id), hint=hint))
    if faults:
        raise FilesError(faults)


def check_published(workloads: Iterable[Workload], *, plain_http: bool | None = None) -> None:
    """Ask the registry for each image by its digest, each repository in one session.

    Raises FilesError with all that are not there, Tf2aifError where a registry does not answer.
    """
    wanted = {one.id: Reference.parse(one.image) for one in workloads}
    missing = []
    for repository in sorted({(r.host, r.repository) for r in wanted.values()}):
        own = {n: r for n, r in wanted.items() if (r.host, r.repository) == repository}
        try:
            missing += _missing(own, plain_http)
        except Tf2aifError as error:
            fault = error.faults[0]
            hint = fault.hint or "--offline writes manifests without asking the registry"
            raise Tf2aifError(fault.message, at=fault.at, hint=hint) from error
    if missing:
        raise FilesError(_fault(wanted[name], name) for name in sorted(missing))


def _missing(own: Mapping[str, Reference], plain_http: bool | None) -> list[str]:
    """The variants of one repository whose images it does not have."""
    first = next(iter(own.values()))
    registry = Registry(first, plain_http=plain_http, actions="pull", tries=_TRIES)
    try:
        return [n for n, r in own.items() if registry.head_manifest(r.digest) is None]
    finally:
        registry.close()


def _fault(reference: Reference, variant: str) -> Fault:
    to = str(reference).partition("@")[0].rpartition("/")[0]
    return Fault(
        f"the image of {variant} is not in the registry",
        at=str(reference),
        hint=f"tf2aif push {variant} --to {to}",
    )
