"""`builder: docker`: the variant's image built and tagged in a Docker engine, from our layers."""

from __future__ import annotations

from msgspec.structs import replace

from .bases import read_base
from .dockerfile import BASE, build_context, write_dockerfile
from .engine import Engine
from .record import ImageRecord
from .variant_image import Identity, Parts, describe_image, server_settings

_NAMES = ("packages.tar", "app.tar", "model.tar")


def build_variant(
    parts: Parts, identity: Identity, record: ImageRecord, address: str = ""
) -> ImageRecord:
    """Build `recipe:variant` in the engine at that address. Raises StepFailed, Tf2aifError."""
    base, layout, image = read_base(parts.base)
    base_tag = base.digest.partition(":")[2][:12]
    text = write_dockerfile(
        f"{BASE}:{base_tag}", _NAMES, server_settings(base), describe_image(identity, base)
    )
    with Engine(address) as engine:
        engine.load(layout, image, BASE, base_tag)
        with build_context(text, dict(zip(_NAMES, parts.layers, strict=True))) as context:
            engine.build(context, f"{record.name}:{record.tag}", platform=identity.platform)
    return replace(record, builder="docker")
