"""TensorRT of the base image or of the machine itself: JetPack's, or that of the vendor's image.

The same as engine `tensorrt`, and no wheels of TensorRT in the image.
"""

from __future__ import annotations

from .tensorrt import TensorRT, load

__all__ = ["REQUIREMENTS", "TensorRT", "load"]

REQUIREMENTS = ("numpy>=1.26,<3",)
