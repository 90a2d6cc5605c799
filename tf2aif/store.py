"""The store on this machine: what actions made, by their keys, and the bytes, by their digests.

    v1/ac/…       records      tf2aif.records
    v1/cas/…      blobs        tf2aif.blobs
    v1/tmp/…      what is being written; after a kill, what was
    v1/locks/…    one file for each name that was locked
    v1/lock       shared by who uses the store, exclusive to who cleans it

A record is written after its blobs, and every file under a temporary name first: a kill at any
moment leaves nothing but temporary files. Everything is verified when it is read.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType

from tf2aif import upkeep
from tf2aif.blobs import Blobs, CorruptBlob
from tf2aif.digest import digest_bytes, list_tree, walk
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.facts import Facts, Value
from tf2aif.folders import fresh_folder
from tf2aif.locks import locked
from tf2aif.records import (
    KEEP,
    ActionRecord,
    OutputFile,
    Records,
    blob_name,
    decode,
    encode,
    fits,
)
from tf2aif.upkeep import CollectReport, StoreInfo, VerifyReport, remove

__all__ = [
    "ActionRecord",
    "CollectReport",
    "CorruptBlob",
    "OutputFile",
    "Store",
    "StoreInfo",
    "VerifyReport",
    "default_root",
]

LAYOUT = "v1"
_LEFTOVER_S = 86400.0
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n"  # bford.info/cachedir: backups skip it


def default_root(environ: Mapping[str, str] | None = None) -> Path:
    """`$TF2AIF_CACHE`, else `tf2aif` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    env = os.environ if environ is None else environ
    if chosen := env.get("TF2AIF_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = Path(env.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification: a relative one is to be ignored
        base = Path("~/.cache").expanduser()
    return base / "tf2aif"


class Store:
    """Records and blobs below one folder. Safe for threads, processes, and kills at any moment."""

    def __init__(self, root: Path | None = None) -> None:
        """The store at `root` (default: `default_root()`); nothing is made before it is needed."""
        self.root = default_root() if root is None else Path(os.path.abspath(root))
        self._home = self.root / LAYOUT
        self._temporary = self._home / "tmp"
        self._records = Records(self._home / "ac")
        self._blobs = Blobs(self._home / "cas", self._temporary)

    def records(self, base_key: str) -> list[ActionRecord]:
        """Every readable record under a base key, newest first; for explaining a miss."""
        return self._records.of(base_key)

    def find(self, base_key: str, current: Callable[[str], Value]) -> ActionRecord | None:
        """The newest record whose observed facts all have the values of now, and whose bytes exist.

        `current` gives the present value of an observed fact; where it raises FileNotFoundError,
        the record does not fit. A hit counts as a use, for `gc`.
        """
        for record in self._records.of(base_key):
            if not fits(record, current):
                continue
            if all(self._blobs.has(file) for file in record.outputs):
                self._touch(record)
                return record
            self._drop(record)
        return None

    def add(
        self,
        base_key: str,
        folder: Path,
        *,
        step: str,
        kind: str,
        facts: Facts,
        observed: Facts,
        result: dict[str, Any],
        timing: dict[str, Any],
        made_by: dict[str, Any] | UnsetType = UNSET,
    ) -> ActionRecord:
        """Store everything in a folder as what an action made; the record as `find` will give it.

        `result` comes back as JSON has it: tuples as lists, NaN and infinity as None.
        Raises StepFailed for what cannot be stored (a link to a folder of the artifact, a pipe, a
        name that is not UTF-8), and `Tf2aifError` where the store is full or cannot be written.
        """
        outputs, folders = _contents(folder)
        record = ActionRecord(
            key=base_key,
            step=step,
            kind=kind,
            facts=facts,
            observed=observed,
            outputs=outputs,
            folders=folders,
            result=result,
            timing=timing,
            created=time.time(),
            made_by=made_by,
        )
        data = encode(record)
        record = decode(data)
        with self._writing():
            for file in outputs:
                self._blobs.put(folder / file.path, file)
            self._write_record(record, data)
        return record

    def all_records(self) -> Iterator[ActionRecord]:
        """Every sound record whose bytes are all here."""
        for path in self._records.paths():
            record = self._records.at(path)
            if record is not None and all(map(self._blobs.has, record.outputs)):
                yield record

    def has(self, file: OutputFile) -> bool:
        """Whether the bytes of a file are here, judged by name and size."""
        return self._blobs.has(file)

    def path_of(self, file: OutputFile) -> Path:
        """Where the bytes of a file are kept, if they are: to be read and verified, not changed."""
        return self._blobs.path(blob_name(file))

    @contextmanager
    def receive(self, file: OutputFile) -> Iterator[Callable[[bytes], None]]:
        """A function that takes the bytes of a file from elsewhere, as they come.

        They are stored at the end of the block; `CorruptBlob` is raised for other bytes than the
        file's, and `Tf2aifError` where the store is full or cannot be written.
        """
        with self._writing(sweep=False), self._blobs.receive(file) as write:
            yield write

    def adopt(self, record: ActionRecord) -> bool:
        """Keep a record that was made elsewhere, if all of its bytes are here now.

        Raises `Tf2aifError` where the store is full or cannot be written.
        """
        with self._writing(sweep=False):
            complete = all(map(self._blobs.has, record.outputs))
            if complete:
                self._write_record(record, encode(record), sync=False)
        return complete

    def restore(self, record: ActionRecord, dest: Path) -> None:
        """Put what the action made at `dest`, in place of what is there, each byte verified.

        Raises `CorruptBlob` where stored bytes are gone or damaged: `dest` is as it was, blob and
        record are dropped, and the action has to run. Raises `Tf2aifError` where `dest` cannot be
        written.
        """
        try:
            with self._using(), fresh_folder(dest) as new:
                self._fill(record, new)
        except CorruptBlob:
            self._drop(record)
            raise
        except OSError as error:
            raise _cannot_write("the artifact", dest, error) from error

    def _fill(self, record: ActionRecord, new: Path) -> None:
        for name in record.folders:
            (new / name).mkdir(parents=True, exist_ok=True)
        for file in record.outputs:
            dest = new / file.path
            dest.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._blobs.get(file, dest)
            except CorruptBlob:
                remove(self._blobs.path(blob_name(file)))
                raise

    @contextmanager
    def lock(
        self, name: str, *, shared: bool = False, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold a name, over all threads and processes that use this store; it waits.

        Any number may hold it `shared`. `waiting` is called once where another has it. Not to be
        taken again by who holds it.
        """
        digest = digest_bytes(name.encode())
        path = self._home / "locks" / digest[:2] / digest
        with ExitStack() as held:
            try:
                held.enter_context(locked(path, shared=shared, waiting=waiting))
            except OSError as error:
                raise _cannot_write("the cache", self.root, error) from error
            yield

    def info(self) -> StoreInfo:
        """What the store holds."""
        return upkeep.describe(self.root, self._records, self._blobs)

    def verify(self) -> VerifyReport:
        """Read everything that is stored, and drop what is not what it was."""
        return upkeep.verify(self._records, self._blobs, lambda: self._using(alone=True))

    def gc(
        self,
        *,
        max_size_bytes: int | None = None,
        older_than_s: float | None = None,
        dry_run: bool = False,
    ) -> CollectReport:
        """Make room: drop what was not used for so long, then the least recently used until the
        rest fits; damaged records, bytes that no record needs and leftovers go in any case.

        Waits for who is storing or restoring, and they for it: nothing is taken from under them.
        """
        if not self._home.exists():
            return CollectReport(records=0, blobs=0, freed_bytes=0, kept_bytes=0, dry_run=dry_run)
        with self._using(alone=True):
            return upkeep.collect(
                self._records,
                self._blobs,
                self._home / "locks",
                max_size_bytes=max_size_bytes,
                older_than_s=older_than_s,
                dry_run=dry_run,
            )

    @contextmanager
    def _using(self, *, alone: bool = False) -> Iterator[None]:
        """Keep collections away; `alone`, everybody."""
        with locked(self._home / "lock", shared=not alone):
            yield

    @contextmanager
    def _writing(self, *, sweep: bool = True) -> Iterator[None]:
        """`sweep`: remove leftovers too. What comes from elsewhere comes by the thousand, and would
        mostly list that folder.
        """
        try:
            with self._using():
                self._temporary.mkdir(parents=True, exist_ok=True)
                tag = self.root / "CACHEDIR.TAG"
                if not tag.exists():
                    tag.write_bytes(_TAG)
                if sweep:
                    self._remove_leftovers()
                yield
        except OSError as error:
            raise _cannot_write("the cache", self.root, error) from error

    def _remove_leftovers(self) -> None:
        """What killed writers left more than a day ago; `gc` removes it at once."""
        for path in upkeep.files_below(self._temporary):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _LEFTOVER_S:
                    remove(path)

    def _write_record(self, record: ActionRecord, data: bytes, *, sync: bool = True) -> None:
        path = self._records.path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary / f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for old in self._records.of(record.key)[KEEP:]:
            self._drop(old)

    def _touch(self, record: ActionRecord) -> None:
        with suppress(OSError):  # gone meanwhile, or a store that we may only read
            os.utime(self._records.path(record))

    def _drop(self, record: ActionRecord) -> None:
        remove(self._records.path(record))


def _contents(folder: Path) -> tuple[tuple[OutputFile, ...], tuple[str, ...]]:
    """Files and empty folders of an artifact. Raises StepFailed for what it must not hold."""
    nodes = list(walk(os.path.abspath(folder)))
    for node in nodes:
        if node.kind == "link":
            raise StepFailed("the artifact holds a link to one of its folders", at=node.path)
        try:
            node.name.decode()
        except UnicodeDecodeError:
            raise StepFailed(
                "the artifact holds a file whose name is not UTF-8", at=ascii(node.path)
            ) from None
    parents = {node.name.rpartition(b"/")[0] for node in nodes}
    empty = (node.name for node in nodes if node.kind == "folder" and node.name not in parents)
    return list_tree(folder), tuple(sorted(name.decode() for name in empty))


def _cannot_write(what: str, path: Path, error: OSError) -> Tf2aifError:
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room, with `tf2aif cache gc --max-size` or by hand"
    elif what == "the cache":
        hint = "set TF2AIF_CACHE to a folder that you can write"
    reason = error.strerror or str(error)
    return Tf2aifError(f"{what} cannot be written: {reason}", at=str(path), hint=hint)
