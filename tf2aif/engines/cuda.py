"""The part of CUDA's driver API that an engine needs, by ctypes: nothing to install in an image.

The driver brings `libcuda.so.1`, and its interface keeps its meaning from one driver to the next;
`_v2` and the like are part of the names that CUDA's own headers use. A call that fails raises
Tf2aifError in CUDA's words.

Source: CUDA driver API reference.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from ..errors import Tf2aifError

if TYPE_CHECKING:
    from . import Array

LIBRARY = "libcuda.so.1"

_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for the default stream
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: the capture does not forbid other threads' calls
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE
_NAME_BYTES = 256


class Cuda:
    """The driver, and one device's primary context, which TensorRT and others share.

    Raises Tf2aifError where there is no driver, or no such device.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Tf2aifError(
                f"there is no NVIDIA driver here: {error}",
                hint="a container needs the GPU from its host: `--gpus`, or its CDI device",
            ) from error
        self.call("cuInit", 0)
        self._device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self._device), device)
        self._context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.use()

    def use(self) -> None:
        """Make the device current on this thread, as every thread needs it that calls CUDA."""
        self.call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Give the context back. Calling it twice is harmless."""
        if self._context:
            self.call("cuDevicePrimaryCtxRelease_v2", self._device)
            self._context = ctypes.c_void_p()

    def name(self) -> str:
        """The GPU's name."""
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("cuDeviceGetName", text, _NAME_BYTES, self._device)
        return text.value.decode("utf-8", "replace")

    def compute_capability(self) -> str:
        """Such as "8.9"."""
        return f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}"

    def multiprocessors(self) -> int:
        """How many the device has, or this part of it."""
        return self._attribute(_MULTIPROCESSORS)

    def version(self) -> str:
        """The newest CUDA that this driver takes, such as "13.0"."""
        value = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises Tf2aifError where it fails."""
        status = getattr(self._library, function)(*arguments)
        if status:
            raise Tf2aifError(f"CUDA failed: {function}: {self._words(status)}")

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return value.value

    def _words(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        return (text.value or b"").decode() or f"error {status}"


class Stream:
    """A queue of work on the device, in order."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._handle = ctypes.c_void_p()
        cuda.call("cuStreamCreate", ctypes.byref(self._handle), _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """As TensorRT takes it."""
        return self._handle.value or 0

    def wait(self) -> None:
        """Until all that was put in is done. Raises Tf2aifError where any of it failed."""
        self._cuda.call("cuStreamSynchronize", self._handle)

    def begin_capture(self) -> None:
        """From now on work is written down, not done."""
        self._cuda.call("cuStreamBeginCapture_v2", self._handle, _RELAXED)

    def end_capture(self) -> Graph:
        """What was written down, ready to be done as often as wanted."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self._cuda.call("cuStreamEndCapture", self._handle, ctypes.byref(graph))
        try:
            flags = ctypes.c_ulonglong(0)
            self._cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, flags)
        finally:
            self._cuda.call("cuGraphDestroy", graph)
        return Graph(self._cuda, made, self._handle)

    def close(self) -> None:
        """Give it back. Calling it twice is harmless."""
        if self._handle:
            self._cuda.call("cuStreamDestroy_v2", self._handle)
            self._handle = ctypes.c_void_p()


class Graph:
    """A run that was captured: one call starts all of its kernels and copies."""

    def __init__(self, cuda: Cuda, handle: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        self._cuda = cuda
        self._handle = handle
        self._stream = stream

    def launch(self) -> None:
        """Put it into the stream that it was captured from."""
        self._cuda.call("cuGraphLaunch", self._handle, self._stream)

    def close(self) -> None:
        """Give it back. Calling it twice is harmless."""
        if self._handle:
            self._cuda.call("cuGraphExecDestroy", self._handle)
            self._handle = ctypes.c_void_p()


class Buffer:
    """One tensor's memory: on the device, and as large a piece of pinned memory on the host.

    Copies between the two need no staging, and run beside the processor.
    """

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self._cuda = cuda
        self.size_bytes = max(1, size_bytes)
        self._device = ctypes.c_uint64()
        self._host = ctypes.c_void_p()
        cuda.call("cuMemAlloc_v2", ctypes.byref(self._device), ctypes.c_size_t(self.size_bytes))
        try:
            size = ctypes.c_size_t(self.size_bytes)
            cuda.call("cuMemHostAlloc", ctypes.byref(self._host), size, _PORTABLE)
        except Tf2aifError:
            self.close()
            raise

    @property
    def address(self) -> int:
        """On the device."""
        return self._device.value

    def host(self, shape: tuple[int, ...], dtype: str) -> Array:
        """The host's piece as an array of that shape; no copy."""
        import numpy as np

        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        if count * kind.itemsize > self.size_bytes:
            raise Tf2aifError(f"an array of shape {shape} does not fit {self.size_bytes} bytes")
        memory: Any = (ctypes.c_char * self.size_bytes).from_address(self._host.value or 0)
        found: Array = np.frombuffer(memory, kind, count).reshape(shape)
        return found

    def upload(self, size_bytes: int, stream: Stream) -> None:
        """Copy the first bytes to the device, in the stream."""
        arguments = (self._device, self._host, ctypes.c_size_t(size_bytes))
        self._cuda.call("cuMemcpyHtoDAsync_v2", *arguments, ctypes.c_void_p(stream.handle))

    def download(self, size_bytes: int, stream: Stream) -> None:
        """Copy the first bytes from the device, in the stream."""
        arguments = (self._host, self._device, ctypes.c_size_t(size_bytes))
        self._cuda.call("cuMemcpyDtoHAsync_v2", *arguments, ctypes.c_void_p(stream.handle))

    def close(self) -> None:
        """Give both pieces back. Calling it twice is harmless."""
        if self._host:
            self._cuda.call("cuMemFreeHost", self._host)
            self._host = ctypes.c_void_p()
        if self._device.value:
            self._cuda.call("cuMemFree_v2", self._device)
            self._device = ctypes.c_uint64()
