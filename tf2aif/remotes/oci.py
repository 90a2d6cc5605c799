"""A remote in an OCI registry, in a repository of its own: the registry that images go to.

An action is one artifact: a manifest under the tag `ac-<name>`, whose layers are the larger
outputs, so that the registry's own garbage collection keeps them while the action is there. Its
bundle (records and small outputs) travels as an annotation of the manifest, so that one request
reads or writes a whole small action; a long one is a layer.

Credentials are those of Docker's configuration, as for images. Source: OCI image and distribution
specifications 1.1 ("Guidelines for Artifact Usage").
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import msgspec

from ..errors import Tf2aifError
from ..oci.documents import EMPTY, MANIFEST, Descriptor, Manifest, describe, encode, sha256
from ..oci.reference import Reference
from ..oci.registry import Registry
from .remote import MAX_BUNDLE, Blob, Entry, RemoteFailed, is_name

ARTIFACT = "application/vnd.tf2aif.action.v1+json"
CONTENT = "application/octet-stream"
BUNDLE = "dev.tf2aif.bundle"
CREATED = "org.opencontainers.image.created"
_TAG = "ac-"
_ANNOTATION = 256 << 10  # bytes: registries take manifests of 4 MiB, some of less
_EMPTY = b"{}"


class OciRemote:
    """One repository of a registry."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Raises Tf2aifError for what is no repository."""
        self.url = url.rstrip("/")
        self._reference = Reference.parse(self.url.removeprefix("oci://"))
        if self._reference.tag or self._reference.digest:
            raise Tf2aifError("a shared cache is a repository, without a tag", at=url)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._prepared = False

    @cached_property
    def _registry(self) -> Registry:
        return Registry(
            self._reference,
            sleep=lambda _: None,
            tries=2,  # a connection that was kept may be closed as we use it again
            timeouts_s=(self._timeout_s, self._timeout_s),
            actions="pull,push,delete",
        )

    def get_action(self, name: str) -> bytes | None:
        """The bundle of an artifact."""
        with self._speaking("read"):
            found = self._registry.find_manifest(_TAG + name)
        if found is None:
            return None
        manifest = self._manifest(found[1])
        if BUNDLE in manifest.annotations:
            return manifest.annotations[BUNDLE].encode()
        layer = next((one for one in manifest.layers if one.media_type == ARTIFACT), None)
        return self._read(layer) if layer else b""

    def _read(self, layer: Descriptor) -> bytes:
        parts, size = [], 0
        with self.get_blob(Blob(layer.digest.removeprefix("sha256:"), layer.size), 0) as pieces:
            for piece in pieces:
                parts.append(piece)
                size += len(piece)
                if size > MAX_BUNDLE:
                    break
        return b"".join(parts)

    def put_action(self, name: str, data: bytes, blobs: Sequence[Blob]) -> None:
        """Write an artifact; its blobs must be there."""
        with self._speaking("write"):
            self._prepare()
            layers = [_layer(blob) for blob in blobs]
            annotations = {CREATED: datetime.now(UTC).isoformat(timespec="seconds")}
            if len(data) <= _ANNOTATION:
                annotations[BUNDLE] = data.decode()
            else:
                layers.insert(0, describe(data, ARTIFACT))
                self._push_bytes(data)
            manifest = Manifest(
                schema_version=2,
                media_type=MANIFEST,
                artifact_type=ARTIFACT,
                config=describe(_EMPTY, EMPTY),
                layers=tuple(layers) or (describe(_EMPTY, EMPTY),),
                annotations=annotations,
            )
            self._registry.push_manifest(encode(manifest), MANIFEST, _TAG + name)

    def _prepare(self) -> None:
        """The empty blob, which each manifest names, once."""
        with self._lock:
            if not self._prepared:
                if not self._registry.has_blob(sha256(_EMPTY)):
                    self._push_bytes(_EMPTY)
                self._prepared = True

    def _push_bytes(self, data: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            self._registry.push_blob(Path(file.name), sha256(data))

    @contextmanager
    def get_blob(self, blob: Blob, start: int) -> Iterator[Iterator[bytes]]:
        """The bytes from `start` on."""
        with self._speaking("read"), self._registry.open_blob(_digest(blob), start) as pieces:
            if pieces is None:
                raise RemoteFailed("a blob is gone", at=self.url, absent=True)
            yield pieces

    def has_blob(self, blob: Blob) -> bool:
        """Whether the repository has it."""
        with self._speaking("read"):
            return self._registry.has_blob(_digest(blob))

    def put_blob(self, blob: Blob, source: Path) -> None:
        """Upload one; a registry keeps it when an artifact names it."""
        with self._speaking("write"):
            self._registry.push_blob(source, _digest(blob))

    def entries(self) -> Iterator[Entry]:
        """The artifacts, each with the sizes of its layers; the registry itself removes blobs."""
        with self._speaking("list"):
            for tag in self._registry.tags():
                name = tag.removeprefix(_TAG)
                found = self._registry.find_manifest(tag) if is_name(name) else None
                if found is not None:
                    manifest = self._manifest(found[1])
                    size = found[0].size + sum(layer.size for layer in manifest.layers)
                    yield Entry("ac", name, size, _created(manifest))

    def delete(self, entry: Entry) -> None:
        """Remove an artifact. Its blobs go when the registry collects its garbage."""
        with self._speaking("delete"):
            digest = self._registry.head_manifest(_TAG + entry.name)
            if digest:
                self._registry.delete_manifest(digest)

    def close(self) -> None:
        """Close the connections."""
        if "_registry" in self.__dict__:
            self._registry.close()

    def _manifest(self, data: bytes) -> Manifest:
        try:
            return msgspec.json.decode(data, type=Manifest)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RemoteFailed("the registry sent no manifest", at=self.url) from error

    @contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        """What the registry's client raises, as the failure of a remote."""
        try:
            yield
        except RemoteFailed:
            raise
        except Tf2aifError as error:
            fault = error.faults[0]
            reached = "answered" in fault.message
            raise RemoteFailed(
                fault.message, at=self.url, hint=fault.hint, refused=what != "read" and reached
            ) from error
        except OSError as error:  # `requests` raises its own
            raise RemoteFailed(f"cannot {what}: {error}", at=self.url) from error


def _digest(blob: Blob) -> str:
    return f"sha256:{blob.sha256}"


def _layer(blob: Blob) -> Descriptor:
    return Descriptor(media_type=CONTENT, digest=_digest(blob), size=blob.size)


def _created(manifest: Manifest) -> float:
    with suppress(ValueError, KeyError):
        return datetime.fromisoformat(manifest.annotations[CREATED]).timestamp()
    return time.time()
