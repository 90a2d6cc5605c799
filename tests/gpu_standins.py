"""Fixtures that put the stand-ins for CUDA and TensorRT in the place of the real ones.

They are `tests/standins/cuda.c` and `tests/standins/tensorrt`: this shows that tf2aif's own code is
right, on a machine with no GPU. What TensorRT makes of it is shown by `benchmarks/gpu.py`.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tf2aif.engines import cuda as driver
from tf2aif.steps import Job

FOLDER = Path(__file__).parent / "standins"


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for `libcuda.so.1`, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of CUDA")
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    source = str(FOLDER / "cuda.c")
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", source, "-o", str(library)]
    subprocess.run(command, check=True, timeout=60)
    return library


@pytest.fixture
def cuda(cuda_library: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The stand-in GPU in the driver's place: compute capability 8.9, 58 multiprocessors."""
    monkeypatch.setattr(driver, "LIBRARY", str(cuda_library))
    library = ctypes.CDLL(str(cuda_library))
    library.standin_be(b"Stand-in GPU", 8, 9, 58, 13000)
    library.standin_refuse_capture(0)
    return library


@pytest.fixture
def tensorrt(cuda: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for TensorRT, as the module that `import tensorrt` finds."""
    yield from _placed(FOLDER, monkeypatch)


def _placed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import importlib

    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    yield importlib.import_module("tensorrt")
    sys.modules.pop("tensorrt", None)


def run_step(kind: str, out: Path, given: dict[str, Path], /, **options: Any) -> dict[str, Any]:
    """Run a step that needs no worker into a fresh folder; its result."""
    import importlib

    out.mkdir(parents=True)
    job = Job(step=f"test/{out.name}", kind=kind, options=options, inputs=given, out=out)
    module = importlib.import_module(f"tf2aif.steps.{kind.replace('-', '_')}")
    return dict(module.run(job))


__all__ = ["cuda", "cuda_library", "run_step", "tensorrt"]
