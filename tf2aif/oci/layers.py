"""Files to a layer: a tar whose bytes depend on names, contents and modes alone.

Entries are sorted, folders are named before what is in them, owner and time are fixed. The
compressor is ISA-L's gzip at level 2: a tenth of zlib's time for a layer a tenth larger. What it
writes depends on its version, which is a fact of every step that makes a layer.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
from msgspec import Struct

from ..errors import StepFailed
from .documents import CHUNK, LAYER, LAYER_GZIP, Descriptor

Compression = Literal["gzip", "none"]
LEVEL = 2
BLOB, FACTS = "blob", "layer.json"


class Entry(Struct, frozen=True, kw_only=True):
    """One file, folder or link of a layer; `path` is relative to the root, with `/`."""

    path: str
    source: Path | bytes | None = None  # of a file: where its bytes are, or the bytes
    link: str | None = None  # of a symbolic link: where it leads
    mode: int = 0o644

    @property
    def is_folder(self) -> bool:
        """Whether it is neither a file nor a link."""
        return self.source is None and self.link is None


class Component(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of software, or a model, that a layer holds: what the SBOM lists."""

    type: str  # as CycloneDX names it: library, machine-learning-model, file, …
    name: str
    version: str = ""
    purl: str = ""
    sha256: str = ""
    licence: str = ""


class Layer(Struct, frozen=True, kw_only=True):
    """A layer as its step leaves it in `layer.json`, beside the bytes in `blob`."""

    descriptor: Descriptor
    diff_id: str  # the digest of the tar before compression
    created_by: str  # for people: what `docker history` shows
    components: tuple[Component, ...] = ()


def write_layer(
    entries: Iterable[Entry],
    folder: Path,
    *,
    created_by: str,
    compression: Compression = "gzip",
    epoch: int = 0,
    components: Iterable[Component] = (),
) -> Layer:
    """Write `blob` and `layer.json` into that folder.

    `epoch` is the time of every entry, seconds since 1970 (SOURCE_DATE_EPOCH). Raises StepFailed
    for two entries with one path or a path that leaves the root, OSError where a file cannot be
    read or the disk is full.
    """
    blob = folder / BLOB
    with blob.open("wb") as file:
        sink = _Sink(file, compression)
        _write_tar(complete(entries), sink, epoch)
        sink.close()
    layer = Layer(
        descriptor=Descriptor(
            media_type=LAYER_GZIP if compression == "gzip" else LAYER,
            digest=sink.digest,
            size=sink.size,
        ),
        diff_id=sink.diff_id,
        created_by=created_by,
        components=tuple(sorted(components, key=lambda c: (c.type, c.name, c.version))),
    )
    (folder / FACTS).write_bytes(msgspec.json.encode(layer))
    return layer


def read_layer(folder: Path) -> Layer:
    """The layer that a step left in that folder. Raises StepFailed where there is none."""
    try:
        layer = msgspec.json.decode((folder / FACTS).read_bytes(), type=Layer)
        size = (folder / BLOB).stat().st_size
    except (OSError, msgspec.DecodeError) as error:
        raise StepFailed(f"no layer is there: {error}", at=str(folder)) from error
    if size != layer.descriptor.size:
        raise StepFailed("the layer's blob is not as long as its record says", at=str(folder))
    return layer


def complete(entries: Iterable[Entry]) -> list[Entry]:
    """The entries sorted, each after the folders that it lies in, which are added where missing.

    Raises StepFailed for a path that is absolute or leaves the root, or that two entries share.
    """
    known: dict[str, Entry] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise StepFailed(f"a layer cannot hold the path {entry.path!r}")
        if entry.path in known and not (entry.is_folder and known[entry.path].is_folder):
            raise StepFailed(f"two files of one layer have the path {entry.path!r}")
        known[entry.path] = entry
    for path in list(known):
        while "/" in path:
            path = path.rpartition("/")[0]
            parent = known.setdefault(path, Entry(path=path, mode=0o755))
            if not parent.is_folder:
                raise StepFailed(f"{path!r} is a file and a folder in one layer")
    return sorted(known.values(), key=lambda entry: entry.path.split("/"))


def tree_entries(root: Path, prefix: str, *, mode: int | None = None) -> Iterator[Entry]:
    """Everything below a folder, under `prefix`; modes are 644 and 755, or all files' `mode`."""
    for path in sorted(root.rglob("*")):
        name = f"{prefix}/{path.relative_to(root).as_posix()}".lstrip("/")
        if path.is_symlink():
            yield Entry(path=name, link=str(path.readlink()), mode=0o777)
        elif path.is_dir():
            yield Entry(path=name, mode=0o755)
        else:
            executable = path.stat().st_mode & 0o100
            yield Entry(path=name, source=path, mode=mode or (0o755 if executable else 0o644))


def _write_tar(entries: list[Entry], sink: _Sink, epoch: int) -> None:
    stream: Any = sink  # tarfile only writes to it
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.copybufsize = CHUNK  # type: ignore[attr-defined]
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.mode, info.mtime = entry.mode, epoch
            _add(tar, info, entry)


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, entry: Entry) -> None:
    if entry.link is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
    elif isinstance(entry.source, bytes):
        info.size = len(entry.source)
        tar.addfile(info, io.BytesIO(entry.source))
    elif entry.source is not None:
        with entry.source.open("rb") as file:
            info.size = entry.source.stat().st_size
            tar.addfile(info, file)
    else:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)


class _Sink:
    """What the tar is written to: digests before and after compression, and the file."""

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        self._file = file
        self._raw = hashlib.sha256()
        self._compressed = hashlib.sha256()
        self._compressor = _gzip() if compression == "gzip" else None
        self.size = 0
        self._position = 0

    def write(self, data: bytes) -> int:
        self._raw.update(data)
        self._position += len(data)
        self._out(self._compressor.compress(data) if self._compressor else data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if self._compressor:
            self._out(self._compressor.flush())

    def _out(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            self._file.write(data)
            if self._compressor:
                self._compressed.update(data)

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._raw.hexdigest()

    @property
    def digest(self) -> str:
        return "sha256:" + (self._compressed if self._compressor else self._raw).hexdigest()


def _gzip() -> Any:
    from isal import isal_zlib

    return isal_zlib.compressobj(LEVEL, wbits=31)  # 31: with gzip's header, its time zero
