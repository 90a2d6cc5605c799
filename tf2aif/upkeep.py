"""Looking after a store: what it holds, whether it is sound, and making room in it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import msgspec

from tf2aif.blobs import Blobs
from tf2aif.errors import Tf2aifError
from tf2aif.locks import try_remove
from tf2aif.records import ActionRecord, Records, blob_name
from tf2aif.statcache import hash_file

Alone = Callable[[], AbstractContextManager[None]]
"""Holds off every user of the store, after those who are at it have ended."""


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds."""

    root: str
    records: int
    blobs: int
    size_bytes: int
    """Of records and blobs."""
    leftover_bytes: int
    """Of what is being written, and what killed writers left."""


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `Store.verify` looked at, and what it dropped."""

    records: int
    blobs: int
    bad_records: tuple[str, ...]
    """Paths of records that were damaged, or whose bytes were damaged or gone."""
    bad_blobs: tuple[str, ...]
    """Paths of blobs whose bytes are not what their name says."""

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong."""
        return not self.bad_records and not self.bad_blobs


class CollectReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `Store.gc` removed, or would have."""

    records: int
    blobs: int
    freed_bytes: int
    """Of records, blobs and leftovers."""
    kept_bytes: int
    dry_run: bool


def describe(root: Path, records: Records, blobs: Blobs) -> StoreInfo:
    """Counts and sizes; reads no record and no blob."""
    files = [size_of(path) for path in records.paths()]
    stored = [size for _, size in blobs.stored()]
    left = [size_of(path) for path in files_below(blobs.temporary)]
    return StoreInfo(
        root=str(root),
        records=len(files),
        blobs=len(stored),
        size_bytes=sum(files) + sum(stored),
        leftover_bytes=sum(left),
    )


def verify(records: Records, blobs: Blobs, alone: Alone) -> VerifyReport:
    """Read every record and every byte, and drop what is wrong.

    Builds go on while it reads; what looked wrong is looked at again when nobody else is there.
    """
    paths, stored = list(records.paths()), [path for path, _ in blobs.stored()]
    suspect_blobs = [path for path in stored if not _sound_blob(path)]
    bad = {path.name for path in suspect_blobs}
    suspects = [path for path in paths if not _sound_record(path, records, blobs, bad)]
    if suspects or suspect_blobs:
        with alone():
            suspect_blobs = [p for p in suspect_blobs if p.exists() and not _sound_blob(p)]
            bad = {path.name for path in suspect_blobs}
            suspects = [
                p for p in suspects if p.exists() and not _sound_record(p, records, blobs, bad)
            ]
            for path in (*suspects, *suspect_blobs):
                remove(path)
    return VerifyReport(
        records=len(paths),
        blobs=len(stored),
        bad_records=tuple(map(str, suspects)),
        bad_blobs=tuple(map(str, suspect_blobs)),
    )


def collect(
    records: Records,
    blobs: Blobs,
    locks: Path,
    *,
    max_size_bytes: int | None,
    older_than_s: float | None,
    dry_run: bool,
) -> CollectReport:
    """Remove records that are damaged, too old, or too much, least recently used first; then blobs
    that no record needs, leftovers and unused lock files. The caller holds the store alone.
    """
    stored = dict(blobs.stored())
    present = {path.name: size for path, size in stored.items()}
    kept = _youngest(_usable(records, present, older_than_s), present, max_size_bytes)
    needed = {blob_name(file) for _, record in kept for file in record.outputs}
    kept_records = {path for path, _ in kept}
    old_records = [path for path in records.paths() if path not in kept_records]
    old_blobs = [path for path in stored if path.name not in needed]
    going = [*old_records, *old_blobs, *files_below(blobs.temporary)]
    report = CollectReport(
        records=len(old_records),
        blobs=len(old_blobs),
        freed_bytes=sum(map(size_of, going)),
        kept_bytes=sum(map(size_of, kept_records)) + sum(present[name] for name in needed),
        dry_run=dry_run,
    )
    if not dry_run:
        for path in going:  # records first: killed here, it leaves blobs that nobody needs
            remove(path)
        for folder in {path.parent for path in (*old_records, *old_blobs)}:
            with suppress(OSError):  # not empty
                folder.rmdir()
        for path in files_below(locks):
            with suppress(OSError):
                try_remove(path)
    return report


def _usable(
    records: Records, present: dict[str, int], older_than_s: float | None
) -> list[tuple[Path, ActionRecord]]:
    """The records whose bytes are all there, in the order of their last use, oldest first."""
    now, found = time.time(), []
    for path in records.paths():
        record, used = records.at(path), _used(path)
        if record is None or (older_than_s is not None and used < now - older_than_s):
            continue
        if all(present.get(blob_name(file)) == file.size for file in record.outputs):
            found.append((used, str(path), path, record))
    return [(path, record) for _, _, path, record in sorted(found, key=lambda item: item[:2])]


def _youngest(
    usable: list[tuple[Path, ActionRecord]], present: dict[str, int], max_size_bytes: int | None
) -> list[tuple[Path, ActionRecord]]:
    """As many as fit, their blobs counted once however many records share them."""
    if max_size_bytes is None:
        return usable
    users = Counter(name for _, record in usable for name in _names(record))
    total = sum(size_of(path) for path, _ in usable) + sum(present[name] for name in users)
    for index, (path, record) in enumerate(usable):
        if total <= max_size_bytes:
            return usable[index:]
        total -= size_of(path)
        for name in _names(record):
            users[name] -= 1
            total -= 0 if users[name] else present[name]
    return []


def _names(record: ActionRecord) -> set[str]:
    return {blob_name(file) for file in record.outputs}


def _sound_blob(path: Path) -> bool:
    try:
        digest, signature = hash_file(path)
    except (OSError, Tf2aifError):
        return False
    return path.name == f"{digest}-{signature[2]}"


def _sound_record(path: Path, records: Records, blobs: Blobs, bad: set[str]) -> bool:
    record = records.at(path)
    return record is not None and all(
        blobs.has(file) and blob_name(file) not in bad for file in record.outputs
    )


def remove(path: Path) -> None:
    """Remove a file if it is there, and we may."""
    with suppress(OSError):  # a store that we may only read: it will be noticed again
        path.unlink()


def files_below(folder: Path) -> Iterator[Path]:
    """Every file, in a fixed order; none where the folder is missing."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)


def size_of(path: Path) -> int:
    """Its size in bytes; 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
