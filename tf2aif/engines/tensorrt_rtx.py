"""TensorRT for RTX: runs `engine.plan`, which step `tensorrt-rtx` built with or without a GPU.

The engine holds for every GPU of its compute capabilities; the library finishes it for the GPU that
it finds, in seconds, when the engine is loaded and first run.
"""

from __future__ import annotations

from pathlib import Path

from .tensorrt import TensorRT, load_with

REQUIREMENTS = (
    "numpy>=1.26,<3",
    "tensorrt-rtx-cu13-bindings>=1.7,<1.8",
    "tensorrt-rtx-cu13-libs>=1.7,<1.8",
)


def load(
    artifact: Path, *, threads: int | None = None, device: int = 0, cuda_graph: bool = True
) -> TensorRT:
    """Load the engine in that folder onto GPU number `device`.

    `threads` is checked, and has no meaning on a GPU. `cuda_graph`: where shapes are fixed.
    Raises Tf2aifError where a file is missing or broken, where there is no driver or no GPU of the
    engine's compute capabilities, and where the library is of another release: an engine of one
    release runs with no other.
    """
    return load_with(("tensorrt-rtx",), artifact, threads, device, cuda_graph)
