"""Base images, as targets name them: `debian`, `oci:FOLDER`, `registry:NAME@DIGEST`,
`dockerfile:FILE`. Each becomes a layout with one image, and a record of what is in it.
"""

from __future__ import annotations

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
from .inventory import Inventory, take_inventory
from .layers import BLOB, Component, Layer
from .layout import Layout, StoredImage, copy_blob, write_layout
from .reference import Reference

FACTS = "base.json"
_PYTHON = re.compile(r"(?:usr/|usr/local/|opt/[^/]+/)?bin/python(3\.\d+)")


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


class PythonSource(Struct, frozen=True, kw_only=True):
    """What a base without Python is given one from."""

    lock: DebianLock
    cache: Path
    scratch: Path
    epoch: int = 0


def adopt(
    name: str,
    layout: Layout,
    image: StoredImage,
    python: str,
    out: Path,
    source: PythonSource | None = None,
) -> Base:
    """Take an image of any layout as a base: its blobs are copied, verified, and looked into.

    Where it has no such Python, a layer brings it from `source`. Raises StepFailed where that
    cannot be, or the image is damaged.
    """
    write_layout(out, [image.descriptor], {})
    own = Layout(out)
    for digest in image.digests:
        copy_blob(layout.path(digest), own.path(digest), digest)
    inventory = take_inventory(own, image.manifest.layers)
    path, components = find_python(inventory.names, python), inventory.components
    names = inventory.names
    if path is None:
        layer = _bring_python(name, own, image, inventory, python, source)
        path, components = f"/usr/bin/python{python}", (*components, *layer.components)
        names |= {"usr/bin/tini"}
    return _write(
        out,
        Base(
            name=name,
            digest=image.descriptor.digest,
            python=path,
            init=("/usr/bin/tini", "--") if "usr/bin/tini" in names else (),
            components=components,
        ),
    )


def _bring_python(
    name: str,
    own: Layout,
    image: StoredImage,
    below: Inventory,
    python: str,
    source: PythonSource | None,
) -> Layer:
    """Put a layer with Debian's Python on the image, in its layout. Raises StepFailed."""
    there = sorted(m[1] for path in below.names if (m := _PYTHON.fullmatch(path)))
    lacking = f"the base has no Python {python}; it has {', '.join(there) or 'none'}"
    hint = "set 'python:' in the target, or use another base"
    if source is None or python != debian.PYTHON:
        raise StepFailed(lacking, at=name, hint=hint)
    if below.glibc < debian.GLIBC:
        needed, found = (".".join(map(str, v)) for v in (debian.GLIBC, below.glibc))
        raise StepFailed(
            f"{lacking}, and Debian's cannot be brought: it needs glibc {needed}, the base has "
            f"{found or 'none that its list of packages names'}",
            at=name,
            hint="use a base of a later release, or a Dockerfile that installs Python on this one",
        )
    work = source.scratch / "python"
    work.mkdir()
    layer = debian.build_python_layer(
        source.lock, below, work, source.scratch, source.cache, epoch=source.epoch
    )
    rootfs = image.config["rootfs"]
    step = {"created": timestamp(source.epoch), "created_by": layer.created_by}
    config = {
        **image.config,
        "rootfs": {**rootfs, "diff_ids": [*rootfs["diff_ids"], layer.diff_id]},
        "history": [*image.config.get("history", ()), step],
    }
    kept = [(each, own.path(each.digest)) for each in image.manifest.layers]
    write_image(own.folder, image.platform, config, [*kept, (layer.descriptor, work / BLOB)])
    for digest in (image.descriptor.digest, image.manifest.config.digest):
        own.path(digest).unlink()  # of what it was without
    return layer


def write_pulled(
    name: str,
    platform: Platform,
    python: str,
    out: Path,
    scratch: Path,
    source: PythonSource | None = None,
) -> Base:
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
    return adopt(f"registry:{name}", layout, layout.image(), python, out, source)


def write_built(
    archive: IO[bytes],
    name: str,
    platform: Platform,
    python: str,
    out: Path,
    scratch: Path,
    source: PythonSource | None = None,
) -> Base:
    """Take what `docker save` wrote of an image that the engine built. Raises StepFailed."""
    folder = scratch / "saved"
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        # Python before 3.11.4 has no filters; the archive is of the user's own engine.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(folder)
    layout = _from_saved(folder, scratch / "layout")
    return adopt(name, layout, layout.image(platform), python, out, source)


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


def find_python(names: Iterable[str], python: str) -> str | None:
    """Where a container with these files has that Python; None where it has not.

    >>> find_python({"usr/local/bin/python3.11", "usr/bin/python3"}, "3.11")
    '/usr/local/bin/python3.11'
    """
    found = {m[1]: f"/{name}" for name in sorted(names) if (m := _PYTHON.fullmatch(name))}
    return found.get(python)


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
