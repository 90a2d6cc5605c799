"""Whole images to and from a registry: what is there already is not sent again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..errors import Tf2aifError
from .documents import (
    INDEX,
    INDEXES,
    MANIFESTS,
    Descriptor,
    Index,
    Manifest,
    Platform,
    encode,
)
from .image import join, referrers_tag
from .layout import Layout, write_layout
from .registry import Registry

Report = Callable[[str, str, int], None]
"""Told of each blob: what happened (`sent`, `there`, `mounted`), its digest, its size in bytes."""


class Pushed(Struct, frozen=True, kw_only=True):
    """What a push did."""

    digest: str
    sent: int = 0  # blobs
    there: int = 0
    mounted: int = 0
    sent_bytes: int = 0


def push(
    registry: Registry,
    layout: Layout,
    image: Descriptor,
    *,
    tags: Sequence[str] = (),
    mount_from: Sequence[str] = (),
    attached: Iterable[Descriptor] = (),
    report: Report | None = None,
) -> Pushed:
    """Push an image of a layout, and the artifacts attached to it, under these tags.

    A blob that the repository has is skipped; one that a repository of `mount_from` has is
    mounted. The manifest goes last: whoever reads the registry meanwhile sees the old image or
    the new one. Raises Tf2aifError, and pushing again goes on where it ended.
    """
    counts = {"sent": 0, "there": 0, "mounted": 0}
    sent_bytes = 0

    def count(what: str, digest: str, size: int) -> None:
        nonlocal sent_bytes
        counts[what] += 1
        sent_bytes += size if what == "sent" else 0
        if report:
            report(what, digest, size)

    _push_manifest(registry, layout, image, tags, mount_from, count)
    artifacts = list(attached)
    for artifact in artifacts:
        _push_manifest(registry, layout, artifact, (), (), count)
    if artifacts:
        _list_referrers(registry, image.digest, artifacts)
    return Pushed(digest=image.digest, sent_bytes=sent_bytes, **counts)


def push_index(
    registry: Registry, members: Sequence[Descriptor], tag: str, annotations: dict[str, str]
) -> str:
    """Store an index of images that the repository has; the digest of the index."""
    index = join(members, annotations)
    data = index.blobs[index.descriptor.digest]
    assert isinstance(data, bytes)  # noqa: S101 -- `join` made it
    if registry.head_manifest(tag) != index.descriptor.digest:
        registry.push_manifest(data, INDEX, tag)
    return index.descriptor.digest


def pull(registry: Registry, folder: Path, platform: Platform | None = None) -> Layout:
    """Fetch an image into a layout; of an index, the image for that platform.

    Raises Tf2aifError where it is not there, or bytes are not what their digest says.
    """
    descriptor, data = registry.pull_manifest()
    if descriptor.media_type in INDEXES:
        descriptor, data = _choose(registry, data, platform)
    if descriptor.media_type not in MANIFESTS:
        raise Tf2aifError(
            f"cannot pull a manifest of type {descriptor.media_type!r}", at=str(registry.reference)
        )
    manifest = msgspec.json.decode(data, type=Manifest)
    layout = write_layout(folder, [descriptor], {descriptor.digest: data})
    for blob in {b.digest: b for b in (manifest.config, *manifest.layers)}.values():
        registry.pull_blob(blob, layout.path(blob.digest))
    return layout


def _choose(registry: Registry, data: bytes, platform: Platform | None) -> tuple[Descriptor, bytes]:
    index = msgspec.json.decode(data, type=Index)
    for member in index.manifests:
        found = member.platform
        if (
            found
            and platform
            and (found.os, found.architecture)
            == (
                platform.os,
                platform.architecture,
            )
        ):
            return registry.pull_manifest(member.digest)
    there = ", ".join(str(m.platform) for m in index.manifests if m.platform)
    raise Tf2aifError(
        f"no image for {platform}", at=str(registry.reference), hint=f"there is: {there}"
    )


def _push_manifest(
    registry: Registry,
    layout: Layout,
    descriptor: Descriptor,
    tags: Sequence[str],
    mount_from: Sequence[str],
    report: Report,
) -> None:
    data = layout.read(descriptor.digest)
    manifest = msgspec.json.decode(data, type=Manifest)
    for blob in {b.digest: b for b in (*manifest.layers, manifest.config)}.values():
        report(_push_blob(registry, layout, blob, mount_from), blob.digest, blob.size)
    for target in tags or (descriptor.digest,):
        if registry.head_manifest(target) != descriptor.digest:
            registry.push_manifest(data, descriptor.media_type, target)


def _push_blob(
    registry: Registry, layout: Layout, blob: Descriptor, mount_from: Sequence[str]
) -> str:
    if registry.has_blob(blob.digest):
        return "there"
    for source in mount_from:
        if source != registry.reference.repository and registry.mount_blob(blob.digest, source):
            return "mounted"
    registry.push_blob(layout.path(blob.digest), blob.digest)
    return "sent"


def _list_referrers(registry: Registry, digest: str, artifacts: Sequence[Descriptor]) -> None:
    """Name the artifacts in the index at the fall-back tag, beside what others attached."""
    tag = referrers_tag(digest)
    members: dict[str, Descriptor] = {}
    if registry.head_manifest(tag) is not None:
        _, data = registry.pull_manifest(tag)
        members = {m.digest: m for m in msgspec.json.decode(data, type=Index).manifests}
    wanted = {**members, **{a.digest: a for a in artifacts}}
    if wanted != members:
        ordered = tuple(wanted[name] for name in sorted(wanted))
        index = Index(schema_version=2, media_type=INDEX, manifests=ordered)
        registry.push_manifest(encode(index), INDEX, tag)
