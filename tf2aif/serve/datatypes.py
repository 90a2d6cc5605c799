"""The tensor datatypes of the Open Inference Protocol and what they are in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),  # elements are `bytes`
}
"""Datatype -> dtype. On the wire every number is little-endian."""

_NAMES = {dtype: name for name, dtype in NUMPY.items()}


def datatype_of(dtype: str | np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype: float32 is FP32. Raises ValueError where it has none.

    >>> datatype_of("float32")
    'FP32'
    """
    wanted = np.dtype(dtype)
    if wanted.kind in "SU":
        return "BYTES"
    name = _NAMES.get(wanted)
    if name is None:
        raise ValueError(f"dtype '{wanted}' has no datatype in the Open Inference Protocol")
    return name
