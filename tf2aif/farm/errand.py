"""A step on its way to a machine of the farm: a plain specification, without a byte of its files.

It is sent as JSON. Where it is run it is checked like a recipe: a step of our own table, options of
its own form, paths below the scratch folder, and facts that give the very key which the results
will be signed for. Only the names in it come from outside; code never does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from msgspec import Struct

from ..digest import digest_tree, list_tree, walk
from ..errors import StepFailed, Tf2aifError
from ..execute import request_for
from ..facts import Facts, explain, step_facts
from ..facts import key as key_of
from ..graph import Step
from ..parcel import pack
from ..records import ActionRecord, OutputFile, artifact_digest
from ..records import decode as decode_record
from ..records import encode as encode_record
from ..steps import STEPS, step_module
from ..toolchains import TOOLCHAINS, as_facts, environment_facts
from ..toolchains.variables import is_vendors
from ..worker import Request
from ..workspace import Workspace
from .offer import Offer
from .source import version as version_here

SCHEMA = 1
HOME, OUT = "home", "out"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[\w.:@%+ -]{1,200}(/[\w.:@%+ -]{1,200})?")
_FORBIDDEN = re.compile(r"LD_|DYLD_|PYTHON|PATH$|HOME$|TMPDIR$|TF2AIF_|VIRTUAL_ENV$")


class Refused(Tf2aifError):
    """A specification that is not run: what is wrong with it."""


class Errand(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a machine of the farm is asked to do."""

    schema: int = SCHEMA
    package: str = msgspec.field(default_factory=version_here)
    step: str
    kind: str
    version: int
    key: str
    facts: Facts
    toolchain: str
    options: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    """By name, where it is below the scratch folder: a file, or a folder."""
    artifacts: tuple[str, ...] = ()
    """Those of the inputs that other steps made."""
    code: str | None = None
    environment: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    seed: int | None = None
    threads: int | None = None
    engines: tuple[str, ...] = ()
    device: str | None = None
    machine: bool = False
    alone: bool = False
    timeout_s: float = 3600.0
    memory_mb: int | None = None
    files: tuple[OutputFile, ...] = ()
    """Every file that is to be there, by its path."""
    sha256: tuple[str, ...] = ()
    """Of each of them."""
    folders: tuple[str, ...] = ()
    """Folders with nothing in them."""


class Luggage(Struct, frozen=True):
    """The files of an errand: what they are, and where they are here."""

    files: tuple[tuple[OutputFile, Path], ...]
    folders: tuple[str, ...]


def make_errand(step: Step, workspace: Workspace, facts: Facts) -> tuple[Errand, Luggage]:
    """A step as it is sent, still without the SHA-256 of its files; and these files."""
    request, members = pack(request_for(step, workspace, Path(OUT)))
    luggage = _luggage(members, workspace)
    errand = Errand(
        step=step.id,
        kind=step.kind,
        version=step.version,
        key=key_of(facts),
        facts=facts,
        toolchain=step.toolchain,
        options=step.options,
        inputs=request.inputs,
        artifacts=tuple(sorted(step.inputs)),
        code=request.code,
        environment=step.environment,
        variables=environment_facts(step.environment),
        seed=step.seed,
        threads=step.threads,
        engines=step.engines,
        device=step.device,
        machine=step.machine,
        alone=step.alone,
        timeout_s=step.limits.timeout_s,
        memory_mb=step.limits.memory_mb,
        files=tuple(file for file, _ in luggage.files),
        folders=luggage.folders,
    )
    return errand, luggage


def _luggage(members: Mapping[str, str], workspace: Workspace) -> Luggage:
    found: dict[str, tuple[OutputFile, Path]] = {}
    folders: set[str] = set()
    for member, path in members.items():
        if not Path(path).is_dir():
            (entry,) = list_tree(path, workspace.stats)
            found[member] = msgspec.structs.replace(entry, path=member), Path(path)
            continue
        for entry in list_tree(path, workspace.stats):
            place = f"{member}/{entry.path}"
            found[place] = msgspec.structs.replace(entry, path=place), Path(path, entry.path)
        folders |= {f"{member}/{name}".rstrip("/") for name in _empty_folders(path)}
    return Luggage(tuple(found[name] for name in sorted(found)), tuple(sorted(folders)))


def _empty_folders(path: str) -> Iterator[str]:
    nodes = list(walk(path))
    for node in nodes:
        if node.kind == "link":
            raise StepFailed(
                "a link to a folder of the same tree cannot be sent to the farm",
                at=node.path,
                hint="put a copy in its place, or build without --farm",
            )
    parents = {node.name.rpartition(b"/")[0] for node in nodes}
    yield from (
        node.name.decode() for node in nodes if node.kind == "folder" and node.name not in parents
    )
    if not nodes:
        yield ""


def outside(value: Any) -> str | None:
    """A path in some options that names a file of one machine: it means nothing on another."""
    if isinstance(value, str):
        parts = PurePosixPath(value).parts
        return value if value.startswith(("/", "~")) or ".." in parts else None
    if isinstance(value, Mapping):
        return next((p for v in (*value, *value.values()) if (p := outside(v))), None)
    if isinstance(value, list | tuple):
        return next((p for v in value if (p := outside(v))), None)
    return None


# Where it is run.


def read_errand(text: str, offer: Offer) -> Errand:
    """The specification, checked. Raises Refused with what is wrong."""
    try:
        errand = msgspec.json.decode(text, type=Errand)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(f"not a specification of a step: {error}") from error
    for fault in _faults(errand, offer):
        raise Refused(f"{errand.step}: {fault}")
    return errand


def _faults(errand: Errand, offer: Offer) -> Iterator[str]:
    if (errand.schema, errand.package) != (SCHEMA, offer.version):
        yield f"tf2aif {errand.package} has sent it, this machine has {offer.version}"
    if not _NAME.fullmatch(errand.step):
        yield f"not the name of a step: {errand.step!r}"
    if errand.kind not in STEPS:
        yield f"there is no step of the kind {errand.kind!r}"
        return
    yield from _option_faults(errand)
    yield from _place_faults(errand, offer)
    yield from _code_faults(errand, offer)
    yield from _path_faults(errand)
    if key_of(errand.facts) != errand.key:
        yield "its facts do not give its key"
    if not 0 < errand.timeout_s < 1e9 or (errand.memory_mb is not None and errand.memory_mb < 64):
        yield "its limits are none"


def _option_faults(errand: Errand) -> Iterator[str]:
    module = step_module(errand.kind)
    if errand.version != module.VERSION:
        yield f"its version is {errand.version}, that of the step here is {module.VERSION}"
    if path := outside(errand.options):
        yield f"an option names a file outside of the scratch folder: {path}"
    try:
        if hasattr(module, "Options"):
            msgspec.convert(errand.options, module.Options)
    except msgspec.ValidationError as error:
        yield f"wrong options: {error}"


def _place_faults(errand: Errand, offer: Offer) -> Iterator[str]:
    for name in (errand.toolchain, *errand.engines):
        if name not in offer.bids or name not in TOOLCHAINS:
            yield f"{offer.machine} does not offer the toolchain {name!r}"
            return
    expected = getattr(step_module(errand.kind), "TOOLCHAIN", errand.toolchain)
    # A check runs with the toolchain of its engine.
    if errand.toolchain not in (expected, errand.options.get("engine")):
        yield f"a step of this kind does not run with {errand.toolchain}"
    if errand.device is not None and errand.device not in offer.devices:
        yield f"{offer.machine} has no device of the kind {errand.device!r}"


def _code_faults(errand: Errand, offer: Offer) -> Iterator[str]:
    if not offer.code and (errand.code or errand.variables or errand.environment):
        yield (
            f"it runs code of the recipe's own, and {offer.machine} was started without "
            "--allow-code"
        )
    for name in (*errand.environment, *errand.variables):
        allowed = is_vendors(name) or name in errand.environment
        if not allowed or _FORBIDDEN.match(name) or name.endswith(("PATH", "HOME")):
            yield f"the variable {name} is not set for a step"


def _path_faults(errand: Errand) -> Iterator[str]:
    try:
        decode_record(encode_record(as_record(errand)))
    except msgspec.DecodeError as error:
        yield f"outside of the scratch folder: {error}"
        return
    paths = {file.path for file in errand.files}
    if len(paths) != len(errand.files) or len(errand.sha256) != len(errand.files):
        yield "its list of files is not one"
    if not all(map(_SHA256.fullmatch, errand.sha256)):
        yield "not a SHA-256"
    above = {str(above) for path in paths for above in PurePosixPath(path).parents}
    for where in (*errand.inputs.values(), *([errand.code] if errand.code else [])):
        if where not in paths | above | set(errand.folders) or where == ".":
            yield f"an input is not among its files: {where!r}"
    if any(path in above for path in paths):
        yield "a file of it is a folder, too"
    if {path.partition("/")[0] for path in (*paths, *errand.folders)} & {OUT}:
        yield "a file of it is where the results go"


def as_record(errand: Errand) -> ActionRecord:
    """Its files as the store knows how to lay them out."""
    return ActionRecord(
        step=errand.step, kind="errand", outputs=errand.files, folders=errand.folders
    )


def request_in(errand: Errand, scratch: Path) -> Request:
    """What a worker process is told, its files being laid out in `scratch`."""
    return Request(
        step=errand.step,
        kind=errand.kind,
        module=STEPS[errand.kind],
        toolchain=errand.toolchain,
        options=errand.options,
        inputs={name: str(scratch / place) for name, place in errand.inputs.items()},
        out=str(scratch / OUT),
        folder=str(scratch / HOME),
        code=str(scratch / errand.code) if errand.code else None,
        environment=errand.environment,
        seed=errand.seed,
        threads=errand.threads,
        variables=errand.variables,
    )


def compare(errand: Errand, scratch: Path, place: Facts) -> None:
    """Hold the facts of the errand against what is really here: only that may be signed.

    `place` is what this machine's toolchain and devices are. Raises Refused.
    """
    files = {n: scratch / p for n, p in errand.inputs.items() if n not in errand.artifacts}
    facts = step_facts(
        errand.kind,
        errand.version,
        errand.options,
        files={name: digest_tree(path) for name, path in sorted(files.items())},
        inputs={
            name: artifact_digest(list_tree(scratch / errand.inputs[name]))
            for name in errand.artifacts
        },
        seed=errand.seed,
    )
    facts |= place | as_facts(errand.variables)
    if changes := explain(errand.facts, facts):
        words = "; ".join(change.render() for change in changes)
        raise Refused(f"{errand.step}: it is not what it says: {words}")
