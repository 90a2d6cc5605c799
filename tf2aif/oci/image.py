"""A base and layers to an image: its configuration and its manifest, as bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import StepFailed
from .documents import (
    CONFIG,
    CONTAINERD_NAME,
    EMPTY,
    INDEX,
    LAYER,
    LAYER_GZIP,
    MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    Platform,
    describe,
    encode,
)
from .layers import BLOB, Layer, read_layer
from .layout import Content, Layout, StoredImage

_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
}

PORT = 8080  # that the server of a variant listens at in its container


class Healthcheck(Struct, frozen=True, kw_only=True):
    """How an engine tells that a container is healthy; times in seconds."""

    test: tuple[str, ...]
    interval_s: float = 5.0
    timeout_s: float = 5.0
    start_period_s: float = 30.0
    retries: int = 3

    def document(self) -> dict[str, Any]:
        """As Docker writes it in an image's configuration: times in nanoseconds."""
        return {
            "Test": list(self.test),
            "Interval": int(self.interval_s * 1e9),
            "Timeout": int(self.timeout_s * 1e9),
            "StartPeriod": int(self.start_period_s * 1e9),
            "Retries": self.retries,
        }


class Settings(Struct, frozen=True, kw_only=True):
    """How a container of the image starts; added to what the base says."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...] = ()
    user: str = "65532:65532"
    environment: dict[str, str] = {}
    folder: str = "/"
    ports: tuple[str, ...] = ()  # such as 8080/tcp
    healthcheck: Healthcheck | None = None


class Image(Struct, frozen=True, kw_only=True):
    """A finished image: what names it, and every blob by its digest."""

    descriptor: Descriptor
    blobs: dict[str, Content]

    def named(self, name: str, tag: str) -> Descriptor:
        """The descriptor as a layout lists it, under that name and tag."""
        full = name if "." in name.partition("/")[0] else f"docker.io/library/{name}"
        names = {REF_NAME: tag, CONTAINERD_NAME: f"{full}:{tag}"}
        return Descriptor(
            media_type=self.descriptor.media_type,
            digest=self.descriptor.digest,
            size=self.descriptor.size,
            platform=self.descriptor.platform,
            annotations=names,
        )


def compose(
    platform: Platform,
    layers: Sequence[Path],
    settings: Settings,
    *,
    base: tuple[Layout, StoredImage] | None = None,
    annotations: Mapping[str, str] | None = None,
    epoch: int = 0,
) -> Image:
    """An image: the base's layers, then these (folders that `write_layer` filled).

    Raises StepFailed where a layer is not there or the base is for another platform.
    """
    found = [(read_layer(folder), folder / BLOB) for folder in layers]
    config = _config(platform, [layer for layer, _ in found], settings, base, epoch)
    config["config"]["Labels"] = dict(annotations or {})
    below = base[1].manifest.layers if base else ()
    blobs: dict[str, Content] = {layer.descriptor.digest: blob for layer, blob in found}
    if base:
        blobs |= {one.digest: base[0].path(one.digest) for one in below}
    data = encode(config)
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST,
        config=describe(data, CONFIG),
        layers=(*map(_as_oci, below), *(layer.descriptor for layer, _ in found)),
        annotations=dict(annotations or {}),
    )
    document = encode(manifest)
    descriptor = describe(document, MANIFEST, platform=platform)
    blobs |= {manifest.config.digest: data, descriptor.digest: document}
    return Image(descriptor=descriptor, blobs=blobs)


def attach(
    subject: Descriptor, artifact_type: str, content: bytes, annotations: Mapping[str, str]
) -> Image:
    """An artifact of one file that says something of `subject`: an SBOM, a provenance."""
    empty = b"{}"
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST,
        artifact_type=artifact_type,
        config=describe(empty, EMPTY),
        layers=(describe(content, artifact_type),),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations=dict(annotations),
    )
    document = encode(manifest)
    descriptor = describe(
        document, MANIFEST, artifact_type=artifact_type, annotations=dict(annotations)
    )
    blobs: dict[str, Content] = {
        descriptor.digest: document,
        manifest.config.digest: empty,
        manifest.layers[0].digest: content,
    }
    return Image(descriptor=descriptor, blobs=blobs)


def join(members: Sequence[Descriptor], annotations: Mapping[str, str] | None = None) -> Image:
    """An index of these manifests, in this order."""
    index = Index(
        schema_version=2,
        media_type=INDEX,
        manifests=tuple(members),
        annotations=dict(annotations or {}),
    )
    document = encode(index)
    descriptor = describe(document, INDEX)
    return Image(descriptor=descriptor, blobs={descriptor.digest: document})


def referrers_tag(digest: str) -> str:
    """The tag under which a registry without the referrers API lists what is attached to a digest.

    Source: distribution specification 1.1, "Referrers Tag Schema".

    >>> referrers_tag("sha256:abc")
    'sha256-abc'
    """
    return digest.replace(":", "-")


def timestamp(epoch: int) -> str:
    """Seconds since 1970 as RFC 3339.

    >>> timestamp(0)
    '1970-01-01T00:00:00Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))


def _config(
    platform: Platform,
    layers: Sequence[Layer],
    settings: Settings,
    base: tuple[Layout, StoredImage] | None,
    epoch: int,
) -> dict[str, Any]:
    below = _checked(base[1], platform) if base else {}
    created = timestamp(epoch)
    history = [{"created": created, "created_by": layer.created_by} for layer in layers]
    diff_ids = [layer.diff_id for layer in layers]
    config: dict[str, Any] = {
        "created": created,
        "os": platform.os,
        "architecture": platform.architecture,
        "config": _run_config(below.get("config") or {}, settings),
        "rootfs": {
            "type": "layers",
            "diff_ids": [*below.get("rootfs", {}).get("diff_ids", ()), *diff_ids],
        },
        "history": [*below.get("history", ()), *history],
    }
    if platform.variant:
        config["variant"] = platform.variant
    return config


def _run_config(below: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    variables = dict(text.partition("=")[::2] for text in below.get("Env") or ())
    variables |= settings.environment
    config: dict[str, Any] = {
        "User": settings.user,
        "WorkingDir": settings.folder,
        "Entrypoint": list(settings.entrypoint),
        "Cmd": list(settings.command),
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "ExposedPorts": {port: {} for port in settings.ports},
        "StopSignal": "SIGTERM",
    }
    if settings.healthcheck:
        config["Healthcheck"] = settings.healthcheck.document()
    return config


def _checked(base: StoredImage, platform: Platform) -> dict[str, Any]:
    diff_ids = base.config.get("rootfs", {}).get("diff_ids", ())
    if len(diff_ids) != len(base.manifest.layers):
        raise StepFailed("the base's configuration does not name each of its layers")
    if (base.platform.os, base.platform.architecture) != (platform.os, platform.architecture):
        raise StepFailed(f"the base is for {base.platform}, the target for {platform}")
    return base.config


def _as_oci(descriptor: Descriptor) -> Descriptor:
    """The layer of a base as OCI names its type: the bytes are the same."""
    return Descriptor(
        media_type=_TYPES.get(descriptor.media_type, descriptor.media_type),
        digest=descriptor.digest,
        size=descriptor.size,
    )
