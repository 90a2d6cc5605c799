"""What an image was made from, as an in-toto statement with SLSA provenance.

Source: in-toto attestation framework, Statement v1; SLSA specification, provenance v1. It is not
signed: who pushes it can sign it with a tool of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import __version__
from .documents import encode

MEDIA_TYPE = "application/vnd.in-toto+json"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:tf2aif:image:1"


def write_provenance(
    name: str,
    digest: str,
    parameters: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
) -> bytes:
    """The provenance of the image with that digest.

    `parameters` is what the user asked for; `facts` is, for each step that had a part in it, what
    decided what the step made. Digests among them are xxh3-128 except where they say `sha256:`.
    """
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest.partition(":")[2]}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": dict(parameters),
                "resolvedDependencies": [_dependency(n, f) for n, f in sorted(facts.items())],
            },
            "runDetails": {
                "builder": {"id": BUILD_TYPE, "version": {"tf2aif": __version__}},
            },
        },
    }
    return encode(statement)


def _dependency(step: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A step as a resource: its key is the digest of the facts, which go along."""
    return {
        "uri": f"urn:tf2aif:step:{step}",
        "digest": {"xxh3_128": str(facts.get("key", ""))},
        "annotations": {name: value for name, value in facts.items() if name != "key"},
    }
