"""A target as a frozen value: one hardware target, one YAML file, no code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from .recipe import Builder, Name

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


class Emulation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What runs a variant on any machine, before the device's own compiler has seen it."""

    name: Annotated[str, Meta(description="the engine, by its name in the table")]
    options: Annotated[dict[str, Any], Meta(description="options of the engine")] = {}
    exact: Annotated[
        bool,
        Meta(
            description="its arithmetic is the device's, bit by bit: where the device's compiler "
            "is not here, the variant is `emulated` and not only `bundled`"
        ),
    ] = False


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a step of this target may use."""

    timeout_s: Annotated[float, Meta(gt=0, description="wall time of one step, seconds")] = 3600.0
    memory_mb: Annotated[
        Annotated[int, Meta(ge=64)] | None,
        Meta(description="resident memory of one step, MiB; by default 90% of the machine's"),
    ] = None


class Container(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a container of this target needs of its host."""

    devices: Annotated[
        list[str], Meta(description="device files, such as /dev/dri/renderD128")
    ] = []
    gpus: Annotated[int, Meta(ge=-1, description="how many NVIDIA GPUs; -1: all")] = 0
    groups: Annotated[list[str], Meta(description="supplementary groups, for the devices")] = []
    memory_mb: Annotated[
        Annotated[int, Meta(ge=16)] | None, Meta(description="the limit, MiB; by default none")
    ] = None
    cpus: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="the limit; by default none")
    ] = None
    environment: Annotated[
        dict[str, str], Meta(description="variables of the container; no secrets")
    ] = {}


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
    emulation: Annotated[
        Emulation | None,
        Meta(
            description="the engine that runs, on any machine, what goes into the device's "
            "compiler; the gate is held with it before the compiler starts"
        ),
    ] = None
    description: Annotated[str, Meta(description="for people")] = ""
    baseline: Annotated[
        bool,
        Meta(description="a native baseline: others of the same platform are compared with it"),
    ] = False
    limits: Annotated[Limits, Meta(description="what a step of this target may use")] = Limits()
    base: Annotated[
        str,
        Meta(
            description="the image below: debian, oci:FOLDER, registry:NAME@DIGEST or "
            "dockerfile:FILE; paths are relative to the project",
            pattern=r"^(debian$|oci:.|registry:.|dockerfile:.)",
        ),
    ] = "debian"
    python: Annotated[str, Meta(description="of the base", pattern=r"^3\.(1[1-9])$")] = "3.11"
    builder: Annotated[
        Builder,
        Meta(description="what composes the image; 'docker' builds and tags it in an engine too"),
    ] = "tf2aif"
    container: Annotated[
        Container, Meta(description="what `tf2aif run` gives a container of this target")
    ] = Container()
    device: Annotated[
        dict[str, str], Meta(description="what the device must have, for people and for `doctor`")
    ] = {}
    labels: Annotated[
        dict[str, str], Meta(description="scheduling labels, as Kubernetes names them")
    ] = {}

    @property
    def runs_emulated(self) -> bool:
        """Its engine is an emulation of the device, wherever it runs."""
        return self.emulation is not None and self.emulation.name == self.engine.name


QuantizedIO = Literal["float", "int8", "uint8"]
