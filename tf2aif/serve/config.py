"""How a variant is served: every setting, stated once with its meaning and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Batching(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How requests are put together into one run of the engine.

    A model with a fixed batch axis is always run at that size, its last rows padded; requests wait
    for each other then only where a run is short.
    """

    max_size: Annotated[Count, Meta(description="rows given to the engine at once")] = 8
    max_delay_ms: Annotated[
        float,
        Meta(ge=0, description="how long to wait for more rows; 0: take what is there"),
    ] = 0.0


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request, and all of them together, may use."""

    queue: Annotated[Count, Meta(description="requests in the server at once; then 503")] = 256
    deadline_s: Annotated[Seconds, Meta(description="from the whole request to its answer")] = 30.0
    read_s: Annotated[Seconds, Meta(description="for a client to send its whole request")] = 30.0
    body_bytes: Annotated[Count, Meta(description="of one request, decompressed")] = 32 * 2**20
    bodies_bytes: Annotated[Count, Meta(description="of all requests held at once; then 503")] = (
        256 * 2**20
    )
    header_bytes: Annotated[Count, Meta(description="of one request's header lines")] = 64 * 2**10
    drain_s: Annotated[
        float, Meta(ge=0, description="served on after SIGTERM while not ready, then no more")
    ] = 1.0
    stop_s: Annotated[Seconds, Meta(description="after that, for what is under way")] = 30.0
    stall_s: Annotated[
        Seconds, Meta(description="one run or hook that takes longer makes the server not live")
    ] = 120.0


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One server: one variant at one address."""

    variant: Annotated[Path, Meta(description="the variant's folder: variant.json, artifact/")]
    host: Annotated[str, Meta(description="the address to listen at")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="0: any free one")] = 8080
    threads: Annotated[
        Count | None, Meta(description="of the engine; by default its own choice")
    ] = None
    hooks: Annotated[Path | None, Meta(description="the hooks file, in place of the variant's")] = (
        None
    )
    hook_threads: Annotated[Count, Meta(description="that run hooks")] = 2
    warmup_runs: Annotated[int, Meta(ge=0, description="before the server is ready")] = 3
    energy: Annotated[bool, Meta(description="measure energy where RAPL or NVML can be read")] = (
        False
    )
    batching: Batching = Batching()
    limits: Limits = Limits()
