"""A target as a frozen value: one hardware target, one YAML file, no code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from .recipe import Name

Step = Annotated[
    dict[str, Any],
    Meta(
        description="`step: NAME`, and beside it the options of the step",
        min_length=1,
        extra_json_schema={
            "properties": {"step": {"type": "string"}},
            "required": ["step"],
        },
    ),
]
Platform = Annotated[str, Meta(pattern=r"^linux/(amd64|arm64|arm/v7)$")]


class StepUse(Struct, frozen=True, kw_only=True):
    """One step of a pipeline: its name, and beside it its options."""

    step: str
    options: dict[str, Any] = {}


class EngineUse(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What loads the artifact on the device."""

    name: Annotated[str, Meta(description="the engine, by its name in the table")]
    options: Annotated[dict[str, Any], Meta(description="options of the engine")] = {}


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a step of this target may use."""

    timeout_s: Annotated[float, Meta(gt=0, description="wall time of one step, seconds")] = 3600.0
    memory_mb: Annotated[
        Annotated[int, Meta(ge=64)] | None,
        Meta(description="resident memory of one step, MiB; by default 90% of the machine's"),
    ] = None


class Target(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One hardware target."""

    platform: Annotated[
        Platform, Meta(description="operating system and architecture, as OCI names them")
    ]
    engine: Annotated[EngineUse, Meta(description="what loads the artifact on the device")]
    precisions: Annotated[
        dict[Name, Annotated[list[Step], Meta(min_length=1)]],
        Meta(description="precision -> the pipeline that makes it", min_length=1),
    ]
    description: Annotated[str, Meta(description="for people")] = ""
    baseline: Annotated[
        bool,
        Meta(description="a native baseline: others of the same platform are compared with it"),
    ] = False
    limits: Annotated[Limits, Meta(description="what a step of this target may use")] = Limits()
    device: Annotated[
        dict[str, str], Meta(description="what the device must have, for people and for `doctor`")
    ] = {}
    labels: Annotated[
        dict[str, str], Meta(description="scheduling labels, as Kubernetes names them")
    ] = {}


QuantizedIO = Literal["float", "int8", "uint8"]
