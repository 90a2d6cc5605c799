"""Step `image-model`: the layer of the artifact and of `variant.json`, stored raw.

Trained weights do not compress: gzip takes 7% off at ten times the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..oci.layers import Component

VERSION = 2
TOOLCHAIN = "image"
INPUTS = ("artifact", "check")

FOLDER = "variant"
_RARE = ("container", "emulates")  # said where there is something to say


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `variant.json` says of the variant; and the time of every file."""

    recipe: str
    variant: str
    target: str
    precision: str
    platform: str
    engine: dict[str, Any]
    batch: int | Literal["free", "none"] | None = None
    hooks: str | None = None
    labels: dict[str, str] = {}
    container: dict[str, Any] = {}
    """What a container of it asks of its host, such as GPUs; without what is as usual."""
    checked_by: str = ""
    """The engine that measured the accuracy, where it stands in for the device's own."""
    emulates: str | None = None
    """The target that the engine stands in for, wherever it runs."""
    epoch: int = 0


def run(job: Job) -> dict[str, Any]:
    """Write the layer. Returns its digest, and its size in bytes.

    Raises StepFailed where the artifact is machine code for another platform than the image's.
    """
    from concurrent.futures import ThreadPoolExecutor

    from ..oci.layers import Entry, tree_entries, write_layer

    options = msgspec.convert(job.options, Options)
    artifact = job.inputs["artifact"]
    _check_machine(artifact, options)
    record = msgspec.json.format(_record(options, artifact, job.inputs["check"]), indent=2) + b"\n"
    with ThreadPoolExecutor(1) as pool:
        # The files' own digests, while the layer's is made: SHA-256 is most of the work.
        components = pool.submit(_components, options, artifact)
        layer = write_layer(
            [
                Entry(path=f"{FOLDER}/variant.json", source=record),
                *tree_entries(artifact, f"{FOLDER}/artifact"),
            ],
            job.out,
            created_by=f"tf2aif: {options.recipe}/{options.variant}",
            compression="none",
            epoch=options.epoch,
            components=_once_there(components),
        )
    return {"digest": layer.descriptor.digest, "size_bytes": layer.descriptor.size}


def _once_there(components: Future[list[Component]]) -> Iterator[Component]:
    """They are asked for when the layer is written."""
    yield from components.result()


def _record(options: Options, artifact: Path, check: Path) -> bytes:
    """What is known of the variant and is the same on every machine: no times, no machine.

    By the artifact's digest a server tells what it is that was measured of it.
    """
    from ..digest import list_tree
    from ..records import artifact_digest

    hidden = {"epoch", "checked_by"} | {n for n in _RARE if not getattr(options, n)}
    shown = {n: v for n, v in msgspec.to_builtins(options).items() if n not in hidden}
    try:
        measured = msgspec.json.decode((check / "check.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise StepFailed(f"no result of the check is there: {error}", at=str(check)) from error
    kept = ("metric", "source", "variant", "samples", "labels")
    accuracy = {name: measured.get(name) for name in kept} if measured.get("metric") else None
    if accuracy and options.checked_by:
        accuracy["engine"] = options.checked_by
    shown |= {"artifact": artifact_digest(list_tree(artifact)), "accuracy": accuracy}
    return msgspec.json.encode({"schema": 1, **shown}, order="sorted")


def _check_machine(artifact: Path, options: Options) -> None:
    """An engine of TensorRT and a compiled simulation say which machine they are for."""
    made_for = _made_for(artifact)
    if made_for and made_for != options.platform:
        raise StepFailed(
            f"the artifact is machine code for {made_for}; the image is for {options.platform}",
            at=f"{options.recipe}/{options.variant}",
            hint="build it on a machine of that platform, or set 'platform:' in the target",
        )


def _made_for(artifact: Path) -> str:
    """The platform of its machine code, as OCI names it; nothing where it has none."""
    from ..engines import hls, requirement
    from ..machine import oci_platform

    if (artifact / requirement.FILE).is_file():
        system, _, machine = requirement.read_requirement(artifact).platform.partition("-")
        return oci_platform(system, machine)
    if (artifact / hls.LIBRARY).is_file():
        made = msgspec.json.decode((artifact / hls.FILE).read_bytes(), type=hls.Made)
        return oci_platform("linux", made.machine)
    return ""


def _components(options: Options, artifact: Path) -> list[Component]:
    """The files of the model as parts of the bill of materials."""
    from ..oci.documents import sha256_file
    from ..oci.layers import Component

    return [
        Component(
            type="machine-learning-model",
            name=f"{options.recipe}/{path.relative_to(artifact).as_posix()}",
            version=options.variant,
            sha256=sha256_file(path).partition(":")[2],
        )
        for path in sorted(artifact.rglob("*"))
        if path.is_file()
    ]
