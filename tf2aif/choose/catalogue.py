"""The catalogue, `build/catalogue.json`: what a scheduler has to know of each variant, no more.

Every figure was measured (or is said to be given by a user) and stands with its conditions; what
was not measured is null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..errors import Fault, FilesError
from ..record import State

SCHEMA: Literal[1] = 1
FILE = "catalogue.json"

Origin = Literal["build", "bench", "imported", "given"]
Subject = Literal["engine", "server"]
Scenario = Literal["single-stream", "multi-stream", "server", "offline"]  # as tf2aif.client.load
Milliseconds = Annotated[float, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Some = Annotated[int, Meta(ge=1)]


class MeasuredOn(Struct, frozen=True, kw_only=True):
    """The machine of a measurement."""

    platform: Annotated[str, Meta(description="as OCI names it, such as linux/amd64")]
    cpu: Annotated[str, Meta(description="the model of its processor")]
    cores: Annotated[int, Meta(ge=1, description="that the measurement could use")]
    gpu: Annotated[str | None, Meta(description="the model of its GPU; null: none was seen")] = None
    governor: Annotated[
        str | None, Meta(description="of the processor's frequency; null: not to be read there")
    ] = None
    memory_mb: Annotated[Count | None, Meta(description="its memory, MiB")] = None
    system: Annotated[str | None, Meta(description="its operating system")] = None
    kernel: Annotated[str | None, Meta(description="release of its kernel")] = None
    load_1m: Annotated[
        float | None, Meta(description="mean load of the minute before it was measured")
    ] = None


class Percentiles(Struct, frozen=True, kw_only=True):
    """Latency of queries, milliseconds; null: not measured, or too few queries for it."""

    mean_ms: Annotated[Milliseconds | None, Meta(description="arithmetic mean")] = None
    p10_ms: Annotated[Milliseconds | None, Meta(description="10th percentile")] = None
    p50_ms: Annotated[Milliseconds | None, Meta(description="median")] = None
    p90_ms: Annotated[Milliseconds | None, Meta(description="90th percentile")] = None
    p95_ms: Annotated[Milliseconds | None, Meta(description="95th percentile")] = None
    p99_ms: Annotated[Milliseconds | None, Meta(description="99th percentile")] = None
    p99_9_ms: Annotated[Milliseconds | None, Meta(description="99.9th percentile")] = None


class Measurement(Struct, frozen=True, kw_only=True):
    """One subject in one scenario on one machine, with its conditions."""

    origin: Annotated[
        Origin,
        Meta(
            description="build: by the build's latency step; bench: by `tf2aif bench`; imported: "
            "by it elsewhere; given: not measured, a user's own word"
        ),
    ]
    source: Annotated[
        str | None, Meta(description="imported: from where; given: what the user said of it")
    ] = None
    subject: Annotated[
        Subject,
        Meta(description="engine: the engine alone; server: HTTP server and engine, on loopback"),
    ]
    scenario: Annotated[Scenario, Meta(description="of MLPerf's LoadGen")]
    batch: Annotated[Some | None, Meta(description="samples in a request; null: no batch axis")] = (
        None
    )
    threads: Annotated[
        Some | None, Meta(description="of the engine; null: the engine's own choice")
    ] = None
    machine: Annotated[
        MeasuredOn | None, Meta(description="where it was measured; null: it was given")
    ] = None
    measured_at: Annotated[
        str | None, Meta(description="ISO 8601, UTC; null: the record does not say")
    ] = None
    latency: Annotated[Percentiles, Meta(description="of queries")] = Percentiles()
    throughput: Annotated[
        Amount | None, Meta(description="samples a second; null: not measured")
    ] = None
    energy_j: Annotated[
        Amount | None, Meta(description="an inference, joules; null: not measured")
    ] = None
    memory_mb: Annotated[Amount | None, Meta(description="resident memory of the server, MiB")] = (
        None
    )
    cold_start_s: Annotated[
        Amount | None, Meta(description="from the server's start to its first answer, seconds")
    ] = None
    stable: Annotated[
        bool | None,
        Meta(description="whether repeated windows agreed; null: it was not looked at"),
    ] = None
    doubts: Annotated[
        tuple[str, ...], Meta(description="what else speaks against it, such as a busy machine")
    ] = ()
    emulates: Annotated[
        str | None,
        Meta(description="what the engine stood in for: its times are not the device's"),
    ] = None


class CatalogueAccuracy(Struct, frozen=True, kw_only=True):
    """The metric on the evaluation set."""

    metric: Annotated[str, Meta(description="which one")]
    value: Annotated[float, Meta(description="of the variant")]
    source: Annotated[float, Meta(description="of the source model")]
    drop: Annotated[float, Meta(description="what the variant lost; negative: it gained")]
    allowed_drop: Annotated[float, Meta(description="what the recipe's gate allows")]
    samples: Annotated[Count, Meta(description="in the evaluation set")]
    labels: Annotated[
        bool, Meta(description="false: the source model's own answers were the truth")
    ]


class CatalogueImage(Struct, frozen=True, kw_only=True):
    """The container image."""

    name: Annotated[str, Meta(description="repository and tag, without a registry")]
    digest: Annotated[str, Meta(description="of its manifest")]
    size_bytes: Annotated[Count, Meta(description="of its layers as they are sent")]


class Requirements(Struct, frozen=True, kw_only=True):
    """What a node must have."""

    labels: Annotated[
        dict[str, str], Meta(description="labels of the node, as Kubernetes names them")
    ] = {}
    resources: Annotated[
        dict[str, Annotated[int, Meta(ge=1)]],
        Meta(
            description="extended resources, as their device plug-ins name them; a name that ends "
            "in `*` stands for each that starts so: FPGA plug-ins name a card's shell too"
        ),
    ] = {}
    memory_mb: Annotated[
        Amount | None, Meta(description="the most resident memory that was measured, MiB")
    ] = None


class CatalogueVariant(Struct, frozen=True, kw_only=True):
    """One variant."""

    id: Annotated[str, Meta(description="recipe/variant")]
    recipe: Annotated[str, Meta(description="its recipe")]
    variant: Annotated[str, Meta(description="its name within the recipe: target-precision")]
    target: Annotated[str, Meta(description="its target")]
    precision: Annotated[str, Meta(description="its precision")]
    state: Annotated[
        State, Meta(description="only `built` and `verified-on-device` can be deployed")
    ]
    reason: Annotated[str, Meta(description="why it is bundled, emulated or failed")] = ""
    baseline: Annotated[bool, Meta(description="native, what others are compared with")] = False
    platform: Annotated[str, Meta(description="as OCI names it")]
    engine: Annotated[str, Meta(description="what runs it")]
    batch: Annotated[
        int | Literal["free", "none"], Meta(description="the size of its batch axis")
    ] = 1
    artifact: Annotated[str | None, Meta(description="digest of what ships; null: none is made")]
    size_bytes: Annotated[Count | None, Meta(description="of the artifact")]
    image: Annotated[CatalogueImage | None, Meta(description="null: none was made")] = None
    accuracy: Annotated[CatalogueAccuracy | None, Meta(description="null: not measured")] = None
    requires: Annotated[Requirements, Meta(description="of its node")] = Requirements()
    measurements: Annotated[
        tuple[Measurement, ...], Meta(description="of this very artifact, sorted")
    ] = ()


class Catalogue(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every variant of a project's build folder, sorted by id."""

    schema: Annotated[Literal[1], Meta(description="the version of this shape")] = SCHEMA
    variants: Annotated[tuple[CatalogueVariant, ...], Meta(description="sorted by id")] = ()

    def of(self, recipe: str) -> tuple[CatalogueVariant, ...]:
        """The variants of one recipe."""
        return tuple(one for one in self.variants if one.recipe == recipe)


def encode_catalogue(catalogue: Catalogue) -> bytes:
    """The catalogue as it is written: the same value gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(catalogue), indent=2) + b"\n"


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue in a file. Raises FilesError that says what is wrong and what to try."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        hint = "'tf2aif build' writes it; 'tf2aif catalogue' writes it again"
        raise FilesError([Fault("there is no catalogue", str(path), hint)]) from None
    except OSError as error:
        raise FilesError([Fault(f"cannot be read: {error.strerror}", str(path))]) from error
    return decode_catalogue(raw, str(path))


def decode_catalogue(raw: bytes, shown: str) -> Catalogue:
    """The catalogue in JSON; `shown` is its place in faults. Raises FilesError."""
    again = "write it again from the build folder: tf2aif catalogue"
    try:
        value: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FilesError([Fault(f"not JSON: {error}", shown, again)]) from error
    version = value.get("schema") if isinstance(value, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise FilesError([Fault("not a catalogue: it names no schema", shown, again)])
    if version != SCHEMA:
        newer = "it was written by a newer tf2aif: use that one" if version > SCHEMA else again
        message = f"a catalogue of schema {version}; this tf2aif reads schema {SCHEMA}"
        raise FilesError([Fault(message, shown, newer)])
    try:
        return msgspec.convert(value, Catalogue)
    except msgspec.ValidationError as error:
        raise FilesError([Fault(f"not a catalogue: {error}", shown, again)]) from error
