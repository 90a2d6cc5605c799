"""What NVIDIA hardware is here, by files and by a stand-in for NVML (tests/standins/nvml.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tf2aif.devices import describe_devices, device_facts, nvidia
from tf2aif.engines.nvidia import Gpu, Machine, read_jetson, read_machine
from tf2aif.engines.requirement import Here, Requirement, differences
from tf2aif.errors import Tf2aifError
from tf2aif.toolchains import Missing, Root, Toolchain
from tf2aif.toolchains import nvidia as kind

JETSON = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: ...\n"
)
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
DPKG = """Package: libnvinfer-dev
Status: install ok installed
Version: 1.2.3-1

Package: libnvinfer10
Status: install ok installed
Priority: optional
Architecture: arm64
Version: 10.3.0.30-1+cuda12.5

Package: nvidia-jetpack
Version: 6.2+b77
"""
L4, A100 = "NVIDIA L4", "NVIDIA A100-SXM4-40GB"


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of NVML")
    library = tmp_path_factory.mktemp("nvml") / "libnvml.so"
    source = str(Path(__file__).parent / "standins" / "nvml.c")
    command = [compiler, "-shared", "-fPIC", "-Wall", source, "-o", str(library)]
    subprocess.run(command, check=True, timeout=60)
    return str(library)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """The root of a server with a driver."""
    return write(tmp_path, {"proc/driver/nvidia/version": DRIVER})


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """The root of a Jetson AGX Orin with JetPack 6.2."""
    return write(
        tmp_path,
        {
            "etc/nv_tegra_release": JETSON,
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
            "proc/meminfo": "MemTotal:       64349288 kB\nMemFree: 1 kB\n",
            "var/lib/nvpmodel/status": "pmode:0000\n",
            "var/lib/dpkg/status": DPKG,
        },
    )


def test_a_machine_with_no_driver(tmp_path: Path, nvml: str) -> None:
    machine = read_machine(tmp_path, nvml)
    assert machine == Machine()
    assert not machine.present
    assert machine.gpu is None


def test_gpus_as_nvml_tells_them(server: Path, nvml: str) -> None:
    machine = read_machine(server, nvml)
    assert (machine.driver, machine.cuda) == ("580.65.06", "13.0")
    first, second = machine.gpus
    assert first == Gpu(
        name=L4,
        compute_capability="8.9",
        multiprocessors=58,
        memory_bytes=24152899584,
        uuid="GPU-11111111",
    )
    assert (second.multiprocessors, second.compute_capability) == (108, "8.0")
    assert machine.gpu == first


def test_a_driver_that_does_not_answer(server: Path) -> None:
    machine = read_machine(server, "no-such-library.so")
    assert (machine.driver, machine.gpus) == ("550.54.15", ())
    assert not machine.present


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0", [L4]),
        ("1,0", [A100, L4]),
        ("GPU-2222", [A100]),
        ("1,7,0", [A100]),  # as CUDA does: nothing after one that is not there
        ("", []),
        ("-1", []),
        ("MIG-abc", [f"{L4} MIG-abc"]),
    ],
)
def test_only_what_cuda_may_see(
    server: Path, nvml: str, visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in read_machine(server, nvml).gpus] == names


def test_a_jetson(orin: Path) -> None:
    jetson = read_jetson(orin)
    assert jetson is not None
    assert jetson.model == "NVIDIA Jetson AGX Orin Developer Kit"
    assert (jetson.l4t, jetson.compute_capability, jetson.power_mode) == ("36.4.3", "8.7", "0000")
    machine = read_machine(orin, "no-such-library.so")
    assert machine.present
    assert machine.gpu is not None
    assert machine.gpu.memory_bytes == 64349288 * 1024
    assert machine.gpu.compute_capability == "8.7"


def test_versions_of_the_systems_packages(orin: Path, tmp_path: Path) -> None:
    assert nvidia.debian_version("tensorrt", orin) == "10.3.0.30-1"
    assert nvidia.debian_version("jetpack", orin) == "6.2"
    assert nvidia.debian_version("tensorrt", tmp_path / "nowhere") == ""


@pytest.fixture
def here(
    server: Path, nvml: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[pytest.MonkeyPatch, dict[str, str]]:
    """A server with TensorRT from wheels in the place of this machine."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = read_machine(server, nvml)
    wheels = {"tensorrt-cu13-libs": "10.16.1.11", "nvidia-cuda-runtime": "13.0.48", "numpy": "2.0"}
    monkeypatch.setattr(nvidia, "read", lambda: machine)
    monkeypatch.setattr(nvidia, "installed", lambda: wheels)
    return monkeypatch, wheels


def test_the_facts_of_a_device(here: tuple[Any, dict[str, str]]) -> None:
    facts = device_facts("nvidia")
    system = os.uname()
    assert facts == {
        "cuda-driver": "13.0",
        "cuda-runtime": "13.0.48",
        "driver": "580.65.06",
        "gpu": "NVIDIA A100-SXM4-40GB, compute capability 8.0, 108 multiprocessors, "
        "42949672960 bytes; NVIDIA L4, compute capability 8.9, 58 multiprocessors, "
        "24152899584 bytes",
        "platform": f"{system.sysname.lower()}-{system.machine}",
        "tensorrt": "10.16.1.11",
        "tensorrt-from": "tensorrt-cu13-libs",
    }
    assert list(facts) == sorted(facts)


def test_what_an_engine_hangs_on_changes_the_facts_and_nothing_else_does(
    here: tuple[pytest.MonkeyPatch, dict[str, str]],
) -> None:
    monkeypatch, wheels = here
    before, machine = device_facts("nvidia"), nvidia.read()
    for change in (
        {"driver": "580.82.07"},
        {"cuda": "13.1"},
        {"gpus": machine.gpus[:1]},
        {"gpus": (msgspec.structs.replace(machine.gpus[0], memory_bytes=1), *machine.gpus[1:])},
    ):
        changed = msgspec.structs.replace(machine, **change)
        monkeypatch.setattr(nvidia, "read", lambda now=changed: now)
        assert device_facts("nvidia") != before, change
    monkeypatch.setattr(nvidia, "read", lambda: machine)
    for name, version in {
        "tensorrt-cu13-libs": "10.16.1.12",
        "nvidia-cuda-runtime": "13.1",
    }.items():
        monkeypatch.setattr(nvidia, "installed", lambda n=name, v=version: {**wheels, n: v})
        assert device_facts("nvidia") != before, name
    others = {"numpy": "2.1", "tensorrt-rtx-cu13-libs": "1.7.1.116", "onnxruntime-gpu": "1.31"}
    monkeypatch.setattr(nvidia, "installed", lambda: wheels | others)
    reordered = msgspec.structs.replace(
        machine,
        gpus=tuple(msgspec.structs.replace(g, uuid="GPU-9") for g in reversed(machine.gpus)),
    )
    monkeypatch.setattr(nvidia, "read", lambda: reordered)
    assert device_facts("nvidia") == before


def test_facts_of_a_jetson(orin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = read_machine(orin, "no-such-library.so")
    monkeypatch.setattr(nvidia, "read", lambda: machine)
    monkeypatch.setattr(nvidia, "installed", lambda: {"tensorrt": "10.3.0"})
    monkeypatch.setattr(
        nvidia, "debian_version", lambda what: {"tensorrt": "10.3.0.30-1", "jetpack": "6.2"}[what]
    )
    facts = device_facts("nvidia")
    assert facts["l4t"] == "36.4.3"
    assert facts["jetpack"] == "6.2"
    assert facts["power-mode"] == "0000"
    assert (facts["tensorrt"], facts["tensorrt-from"]) == ("10.3.0.30-1", "system")
    words = describe_devices()
    assert words["jetson"] == "NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3, JetPack 6.2"


def test_doctor_words(here: tuple[Any, dict[str, str]]) -> None:
    words = describe_devices()
    assert words["gpu 0"].startswith("NVIDIA L4, compute capability 8.9, 22 GiB, driver 580.65.06")
    assert words["tensorrt"] == "tensorrt 10.16.1.11"


def test_doctor_words_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "read", Machine)
    monkeypatch.setattr(nvidia, "installed", dict)
    monkeypatch.setattr(nvidia, "debian_version", lambda what: "")
    assert describe_devices() == {
        "gpu": "no NVIDIA GPU: no driver answers",
        "tensorrt": "none installed",
    }
    assert device_facts("nvidia") == {}
    with pytest.raises(Tf2aifError, match=r"unknown device 'amd'(.|\n)*nvidia"):
        device_facts("amd")


TENSORRT = Toolchain("nvidia", (Root(("tensorrt", "tensorrt-cu13"), ("tensorrt",)),))


def test_a_toolchain_needs_its_library_and_a_gpu(
    here: tuple[pytest.MonkeyPatch, dict[str, str]],
) -> None:
    monkeypatch, wheels = here
    environment = "tf2aif.toolchains.environment.installed"
    monkeypatch.setattr(environment, lambda: wheels)
    lacking = kind.identity(TENSORRT)
    assert isinstance(lacking, Missing)
    assert lacking.what == "tensorrt"
    assert "JetPack" in lacking.hint
    monkeypatch.setattr(environment, lambda: {**wheels, "tensorrt": "10.16.1"})
    found = kind.identity(TENSORRT)
    assert not isinstance(found, Missing)
    assert found.kind == "nvidia"
    assert found.versions == {"tensorrt": "10.16.1.11"}
    monkeypatch.setattr(nvidia, "read", Machine)
    lacking = kind.identity(TENSORRT)
    assert isinstance(lacking, Missing)
    assert lacking.what == "an NVIDIA GPU"


def test_looking_loads_no_vendor_library() -> None:
    script = (
        "import sys; from tf2aif.devices import describe_devices, device_facts;"
        "device_facts('nvidia'); describe_devices();"
        "print(*(m for m in sys.modules if m.split('.')[0] in"
        " ('numpy', 'tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings', 'onnxruntime')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


# -- what a machine must be for an engine --

BUILT = Requirement(
    library="tensorrt",
    version="10.16.1.11",
    platform="linux-x86_64",
    compute_capabilities=("8.9",),
    gpu=L4,
    multiprocessors=58,
    driver="580.65.06",
    cuda="13.0",
)
OURS = Here(
    library="tensorrt",
    version="10.16.1.11",
    platform="linux-x86_64",
    compute_capability="8.9",
    gpu=L4,
    multiprocessors=58,
    cuda="13.0",
)
SAME = {"hardware_compatibility": "same-compute-capability"}
AMPERE = {"hardware_compatibility": "ampere-plus"}
LATER = {"version_compatible": True}


@pytest.mark.parametrize(
    ("built", "here", "words"),
    [
        ({}, {}, ""),
        ({}, {"compute_capability": "9.0", "gpu": "H100"}, "needs compute capability 8.9"),
        ({}, {"gpu": "NVIDIA L40"}, "it was built on NVIDIA L4, this is NVIDIA L40"),
        ({}, {"multiprocessors": 29}, "built for 58 multiprocessors, here are 29"),
        ({}, {"version": "10.16.1.12"}, "needs tensorrt 10.16.1.11, here is 10.16.1.12"),
        ({}, {"version": "10.16.1"}, ""),
        ({}, {"version": "11.4.0.106"}, "needs tensorrt 10.16.1.11, here is 11.4.0.106"),
        ({}, {"platform": "linux-aarch64"}, "needs linux-x86_64, this is linux-aarch64"),
        ({}, {"cuda": "12.8"}, "built with CUDA 13.0, the driver takes 12.8"),
        ({}, {"cuda": "13.2"}, ""),
        ({}, {"library": "tensorrt-rtx"}, "needs tensorrt, here is tensorrt-rtx"),
        ({}, {"l4t": "36.4.3"}, "needs no Jetson, this is L4T 36.4.3"),
        ({"l4t": "36.4.3"}, {"l4t": "36.4.4"}, "needs L4T 36.4.3, this is L4T 36.4.4"),
        ({"l4t": "36.4.3"}, {"l4t": "36.4.3"}, ""),
        (SAME, {"gpu": "NVIDIA L40", "multiprocessors": 142}, ""),
        (SAME, {"compute_capability": "9.0"}, "needs compute capability 8.9"),
        (AMPERE, {"compute_capability": "9.0", "gpu": "H100"}, ""),
        (AMPERE, {"compute_capability": "12.0", "gpu": "B"}, ""),
        (AMPERE, {"compute_capability": "7.5", "gpu": "T4"}, "compute capability 8.0 or later"),
        (LATER, {"version": "10.17.0.3"}, ""),
        (LATER, {"version": "10.15.1.29"}, "needs tensorrt 10.16.1.11 or a later 10.x, here is"),
        (LATER, {"version": "11.4.0.106"}, "needs tensorrt 10.16.1.11 or a later 10.x, here is"),
        ({"compute_capabilities": (), "gpu": "", "cuda": ""}, {"cuda": "12.0"}, ""),
    ],
)
def test_which_machines_an_engine_runs_on(
    built: dict[str, Any], here: dict[str, Any], words: str
) -> None:
    wanted = msgspec.structs.replace(BUILT, **built)
    found = differences(wanted, msgspec.structs.replace(OURS, **here))
    assert len(found) == bool(words), found
    assert words in "".join(found)


def test_all_that_differs_is_told_at_once() -> None:
    other = Here(
        library="tensorrt",
        version="11.4.0.106",
        platform="linux-aarch64",
        compute_capability="8.7",
        gpu="Orin",
        multiprocessors=16,
        cuda="12.6",
        l4t="36.4.3",
    )
    assert len(differences(BUILT, other)) == 5


def test_gpu_memory_in_the_servers_metrics(nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tf2aif.serve import metrics
    from tf2aif.serve.energy import find_gpu_memory

    found = find_gpu_memory(nvml)
    assert {name: read() for name, read in found.items()} == {"nvml:0": 1048576, "nvml:1": 1048576}
    monkeypatch.setattr(metrics, "find_gpu_memory", lambda: found)
    text = metrics.Metrics("digits", "gpu-fp16", "tensorrt").render().decode()
    assert 'tf2aif_gpu_memory_used_bytes{source="nvml:0"} 1.048576e+06' in text
    assert find_gpu_memory("no-such-library.so") == {}
    monkeypatch.setattr(metrics, "find_gpu_memory", dict)
    assert "gpu_memory" not in metrics.Metrics("a", "b", "c").render().decode()
