"""What goes together: a variant and a node, a measurement and a node.

A measurement counts for a node only where its conditions are the node's: the same platform; the
same processor and GPU, where the node states them; and no more cores than the node states. What a
node does not state is not compared, and the figure tells on what it was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

from .catalogue import (
    CatalogueAccuracy,
    CatalogueVariant,
    MeasuredOn,
    Measurement,
    Percentiles,
    Scenario,
    Subject,
)
from .fleet import GPU, Given, Node
from .objective import QUANTITIES

_STATES = {
    "bundled": "what it ships is not made yet",
    "emulated": "what it ships is not made yet, only its arithmetic was run",
    "failed": "it failed",
}
_LATENCIES = tuple(name for name, one in QUANTITIES.items() if one.kind == "latency")


class Conditions(Struct, frozen=True, kw_only=True):
    """Which measurements are compared: of the same subject, in the same scenario."""

    subject: Subject = "server"
    scenario: Scenario = "single-stream"  # of latency and energy; throughput is of `offline`
    stable: bool = False  # only those whose windows agreed


class Figure(Struct, frozen=True, kw_only=True):
    """One value of a variant on a node, and what it rests on."""

    quantity: str
    value: float
    measurement: Measurement | None = None  # None: it hangs on no machine, such as size
    note: str = ""

    @property
    def given(self) -> bool:
        """It is a user's own word."""
        return self.measurement is not None and self.measurement.origin == "given"


def undeployable(variant: CatalogueVariant) -> str:
    """Why no node can run it; empty where one can."""
    if variant.state not in _STATES:
        return ""
    why = variant.reason or _STATES[variant.state]
    return f"{variant.state}: {why}"


def misfit(variant: CatalogueVariant, node: Node) -> str:
    """Why that node cannot run it, with the node as the subject; empty where it can.

    Such as `lacks nvidia.com/gpu`.
    """
    if variant.platform != node.platform:
        return f"is {node.platform}, not {variant.platform}"
    labels, wanted = node.all_labels, variant.requires
    for name, count in wanted.resources.items():
        held = resource_count(name, node.resources)
        if held < count:
            return f"has {held} of {name}, not {count}" if held else f"lacks {name}"
    for label, value in wanted.labels.items():
        if label not in labels:
            return f"lacks the label {label}={value}"
        if labels[label] != value:
            return f"has the label {label}={labels[label]}, not {value}"
    if wanted.memory_mb and node.memory_mb is not None and wanted.memory_mb > node.memory_mb:
        return f"has {node.memory_mb} MiB of memory, not {wanted.memory_mb:.0f}"
    return ""


def resource_count(name: str, resources: dict[str, int]) -> int:
    """How many of an extended resource there are; `name` may end in `*`, as in the catalogue.

    >>> resource_count("amd.com/xilinx_u250_*", {"amd.com/xilinx_u250_gen3x16_xdma_shell_4_1-0": 2})
    2
    """
    if not name.endswith("*"):
        return resources.get(name, 0)
    return sum(count for each, count in resources.items() if each.startswith(name[:-1]))


def mismatch(measurement: Measurement, variant: CatalogueVariant, node: Node) -> str:
    """Why a measurement of the variant says nothing of that node; empty where it counts."""
    machine = measurement.machine
    if measurement.emulates:
        return f"measured in an emulation of {measurement.emulates}"
    if machine is None:
        return ""
    if machine.platform != node.platform:
        return f"measured on {machine.platform}"
    if node.cpu is not None and _processor(machine.cpu) != _processor(node.cpu):
        return f"measured on {machine.cpu}"
    if GPU in variant.requires.resources:
        if machine.gpu is None:
            return "measured without a GPU"
        if node.gpu_model is not None and _gpu(machine.gpu) != _gpu(node.gpu_model):
            return f"measured on {machine.gpu}"
    used = measurement.threads or machine.cores
    if node.cores is not None and used > node.cores:
        return f"measured with {used} cores, the node has {node.cores}"
    return ""


def find_figure(
    name: str, variant: CatalogueVariant, node: Node | None, conditions: Conditions
) -> Figure | str:
    """The value of a quantity for a variant on a node, or why there is none.

    Of several measurements that count, a stable one is taken before others, then the newest; a
    figure that a user gave only where there is no measured one.
    """
    quantity = QUANTITIES[name]
    if quantity.kind == "variant":
        value = _of_variant(name, variant)
        if isinstance(value, str):
            return value
        return Figure(quantity=name, value=value, note=_note(name, variant.accuracy))
    if node is None:
        return f"its {name} holds on a node, and none is known"
    if quantity.kind == "node":
        cost = node.cost_per_hour
        return (
            "the node does not say its cost" if cost is None else Figure(quantity=name, value=cost)
        )
    return _of_measurements(name, variant, node, conditions)


def given_measurements(figures: Iterable[Given], variant: str) -> tuple[Measurement, ...]:
    """What a user says of a variant, as measurements of both subjects in every scenario asked."""
    return tuple(
        Measurement(
            origin="given",
            source=one.source or None,
            subject="server",
            scenario="single-stream",
            latency=Percentiles(
                p50_ms=one.p50_ms,
                p90_ms=one.p90_ms,
                p95_ms=one.p95_ms,
                p99_ms=one.p99_ms,
                p99_9_ms=one.p99_9_ms,
            ),
            throughput=one.throughput,
            energy_j=one.energy_j,
            memory_mb=one.memory_mb,
            cold_start_s=one.cold_start_s,
        )
        for one in figures
        if one.variant == variant
    )


def machine_key(machine: MeasuredOn) -> tuple[str, str, int, str]:
    """What a machine is told from others by."""
    return (machine.platform, machine.cpu, machine.cores, machine.gpu or "")


def value_in(name: str, measurement: Measurement) -> float | None:
    """The value of a measured quantity, in its unit; None where it was not measured."""
    if name in _LATENCIES:
        value: float | None = getattr(measurement.latency, f"{name.replace('.', '_')}_ms")
        return value
    if name == "memory":
        return None if measurement.memory_mb is None else measurement.memory_mb * 2**20
    fields = {"throughput": "throughput", "energy": "energy_j", "cold-start": "cold_start_s"}
    found: float | None = getattr(measurement, fields[name])
    return found


def _of_variant(name: str, variant: CatalogueVariant) -> float | str:
    accuracy = variant.accuracy
    if name == "accuracy":
        return "its accuracy was not measured" if accuracy is None else accuracy.value
    if name == "drop":
        return "its accuracy was not measured" if accuracy is None else accuracy.drop
    if name == "size":
        return "it has no artifact" if variant.size_bytes is None else variant.size_bytes
    image = variant.image
    return "it has no image: tf2aif build --images" if image is None else image.size_bytes


def _note(name: str, accuracy: CatalogueAccuracy | None) -> str:
    """What an accuracy was measured with."""
    if accuracy is None or name not in ("accuracy", "drop"):
        return ""
    truth = "" if accuracy.labels else ", of the source model's own answers"
    samples = f"{accuracy.metric} of {accuracy.samples} samples{truth}"
    return f"{samples}; source model {accuracy.source:.4f}"


def _of_measurements(
    name: str, variant: CatalogueVariant, node: Node, conditions: Conditions
) -> Figure | str:
    reasons: dict[str, None] = {}
    best: tuple[tuple[int, bool, str], Measurement, float] | None = None
    for measurement in variant.measurements:
        value = value_in(name, measurement) if _is_asked(name, measurement, conditions) else None
        if value is None:
            continue
        why = mismatch(measurement, variant, node)
        if not why and conditions.stable and measurement.stable is not True:
            why = "unstable" if measurement.stable is False else "not known to be stable"
        if why:
            reasons.setdefault(why)
            continue
        rank = (*_trust(measurement), measurement.measured_at or "")
        if best is None or rank > best[0]:
            best = rank, measurement, value
    if best:
        return Figure(quantity=name, value=best[2], measurement=best[1])
    for measurement in given_measurements(node.figures, variant.id):
        value = value_in(name, measurement)
        if value is not None:
            return Figure(quantity=name, value=value, measurement=measurement)
    return _unmeasured(name, variant, conditions, tuple(reasons))


def _trust(measurement: Measurement) -> tuple[int, bool]:
    return {True: 2, None: 1, False: 0}[measurement.stable], not measurement.doubts


def _is_asked(name: str, measurement: Measurement, conditions: Conditions) -> bool:
    if name in ("memory", "cold-start"):
        return True
    if measurement.subject != conditions.subject:
        return False
    return measurement.scenario == ("offline" if name == "throughput" else conditions.scenario)


def _unmeasured(
    name: str, variant: CatalogueVariant, conditions: Conditions, reasons: tuple[str, ...]
) -> str:
    if reasons:
        return f"no {name} of such a node: {'; '.join(reasons)}"
    asked = [m for m in variant.measurements if _is_asked(name, m, conditions)]
    if asked:
        short = "; too few queries for it" if name in _LATENCIES else ""
        return f"its {name} was not measured{short}"
    others = "; ".join(dict.fromkeys(_others(variant, conditions)))
    return f"its {name} was not measured" + (f" (there is: {others})" if others else "")


def _others(variant: CatalogueVariant, conditions: Conditions) -> Iterator[str]:
    """What was measured in place of what is asked for."""
    for each in variant.measurements:
        if each.subject != conditions.subject or each.scenario != conditions.scenario:
            yield f"{each.subject}, {each.scenario}"


def _processor(name: str) -> str:
    """A processor's name without what vendors write in more than one way.

    >>> _processor("Intel(R) Xeon(R) CPU @ 2.60GHz") == _processor("intel xeon")
    True
    """
    plain = re.sub(r"\((?:r|tm|c)\)|\bcpu\b|@.*$", " ", name.lower())
    return " ".join(plain.split())


def _gpu(name: str) -> str:
    """A GPU's name, as its driver or as a label has it.

    >>> _gpu("NVIDIA H100 80GB HBM3") == _gpu("NVIDIA-H100-80GB-HBM3")
    True
    """
    return " ".join(re.sub(r"[-_]", " ", name.lower()).removeprefix("nvidia").split())
