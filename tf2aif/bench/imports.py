"""Records from devices elsewhere: what `tf2aif bench` wrote there, or a client's report from there.

All files are read before anything is written: where one of them is wrong, nothing is taken.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..client.address import read_address
from ..client.report import SCHEMA as REPORT_SCHEMA
from ..client.report import Report, Run, ServerReport
from ..errors import Fault, FilesError, Tf2aifError
from ..measurements import FILE, add_lines
from ..record import VariantRecord, read_record, variant_folders
from ..store import default_root
from .baseline import MACHINES
from .record import (
    SCHEMA,
    BenchRecord,
    ScenarioFigures,
    doubts_of,
    encode_record,
    is_stable,
    make_record,
)

SERVER_ONLY = "a client's report has the server's figures only"
MOST_FAULTS = 3  # of one file that are told each: it may be no file of records at all
MEASURE_AGAIN = "measure there again, with the same version of tf2aif as here"


class Imported(Struct, frozen=True, kw_only=True):
    """What an import did."""

    records: tuple[BenchRecord, ...]
    """All that were read, in the order of the files."""
    added: int
    """How many of them were not here yet."""


class _Found(Struct, frozen=True):
    """One record in a file, not looked at yet."""

    at: str
    value: Any


def import_records(
    paths: Sequence[Path], build: Path = Path("build"), cache: Path | None = None
) -> Imported:
    """Take the records in these files, and in the `*.jsonl` files and reports of these folders.

    A file holds records as `bench.jsonl` has them, what `tf2aif bench --json` printed, or a
    client's JSON report. Each is kept beside its variant in `build`, and in the store: `cache`, by
    default that of this machine. One that is here already is not taken twice. Raises FilesError
    with all faults: no record, another schema, a variant or an artifact that is not in `build`.
    """
    faults: list[Fault] = []
    records: list[BenchRecord] = []
    for path in paths:
        for found in _read(Path(path), faults):
            try:
                records += _records(found, build)
            except Tf2aifError as error:
                faults += error.faults
    if faults:
        raise FilesError(faults)
    added = 0
    for record in records:
        folder = build / record.recipe / record.variant
        added += add_lines(folder, cache or default_root(), [encode_record(record)])
    return Imported(records=tuple(records), added=added)


# Files.


def _read(path: Path, faults: list[Fault]) -> Iterator[_Found]:
    """What is in a file, or in all files of a folder that hold records."""
    if not path.is_dir():
        yield from _read_file(path, faults)
        return
    found = [*path.rglob("*.jsonl"), *filter(_is_report, path.rglob("*.json"))]
    if not found:
        hint = f"records are in {FILE}, beside the variant; reports are JSON files of the client"
        faults.append(Fault("no records are in this folder", str(path), hint))
    for file in sorted(found):
        yield from _read_file(file, faults)


def _is_report(path: Path) -> bool:
    """Whether a JSON file is a report: a folder of results holds other things as well."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(value, dict) and {"servers", "client"} <= value.keys()


def _read_file(path: Path, faults: list[Fault]) -> Iterator[_Found]:
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = f"name a {FILE}, a client's JSON report, or a folder of them"
        faults.append(Fault(f"cannot be read: {error.strerror}", str(path), hint))
        return
    if not content.strip():
        faults.append(Fault("the file is empty", str(path)))
        return
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        yield from _parts(path, msgspec.json.decode(content), content.strip().count(b"\n"))
        return
    yield from _lines(path, content, faults)


def _parts(path: Path, value: Any, breaks: int) -> Iterator[_Found]:
    """What is in a file that is one value: a report, what `--json` printed, or one record."""
    records = value.get("records") if isinstance(value, dict) else None
    if isinstance(records, dict):
        for name, each in records.items():
            yield _Found(f"{path}: records.{name}", each)
        return
    line = not breaks and not (isinstance(value, dict) and "servers" in value)
    yield _Found(f"{path}:1" if line else str(path), value)


def _lines(path: Path, content: bytes, faults: list[Fault]) -> Iterator[_Found]:
    hint = "each line is one record, as `tf2aif bench` writes it"
    wrong = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip():
                yield _Found(f"{path}:{number}", msgspec.json.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wrong += 1
            if wrong <= MOST_FAULTS:
                faults.append(Fault(f"not JSON: {error}", f"{path}:{number}", hint))
    if wrong > MOST_FAULTS:
        faults.append(Fault(f"so are {wrong - MOST_FAULTS} more lines", str(path)))


# Records.


def _records(found: _Found, build: Path) -> Iterable[BenchRecord]:
    """The records in what was found, checked against the variants here. Raises Tf2aifError."""
    if isinstance(found.value, dict) and "servers" in found.value:
        report = _convert(found, Report, REPORT_SCHEMA, "a client's report")
        faults: list[Fault] = []
        records = []
        for number, server in enumerate(report.servers):
            try:
                at = f"{found.at}: servers[{number}]"
                records.append(_of_server(report, server, at, found.at, build))
            except Tf2aifError as error:
                faults += error.faults
        if faults:
            raise FilesError(faults)
        return records
    record = _convert(found, BenchRecord, SCHEMA, "a record of a measurement")
    engine = {"name": record.engine.name, "options": record.engine.options}
    variant = _variant(record.recipe, record.variant, record.artifact, found.at, build)
    _check(variant, engine, record.machine.architecture, found.at)
    return [
        msgspec.structs.replace(
            record,
            imported_from=record.imported_from or found.at,
            stable=is_stable(record.scenarios),
            doubts=doubts_of(record.machine, record.scenarios),
        )
    ]


def _convert(found: _Found, kind: type[Any], schema: int, what: str) -> Any:
    """The value as that struct. Raises Tf2aifError."""
    fields = found.value if isinstance(found.value, dict) else {}
    theirs, is_one = fields.get("schema"), "scenarios" in fields or "servers" in fields
    if isinstance(theirs, int) and theirs != schema and is_one:
        raise Tf2aifError(
            f"{what} of schema {theirs}; this version of tf2aif reads schema {schema}",
            at=found.at,
            hint=MEASURE_AGAIN,
        )
    try:
        return msgspec.convert(found.value, kind)
    except msgspec.ValidationError as error:
        hint = "" if is_one else f"name a {FILE}, or a client's JSON report"
        raise Tf2aifError(f"not {what}: {error}", at=found.at, hint=hint) from error


def _of_server(
    report: Report, server: ServerReport, at: str, file: str, build: Path
) -> BenchRecord:
    """What a client found of one server, as a record of its variant."""
    served = server.served
    if served is None or not served.artifact:
        raise Tf2aifError(
            f"{server.url} does not say which artifact it serves",
            at=at,
            hint="only servers of tf2aif do, of this version on: build and start the variant anew",
        )
    variant = _variant(server.model, server.version, served.artifact, at, build)
    _check(variant, {**variant.engine, "name": served.engine}, report.machine.architecture, at)
    if not _is_here(server.url):
        raise Tf2aifError(
            f"{server.url} was asked over a network: the report describes the client's machine, "
            "not the device",
            at=at,
            hint="run the client on the device itself, against http://127.0.0.1:PORT",
        )
    if not server.runs:
        raise Tf2aifError("the report holds no figures", at=at, hint="run it without --no-load")
    return make_record(
        variant,
        engine_version=served.engine_version or None,
        machine=report.machine,
        scenarios=tuple(_scenario(run) for run in server.runs),
        threads=served.threads,
        native=None,
        random=server.accuracy is None and report.encoding != "raw",
        measured_at=report.measured_at,
        imported_from=file,
        generator=report.generator,
        memory_bytes=served.memory_bytes,
        unmeasured={
            "engine": SERVER_ONLY,
            "native": SERVER_ONLY,
            "energy": SERVER_ONLY,
            "cold_start_s": SERVER_ONLY,
            "memory_peak_bytes": SERVER_ONLY,
            "memory_bytes": "" if served.memory_bytes else "the server did not say",
        },
    )


def _scenario(run: Run) -> ScenarioFigures:
    return ScenarioFigures(
        scenario=run.figures.scenario,
        load=run.load,
        engine=None,
        server=run.figures,
        native=None,
        stages=run.stages,
        overhead_ms=None,
        speedup=None,
    )


def _variant(recipe: str, variant: str, artifact: str, at: str, build: Path) -> VariantRecord:
    """The variant here that a record is of. Raises Tf2aifError where it is another, or none."""
    name = f"{recipe}/{variant}"
    known = {f"{folder.parent.name}/{folder.name}": folder for folder in variant_folders(build)}
    record = read_record(known[name]) if name in known else None
    if record is None or not record.artifact:
        from ..spec.words import nearest

        hint = nearest(name, known) if known and name not in known else "tf2aif build makes it"
        raise Tf2aifError(f"no variant '{name}' is built in {build}", at=at, hint=hint)
    if record.artifact != artifact:
        raise Tf2aifError(
            f"measured was another artifact of {name}: {artifact or 'none'}; "
            f"here is {record.artifact}",
            at=at,
            hint="take the figures into the tree that the artifact is from, or measure this one",
        )
    return record


def _check(variant: VariantRecord, engine: dict[str, Any], architecture: str, at: str) -> None:
    """Whether it ran as the variant runs. Raises Tf2aifError."""
    name = f"{variant.recipe}/{variant.variant}"
    if engine != variant.engine:
        raise Tf2aifError(
            f"{name} ran on engine {_words(engine)}; here it is for {_words(variant.engine)}",
            at=at,
            hint="measure it there as it is built here",
        )
    if MACHINES.get(variant.platform, architecture) != architecture:
        raise Tf2aifError(
            f"{name} is for {variant.platform}; the figures are of a machine that is "
            f"{architecture}",
            at=at,
            hint="under an emulator times say nothing: measure it on its device",
        )


def _words(engine: dict[str, Any]) -> str:
    options = "".join(f" {name}={value}" for name, value in engine.get("options", {}).items())
    return f"{engine.get('name')}{options}"


def _is_here(url: str) -> bool:
    """Whether that address is the client's own machine, whose description the report has."""
    host = read_address(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
