"""Images in a folder: the OCI image layout, one file for each blob, named by its digest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ..errors import Tf2aifError
from .documents import (
    CHUNK,
    INDEX,
    INDEXES,
    MANIFESTS,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    Platform,
    encode,
    is_digest,
    sha256,
)

VERSION_FILE = b'{"imageLayoutVersion":"1.0.0"}'
Content = Path | bytes
_Document = TypeVar("_Document")


class StoredImage(Struct, frozen=True, kw_only=True):
    """An image whose bytes are in a layout."""

    descriptor: Descriptor
    manifest: Manifest
    config: dict[str, Any]

    @property
    def platform(self) -> Platform:
        """What the configuration says that it runs on."""
        return Platform(
            os=self.config.get("os", ""),
            architecture=self.config.get("architecture", ""),
            variant=self.config.get("variant", ""),
        )

    @property
    def digests(self) -> tuple[str, ...]:
        """Every blob that it consists of, itself last, so that each comes after what it names."""
        layers = (layer.digest for layer in self.manifest.layers)
        return (*dict.fromkeys(layers), self.manifest.config.digest, self.descriptor.digest)


class Layout:
    """A folder with `oci-layout`, `index.json` and `blobs/sha256/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where that blob lies. Raises Tf2aifError for what is no SHA-256 digest."""
        if not is_digest(digest):
            raise Tf2aifError(f"not a SHA-256 digest: {digest!r}", at=str(self.folder))
        return self.folder / "blobs" / "sha256" / digest.partition(":")[2]

    def read(self, digest: str) -> bytes:
        """A small blob, verified."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Tf2aifError(f"a blob is missing: {error.strerror}", at=str(path)) from error
        if sha256(data) != digest:
            raise Tf2aifError("a blob is damaged: its digest differs", at=str(path))
        return data

    def index(self) -> Index:
        """What the layout names. Raises Tf2aifError where it is no layout."""
        path = self.folder / "index.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Index)
        except OSError as error:
            raise Tf2aifError(
                f"no image layout is there: {error.strerror}", at=str(path)
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Tf2aifError(f"not the index of a layout: {error}", at=str(path)) from error

    def document(self, digest: str, kind: type[_Document]) -> _Document:
        """A blob that is JSON. Raises Tf2aifError where it is not of that kind."""
        try:
            return msgspec.json.decode(self.read(digest), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Tf2aifError(
                f"not a {kind.__name__}: {error}", at=str(self.path(digest))
            ) from error

    def images(self, ref: str = "") -> tuple[StoredImage, ...]:
        """Every image, those in indexes too; `ref` picks by name. Attached artifacts are left out.

        Raises Tf2aifError where a document is missing or damaged.
        """
        found: dict[str, StoredImage] = {}
        for descriptor in self.index().manifests:
            if not ref or descriptor.annotations.get(REF_NAME) == ref:
                self._collect(descriptor, found)
        return tuple(found.values())

    def image(self, platform: Platform | None = None, ref: str = "") -> StoredImage:
        """The image for that platform. Raises Tf2aifError where there is none, or several."""
        images = self.images(ref)
        fitting = [i for i in images if platform is None or _runs_on(i.platform, platform)]
        if len(fitting) == 1:
            return fitting[0]
        there = ", ".join(sorted({str(image.platform) for image in images})) or "no image"
        what = f"{len(fitting)} images" if fitting else "no image"
        raise Tf2aifError(
            f"{what} for {platform or 'any platform'} in the layout"
            + (f" under the name '{ref}'" if ref else ""),
            at=str(self.folder),
            hint=f"there is: {there}",
        )

    def _collect(self, descriptor: Descriptor, found: dict[str, StoredImage]) -> None:
        if descriptor.media_type in INDEXES:
            for inner in self.document(descriptor.digest, Index).manifests:
                self._collect(inner, found)
        elif descriptor.media_type in MANIFESTS:
            manifest = self.document(descriptor.digest, Manifest)
            if manifest.subject is None and not manifest.artifact_type:
                config = self.document(manifest.config.digest, dict[str, Any])
                found[descriptor.digest] = StoredImage(
                    descriptor=descriptor, manifest=manifest, config=config
                )


def write_layout(
    folder: Path, manifests: Iterable[Descriptor], blobs: Mapping[str, Content]
) -> Layout:
    """Make a folder a layout that holds these blobs and names these manifests.

    Files are linked where that is possible, copied otherwise. Raises OSError.
    """
    layout = Layout(folder)
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    for digest, content in blobs.items():
        place(content, layout.path(digest))
    index = Index(schema_version=2, media_type=INDEX, manifests=tuple(manifests))
    (folder / "index.json").write_bytes(encode(index))
    (folder / "oci-layout").write_bytes(VERSION_FILE)
    return layout


def place(content: Content, dest: Path) -> None:
    """Put bytes, or a file's, at `dest`: by a hard link where the file system allows it.

    Both names are in folders that only tf2aif writes, by renaming; an edit by hand shows in both.
    """
    if dest.exists():
        return
    if isinstance(content, bytes):
        dest.write_bytes(content)
        return
    try:
        os.link(content, dest)
    except OSError:
        shutil.copyfile(content, dest)


def copy_blob(source: Path, dest: Path, digest: str) -> None:
    """Copy a blob, verified on the way. Raises Tf2aifError where its digest differs, OSError."""
    state = hashlib.sha256()
    with source.open("rb") as reading, dest.open("wb") as writing:
        while data := reading.read(CHUNK):
            state.update(data)
            writing.write(data)
    if f"sha256:{state.hexdigest()}" != digest:
        dest.unlink()
        raise Tf2aifError("a blob is damaged: its digest differs", at=str(source))


def _runs_on(image: Platform, wanted: Platform) -> bool:
    """arm64 needs no variant: v8 is the only one."""
    if (image.os, image.architecture) != (wanted.os, wanted.architecture):
        return False
    return wanted.architecture == "arm64" or image.variant == wanted.variant
