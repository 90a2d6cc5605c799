"""One image in one tar that every engine loads: an OCI layout and Docker's `manifest.json`.

Docker 20 reads `manifest.json` only; Docker 25 and later and podman read either. Uncompressed, so
that nothing but headers is added to the blobs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import Tf2aifError
from .documents import CHUNK, CONTAINERD_NAME, INDEX, REF_NAME, Descriptor, Index, Platform, encode
from .layout import VERSION_FILE, Layout, StoredImage


def save(
    layout: Layout,
    dest: Path,
    name: str,
    tag: str,
    *,
    platform: Platform | None = None,
    epoch: int = 0,
) -> StoredImage:
    """Write the layout's only image (of that platform) as an archive that loads as `name:tag`.

    `dest` appears whole or not at all. Raises Tf2aifError where a blob is missing, OSError.
    """
    image = layout.image(platform)
    partial = dest.with_name(f".{dest.name}.partial")
    try:
        with partial.open("wb") as file:
            write_archive(layout, image, file, name, tag, epoch=epoch)
        partial.replace(dest)
    finally:
        partial.unlink(missing_ok=True)
    return image


def write_archive(
    layout: Layout, image: StoredImage, file: IO[bytes], name: str, tag: str, *, epoch: int = 0
) -> None:
    """Write the archive to a stream, which need not be seekable."""
    index = encode(Index(schema_version=2, media_type=INDEX, manifests=(_named(image, name, tag),)))
    documents = {
        "index.json": index,
        "manifest.json": encode([_docker_entry(image, name, tag)]),
        "oci-layout": VERSION_FILE,
    }
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.copybufsize = CHUNK  # type: ignore[attr-defined]
        for folder in ("blobs", "blobs/sha256"):
            info = _info(folder, 0, epoch)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for digest in sorted(image.digests):
            path = layout.path(digest)
            with _opened(path) as blob:
                tar.addfile(_info(_blob_path(digest), path.stat().st_size, epoch), blob)
        for path_, data in documents.items():
            tar.addfile(_info(path_, len(data), epoch), io.BytesIO(data))


def _named(image: StoredImage, name: str, tag: str) -> Descriptor:
    full = name if "." in name.partition("/")[0] else f"docker.io/library/{name}"
    return Descriptor(
        media_type=image.descriptor.media_type,
        digest=image.descriptor.digest,
        size=image.descriptor.size,
        platform=image.descriptor.platform,
        annotations={REF_NAME: tag, CONTAINERD_NAME: f"{full}:{tag}"},
    )


def _docker_entry(image: StoredImage, name: str, tag: str) -> dict[str, Any]:
    return {
        "Config": _blob_path(image.manifest.config.digest),
        "Layers": [_blob_path(layer.digest) for layer in image.manifest.layers],
        "RepoTags": [f"{name}:{tag}"],
    }


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _info(path: str, size: int, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size, 0o644, epoch
    return info


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise Tf2aifError("a blob is missing", at=str(path)) from error
    with file:
        yield file
