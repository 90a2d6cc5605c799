"""Base images, as targets name them: `debian`, `oci:FOLDER`, `registry:NAME@DIGEST`,
`dockerfile:FILE`. Each becomes a layout with one image, and a record of what is in it.
"""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from ..errors import StepFailed
from . import debian
from .apt import DebianLock
from .documents import CONFIG, LAYER, MANIFEST, Descriptor, Manifest, Platform, describe, encode
from .image import timestamp
from .layers import BLOB, Component, Layer
from .layout import Layout, StoredImage, copy_blob, write_layout
from .reference import Reference

FACTS = "base.json"
_PYTHON = re.compile(r"(?:usr/|usr/local/|opt/[^/]+/)?bin/python(3\.\d+)")
_WHITEOUT = ".wh."


class Base(Struct, frozen=True, kw_only=True):
    """What is known of a base: `base.json` beside its layout."""

    name: str  # as the target names it
    digest: str  # of its manifest
    python: str  # the interpreter's path in it
    init: tuple[str, ...] = ()  # what runs as process 1, with its arguments
    components: tuple[Component, ...] = ()


def write_debian(
    lock: DebianLock, out: Path, scratch: Path, cache: Path, *, epoch: int = 0
) -> Base:
    """Make the base of Debian's packages as a layout in `out`. Raises StepFailed."""
    work = scratch / "layer"
    work.mkdir()
    layer = debian.build_layer(lock, work, scratch, cache, epoch=epoch)
    platform = Platform(os="linux", architecture=lock.architecture)
    config = _config(platform, layer, epoch)
    image = write_image(out, platform, config, [(layer.descriptor, work / BLOB)])
    return _write(
        out,
        Base(
            name="debian",
            digest=image.digest,
            python=f"/usr/bin/python{debian.PYTHON}",
            init=("/usr/bin/tini", "--"),
            components=layer.components,
        ),
    )


def adopt(name: str, layout: Layout, image: StoredImage, python: str, out: Path) -> Base:
    """Take an image of any layout as a base: its blobs are copied, verified, and looked into.

    Raises StepFailed where it has no such Python or is damaged.
    """
    write_layout(out, [image.descriptor], {})
    own = Layout(out)
    for digest in image.digests:
        copy_blob(layout.path(digest), own.path(digest), digest)
    names = file_names(own, image.manifest.layers)
    return _write(
        out,
        Base(
            name=name,
            digest=image.descriptor.digest,
            python=_find_python(names, python, name),
            init=("/usr/bin/tini", "--") if "usr/bin/tini" in names else (),
        ),
    )


def write_pulled(name: str, platform: Platform, python: str, out: Path, scratch: Path) -> Base:
    """Pull a base from a registry, by digest. Raises StepFailed where the name has none."""
    from .registry import Registry
    from .transfers import pull

    reference = Reference.parse(name)
    registry = Registry(reference)
    try:
        if not reference.digest:
            found = registry.head_manifest()
            raise StepFailed(
                "a base from a registry is named by digest: a tag can move",
                at=name,
                hint=f"write registry:{reference}@{found}" if found else "it is not there",
            )
        layout = pull(registry, scratch / "pulled", platform)
    finally:
        registry.close()
    return adopt(f"registry:{name}", layout, layout.image(), python, out)


def write_built(
    archive: IO[bytes], name: str, platform: Platform, python: str, out: Path, scratch: Path
) -> Base:
    """Take what `docker save` wrote of an image that the engine built. Raises StepFailed."""
    folder = scratch / "saved"
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        tar.extractall(folder, filter="data")
    layout = _from_saved(folder, scratch / "layout")
    return adopt(name, layout, layout.image(platform), python, out)


def read_base(folder: Path) -> tuple[Base, Layout, StoredImage]:
    """A base that a step left in that folder. Raises StepFailed where there is none."""
    try:
        base = msgspec.json.decode((folder / FACTS).read_bytes(), type=Base)
    except (OSError, msgspec.DecodeError) as error:
        raise StepFailed(f"no base is there: {error}", at=str(folder)) from error
    layout = Layout(folder)
    return base, layout, layout.image()


def write_image(
    out: Path,
    platform: Platform,
    config: dict[str, Any],
    layers: Sequence[tuple[Descriptor, Path]],
) -> Descriptor:
    """Write a layout that holds one image of these layers."""
    data = encode(config)
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST,
        config=describe(data, CONFIG),
        layers=tuple(layer for layer, _ in layers),
    )
    document = encode(manifest)
    descriptor = describe(document, MANIFEST, platform=platform)
    files = {layer.digest: path for layer, path in layers}
    documents = {manifest.config.digest: data, descriptor.digest: document}
    write_layout(out, [descriptor], {**files, **documents})
    return descriptor


def file_names(layout: Layout, layers: Iterable[Descriptor]) -> frozenset[str]:
    """Every path that a container of these layers has, less what upper layers delete.

    Raises StepFailed for a layer that is neither gzip nor uncompressed.
    """
    names: set[str] = set()
    for layer in layers:
        found = _names_in(layout.path(layer.digest))
        for path in found:
            folder, _, last = path.rpartition("/")
            if last.startswith(_WHITEOUT):
                names.discard(f"{folder}/{last.removeprefix(_WHITEOUT)}".lstrip("/"))
        names |= {path for path in found if _WHITEOUT not in path}
    return frozenset(names)


def _names_in(path: Path) -> list[str]:
    try:
        with tarfile.open(path, "r:*") as tar:
            return [member.name.removeprefix("./").strip("/") for member in tar]
    except (OSError, EOFError, tarfile.TarError, gzip.BadGzipFile) as error:
        raise StepFailed(
            f"cannot look into a layer of the base: {error}",
            at=str(path),
            hint="layers are read that are gzip or uncompressed",
        ) from error


def _find_python(names: frozenset[str], python: str, base: str) -> str:
    found = {m[1]: f"/{name}" for name in sorted(names) if (m := _PYTHON.fullmatch(name))}
    if python in found:
        return found[python]
    there = ", ".join(sorted(found)) or "none"
    raise StepFailed(
        f"the base has no Python {python}; it has {there}",
        at=base,
        hint="set 'python:' in the target, or use another base",
    )


def _config(platform: Platform, layer: Layer, epoch: int) -> dict[str, Any]:
    created = timestamp(epoch)
    return {
        "created": created,
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {"Env": [f"{name}={value}" for name, value in debian.ENVIRONMENT.items()]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created": created, "created_by": layer.created_by}],
    }


def _from_saved(folder: Path, out: Path) -> Layout:
    """What Docker 20 to 24 saved as a layout; later ones save a layout themselves."""
    if (folder / "index.json").is_file():
        return Layout(folder)
    try:
        (entry,) = msgspec.json.decode((folder / "manifest.json").read_bytes())
        config = msgspec.json.decode((folder / entry["Config"]).read_bytes(), type=dict[str, Any])
        layers = [folder / name for name in entry["Layers"]]
        diff_ids = config["rootfs"]["diff_ids"]
    except (OSError, KeyError, ValueError, msgspec.DecodeError) as error:
        raise StepFailed(f"the engine saved something else than an image: {error}") from error
    described = [
        (Descriptor(media_type=LAYER, digest=diff_id, size=path.stat().st_size), path.resolve())
        for diff_id, path in zip(diff_ids, layers, strict=True)
    ]
    platform = Platform(os=config["os"], architecture=config["architecture"])
    out.mkdir()
    write_image(out, platform, config, described)
    return Layout(out)


def _write(out: Path, base: Base) -> Base:
    (out / FACTS).write_bytes(msgspec.json.encode(base))
    return base
