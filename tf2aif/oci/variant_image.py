"""The image of a variant: which layers, how it starts, what it says of itself.

base       Debian's packages, or the target's own choice
packages   the engine and the server's Python packages, and the hooks'
app        our own code, and the hooks
model      the artifact and `variant.json`, stored raw
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from .. import __version__
from ..toolchains.variables import is_secret
from .bases import Base, read_base
from .documents import Descriptor, Platform
from .image import PORT, Healthcheck, Image, Settings, attach, compose, join, referrers_tag
from .layers import Component, Layer, read_layer
from .layout import Content, Layout, StoredImage, write_layout
from .provenance import MEDIA_TYPE as PROVENANCE
from .provenance import write_provenance
from .record import ImageRecord, LayerRecord
from .sbom import MEDIA_TYPE as SBOM
from .sbom import write_sbom
from .shipped import FOLDER as APP
from .wheels import FOLDER as PACKAGES

_NAME = "org.opencontainers.image."
_WITHHELD = "(withheld)"


class Parts(Struct, frozen=True, kw_only=True):
    """The folders that the steps of an image left."""

    base: Path
    layers: tuple[Path, ...]  # packages, app, model


class Identity(Struct, frozen=True, kw_only=True):
    """What the image is of."""

    recipe: str
    variant: str
    platform: str
    revision: str  # of what the recipe and the target ask for, as a digest
    description: str = ""
    epoch: int = 0


def write_variant_image(
    parts: Parts, identity: Identity, facts: Mapping[str, Mapping[str, Any]], out: Path
) -> ImageRecord:
    """Compose the server's image as a layout in `out`, its SBOM and provenance attached.

    `facts` is what each step was made from. Raises StepFailed where a part is missing.
    """
    base, layout, stored = read_base(parts.base)
    platform = Platform.parse(identity.platform)
    image = compose(
        platform,
        parts.layers,
        server_settings(base),
        base=(layout, stored),
        annotations=describe_image(identity, base),
        epoch=identity.epoch,
    )
    layers = [read_layer(folder) for folder in parts.layers]
    components = [*base.components, *(c for layer in layers for c in layer.components)]
    attached = attach_documents(image, identity, components, facts)
    listing, blobs = list_attached(image, identity.recipe, attached)
    named = image.named(identity.recipe, identity.variant)
    write_layout(out, [named, listing], {**image.blobs, **blobs})
    return record_image(identity, image, base, stored, layers, attached)


def record_image(
    identity: Identity,
    image: Image,
    base: Base,
    stored: StoredImage,
    layers: Sequence[Layer],
    attached: Sequence[Image],
) -> ImageRecord:
    """What is written down of a composed image; `stored` is its base, `layers` those on it."""
    below = [("base", d.digest, d.size) for d in stored.manifest.layers]
    above = [(x.created_by, x.descriptor.digest, x.descriptor.size) for x in layers]
    records = [LayerRecord(created_by=c, digest=d, size_bytes=s) for c, d, s in (*below, *above)]
    sbom, provenance = (one.descriptor.digest for one in attached)
    return ImageRecord(
        name=identity.recipe,
        tag=identity.variant,
        digest=image.descriptor.digest,
        platform=identity.platform,
        size_bytes=sum(record.size_bytes for record in records),
        base=base.name,
        base_digest=base.digest,
        layers=tuple(records),
        sbom=sbom,
        provenance=provenance,
    )


def list_attached(
    image: Image, name: str, attached: Sequence[Image]
) -> tuple[Descriptor, dict[str, Content]]:
    """The index of what is attached to an image, at the referrers' fall-back tag of a layout, and
    all its blobs.
    """
    listing = join([one.descriptor for one in attached])
    blobs = dict(listing.blobs)
    for one in attached:
        blobs |= one.blobs
    return listing.named(name, referrers_tag(image.descriptor.digest)), blobs


def attach_documents(
    image: Image,
    identity: Identity,
    components: Sequence[Component],
    facts: Mapping[str, Mapping[str, Any]],
) -> list[Image]:
    """The bill of materials and the provenance of an image. `facts` is what each step was made
    from; values that are secret by their names are withheld.
    """
    name = f"{identity.recipe}/{identity.variant}"
    digest = image.descriptor.digest
    sbom = write_sbom(identity.recipe, identity.variant, digest, components, epoch=identity.epoch)
    asked = {"recipe": identity.recipe, "variant": identity.variant, "platform": identity.platform}
    safe = {step: withhold(found) for step, found in facts.items()}
    provenance = write_provenance(name, digest, asked, safe)
    return [
        attach(image.descriptor, SBOM, sbom, {f"{_NAME}title": "sbom.cdx.json"}),
        attach(image.descriptor, PROVENANCE, provenance, {f"{_NAME}title": "provenance.json"}),
    ]


def server_settings(base: Base) -> Settings:
    """How the server of a variant starts on that base."""
    return Settings(
        entrypoint=(
            *base.init,
            base.python,
            "-P",
            "-m",
            "tf2aif.serve",
            "/variant",
            "--host",
            "0.0.0.0",
        ),
        command=("--port", str(PORT)),
        environment=_environment(),
        ports=(f"{PORT}/tcp",),
        healthcheck=health_check(base.python, PORT),
    )


def client_settings(base: Base) -> Settings:
    """How the client starts; its arguments are the command's."""
    return Settings(
        entrypoint=(*base.init, base.python, "-P", "-m", "tf2aif.client"),
        command=("--help",),
        environment=_environment(),
    )


def health_check(python: str, port: int) -> Healthcheck:
    """Asks the server whether it is ready, with nothing but a socket: it runs every few seconds."""
    code = (
        "import socket,sys;"
        f"c=socket.create_connection(('127.0.0.1',{port}),3);"
        "c.sendall(b'GET /v2/health/ready HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n');"
        "sys.exit(b' 200 ' not in c.recv(64))"
    )
    return Healthcheck(test=("CMD", python, "-I", "-S", "-c", code))


def describe_image(identity: Identity, base: Base) -> dict[str, str]:
    """What the image says of itself, in OCI's words. No time and no place of its making."""
    found = {
        f"{_NAME}title": identity.recipe,
        f"{_NAME}version": identity.variant,
        f"{_NAME}description": identity.description,
        f"{_NAME}revision": identity.revision,
        f"{_NAME}base.name": base.name,
        f"{_NAME}base.digest": base.digest,
        "tf2aif.version": __version__,
    }
    return {name: value for name, value in found.items() if value}


def withhold(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they may leave this machine: no variable's value, nothing that is named a secret.

    >>> withhold({"environment.KEY": "x", "option.arguments.api_token": "y", "option.batch": 1})
    {'environment.KEY': '(withheld)', 'option.arguments.api_token': '(withheld)', 'option.batch': 1}
    """
    return {
        name: _WITHHELD if name.startswith("environment.") or is_secret(name) else value
        for name, value in facts.items()
    }


def attached_to(layout: Layout, image: Descriptor) -> tuple[Descriptor, ...]:
    """What a layout holds that is attached to that image: SBOM, provenance."""
    from .documents import REF_NAME, Index

    tag = referrers_tag(image.digest)
    for descriptor in layout.index().manifests:
        if descriptor.annotations.get(REF_NAME) == tag:
            return layout.document(descriptor.digest, Index).manifests
    return ()


def _environment() -> dict[str, str]:
    return {
        "PYTHONPATH": f"/{APP}:/{PACKAGES}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "1",
    }
