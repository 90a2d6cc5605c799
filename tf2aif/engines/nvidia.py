"""What NVIDIA hardware and driver are on this machine, read without starting CUDA.

Files first (`/proc/driver/nvidia`, `/etc/nv_tegra_release`, the device tree), then NVML, the
driver's own library for monitoring. Neither holds memory on a GPU, and both are there wherever a
container was given one. A machine without a driver costs four look-ups of files.

Source: NVML API reference; `nv_tegra_release` and the device tree as JetPack 5 to 7 write them.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

NVML = "libnvidia-ml.so.1"
ROOT = Path("/")

_SIGNS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg", "etc/nv_tegra_release")
# CUDA cores of one multiprocessor, by compute capability (CUDA programming guide, appendix on
# compute capabilities). NVML counts cores, TensorRT asks for multiprocessors.
_CORES_PER_SM = {"7.0": 64, "7.2": 64, "7.5": 64, "8.0": 64}
_CORES = 128  # of every later one
_TEGRA = {"tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
_TEXT_BYTES = 128


class Gpu(Struct, frozen=True, kw_only=True):
    """One GPU as its driver describes it."""

    name: str
    compute_capability: str  # such as "8.9"
    multiprocessors: int  # 0: not told
    memory_bytes: int
    uuid: str = ""


class Jetson(Struct, frozen=True, kw_only=True):
    """A Jetson board: its module and its release of Jetson Linux (L4T)."""

    model: str
    l4t: str  # such as "36.4.3"
    compute_capability: str  # "": a chip that is not in our table
    power_mode: str = ""  # it switches multiprocessors off


class Machine(Struct, frozen=True, kw_only=True):
    """All of it. Without a driver everything is empty."""

    driver: str = ""
    cuda: str = ""  # the newest CUDA that the driver takes, such as "13.0"
    gpus: tuple[Gpu, ...] = ()
    jetson: Jetson | None = None

    @property
    def present(self) -> bool:
        """Whether CUDA could have a device here."""
        return bool(self.gpus or self.jetson)

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that a process uses by itself: the first one that it may see."""
        return self.gpus[0] if self.gpus else None


def read_machine(root: Path = ROOT, nvml: str = NVML) -> Machine:
    """Describe this machine; `root` and `nvml` are other places, for tests."""
    if not any((root / sign).exists() for sign in _SIGNS):
        return Machine()
    jetson = read_jetson(root)
    driver, cuda, gpus = _read_nvml(nvml)
    if not gpus and jetson is not None:
        gpus = (_tegra_gpu(jetson, root),)
    return Machine(
        driver=driver or _driver_file(root), cuda=cuda, gpus=_visible(gpus), jetson=jetson
    )


def read_jetson(root: Path = ROOT) -> Jetson | None:
    """The Jetson that this is, or None.

    The first line of `nv_tegra_release` is `# R36 (release), REVISION: 4.3, GCID: ...`.
    """
    text = _text(root / "etc/nv_tegra_release")
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if found is None:
        return None
    chips = _text(root / "proc/device-tree/compatible")
    chip = next((each for each in _TEGRA if each in chips), "")
    mode = _text(root / "var/lib/nvpmodel/status").strip()
    return Jetson(
        model=_text(root / "proc/device-tree/model").strip("\0\n ") or "Jetson",
        l4t=f"{found[1]}.{found[2]}",
        compute_capability=_TEGRA.get(chip, ""),
        power_mode=mode.removeprefix("pmode:"),
    )


def _tegra_gpu(jetson: Jetson, root: Path) -> Gpu:
    """The GPU inside a Jetson's chip, for which NVML answers only from JetPack 7 on."""
    kib = re.search(r"MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"))
    return Gpu(
        name=jetson.model,
        compute_capability=jetson.compute_capability,
        multiprocessors=0,
        memory_bytes=int(kib[1]) * 1024 if kib else 0,
    )


def _driver_file(root: Path) -> str:
    """The driver's version, from `NVRM version: NVIDIA UNIX ... Kernel Module  550.54.15  ...`."""
    found = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", _text(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves, in its order: numbers, GPU-UUIDs, MIG-UUIDs."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not gpus:
        return gpus
    chosen: list[Gpu] = []
    for word in (each.strip() for each in wanted.split(",")):
        found = gpus[int(word) : int(word) + 1] if word.isdigit() else _by_uuid(gpus, word)
        if not found:
            break  # as CUDA does: what comes after one that is not there is not seen
        chosen += found
    return tuple(chosen)


def _by_uuid(gpus: tuple[Gpu, ...], word: str) -> tuple[Gpu, ...]:
    if word.startswith("MIG-"):  # a part of a GPU: which part is in the name, its size is not told
        return (replace(gpus[0], name=f"{gpus[0].name} {word}", multiprocessors=0, memory_bytes=0),)
    return tuple(gpu for gpu in gpus if word and gpu.uuid.startswith(word))[:1]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class Nvml:
    """NVML, opened. Raises OSError where there is none, or where it refuses."""

    def __init__(self, name: str = NVML) -> None:
        self._library = ctypes.CDLL(name)
        self._call("nvmlInit_v2")

    def driver(self) -> str:
        """The driver's version, such as 550.54.15."""
        return self._words("nvmlSystemGetDriverVersion")

    def cuda(self) -> str:
        """The newest CUDA that the driver takes."""
        value = ctypes.c_int()
        self._call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def count(self) -> int:
        """How many GPUs the driver has, also those that CUDA may not use here."""
        value = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(value))
        return value.value

    def handle(self, index: int) -> ctypes.c_void_p:
        """The handle of a GPU by its number, in PCI order."""
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def gpu(self, handle: ctypes.c_void_p) -> Gpu:
        """What that GPU is. What an older driver cannot tell is 0 or empty."""
        major, minor, cores = ctypes.c_int(), ctypes.c_int(), ctypes.c_uint()
        capability = "nvmlDeviceGetCudaComputeCapability"
        self._call(capability, handle, ctypes.byref(major), ctypes.byref(minor))
        told = f"{major.value}.{minor.value}"
        uuid, memory = "", 0
        with suppress(OSError):  # a driver of before 2021
            self._call("nvmlDeviceGetNumGpuCores", handle, ctypes.byref(cores))
        with suppress(OSError):
            uuid = self._words("nvmlDeviceGetUUID", handle)
        with suppress(OSError):  # a GPU that shares the processor's memory has none to tell
            memory = self.memory(handle)[0]
        return Gpu(
            name=self._words("nvmlDeviceGetName", handle),
            compute_capability=told,
            multiprocessors=cores.value // _CORES_PER_SM.get(told, _CORES),
            memory_bytes=memory,
            uuid=uuid,
        )

    def memory(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        """Bytes of the GPU's memory: all, and used by anybody."""
        values = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(values))
        return values[0], values[2]

    def energy_mj(self, handle: ctypes.c_void_p) -> int:
        """Millijoules that the GPU used since its driver was loaded."""
        value = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(value))
        return value.value

    def _words(self, function: str, *before: object) -> str:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        self._call(function, *before, text, ctypes.c_uint(_TEXT_BYTES))
        return text.value.decode("utf-8", "replace")

    def _call(self, function: str, *arguments: object) -> None:
        try:
            status = getattr(self._library, function)(*arguments)
        except AttributeError as error:  # an older driver
            raise OSError(0, f"NVML has no {function}") from error
        if status != 0:
            raise OSError(status, f"NVML refused {function}")


def _read_nvml(name: str) -> tuple[str, str, tuple[Gpu, ...]]:
    """Driver, CUDA and GPUs; all empty where NVML is not there or its driver does not answer."""
    try:
        nvml = Nvml(name)
        gpus = tuple(nvml.gpu(nvml.handle(index)) for index in range(nvml.count()))
        return nvml.driver(), nvml.cuda(), gpus
    except OSError:
        return "", "", ()
