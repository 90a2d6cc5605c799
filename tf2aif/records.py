"""The action table: base key -> records of what was made. Plain JSON files, named by their digest.

    ac/<aa>/<key>/<id>.json      id = xxh3_128 of the file's bytes, so a damaged one shows

Several records may stand under one base key, as in ccache's manifests: the facts that are known
before an action runs are the same, what it looked at when it ran differs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from tf2aif.digest import FileEntry
from tf2aif.facts import Facts, Value, explain, key

SCHEMA = 1
KEEP = 64
"""Records under one key; with more than that looking one up is slow, and the oldest go."""

OutputFile = FileEntry

_KEY = re.compile(r"[0-9a-f]{32}")
_BLOB = re.compile(r"[0-9a-f]{32}-[0-9]+")


class ActionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one action made, and from what."""

    schema: int = SCHEMA
    key: str = ""
    """The base key that it stands under; empty where it is in no store."""
    step: str
    """Which step made it first, as `kws/import`: for people, since others may use it."""
    kind: str
    facts: Facts = {}
    """What was known before it ran: what the base key is the digest of."""
    observed: Facts = {}
    """What it turned out to depend on: name -> value."""
    outputs: tuple[OutputFile, ...] = ()
    """Every file, sorted by path."""
    folders: tuple[str, ...] = ()
    """The folders with nothing in them, relative, sorted."""
    result: dict[str, Any] = {}
    """What the step said, as JSON."""
    timing: dict[str, Any] = {}
    """`wall_s`, `cpu_s`, `peak_mb`."""
    created: float = 0.0
    """Seconds since the epoch."""
    made_by: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """Of what was made elsewhere and brought here: toolchain, machine and device, as facts."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ActionRecord)


def encode(record: ActionRecord) -> bytes:
    """The bytes of a record; decoding and encoding them gives them again."""
    return _encoder.encode(record)


def decode(data: bytes) -> ActionRecord:
    """A record from its bytes.

    Raises msgspec.DecodeError (ValidationError among them) for what is no record of this schema,
    or would be restored outside its folder.
    """
    record = _decoder.decode(data)
    if record.schema != SCHEMA:
        raise msgspec.ValidationError(f"schema {record.schema} is not {SCHEMA}")
    for file in record.outputs:
        if not _BLOB.fullmatch(blob_name(file)):
            raise msgspec.ValidationError(f"not a digest: {file.digest!r}")
    for path in (*(file.path for file in record.outputs), *record.folders):
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise msgspec.ValidationError(f"not a path inside a folder: {path!r}")
    return record


def blob_name(file: OutputFile) -> str:
    """What the table of blobs calls the bytes of a file."""
    return f"{file.digest}-{file.size}"


def artifact_digest(outputs: tuple[OutputFile, ...]) -> str:
    """The digest of a folder's files: their paths, bytes and executable bits, in order."""
    return key({"files": [[o.path, o.digest, o.executable] for o in outputs]})


def fits(record: ActionRecord, current: Callable[[str], Value]) -> bool:
    """Whether what the action turned out to depend on is now (`current`, by name) as it was."""
    try:
        return not any(
            explain({name: value}, {name: current(name)}) for name, value in record.observed.items()
        )
    except FileNotFoundError:
        return False


class Records:
    """The folder `ac/`. Reading changes nothing; what cannot be read is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, record: ActionRecord) -> Path:
        """Where a record stands, by its key and its bytes."""
        return self._folder(record.key) / f"{xxhash.xxh3_128_hexdigest(encode(record))}.json"

    def of(self, key: str) -> list[ActionRecord]:
        """The sound records under a base key, newest first."""
        try:
            with os.scandir(self._folder(key)) as entries:
                paths = [Path(entry.path) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        records = [record for path in paths if (record := self.at(path)) is not None]
        return sorted(records, key=lambda record: record.created, reverse=True)

    def at(self, path: Path) -> ActionRecord | None:
        """The record in a file; None where it is gone, damaged, misplaced or of another schema."""
        try:
            data = path.read_bytes()
            if xxhash.xxh3_128_hexdigest(data) != path.stem:
                return None
            record = decode(data)
        except (OSError, msgspec.DecodeError):
            return None
        return record if record.key == path.parent.name else None

    def paths(self) -> Iterator[Path]:
        """Every file of the table, whatever is in it."""
        for parent, folders, names in os.walk(self.root):
            folders.sort()
            yield from (Path(parent, name) for name in sorted(names))

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a key: {key!r}")
        return self.root / key[:2] / key
