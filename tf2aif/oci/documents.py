"""The JSON documents of an image: descriptors, manifests and indexes, as frozen values.

Source: the OCI image specification 1.1, and its distribution specification 1.1.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = frozenset({INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

CHUNK = 1 << 20

_encoder = msgspec.json.Encoder(order="sorted")


class Platform(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An operating system and an architecture."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """From the form `linux/arm/v7`."""
        os, _, rest = text.partition("/")
        architecture, _, variant = rest.partition("/")
        return cls(os=os, architecture=architecture, variant=variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What names a blob: its type, SHA-256 and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str = ""


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An image, or an artifact that is attached to one (`subject`)."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class Index(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A list of manifests: one image for several platforms, or all that a layout holds."""

    manifests: tuple[Descriptor, ...]
    schema_version: int
    media_type: str = ""
    annotations: dict[str, str] = {}


class Blobs(Protocol):
    """Where bytes are found by their digest."""

    def read(self, digest: str) -> bytes:
        """The bytes of a small blob. Raises Tf2aifError where it is not there or is damaged."""


def encode(document: Any) -> bytes:
    """A document as the bytes that are digested and sent: keys sorted, no spaces.

    >>> encode(Platform(os="linux", architecture="arm64"))
    b'{"architecture":"arm64","os":"linux"}'
    """
    return _encoder.encode(document)


def sha256(data: bytes) -> str:
    """The digest of bytes as OCI writes it.

    >>> sha256(b"")[:19]
    'sha256:e3b0c44298fc'
    """
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The digest of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def describe(data: bytes, media_type: str, **more: Any) -> Descriptor:
    """The descriptor of these bytes."""
    return Descriptor(media_type=media_type, digest=sha256(data), size=len(data), **more)


def is_digest(text: str) -> bool:
    """Whether it is a SHA-256 digest as OCI writes it.

    >>> is_digest("sha256:" + "0" * 64), is_digest("sha256:" + "G" * 64)
    (True, False)
    """
    name, _, value = text.partition(":")
    return name == "sha256" and len(value) == 64 and not set(value) - set("0123456789abcdef")
