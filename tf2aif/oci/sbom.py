"""What an image holds, as a CycloneDX 1.6 bill of materials.

Source: CycloneDX specification 1.6 (ECMA-424), JSON.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from .. import __version__
from .documents import encode
from .image import timestamp
from .layers import Component

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_SPACE = uuid.UUID("5f0d4f3c-6a0b-5b4e-9d7c-2f7f3a3d1c10")  # ours, so that serial numbers differ


def write_sbom(
    name: str, version: str, digest: str, components: Iterable[Component], *, epoch: int = 0
) -> bytes:
    """The bill of materials of the image with that digest. The same image gives the same bytes."""
    # One entry for each, though a base and a layer of ours may bring the same.
    ordered = sorted({_reference(c): c for c in components}.values(), key=_reference)
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": timestamp(epoch),
            "tools": {
                "components": [{"type": "application", "name": "tf2aif", "version": __version__}]
            },
            "component": {
                "type": "container",
                "bom-ref": digest,
                "name": name,
                "version": version,
                "hashes": _hashes(digest.partition(":")[2]),
            },
        },
        "components": [_entry(component) for component in ordered],
        "dependencies": [{"ref": digest, "dependsOn": [_reference(c) for c in ordered]}],
    }
    return encode(document)


def _entry(component: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": component.type,
        "bom-ref": _reference(component),
        "name": component.name,
    }
    if component.version:
        entry["version"] = component.version
    if component.purl:
        entry["purl"] = component.purl
    if component.sha256:
        entry["hashes"] = _hashes(component.sha256)
    if component.licence:
        entry["licenses"] = [{"expression": component.licence}]
    return entry


def _reference(component: Component) -> str:
    return component.purl or f"{component.type}/{component.name}@{component.version}"


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
