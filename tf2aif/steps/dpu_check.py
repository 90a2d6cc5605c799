"""dpu-check: a pre-check of a network against the operator limits of a board's DPU.

It says for each layer whether it goes to the DPU or to the processor, and why. The limits are data
of the target. This is no compiler: the vendor's own may place a layer otherwise, and has the last
word. The network itself passes through unchanged.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..errors import StepFailed
from . import Job

if TYPE_CHECKING:
    from ..engines.network import Network

VERSION = 1
TOOLCHAIN = "python"
INPUTS = ("model",)

JSON, TEXT = "placement.json", "placement.txt"
COPIED = ("layers.json", "weights.npz", "signature.json")

Span = Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=2, max_length=2)]
Activation = Literal["relu", "relu6", "leaky_relu", "prelu", "hard_sigmoid", "hard_swish"]


class Window(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of what slides a window over a picture: from and to, both included."""

    kernel: Span
    strides: Span
    kernels: list[Annotated[int, Meta(ge=1)]] = []
    """Where only some lengths between are possible: these."""
    square: bool = False


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a DPU computes. A family of layers that is left out runs on the processor."""

    channel_parallel: Annotated[int, Meta(ge=1)]
    bank_depth: Annotated[int, Meta(ge=1)]
    """kernel height * width * ceil(channels in / channel_parallel) is at most this."""
    conv: Window
    depthwise: Window | None = None
    transposed: Window | None = None
    max_pool: Window | None = None
    average_pool: Window | None = None
    activations: tuple[Activation, ...] = ("relu",)
    leaky_alpha: float = 0.1
    """The one slope of a leaky ReLU."""
    elementwise: tuple[Literal["add", "mul"], ...] = ("add",)
    dense_inputs: Annotated[int, Meta(ge=1)] = 4096
    """Most channels into a dense layer."""
    resize: tuple[Literal["nearest", "bilinear"], ...] = ("nearest",)


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The DPU of a board, by its name in the vendor's tools, and its limits."""

    dpu: str
    limits: Limits

    def __post_init__(self) -> None:
        """Raises ValueError, which `tf2aif check` tells, for a DPU that nobody knows."""
        from ..engines.dpu import FAMILIES

        if self.dpu not in FAMILIES.values():
            known = ", ".join(FAMILIES.values())
            raise ValueError(f"'{self.dpu}' is no DPU; known are: {known}")


class Row(Struct, frozen=True, kw_only=True):
    """Where a layer goes, and why not to the DPU."""

    layer: str
    op: str
    source: str
    shape: tuple[int, ...]
    place: Literal["DPU", "CPU"]
    reason: str = ""


class Placement(Struct, frozen=True, kw_only=True):
    """`placement.json`."""

    dpu: str
    layers: tuple[Row, ...]


def run(job: Job) -> Mapping[str, Any]:
    """Write the network as it came, `placement.json`, and the same as a table for people.

    Raises StepFailed where no layer goes to the DPU: such a model has no use for one.
    """
    from ..engines.network import read_network

    options = msgspec.convert(job.options, Options)
    model = job.inputs["model"]
    found = place(read_network(model), options)
    for name in COPIED:
        shutil.copyfile(model / name, job.out / name)
    encoded = msgspec.json.format(msgspec.json.encode(found), indent=2)
    (job.out / JSON).write_bytes(encoded + b"\n")
    table = render(found)
    (job.out / TEXT).write_text(table, encoding="utf-8")
    print(table)
    on_dpu = [row for row in found.layers if row.place == "DPU"]
    if not any(row.op in ("conv2d", "depthwise_conv2d", "dense") for row in on_dpu):
        told = sorted({f"{row.layer} ({row.source}): {row.reason}" for row in found.layers})
        raise StepFailed(
            f"no convolution or dense layer of this model fits {options.dpu}: {'; '.join(told)}",
            hint="take a target of another kind for this model",
        )
    return {
        "dpu": options.dpu,
        "on_dpu": len(on_dpu),
        "on_cpu": {row.layer: row.reason for row in found.layers if row.place == "CPU"},
    }


def place(network: Network, options: Options) -> Placement:
    """Where each layer goes."""
    from ..network.placement import reason_for_cpu

    rows = []
    for layer in network.layers:
        reason = reason_for_cpu(network, layer, options.limits)
        rows.append(
            Row(
                layer=layer.name,
                op=str(type(layer).__struct_config__.tag),
                source=layer.source,
                shape=layer.shape,
                place="CPU" if reason else "DPU",
                reason=reason,
            )
        )
    return Placement(dpu=options.dpu, layers=tuple(rows))


def render(placement: Placement) -> str:
    """The placement as a table: layer, operator of the source, output shape, place, reason."""
    head = ("layer", "from", "output", "place", "why")
    rows = [head]
    for row in placement.layers:
        shape = "x".join(map(str, row.shape))
        rows.append((row.layer, row.source, shape, row.place, row.reason))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    title = f"pre-check against the limits of {placement.dpu}; the vendor's compiler decides"
    return "\n".join([title, "", *(line.rstrip() for line in lines)]) + "\n"


def read_placement(folder: Path) -> tuple[Row, ...]:
    """The rows of an artifact's pre-check; none where it had none."""
    path = folder / JSON
    if not path.exists():
        return ()
    return msgspec.json.decode(path.read_bytes(), type=Placement).layers


def copy_placement(source: Path, dest: Path) -> None:
    """Hand a pre-check on with what comes of its network."""
    for name in (JSON, TEXT):
        if (source / name).exists():
            shutil.copyfile(source / name, dest / name)
