"""What users do with the images of built variants: save, load, push, run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import Tf2aifError
from ..record import VariantRecord, read_record
from ..spec.target import Container
from .archive import save
from .documents import Descriptor, Platform
from .engine import Engine, Needs, Running
from .layout import Layout, StoredImage
from .record import ImageRecord
from .reference import Reference
from .registry import Registry
from .transfers import Pushed, Report, push, push_index
from .variant_image import attached_to


class Loadable(Struct, frozen=True, kw_only=True):
    """One image of a layout, and the name that it gets in an engine."""

    layout: Layout
    platform: Platform
    name: str
    tag: str


class BuiltImage(Struct, frozen=True, kw_only=True):
    """The image of a variant as it lies in `build/`."""

    folder: Path
    variant: VariantRecord
    record: ImageRecord

    @property
    def layout(self) -> Layout:
        """Its layout."""
        return Layout(self.folder / "image")

    def stored(self) -> StoredImage:
        """The image in it. Raises Tf2aifError where it is damaged or missing."""
        return self.layout.image(Platform.parse(self.record.platform))

    @property
    def loadable(self) -> Loadable:
        """It, as engines load it."""
        platform = Platform.parse(self.record.platform)
        name, tag = self.record.name, self.record.tag
        return Loadable(layout=self.layout, platform=platform, name=name, tag=tag)

    @property
    def shared_by(self) -> tuple[str, str, str]:
        """Variants of a recipe with the same are one image for several platforms."""
        engine = self.variant.engine
        return (
            self.variant.recipe,
            f"{engine['name']}-{self.variant.precision}",
            str(engine.get("options")),
        )


class PushedImage(Struct, frozen=True, kw_only=True):
    """One image, or an index of several, as it stands in a registry now."""

    name: str
    digest: str
    platforms: tuple[str, ...]
    result: Pushed | None = None  # of an image: what was sent


def find_image(build: Path, variant: str) -> BuiltImage:
    """The image of a variant, by its id `recipe/variant`.

    Raises Tf2aifError where there is none.
    """
    folder = build / variant
    record = read_record(folder)
    if record is None or record.image is None:
        raise _no_image(variant, folder, record)
    return BuiltImage(folder=folder, variant=record, record=record.image)


def _no_image(variant: str, folder: Path, record: VariantRecord | None) -> Tf2aifError:
    """An image holds what runs on the device: what only an emulation ran is not put into one."""
    if record and record.state in ("emulated", "bundled"):
        return Tf2aifError(
            f"there is no image of {variant}: it is {record.state}, and what an image holds, the "
            "artifact for its device, is not made yet",
            at=str(folder),
            hint="run its bundle where the device's tools are and 'tf2aif import-bundle' what it "
            "made; to try an emulated variant: 'tf2aif serve'",
        )
    state = f" ({record.state})" if record else ""
    return Tf2aifError(
        f"there is no image of {variant}{state}",
        at=str(folder),
        hint="tf2aif build --images makes it; 'tf2aif list' shows what there is",
    )


def save_image(one: Loadable, dest: Path) -> StoredImage:
    """Write an archive that `docker load` takes. Raises Tf2aifError, OSError."""
    return save(one.layout, dest, one.name, one.tag, platform=one.platform)


def load_image(one: Loadable, address: str = "") -> str:
    """Load it into a Docker engine under its name; its id there."""
    with Engine(address) as engine:
        return engine.load(one.layout, one.layout.image(one.platform), one.name, one.tag)


def run_image(
    image: BuiltImage,
    container: Container,
    *,
    address: str = "",
    port: int = 0,
    network: str = "",
    timeout_s: float = 120.0,
) -> Running:
    """Start a container of it with what its target needs; it is loaded first where need be."""
    stored = image.stored()
    name = f"{image.record.name}:{image.record.tag}"
    needs = Needs(
        devices=tuple(container.devices),
        gpus=container.gpus,
        groups=tuple(container.groups),
        memory_mb=container.memory_mb,
        cpus=container.cpus,
        environment=container.environment,
    )
    with Engine(address) as engine:
        if image.record.builder != "docker" and not engine.has(name, stored):
            engine.load(image.layout, stored, image.record.name, image.record.tag)
        return engine.run(name, needs, port=port, network=network, timeout_s=timeout_s)


def push_images(
    images: Sequence[BuiltImage],
    registry: str,
    *,
    plain_http: bool | None = None,
    report: Report | None = None,
    open_registry: Callable[..., Registry] = Registry,
) -> tuple[PushedImage, ...]:
    """Push variants as `registry/recipe:variant`, and an index for those that differ only in
    platform as `registry/recipe:engine-precision`.

    Layers that an earlier recipe of this call has brought are mounted. Raises Tf2aifError.
    """
    done: list[PushedImage] = []
    brought: list[str] = []
    for recipe in dict.fromkeys(image.variant.recipe for image in images):
        own = [image for image in images if image.variant.recipe == recipe]
        reference = Reference.parse(f"{registry.rstrip('/')}/{recipe}")
        session = open_registry(reference, plain_http=plain_http)
        try:
            done += _push_recipe(session, own, brought, report)
        finally:
            session.close()
        brought.append(reference.repository)
    return tuple(done)


def _push_recipe(
    registry: Registry,
    images: Sequence[BuiltImage],
    brought: Sequence[str],
    report: Report | None,
) -> Iterable[PushedImage]:
    groups: dict[tuple[str, str, str], list[tuple[BuiltImage, Descriptor]]] = {}
    for image in images:
        stored = image.stored()
        result = push(
            registry,
            image.layout,
            stored.descriptor,
            tags=(image.record.tag,),
            mount_from=brought,
            attached=attached_to(image.layout, stored.descriptor),
            report=report,
        )
        member = Descriptor(
            media_type=stored.descriptor.media_type,
            digest=stored.descriptor.digest,
            size=stored.descriptor.size,
            platform=stored.platform,
        )
        groups.setdefault(image.shared_by, []).append((image, member))
        yield PushedImage(
            name=str(registry.reference.at(image.record.tag)),
            digest=result.digest,
            platforms=(image.record.platform,),
            result=result,
        )
    for (_, tag, _), members in groups.items():
        platforms = tuple(sorted(image.record.platform for image, _ in members))
        if len(set(platforms)) == len(platforms) > 1:
            ordered = sorted((member for _, member in members), key=lambda m: str(m.platform))
            digest = push_index(registry, ordered, tag, {})
            name = str(registry.reference.at(tag))
            yield PushedImage(name=name, digest=digest, platforms=platforms)
