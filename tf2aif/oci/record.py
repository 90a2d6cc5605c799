"""A variant's image, from what its steps left in the workspace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from ..graph import Graph, Variant
    from ..workspace import Workspace
    from .planning import ImagePlan


class LayerRecord(Struct, frozen=True, kw_only=True):
    """One layer: what made it, its digest and size as it is sent."""

    created_by: str
    digest: str
    size_bytes: int


class ImageRecord(Struct, frozen=True, kw_only=True):
    """What is written down of an image."""

    name: str
    tag: str
    digest: str
    platform: str
    size_bytes: int  # of its layers as they are sent
    base: str
    base_digest: str
    layers: tuple[LayerRecord, ...]
    sbom: str = ""
    provenance: str = ""
    builder: str = "tf2aif"


def write_image(
    variant: Variant, plan: ImagePlan, graph: Graph, workspace: Workspace, out: Path
) -> ImageRecord:
    """Compose the image of a variant whose steps have all run, as a layout in `out`.

    With `builder: docker` it is built and tagged in a Docker engine, too. Raises StepFailed.
    """
    from .variant_image import Identity, Parts, write_variant_image

    out.mkdir()
    parts = Parts(
        base=workspace.artifact(plan.base),
        layers=tuple(workspace.artifact(s) for s in (plan.packages, plan.app, plan.model)),
    )
    identity = Identity(
        recipe=variant.recipe,
        variant=variant.name,
        platform=plan.platform,
        revision=plan.revision,
        description=plan.description,
        epoch=plan.epoch,
    )
    facts = facts_of(graph.needs(plan.steps), workspace)
    record = write_variant_image(parts, identity, facts, out)
    if plan.builder == "docker":
        from .docker_build import build_variant

        return build_variant(parts, identity, record)
    return record


def facts_of(steps: Iterable[str], workspace: Workspace) -> Mapping[str, Mapping[str, Any]]:
    """What each step was made from, for the provenance. What was timed is no part of an image."""
    made = {step: workspace.made(step) for step in steps}
    return {
        step: {"key": record.key, **record.facts, **record.observed}
        for step, record in made.items()
        if record is not None
    }
