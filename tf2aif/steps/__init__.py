"""Steps: the actions of the graph, one module a step, in the table below.

A step's module is imported while planning, so it imports no vendor library at its top: those are
imported inside `run`, which is called in a worker process only.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..errors import Tf2aifError


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a step's `run` is given.

    `inputs` are folders or files by name: the artifacts of earlier steps, and the user's own files.
    `out` is a fresh, empty folder: all that the step leaves in it is its artifact.
    """

    step: str
    kind: str
    options: dict[str, Any]
    inputs: dict[str, Path]
    out: Path


class StepModule(Protocol):
    """What a module in the table offers."""

    VERSION: int
    """Raised whenever a change here can change the bytes that come out. In the key."""

    TOOLCHAIN: str
    """Which toolchain runs it, by its name in `tf2aif.toolchains`."""

    INPUTS: tuple[str, ...]
    """Which artifacts it reads: names such as `model`, `calibration`."""

    Options: type[msgspec.Struct]
    """Its options: a frozen struct that refuses unknown keys."""

    # A module may say more: `inputs(options)`, which artifacts it reads with these options;
    # `FROM`, input -> the step that makes it; `SCORES = True`, it gets all that `check` gets, and
    # the gate; `COMPILES = True`, it is a device's compiler and waits for the gate; `DEVICE`, the
    # device of `tf2aif.devices` whose facts go into its key; `COMPARE`, how `tf2aif verify`
    # compares its artifact, and `TOLERANCE`, how far outputs may be off.

    def run(self, job: Job) -> Mapping[str, Any]:
        """Do the work; what is returned (JSON) is kept in the record of the step."""


STEPS: dict[str, str] = {
    "model": "tf2aif.steps.model",
    "import": "tf2aif.steps.import_model",
    "calibration": "tf2aif.steps.dataset",
    "evaluation": "tf2aif.steps.dataset",
    "reference": "tf2aif.steps.reference",
    "tflite": "tf2aif.steps.tflite",
    "openvino": "tf2aif.steps.openvino",
    "native": "tf2aif.steps.native",
    "onnx": "tf2aif.steps.onnx_export",
    "onnx-cast": "tf2aif.steps.onnx_cast",
    "onnx-int8": "tf2aif.steps.onnx_int8",
    "onnx-mixed": "tf2aif.steps.onnx_mixed",
    "onnx-structure": "tf2aif.steps.onnx_structure",
    "tensorrt": "tf2aif.steps.tensorrt",
    "tensorrt-timing": "tf2aif.steps.tensorrt_timing",
    "tensorrt-rtx": "tf2aif.steps.tensorrt_rtx",
    "layers": "tf2aif.steps.layers",
    "dpu-check": "tf2aif.steps.dpu_check",
    "pof2": "tf2aif.steps.pof2",
    "vitis-model": "tf2aif.steps.vitis_model",
    "vitis": "tf2aif.steps.vitis",
    "hls-widths": "tf2aif.steps.hls_widths",
    "hls": "tf2aif.steps.hls",
    "hls-synthesis": "tf2aif.steps.hls_synthesis",
    "check": "tf2aif.steps.check",
    "gate": "tf2aif.steps.gate",
    "latency": "tf2aif.steps.latency",
    "image-lock": "tf2aif.steps.image_lock",
    "image-base": "tf2aif.steps.image_base",
    "image-packages": "tf2aif.steps.image_packages",
    "image-app": "tf2aif.steps.image_app",
    "image-model": "tf2aif.steps.image_model",
}


def step_module(kind: str) -> Any:
    """The module of a step, by its name in the table."""
    if kind not in STEPS:
        raise Tf2aifError(f"unknown step '{kind}'", hint=f"there are: {', '.join(STEPS)}")
    return importlib.import_module(STEPS[kind])
