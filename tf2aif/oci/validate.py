"""The validator: recomputes every digest and size of a layout or an archive, and tells all faults.

It trusts nothing but the bytes: a blob's digest and size against every descriptor that names it,
each layer's digest before compression against the configuration, the paths inside each layer, the
platform, what an attached artifact is attached to, and Docker's `manifest.json` in an archive.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from ..errors import Fault, Tf2aifError
from .documents import (
    CHUNK,
    CONFIG,
    DOCKER_INDEX,
    INDEX,
    INDEXES,
    LAYER,
    LAYER_GZIP,
    MANIFESTS,
    Descriptor,
    Index,
    Manifest,
    is_digest,
)

_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{64}")
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_GZIPPED = (LAYER_GZIP, _DOCKER_LAYER)


def verify(path: Path) -> tuple[Fault, ...]:
    """All faults of an image layout (a folder) or an archive (a tar); none: it is sound.

    Raises Tf2aifError where the path is neither.
    """
    if path.is_dir():
        return tuple(_Check(_Folder(path), str(path)).run())
    try:
        with tarfile.open(path, "r:") as tar:
            return tuple(_Check(_Archive(tar), str(path)).run())
    except OSError as error:
        raise Tf2aifError(f"cannot read it: {error.strerror or error}", at=str(path)) from error
    except tarfile.TarError as error:
        raise Tf2aifError(
            f"neither an image layout nor an archive: {error}", at=str(path)
        ) from error


class _Files(Protocol):
    """A layout's files, wherever they are."""

    names: frozenset[str]

    def open(self, name: str) -> IO[bytes]: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        files = (path for path in root.rglob("*") if path.is_file())
        self.names = frozenset(path.relative_to(root).as_posix() for path in files)

    def open(self, name: str) -> IO[bytes]:
        return (self.root / name).open("rb")


class _Archive:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self.tar = tar
        self.names = frozenset(member.name for member in tar.getmembers() if member.isfile())

    def open(self, name: str) -> IO[bytes]:
        file = self.tar.extractfile(name)
        if file is None:
            raise FileNotFoundError(name)
        return file


class _Check:
    """One run over all files."""

    def __init__(self, files: _Files, shown: str) -> None:
        self.files = files
        self.shown = shown
        self.faults: list[Fault] = []
        self.found: dict[str, int] = {}  # digest of each blob -> its size
        self.named: set[str] = set()
        self.done: set[str] = set()

    def run(self) -> list[Fault]:
        self._version()
        for name in sorted(self.files.names):
            if name.startswith("blobs/"):
                self._blob(name)
        index = self._decode("index.json", Index)
        if index is not None:
            if not index.manifests:
                self._fault("the index names no image", "index.json")
            for descriptor in index.manifests:
                self._manifest(descriptor, "index.json")
        if "manifest.json" in self.files.names:
            self._docker()
        for digest in sorted(self.found.keys() - self.named):
            self._fault("a blob that nothing names", _name(digest))
        return self.faults

    def _fault(self, message: str, name: str) -> None:
        self.faults.append(Fault(message, at=f"{self.shown}: {name}"))

    def _version(self) -> None:
        found = self._decode("oci-layout", dict[str, Any])
        if found is not None and found.get("imageLayoutVersion") != "1.0.0":
            self._fault(f"unknown layout version {found.get('imageLayoutVersion')!r}", "oci-layout")

    def _blob(self, name: str) -> None:
        if not _BLOB.fullmatch(name):
            self._fault("not named as a SHA-256 blob", name)
            return
        state, size = hashlib.sha256(), 0
        with self.files.open(name) as file:
            while data := file.read(CHUNK):
                state.update(data)
                size += len(data)
        if state.hexdigest() != name.rpartition("/")[2]:
            self._fault(f"its digest is sha256:{state.hexdigest()}", name)
        self.found["sha256:" + name.rpartition("/")[2]] = size

    def _described(self, descriptor: Descriptor, where: str) -> bool:
        """Whether the blob is there; faults where it is not what the descriptor says."""
        if not is_digest(descriptor.digest):
            self._fault(f"not a SHA-256 digest: {descriptor.digest!r}", where)
            return False
        self.named.add(descriptor.digest)
        if descriptor.digest not in self.found:
            self._fault(f"names {descriptor.digest}, which is missing", where)
            return False
        size = self.found[descriptor.digest]
        if size != descriptor.size:
            self._fault(
                f"says {descriptor.size} bytes of {descriptor.digest}, it has {size}", where
            )
        return True

    def _decode(self, name: str, kind: Any) -> Any:
        if name not in self.files.names:
            self._fault("missing", name)
            return None
        with self.files.open(name) as file:
            data = file.read()
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fault(f"cannot be read: {error}", name)
            return None

    def _manifest(self, descriptor: Descriptor, where: str) -> None:
        if not self._described(descriptor, where) or descriptor.digest in self.done:
            return
        self.done.add(descriptor.digest)
        name = _name(descriptor.digest)
        if descriptor.media_type in INDEXES:
            self._index(descriptor, name)
        elif descriptor.media_type in MANIFESTS:
            self._image(descriptor, name)
        else:
            self._fault(f"names a manifest of unknown type {descriptor.media_type!r}", where)

    def _index(self, descriptor: Descriptor, name: str) -> None:
        index = self._decode(name, Index)
        if index is None:
            return
        self._schema(index, descriptor, name, (INDEX, DOCKER_INDEX))
        for inner in index.manifests:
            self._manifest(inner, name)

    def _image(self, descriptor: Descriptor, name: str) -> None:
        manifest = self._decode(name, Manifest)
        if manifest is None:
            return
        self._schema(manifest, descriptor, name, tuple(MANIFESTS))
        there = self._described(manifest.config, name)
        layers = [layer for layer in manifest.layers if self._described(layer, name)]
        if manifest.subject is not None and manifest.subject.digest not in self.found:
            self._fault(f"is attached to {manifest.subject.digest}, which is missing", name)
        if manifest.config.media_type == CONFIG or not manifest.artifact_type:
            complete = there and len(layers) == len(manifest.layers)
            self._config(manifest, descriptor, complete=complete)

    def _schema(
        self, document: Index | Manifest, of: Descriptor, name: str, types: tuple[str, ...]
    ) -> None:
        if document.schema_version != 2:
            self._fault(f"schema version {document.schema_version}, not 2", name)
        if document.media_type and document.media_type != of.media_type:
            self._fault(f"calls itself {document.media_type!r}, not {of.media_type!r}", name)
        if of.media_type not in types:
            self._fault(f"has the type {of.media_type!r}", name)

    def _config(self, manifest: Manifest, descriptor: Descriptor, *, complete: bool) -> None:
        if manifest.config.digest not in self.found:
            return
        name = _name(manifest.config.digest)
        config = self._decode(name, dict[str, Any])
        if config is None:
            return
        platform = descriptor.platform
        for key in ("os", "architecture"):
            if not config.get(key):
                self._fault(f"does not say its {key}", name)
            elif platform and getattr(platform, key) != config[key]:
                self._fault(f"is for {config[key]}, its descriptor says {platform}", name)
        diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
        if len(diff_ids) != len(manifest.layers):
            self._fault(f"has {len(diff_ids)} layers, its manifest {len(manifest.layers)}", name)
        elif complete:
            for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
                self._layer(layer, str(diff_id))

    def _layer(self, layer: Descriptor, diff_id: str) -> None:
        mark = f"{layer.digest} {diff_id}"
        if mark in self.done:
            return
        self.done.add(mark)
        name = _name(layer.digest)
        gzipped = layer.media_type in _GZIPPED
        if not gzipped and layer.media_type != LAYER:
            self._fault(f"a layer of type {layer.media_type!r} cannot be looked into", name)
            return
        try:
            with self.files.open(name) as file, _unpacked(file, gzipped=gzipped) as stream:
                self._entries(stream, name)
                found = stream.finish()
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            self._fault(f"cannot be unpacked: {error}", name)
            return
        if found != diff_id:
            self._fault(f"unpacked it has the digest {found}, not {diff_id}", name)

    def _entries(self, stream: _Hashing, name: str) -> None:
        seen: set[str] = set()
        reading: Any = stream
        with tarfile.open(fileobj=reading, mode="r|") as tar:
            for member in tar:
                path = member.name.removeprefix("./").rstrip("/")
                if path.startswith("/") or ".." in path.split("/"):
                    self._fault(f"holds {member.name!r}, outside its root", name)
                if path in seen and not member.isdir():
                    self._fault(f"holds {path!r} twice", name)
                seen.add(path)

    def _docker(self) -> None:
        entries = self._decode("manifest.json", list[dict[str, Any]])
        for entry in entries or ():
            paths = [entry.get("Config"), *(entry.get("Layers") or ())]
            for path in paths:
                if path not in self.files.names:
                    self._fault(f"names {path!r}, which is missing", "manifest.json")
            if not entry.get("RepoTags"):
                self._fault("gives the image no name", "manifest.json")


class _Hashing:
    """A stream whose digest is known once it was read to its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._state = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._state.update(data)
        return data

    def finish(self) -> str:
        while self.read(CHUNK):
            pass
        return "sha256:" + self._state.hexdigest()


@contextmanager
def _unpacked(file: IO[bytes], *, gzipped: bool) -> Iterator[_Hashing]:
    if gzipped:
        with gzip.GzipFile(fileobj=file) as stream:
            yield _Hashing(stream)  # type: ignore[arg-type]
    else:
        yield _Hashing(file)


def _name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
