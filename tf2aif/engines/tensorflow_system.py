"""TensorFlow of the base image or of the machine itself, on its GPU: the vendor's for a Jetson.

The same as engine `tensorflow-gpu`, and no wheels of TensorFlow in the image.
"""

from __future__ import annotations

from .tensorflow_gpu import load

__all__ = ["REQUIREMENTS", "load"]

REQUIREMENTS = ("numpy>=1.26,<3",)
