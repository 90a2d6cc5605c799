"""What a node must have for a variant, in the words of Kubernetes: labels and extended resources.

Labels are those of the target. What a compiled engine says of its GPU becomes the labels that
NVIDIA's GPU feature discovery gives a node, where one label can say it. Extended resources are
those of the vendors' device plug-ins: `nvidia.com/gpu`, and for Alveo cards AMD's, which names a
card by its shell and the shell's time stamp: `amd.com/xilinx_u55c_gen3x16_xdma_base_3-0`. Which
shell a card carries is no matter of the variant, so only what comes before it is stated.
"""

from __future__ import annotations

from pathlib import Path

from ..engines.requirement import FILE as ENGINE_FILE
from ..engines.requirement import Requirement, read_requirement
from ..errors import Tf2aifError
from ..spec.target import Target
from .catalogue import Requirements
from .fleet import GPU, GPU_PRESENT, GPU_PRODUCT

FPGA = "tf2aif/fpga"
"""The label that names a board; no feature discovery sets it, the owner of the node does."""

CARDS = {
    "alveo-u50": "amd.com/xilinx_u50_*",
    "alveo-u200": "amd.com/xilinx_u200_*",
    "alveo-u250": "amd.com/xilinx_u250_*",
    "alveo-u280": "amd.com/xilinx_u280_*",
    "alveo-u55c": "amd.com/xilinx_u55c_*",
    "alveo-v70": "amd.com/xilinx_v70_*",
}
"""Cards that AMD's device plug-in hands to containers; boards with a processor have none."""


def requirements(
    labels: dict[str, str], target: Target | None, artifact: Path, memory_mb: float | None
) -> Requirements:
    """What a variant with these labels needs; `artifact` is the folder that it ships."""
    resources = {}
    if gpus := _gpus(labels, target):
        resources[GPU] = gpus
    if card := CARDS.get(labels.get(FPGA, "")):
        resources[card] = 1
    found = {**labels, **_gpu_labels(artifact)}
    return Requirements(
        labels=dict(sorted(found.items())),
        resources=dict(sorted(resources.items())),
        memory_mb=memory_mb,
    )


def _gpus(labels: dict[str, str], target: Target | None) -> int:
    """How many GPUs a container asks for; `all` of a Jetson is its only one."""
    if target is not None and target.container.gpus:
        return max(1, target.container.gpus)
    return int(labels.get(GPU_PRESENT) == "true")


def _gpu_labels(artifact: Path) -> dict[str, str]:
    """The GPU that an engine was compiled for, as far as labels of one value can say it."""
    if not (artifact / ENGINE_FILE).is_file():
        return {}
    try:
        wanted = read_requirement(artifact)
    except Tf2aifError:
        return {}  # serving it says what is wrong
    return _labels_of(wanted)


def _labels_of(wanted: Requirement) -> dict[str, str]:
    """
    >>> _labels_of(Requirement(library="tensorrt", version="10", platform="linux-x86_64",
    ...                        compute_capabilities=("9.0",), gpu="NVIDIA H200"))
    {'nvidia.com/gpu.compute.major': '9', 'nvidia.com/gpu.compute.minor': '0', \
'nvidia.com/gpu.product': 'NVIDIA-H200'}
    """
    found = {}
    if wanted.hardware_compatibility != "ampere-plus" and len(wanted.compute_capabilities) == 1:
        major, _, minor = wanted.compute_capabilities[0].partition(".")
        found["nvidia.com/gpu.compute.major"] = major
        found["nvidia.com/gpu.compute.minor"] = minor
    if wanted.hardware_compatibility == "none" and wanted.gpu:
        found[GPU_PRODUCT] = wanted.gpu.replace(" ", "-")
    return found
