"""A stand-in for TensorRT on a machine without a driver: it crashes the process, as 10.16 does."""

import ctypes

__version__ = "10.16.1.11"


class Logger:
    ERROR = 1

    def __init__(self, severity: int = 1) -> None:
        pass


ILogger = Logger


def Runtime(logger: Logger) -> None:
    ctypes.string_at(0)


Builder = Runtime
