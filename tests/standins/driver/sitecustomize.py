"""A stand-in for a machine with an NVIDIA driver: Python imports this file when it starts.

tf2aif looks for a driver's files below `root`, beside this file, in place of `/`. The libraries
of that driver are stand-ins, too (`cuda.c`, `nvml.c`), and are found on LD_LIBRARY_PATH.
"""

from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # a Python that has not been given tf2aif yet
    from tf2aif.engines import nvidia

    nvidia.read_machine.__defaults__ = (Path(__file__).with_name("root"), nvidia.NVML)
