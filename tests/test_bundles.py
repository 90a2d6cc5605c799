"""Bundles, through the real command line: packed here, run by a Python elsewhere, brought back.

The machine elsewhere is a Python without tf2aif, TensorFlow or PyYAML, which has what a bundle
asks for and nothing more, beside labelled stand-ins for the vendors' tools (`tests/standins`).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_standins import cuda_library
from project import UserProject
from standins.vitis.install import install

from tf2aif.toolchains import Missing, identity
from tf2aif.workers import Workers

__all__ = ["cuda_library"]

STANDINS = Path(__file__).with_name("standins")
PLAIN = "/usr/bin:/bin"  # a PATH without any vendor's commands
DPU, GPU, HLS = "zynq-zcu102-int8", "gpu-fp16", "zynq-zcu102-hls-fixed16"
NEEDED = ("msgspec", "numpy", "xxhash")  # as the documentation says
# Of the stand-in for TensorRT: it runs its engines by ONNX Runtime.
STANDIN_NEEDS = (
    "onnx", "onnxruntime", "google", "protobuf", "ml_dtypes", "flatbuffers", "packaging",
    "typing_extensions",
)  # fmt: skip


def record(project: UserProject, variant: str) -> dict[str, Any]:
    """What `variant.json` says."""
    path = project.root / "build" / "digits" / variant / "variant.json"
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change the content of a JSON file."""
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def edit_byte(path: Path, at: int = -1) -> None:
    """Another value for one byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# The machine here, with no vendor's tools, and what it packs.


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, exported: Path, warm: Workers) -> UserProject:
    """The project after a build for a DPU and a GPU on a machine that has neither."""
    if not isinstance(identity("tensorrt"), Missing):
        pytest.skip("TensorRT and a GPU are here: nothing is packed for them")
    folder = tmp_path_factory.mktemp("packed")
    project = UserProject.create(folder / "project", exported, warm)
    project.write(project.recipe(targets=TARGETS))
    here = build(project, "--target", "zynq-zcu102", "--target", "gpu")
    assert here.returncode == 0, here.stderr
    return project


TARGETS = {
    "zynq-zcu102": None,
    "gpu": {"precisions": ["fp16"]},
    "zynq-zcu102-hls": {"precisions": ["fixed16"]},
}


def cli(project: UserProject, *words: str, path: str = PLAIN) -> subprocess.CompletedProcess[str]:
    """The command line in this project, which has a store of its own."""
    cache = str(project.root.parent / "cache")
    return project.cli(*words, TF2AIF_CACHE=cache, PATH=path)


def build(project: UserProject, *words: str, path: str = PLAIN) -> subprocess.CompletedProcess[str]:
    return cli(project, "build", *words, path=path)


@pytest.fixture
def home(packed: UserProject, tmp_path: Path) -> UserProject:
    """A copy of that project and its store."""
    return copy_of(packed, tmp_path / "home")


def copy_of(project: UserProject, folder: Path) -> UserProject:
    shutil.copytree(project.root.parent, folder)
    return UserProject(folder / "project", project.exported, project.workers)


def bundle_of(project: UserProject, variant: str, dest: Path) -> Path:
    """The bundle, carried to another machine."""
    return shutil.copytree(project.root / "build" / "digits" / variant / "bundle", dest)


# The machine elsewhere.


class Elsewhere:
    """A machine on which a bundle is run: its Python, and where it finds the vendor's tools."""

    def __init__(self, folder: Path, packages: Iterable[str], **environment: str) -> None:
        self.python = make_python(folder, packages)
        self.environment = {"PATH": PLAIN, "HOME": str(folder), "PYTHON": self.python}
        self.environment |= environment

    def run(self, bundle: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Call its run.sh, and wait."""
        return subprocess.run(
            [bundle / "run.sh", *words],
            cwd="/",
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=240,
        )


def make_python(folder: Path, packages: Iterable[str]) -> str:
    """A Python that finds these packages of ours, and no others; not tf2aif."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    place = folder / "lib" / version / "site-packages"
    prefixes = tuple(f"{name}{end}" for name in packages for end in ("-", ".libs"))
    for entry in Path(sysconfig.get_path("platlib")).iterdir():
        if entry.name in packages or entry.name.startswith(prefixes):
            (place / entry.name).symlink_to(entry)
    for module in Path(sysconfig.get_path("platlib")).glob("typing_extensions.py"):
        if "typing_extensions" in packages:
            (place / module.name).symlink_to(module)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """One that has no vendor's tools either."""
    return Elsewhere(tmp_path_factory.mktemp("plain") / "python", NEEDED)


@pytest.fixture(scope="module")
def with_vitis(plain: Elsewhere, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a machine with the stand-ins for Vitis AI."""
    folder = install(tmp_path_factory.mktemp("vitis") / "conda")
    return {"PATH": f"{folder}:{PLAIN}"}


@pytest.fixture(scope="module")
def with_gpu(cuda_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """One with the stand-ins for a driver, a GPU and TensorRT."""
    folder = tmp_path_factory.mktemp("gpu")
    nvml = ["-shared", "-fPIC", STANDINS / "nvml.c", "-o", folder / "libnvidia-ml.so.1"]
    compiler = shutil.which("gcc") or shutil.which("cc") or ""
    subprocess.run([compiler, *nvml], check=True, timeout=60)
    site = folder / "site"
    shutil.copytree(STANDINS / "driver", site)
    shutil.copytree(STANDINS / "tensorrt", site / "tensorrt")
    (site / "tensorrt-10.16.1.11.dist-info").mkdir()
    return Elsewhere(
        folder / "python",
        (*NEEDED, *STANDIN_NEEDS),
        PYTHONPATH=str(site),
        LD_LIBRARY_PATH=f"{folder}:{cuda_library.parent}",
        CUDA_VISIBLE_DEVICES="0",
    )


class Made:
    """What a run of a bundle said, and the folder that it wrote."""

    def __init__(self, run: subprocess.CompletedProcess[str], out: Path) -> None:
        assert run.returncode == 0, run.stdout + run.stderr
        self.run = run
        self.out = out
        self.results: dict[str, Any] = json.loads((out / "results.json").read_bytes())

    def log(self, step: str) -> str:
        return (self.out / f"{step}.log").read_text()


@pytest.fixture(scope="module")
def xmodel(
    packed: UserProject,
    plain: Elsewhere,
    with_vitis: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    """What the DPU's bundle made with the stand-ins for Vitis AI."""
    folder = tmp_path_factory.mktemp("dpu")
    bundle = bundle_of(packed, DPU, folder / "bundle")
    return Made(plain.run(bundle, str(folder / "made"), **with_vitis), folder / "made")


@pytest.fixture(scope="module")
def plan(
    packed: UserProject, with_gpu: Elsewhere, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """What the GPU's bundle made with the stand-ins for TensorRT; run.sh chooses the folder."""
    folder = tmp_path_factory.mktemp("engine")
    bundle = bundle_of(packed, GPU, folder / "gpu")
    return Made(with_gpu.run(bundle), folder / "gpu-out")


# A DPU.


def test_without_vitis_ai_a_dpus_variant_is_emulated_and_its_bundle_complete(
    packed: UserProject,
) -> None:
    found = record(packed, DPU)
    assert found["state"] == "emulated"
    assert "vai_c_tensorflow2 is not on PATH" in found["reason"]
    assert found["engine"]["name"] == "pof2"
    assert found["emulates"] == "vart"
    assert found["accuracy"]["engine"] == "pof2"
    assert found["accuracy"]["drop"] <= found["accuracy"]["allowed_drop"]
    bundle = packed.root / "build" / "digits" / DPU / "bundle"
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    compiler, check, *_ = manifest["steps"]
    assert (compiler["id"], check["id"]) == ("digits/vitis-int8", f"digits/check-{DPU}")
    assert compiler["inputs"].keys() == {"model", "calibration", "gate"}
    assert check["made"] == {"artifact": "digits/vitis-int8"}
    for step in manifest["steps"]:
        for name, path in json.loads((bundle / step["request"]).read_bytes())["inputs"].items():
            assert name in step["made"] or (bundle / path).exists()
    strict = build(packed, "--target", "zynq-zcu102", "--strict")
    assert strict.returncode == 3
    assert "a toolchain is missing" in strict.stderr


def test_the_bundle_of_a_dpu_runs_where_vitis_ai_is(xmodel: Made) -> None:
    """The stand-in for the compiler refuses other arguments and files than AMD's takes."""
    assert f"check-{DPU} is left out: AMD's runtime VART" in xmodel.run.stderr
    assert "[1/1] digits/vitis-int8" in xmodel.run.stderr
    (step,) = xmodel.results["steps"]
    assert step["made_by"]["toolchain.xcompiler"] == "3.5.0"
    assert step["result"]["agreement"]["output_0"]["cosine"] > 0.99
    assert "stand-in: calibrating with 32 samples" in xmodel.log("vitis-int8")
    assert "vai_c_tensorflow2 -m quantized.h5 -a " in xmodel.log("vitis-int8")
    compiled = json.loads((xmodel.out / "vitis-int8" / "model.xmodel").read_bytes())
    assert "stand-in" in compiled["standin"]
    assert xmodel.run.stdout.endswith("then: tf2aif import-bundle made\n")


def test_a_compiled_model_is_brought_back(home: UserProject, xmodel: Made) -> None:
    """The emulation's accuracy stays its own, as the board has not seen it: a bundle is left."""
    before = record(home, DPU)
    taken = cli(home, "import-bundle", str(xmodel.out))
    assert taken.returncode == 0, taken.stderr
    found = record(home, DPU)
    assert found["state"] == "built"
    assert "VART" in found["reason"]
    assert found["engine"]["name"] == "vart"
    assert found["emulates"] is None
    assert found["accuracy"] == before["accuracy"]
    assert found["steps"]["digits/vitis-int8"]["toolchain"]["toolchain.xir"] == "3.5.0"
    folder = home.root / "build" / "digits" / DPU
    assert (folder / "artifact" / "model.xmodel").read_bytes() == (
        xmodel.out / "vitis-int8" / "model.xmodel"
    ).read_bytes()
    left = json.loads((folder / "bundle" / "bundle.json").read_bytes())
    check, *_ = left["steps"]
    assert check["id"] == f"digits/check-{DPU}"
    (packed,) = (folder / "bundle" / "inputs").rglob("model.xmodel")
    assert packed.read_bytes() == (folder / "artifact" / "model.xmodel").read_bytes()
    assert json.loads(build(home, "--target", "zynq-zcu102", "--json").stdout)["ran"] == 0
    assert record(home, DPU) == found
    shutil.rmtree(home.root / "build")
    again = build(home, "--target", "zynq-zcu102", "--json")
    assert json.loads(again.stdout)["ran"] == 0
    assert record(home, DPU)["state"] == "built"


def test_a_calibration_byte_that_changes(home: UserProject, xmodel: Made) -> None:
    """What was compiled of the old samples is not of the new ones, now or when it comes later."""
    assert cli(home, "import-bundle", str(xmodel.out)).returncode == 0
    calibration = home.path("calibration.npy")
    old = calibration.read_bytes()
    samples = np.load(calibration, mmap_mode="r")
    brightest = int(np.argmax(samples[:32])) * samples.itemsize
    edit_byte(calibration, len(old) - samples.nbytes + brightest + 2)  # 1.0 becomes 1.0078
    early = cli(home, "import-bundle", str(xmodel.out))
    assert early.returncode == 1
    assert "digits/calibration is not up to date" in early.stderr
    assert "'tf2aif build' first" in early.stderr
    assert build(home, "--target", "zynq-zcu102").returncode == 0
    assert record(home, DPU)["state"] == "emulated"
    late = cli(home, "import-bundle", str(xmodel.out))
    assert late.returncode == 1
    assert "digits/vitis-int8 was made from something else: input.calibration: " in late.stderr
    assert "run the bundle's run.sh of now" in late.stderr
    assert record(home, DPU)["state"] == "emulated"
    calibration.write_bytes(old)
    assert build(home, "--target", "zynq-zcu102").returncode == 0
    assert record(home, DPU)["state"] == "built"


def test_a_gate_that_fails_starts_no_compiler(
    home: UserProject, with_vitis: Mapping[str, str]
) -> None:
    """int8 loses one sample of 200, and nothing may be lost."""
    home.write(home.recipe(targets={"zynq-zcu102": None}, gate={"drop": 0.0}))
    run = build(home, path=with_vitis["PATH"])
    assert run.returncode == 4, run.stderr
    told = f"error: digits/gate-{DPU}: top-1 fell from 0.97 to 0.965, by 0.005; the gate allows 0"
    assert told in run.stderr
    assert " hint: raise the gate" in run.stderr
    found = record(home, DPU)
    assert found["state"] == "failed"
    assert "top-1 fell from" in found["reason"]
    assert not (home.root / "build" / "digits" / DPU / "bundle").exists()
    assert not list((home.root / "build" / "digits" / ".steps").glob("vitis-int8*"))
    elsewhere = build(home)  # nor is there a bundle of it, for a machine that could
    assert elsewhere.returncode == 4
    assert not (home.root / "build" / "digits" / DPU / "bundle").exists()


def test_an_emulated_variant_is_served_as_one(packed: UserProject) -> None:
    steps = packed.root / "build" / "digits" / ".steps"
    with serving(packed, f"digits/{DPU}") as url:
        asked = cli(
            packed, "client", url, "--samples", str(steps / "evaluation"),
            "--reference", str(steps / "reference"), "--no-load", "--format", "json",
        )  # fmt: skip
        with urllib.request.urlopen(f"{url}/v2/models/digits", timeout=30) as reply:
            metadata = json.load(reply)
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
            metrics = reply.read().decode()
    assert metadata["platform"] == "vart_emulated_by_pof2"
    assert 'emulates="vart"' in metrics
    assert asked.returncode == 0, asked.stderr
    (server,) = json.loads(asked.stdout)["servers"]
    assert server["platform"] == metadata["platform"]
    assert server["accuracy"]["served"] == record(packed, DPU)["accuracy"]["variant"]
    bundled = cli(packed, "serve", f"digits/{GPU}")  # its emulation is not exact
    assert bundled.returncode == 1
    assert f"digits/{GPU} is bundled: tensorrt is not here" in bundled.stderr


@contextlib.contextmanager
def serving(project: UserProject, variant: str) -> Iterator[str]:
    """`tf2aif serve` in this project; its URL."""
    command = [sys.executable, "-m", "tf2aif", "serve", variant, "--port", "0", "--drain-s", "0"]
    process = subprocess.Popen(
        command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            found = re.match(r"ready (http://\S+) ", process.stdout.readline())
            assert found
            yield found[1]
        finally:
            process.terminate()


# A GPU.


def test_without_a_gpu_its_variant_is_a_bundle_with_an_accuracy(packed: UserProject) -> None:
    found = record(packed, GPU)
    assert found["state"] == "bundled"
    assert "tensorrt is not here" in found["reason"]
    assert found["engine"]["name"] == "onnxruntime"
    assert found["emulates"] == "tensorrt"
    assert found["accuracy"]["engine"] == "onnxruntime"
    assert found["accuracy"]["drop"] <= found["accuracy"]["allowed_drop"]


def test_the_bundle_of_a_gpu_builds_checks_and_measures(plan: Made) -> None:
    steps = {step["id"].partition("/")[2]: step for step in plan.results["steps"]}
    names = ["tensorrt-timing-fp16", "tensorrt-fp16", f"check-{GPU}"]
    assert list(steps) == names
    if platform.machine() == "x86_64":  # the target's: it is compared with TensorFlow there
        assert f"latency-{GPU} is left out: tensorflow is not here" in plan.run.stderr
    made_by = steps["tensorrt-fp16"]["made_by"]
    assert made_by["toolchain.tensorrt"] == "10.16.1.11"
    assert made_by["device.driver"] == "580.65.06"
    assert made_by["device.gpu"].startswith("NVIDIA L4, compute capability 8.9")
    assert (plan.out / "tensorrt-fp16" / "engine.plan").read_bytes().startswith(b"stand-in")
    assert "top-1: source 0.97, variant 0.97" in plan.run.stdout


def test_an_engine_is_brought_back(home: UserProject, plan: Made) -> None:
    taken = cli(home, "import-bundle", str(plan.out))
    assert taken.returncode == 0, taken.stderr
    found = record(home, GPU)
    here = platform.machine() == "x86_64"  # whether the stand-ins ran on what the target names
    assert found["state"] == ("verified-on-device" if here else "built")
    assert found["reason"] == ""
    assert found["engine"]["name"] == found["accuracy"]["engine"] == "tensorrt"
    assert found["emulates"] is None
    assert found["latency"] is None
    assert found["compiler"]["gpu"] == "Stand-in GPU"
    made_by = found["steps"]["digits/tensorrt-fp16"]["toolchain"]
    assert made_by["toolchain.tensorrt"] == "10.16.1.11"
    assert "NVIDIA L4" in made_by["device.gpu"]
    assert not (home.root / "build" / "digits" / GPU / "bundle").exists()
    assert json.loads(build(home, "--target", "gpu", "--json").stdout)["ran"] == 0
    assert record(home, GPU) == found


# A network as hardware of its own.


@pytest.fixture(scope="module")
def synthesisable(packed: UserProject, tmp_path_factory: pytest.TempPathFactory) -> UserProject:
    """The project with an HLS project, whose toolchain is fetched."""
    if shutil.which("g++", path=PLAIN) is None:
        pytest.skip("needs g++, which compiles the C simulation")
    tool = identity("hls4ml")
    if isinstance(tool, Missing):
        pytest.skip(f"toolchain hls4ml lacks {tool.what}")
    project = copy_of(packed, tmp_path_factory.mktemp("hls") / "home")
    made = build(project, "--target", "zynq-zcu102-hls")
    if "index cannot be reached" in made.stderr:
        pytest.skip("needs a package index, from which toolchain hls4ml is made")
    assert made.returncode == 0, made.stderr
    return project


def test_a_synthesis_elsewhere_is_brought_back(
    synthesisable: UserProject, plain: Elsewhere, tmp_path: Path
) -> None:
    assert record(synthesisable, HLS)["state"] == "emulated"
    bundle = bundle_of(synthesisable, HLS, tmp_path / "bundle")
    run = plain.run(bundle, str(tmp_path / "made"), PATH=f"{STANDINS / 'hls'}:{PLAIN}")
    made = Made(run, tmp_path / "made")
    synthesis, check = made.results["steps"]
    assert "toolchain.vitis-run" in synthesis["made_by"]
    assert check["result"]["variant"] == record(synthesisable, HLS)["accuracy"]["variant"]
    taken = cli(synthesisable, "import-bundle", str(tmp_path / "made"))
    assert taken.returncode == 0, taken.stderr
    found = record(synthesisable, HLS)
    assert found["state"] == "built"  # an emulation checked it, there too
    assert found["compiler"]["latency_cycles"] == 2210
    assert found["compiler"]["resources"]["DSP"] == {"used": 1310, "available": 2520}
    shipped = synthesisable.root / "build" / "digits" / HLS / "artifact"
    assert b"stand-in" in (shipped / "ip.zip").read_bytes()


# What goes wrong.


def test_a_bundle_where_the_tools_are_not_either(
    packed: UserProject, plain: Elsewhere, tmp_path: Path
) -> None:
    bundle = bundle_of(packed, DPU, tmp_path / "bundle")
    run = plain.run(bundle)
    assert run.returncode == 3
    assert run.stderr.splitlines()[0] == (
        "error: digits/vitis-int8 needs AMD Vitis AI (vai_c_tensorflow2 is not on PATH), "
        "which is not here"
    )
    assert " hint: start the build in Vitis AI's image" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: edit_byte(next(b.rglob("inputs/*/calibration/x0.npy"))), "input 'calibration'"),
        (
            lambda b: shutil.rmtree(next(b.glob("inputs/*/vitis-model"))),
            "input 'model' of digits/v",
        ),
        (lambda b: (b / "00-vitis-int8.json").unlink(), "not there: No such file"),
        (lambda b: (b / "00-vitis-int8.json").write_text("{"), "cannot be read: Input data was tr"),
        (lambda b: (b / "bundle.json").write_text("{}"), "cannot be read: Object missing required"),
        (lambda b: (b / "tf2aif.zip").write_bytes(b"PK"), "tf2aif.zip is damaged"),
    ],
    ids=["byte", "input", "request", "cut", "manifest", "code"],
)
def test_a_damaged_bundle(
    packed: UserProject,
    plain: Elsewhere,
    with_vitis: Mapping[str, str],
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    bundle = bundle_of(packed, DPU, tmp_path / "bundle")
    damage(bundle)
    run = plain.run(bundle, str(tmp_path / "out"), **with_vitis)
    assert run.returncode == 1
    assert words in run.stderr
    assert " hint: copy the whole folder again" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_bundle_of_another_version(packed: UserProject, plain: Elsewhere, tmp_path: Path) -> None:
    bundle = bundle_of(packed, DPU, tmp_path / "bundle")
    rewrite(bundle / "bundle.json", lambda told: told.update(schema=9))
    run = plain.run(bundle)
    assert run.returncode == 1
    assert "its schema is 9, not 1" in run.stderr


def test_a_python_that_lacks_what_a_bundle_needs(packed: UserProject, tmp_path: Path) -> None:
    bare = Elsewhere(tmp_path / "python", ["numpy"])
    bundle = bundle_of(packed, DPU, tmp_path / "bundle")
    run = bare.run(bundle)
    assert run.returncode == 1
    assert run.stderr == (
        f"error: this Python lacks msgspec, xxhash\n   at: {bare.python}\n"
        " hint: pip install msgspec xxhash\n"
    )


def test_a_run_that_is_interrupted(
    packed: UserProject, plain: Elsewhere, with_vitis: Mapping[str, str], tmp_path: Path
) -> None:
    """Ctrl-C, while the quantiser runs; what an earlier run left is not taken for its result."""
    bundle = bundle_of(packed, DPU, tmp_path / "bundle")
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("of an earlier run")
    with subprocess.Popen(
        [bundle / "run.sh", out],
        env={**plain.environment, **with_vitis},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until = time.monotonic() + 120
        log = out / "vitis-int8.log"
        while not (log.is_file() and "quantise request.json" in log.read_text()):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("interrupted: what was made before is kept\n")
    assert "Traceback" not in said
    assert {path.name for path in out.iterdir()} == {".tf2aif", "vitis-int8.log"}


def test_what_was_made_before_a_step_failed_can_be_brought_back(
    home: UserProject, with_gpu: Elsewhere, plan: Made, tmp_path: Path
) -> None:
    """The engine took hours, and its check stumbled."""
    bundle = bundle_of(packed_with_a_bad_check(home), GPU, tmp_path / "bundle")
    run = with_gpu.run(bundle, str(tmp_path / "made"))
    assert run.returncode == 1
    assert f"error: digits/check-{GPU}: " in run.stderr
    made = json.loads((tmp_path / "made" / "results.json").read_bytes())
    assert [step["id"] for step in made["steps"]][-1] == "digits/tensorrt-fp16"
    taken = cli(home, "import-bundle", str(tmp_path / "made"))
    assert taken.returncode == 0, taken.stderr
    found = record(home, GPU)
    assert found["state"] == "built"
    assert found["accuracy"]["engine"] == "onnxruntime"


def packed_with_a_bad_check(project: UserProject) -> UserProject:
    """The check of its GPU bundle asks for a device that is not there."""
    bundle = project.root / "build" / "digits" / GPU / "bundle"
    (request,) = bundle.glob("*-check-*.json")
    rewrite(request, lambda told: told["options"]["engine_options"].update(device=7))
    return project


@pytest.mark.parametrize(
    ("damage", "words", "hint"),
    [
        (lambda f: edit_byte(f / "tensorrt-fp16" / "engine.plan"), "is damaged", "bring the whole"),
        (lambda f: shutil.rmtree(f / "tensorrt-fp16"), "not there: No such file", "bring the whol"),
        (lambda f: edit_step(f, option=9), "option.optimization_level: 9 -> 3", "run.sh of now"),
        (lambda f: edit_step(f, id="digits/gone"), "has no step digits/gone any more", "build aga"),
        (lambda f: rename(f, "digits/cpu-int8"), "no recipe has the variant digits/cpu", "there: "),
        (lambda f: (f / "results.json").write_text("[]"), "cannot be read: Expected", "run.sh of"),
        (lambda f: (f / "results.json").unlink(), "not there: No such file", "run.sh of a bundle"),
    ],
    ids=["byte", "folder", "options", "step", "variant", "results", "none"],
)
def test_results_that_are_not_taken(
    packed: UserProject,
    plan: Made,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
    hint: str,
) -> None:
    """Nothing of them: the first step's artifact is whole, and must not be taken either."""
    made = shutil.copytree(plan.out, tmp_path / "made")
    damage(made)
    before = stored(packed)
    run = cli(packed, "import-bundle", str(made))
    assert run.returncode == 1
    assert words in run.stderr
    assert hint in run.stderr
    assert "Traceback" not in run.stderr
    assert stored(packed) == before
    assert record(packed, GPU)["state"] == "bundled"


def edit_step(folder: Path, option: int | None = None, **changes: Any) -> None:
    """Change what `results.json` says of the engine."""

    def change(told: Any) -> None:
        told["steps"][1].update(changes)
        if option is not None:
            told["steps"][1]["facts"]["option.optimization_level"] = option

    rewrite(folder / "results.json", change)


def rename(folder: Path, variant: str) -> None:
    rewrite(folder / "results.json", lambda told: told.update(variant=variant))


def stored(project: UserProject) -> set[str]:
    """The records of the project's store."""
    cache = project.root.parent / "cache"
    return {str(path) for path in cache.rglob("*") if path.is_file()}


def test_a_folder_that_is_no_result(packed: UserProject, tmp_path: Path) -> None:
    bundle = packed.root / "build" / "digits" / GPU / "bundle"
    itself = cli(packed, "import-bundle", str(bundle))
    assert itself.returncode == 1
    assert "this is the bundle itself: name the folder that its run.sh has written" in itself.stderr
    nowhere = cli(packed, "import-bundle", str(tmp_path / "nowhere"))
    assert nowhere.returncode == 1
    assert "not there: No such file or directory" in nowhere.stderr
