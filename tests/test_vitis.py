"""Vitis AI: the step that calls AMD's programs, against labelled stand-ins for these.

What is real here: the Keras file is read by Keras 2, our script runs in another process, arguments,
files and failures. What is not: no DPU instruction is made (see standins/vitis/README.md).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from models import content, run_step
from standins.vitis.install import install

from tf2aif.engines.dpu import family, parse_fingerprint, read_compiled
from tf2aif.engines.network import read_network
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.spec.load import packaged_targets
from tf2aif.steps import Job, dpu_check, vitis, vitis_model
from tf2aif.toolchains import Identity, Missing, Toolchain
from tf2aif.toolchains import vitis as toolchain

pytest_plugins = ["network_fixtures"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Get = Callable[..., Path]
BOARD = "zynq-zcu102"
VITIS = Toolchain("vitis", ())


def options_of(board: str, step: str) -> dict[str, Any]:
    """What a board's target says of a step."""
    told = yaml.safe_load((packaged_targets() / f"{board}.yaml").read_text())
    found = next(dict(use) for use in told["precisions"]["int8"] if use["step"] == step)
    del found["step"]
    return found


def run(module: Any, out: Path, given: dict[str, Path], options: dict[str, Any]) -> dict[str, Any]:
    out.mkdir(parents=True)
    job = Job(step="test/x", kind="x", options=options, inputs=given, out=out)
    return dict(module.run(job))


@pytest.fixture(scope="session")
def ready(layers: Get, samples: Get, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes into the vendor's compiler for the chain of layers: the pipeline up to there."""
    folder = tmp_path_factory.mktemp("ready")
    run(dpu_check, folder / "check", {"model": layers("chain")}, options_of(BOARD, "dpu-check"))
    run_step("pof2", folder / "pof2", {"model": folder / "check", "calibration": samples("chain")})
    run(vitis_model, folder / "model", {"model": folder / "pof2"}, {})
    return folder / "model"


@pytest.fixture
def given(ready: Path, samples: Get) -> dict[str, Path]:
    return {"model": ready, "calibration": samples("chain")}


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins on PATH."""
    binary = install(tmp_path / "vitis")
    monkeypatch.setenv("PATH", f"{binary}:/usr/bin:/bin")
    return binary


def test_a_compiled_model_from_end_to_end(
    given: dict[str, Path], vendor: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(vitis, tmp_path / "out", given, options_of(BOARD, "vitis"))
    log = capfd.readouterr().out
    assert sorted(content(tmp_path / "out")) == [
        "dpu.json",
        "meta.json",
        "model.xmodel",
        "signature.json",
    ]
    told = json.loads((tmp_path / "out" / "model.xmodel").read_text())
    assert "stand-in" in told["standin"]
    # The network that the vendor's Keras read is the one that was quantised here.
    names = [layer.name for layer in read_network(given["model"]).layers]
    assert set(told["layers"]) == {"image", *names}
    assert result["fingerprint_from"] == "xir"
    assert result["vitis_ai"] == "3.5"
    assert result["agreement"]["output_0"]["cosine"] > 0.99
    compiled = read_compiled(tmp_path / "out")
    assert (compiled.dpu, compiled.fingerprint) == ("DPUCZDX8G", "0x101000056010407")
    assert [(port.name, port.layer) for port in compiled.outputs] == [("output_0", "softmax_0")]
    assert "stand-in: calibrating with 32 samples" in log
    assert f"{vendor}/vai_c_tensorflow2 -m quantized.h5 -a " in log


@pytest.fixture(scope="session")
def quantised_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stand-in quantiser leaves for the compiler, without its weights."""
    import h5py

    path = tmp_path_factory.mktemp("quantised-file") / "quantized.h5"
    with h5py.File(path, "w") as file:
        file.attrs["standin_quantised"] = json.dumps(["image", "conv2d_0"])
    return path


def compiled(vendor: Path, quantised_file: Path, work: Path) -> str:
    """Compile in a folder; where the fingerprint was read."""
    found = toolchain.find()
    assert isinstance(found, toolchain.Installation)
    options = msgspec.convert(options_of(BOARD, "vitis"), vitis.Options)
    shutil.copyfile(quantised_file, work / "quantized.h5")
    (work / "arch.json").write_text(json.dumps({"fingerprint": options.fingerprint}))
    vitis.compile_model(found, work, work / "arch.json")
    return vitis.check_fingerprint(found, work, options)


def test_a_fingerprint_from_meta_json_where_xir_is_not(
    vendor: Path, quantised_file: Path, tmp_path: Path
) -> None:
    assert compiled(vendor, quantised_file, tmp_path) == "xir"
    (vendor.parent / "lib" / "python3.8" / "site-packages" / "xir.py").unlink()
    assert compiled(vendor, quantised_file, tmp_path) == "meta.json"


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("fail", r"failed with exit code 1(.|\n)*XCOM_UNSUPPORTED_OP(.|\n)*vai_c_tensorflow2 -m"),
        ("silent", r"vai_c_tensorflow2 ended well but made no net\.xmodel"),
        ("cpu", "no part that runs on the DPU"),
        ("fingerprint=0x603000b56011861", "is for the fingerprint 0x603000b56011861; the board"),
    ],
)
def test_what_the_compiler_does_wrong(
    vendor: Path,
    quantised_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mood: str,
    message: str,
) -> None:
    monkeypatch.setenv("STANDIN_VITIS", mood)
    with pytest.raises(StepFailed, match=message):
        compiled(vendor, quantised_file, tmp_path)


def test_nothing_half_made_is_left(given: dict[str, Path], vendor: Path, tmp_path: Path) -> None:
    shutil.rmtree(vendor.parent / "lib/python3.8/site-packages/tensorflow_model_optimization")
    with pytest.raises(StepFailed, match="no Python beside"):
        run(vitis, tmp_path / "out", given, options_of(BOARD, "vitis"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dpu": "DPUCVDX8G", "fingerprint": "0x603000b56011861"},
            "was quantised for a DPUCZDX8G; this target has a DPUCVDX8G",
        ),
        ({"vitis_ai": ["2.5"]}, r"needs Vitis AI 2\.5; on PATH is 3\.5"),
        ({"arch": "/nowhere/arch.json"}, r"cannot read arch\.json: No such file"),
    ],
)
def test_targets_that_do_not_fit(
    given: dict[str, Path], vendor: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Tf2aifError, match=message):
        run(vitis, tmp_path / "out", given, {**options_of(BOARD, "vitis"), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpu": "DPUCAHX8H"}, "is that of a DPUCZDX8G, not of a DPUCAHX8H"),
        ({"fingerprint": "0x603000b56011861"}, "is that of a DPUCVDX8G, not of a DPUCZDX8G"),
        ({"fingerprint": "0xff00000000000000"}, "no known DPU has the fingerprint"),
    ],
)
def test_a_fingerprint_of_another_dpu_is_told_before_any_step(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({**options_of(BOARD, "vitis"), **change}, vitis.Options)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            '{"fingerprint": "0x603000b56011861"}',
            r"arch\.json is for 0x603000b56011861; the target",
        ),
        ('{"fingerprint": "of my board"}', r"arch\.json is for of my board; the target"),
        ('{"target": "DPUCAHX8H_ISA2"}', r"arch\.json is for DPUCAHX8H_ISA2; the target"),
        ("{}", r"arch\.json is for no DPU"),
        ("no json", r"not an arch\.json"),
    ],
)
def test_a_wrong_arch_json(
    given: dict[str, Path], vendor: Path, tmp_path: Path, arch: str, message: str
) -> None:
    (tmp_path / "arch.json").write_text(arch)
    options = {**options_of(BOARD, "vitis"), "arch": str(tmp_path / "arch.json")}
    with pytest.raises(StepFailed, match=message):
        run(vitis, tmp_path / "out", given, options)


def test_without_vitis_ai(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    missing = toolchain.identity(VITIS)
    assert isinstance(missing, Missing)
    assert "vai_c_tensorflow2 is not on PATH" in missing.what
    with pytest.raises(StepFailed, match=r"vai_c_tensorflow2 is not on PATH(.|\n)*conda"):
        run(vitis, tmp_path / "out", given, options_of(BOARD, "vitis"))


def test_a_compiler_without_its_quantiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = install(tmp_path / "vitis", quantiser=False)
    monkeypatch.setenv("PATH", str(binary))
    missing = toolchain.identity(VITIS)
    assert isinstance(missing, Missing)
    assert "no Python beside" in missing.what


def test_the_identity_is_read_from_files(vendor: Path) -> None:
    found = toolchain.identity(VITIS)
    assert isinstance(found, Identity)
    assert found.versions == {"vai-q-tensorflow2": "3.5.0", "xcompiler": "3.5.0", "xir": "3.5.0"}
    for path in (vendor.parent / "conda-meta").iterdir():
        path.unlink()
    bare = toolchain.identity(VITIS)
    assert isinstance(bare, Identity)
    assert list(bare.versions) == ["vai_c_tensorflow2"]


def test_the_file_for_the_vendor_is_the_same_twice(ready: Path, tmp_path: Path) -> None:
    again = run(vitis_model, tmp_path / "again", {"model": ready.parent / "pof2"}, {})
    assert content(tmp_path / "again") == content(ready)
    assert again["keras_layers"] == sorted(set(again["keras_layers"]))
    assert {"Conv2D", "DepthwiseConv2D", "ReLU"} <= set(again["keras_layers"])


def test_every_board_agrees_with_itself() -> None:
    boards = [
        path.stem
        for path in packaged_targets().glob("*.yaml")
        if "step: vitis\n" in path.read_text()
    ]
    assert len(boards) == 9
    for board in boards:
        options = msgspec.convert(options_of(board, "vitis"), vitis.Options)
        check = msgspec.convert(options_of(board, "dpu-check"), dpu_check.Options)
        assert family(options.fingerprint) == options.dpu == check.dpu
        told = yaml.safe_load((packaged_targets() / f"{board}.yaml").read_text())
        assert told["engine"] == {"name": "vart", "options": {"fingerprint": options.fingerprint}}


@pytest.mark.parametrize("text", ["", "none", "-1", "0x1ffffffffffffffff"])
def test_what_is_no_fingerprint(text: str) -> None:
    with pytest.raises(Tf2aifError, match="is not a fingerprint"):
        parse_fingerprint(text)
