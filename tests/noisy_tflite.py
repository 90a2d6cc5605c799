"""A converter whose bytes differ from run to run, while its outputs agree: as TensorRT's do.

It is step `tflite`, and then the lowest bits of one weight are drawn anew. The real thing needs a
GPU; what `tf2aif verify` does with it is the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tf2aif.steps import Job, tflite
from tf2aif.steps.tflite import INPUTS, TOOLCHAIN, VERSION, Options

__all__ = ["COMPARE", "INPUTS", "TOOLCHAIN", "VERSION", "Options", "run"]

COMPARE = "outputs"


def run(job: Job) -> Mapping[str, Any]:
    """Convert; then touch a weight of the large kernel, which is more than half of the file."""
    result = tflite.run(job)
    path = job.out / "model.tflite"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 // 4 * 4] = os.urandom(1)[0]  # little-endian: its mantissa's last bits
    path.write_bytes(bytes(data))
    return result
