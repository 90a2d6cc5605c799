"""Each call that the step and the engine make exists in TensorRT's real bindings, 10 and 11.

The bindings are wheels of 1.3 MB from the package index. The libraries behind them are not there,
so a C file with their ten entry points takes their place: what is looked at is which classes,
methods and flags the bindings have. They are imported in a child process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from gpu_standins import cuda, cuda_library, run_step, tensorrt

from tf2aif.engines import tensorrt as engine

__all__ = ["cuda", "cuda_library", "tensorrt"]

VERSIONS = {"10": "10.16.1.11", "11": "11.4.0.106"}
ENTRIES = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
# What the code names without the stand-in seeing it: module functions and the logger.
BESIDES = {"Logger.ERROR", "ILogger.log", "ILogger.ERROR", "ILogger.INTERNAL_ERROR"}
BESIDES |= {"ILogger.VERBOSE"}

LOOK = """
import ctypes, json, sys
for library in sys.argv[3:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt
missing = [call for call in json.loads(sys.argv[2])
           if not hasattr(getattr(trt, call.split(".")[0], None), call.split(".")[1])]
told = {"version": trt.__version__, "missing": missing, "nptype": hasattr(trt, "nptype")}
print(json.dumps(told))
"""

BUILD = """
import ctypes, sys
from pathlib import Path
for library in sys.argv[3:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
sys.path.insert(0, sys.argv[1])
from tf2aif.errors import StepFailed
from tf2aif.steps.trt_build import Build, library_of
try:
    Build(library_of(("tensorrt",)), Path(sys.argv[2]))
except StepFailed as error:
    print(error.faults[0].message)
"""


@pytest.fixture(scope="session", params=sorted(VERSIONS))
def bindings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A folder with the real bindings of a version, and the libraries to load before them."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the libraries that the bindings want")
    wheel = fetch(request, VERSIONS[request.param])
    folder = tmp_path_factory.mktemp(f"bindings-{request.param}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRIES))
    libraries = []
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.{request.param}"
        command = [compiler, "-shared", "-fPIC", str(source), f"-Wl,-soname,{library}"]
        subprocess.run([*command, "-o", str(folder / library)], check=True, timeout=60)
        libraries.append(str(folder / library))
    return folder, libraries


def fetch(request: pytest.FixtureRequest, version: str) -> Path:
    """The wheel of the bindings, kept in pytest's cache from one run to the next."""
    folder = Path(request.config.cache.mkdir(f"tensorrt-bindings-{version}"))
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if not list(folder.glob(f"*-{tag}-*.whl")):
        wanted = f"tensorrt-cu13-bindings=={version}"
        command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--quiet"]
        done = subprocess.run(
            [*command, "--only-binary=:all:", "--dest", str(folder), "--timeout", "20"],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no package index gives {wanted}: {done.stderr.strip()[-200:]}")
    return next(folder.glob(f"*-{tag}-*.whl"))


@pytest.fixture
def calls(tensorrt: Any, tmp_path: Path) -> set[str]:
    """Every class and attribute of TensorRT's that all of our ways through it use."""
    tensorrt.CALLS.clear()
    free, axes = onnx_models.conv(tmp_path / "free"), onnx_models.sums(tmp_path / "sums")
    free_axes = [{"input": n, "axis": 1, "min": 1, "opt": 8, "max": 16} for n in ("left", "right")]
    run_step("onnx-structure", tmp_path / "structure", {"model": free})
    run_step("tensorrt-timing", tmp_path / "timing", {"structure": tmp_path / "structure"})
    given = {"model": free, "timing": tmp_path / "timing"}
    run_step("tensorrt", tmp_path / "plain", given, workspace_mb=64, tf32=False)
    loose = {"version_compatible": True, "hardware_compatibility": "ampere-plus"}
    two = [{"min": 1, "opt": 1, "max": 1}, {"min": 1, "opt": 8, "max": 16}]
    options = {"strip_weights": True, "batches": two, "timing_cache": False}
    run_step("tensorrt", tmp_path / "loose", {"model": free}, **loose, **options)
    same = {"hardware_compatibility": "same-compute-capability", "timing_cache": False}
    run_step("tensorrt", tmp_path / "axes", {"model": axes}, axes=free_axes, **same)
    for name, model in (("plain", free), ("loose", free), ("axes", axes)):
        made = engine.load(tmp_path / name)
        made.run(
            {
                spec.name: onnx_models.zeros(spec.shape, 2)
                for spec in engine.read_signature(model).inputs
            }
        )
        made.close()
    refused = onnx_models.conv(tmp_path / "refused", middle="Det")
    with pytest.raises(Exception, match="Det"):
        run_step("tensorrt", tmp_path / "no", {"model": refused}, timing_cache=False)
    return set(tensorrt.CALLS) | BESIDES


def look(bindings: tuple[Path, list[str]], calls: set[str]) -> dict[str, Any]:
    folder, libraries = bindings
    command = [sys.executable, "-c", LOOK, str(folder), json.dumps(sorted(calls)), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_call_is_in_the_real_bindings(
    bindings: tuple[Path, list[str]], calls: set[str]
) -> None:
    assert len(calls) > 50
    assert {"BuilderFlag.STRIP_PLAN", "IExecutionContext.execute_async_v3"} <= calls
    told = look(bindings, calls)
    assert told["version"] in VERSIONS.values()
    assert told["nptype"]
    assert told["missing"] == []


def test_a_name_that_is_not_there_is_seen(bindings: tuple[Path, list[str]]) -> None:
    """What 11 has no more is missing there, and a name that nobody has everywhere."""
    told = look(bindings, {"BuilderFlag.FP16", "BuilderFlag.TURBO", "Nothing.at_all"})
    gone = ["BuilderFlag.FP16"] if told["version"].startswith("11.") else []
    assert told["missing"] == [*gone, "BuilderFlag.TURBO", "Nothing.at_all"]


def test_every_call_is_in_tensorrt_for_rtx(calls: set[str]) -> None:
    """The same code drives it; only what steps `tensorrt` asks beyond it may be missing."""
    library = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="the extra 'rtx' is not installed"
    )
    parts = [call.split(".") for call in sorted(calls)]
    assert [f"{a}.{b}" for a, b in parts if not hasattr(getattr(library, a, None), b)] == []


def test_real_bindings_without_a_driver_are_one_failed_step(
    bindings: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """A null pointer from the library, as TensorRT gives it without a driver."""
    folder, libraries = bindings
    model = onnx_models.conv(tmp_path / "model") / "model.onnx"
    command = [sys.executable, "-c", BUILD, str(folder), str(model), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "tensorrt_bindings gives no builder" in done.stdout, done.stderr
