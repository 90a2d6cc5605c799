"""VART: the engine against a labelled stand-in of AMD's runtime, whose DPU is our own emulation.

What is real here: buffers, positions, rounding at the borders, the order of subgraphs, threads,
fingerprints. What is not: no DPU computes (see standins/vitis/README.md).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tf2aif.engines import pof2, vart
from tf2aif.engines.dpu import Compiled, Port, write_compiled
from tf2aif.engines.network import Network, read_network
from tf2aif.engines.signature import read_signature, write_signature
from tf2aif.errors import Tf2aifError
from tf2aif.toolchains import Identity, Missing, Toolchain
from tf2aif.toolchains import vart as toolchain

pytest_plugins = ["network_fixtures"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Get = Callable[..., Path]
STANDINS = Path(__file__).parent / "standins" / "vitis" / "site-packages"
FINGERPRINT = "0x101000056010407"
BATCH = 4


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-ins importable as xir and vart; the module of the latter."""
    monkeypatch.syspath_prepend(str(STANDINS))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no board's tools
    import vart as standin

    standin.calls.clear()
    yield standin
    for name in ("vart", "xir"):
        sys.modules.pop(name, None)


def tensor(net: Network, name: str, *, fixed: bool = True, flat: bool = False) -> dict[str, Any]:
    """A tensor of the compiled graph, as the vendor names them; a vector is a picture there."""
    each = next(e for e in (*net.inputs, *net.layers) if e.name == name)
    shape = (1, 1, *each.shape) if len(each.shape) == 1 and not flat else each.shape
    told: dict[str, Any] = {"name": f"quant_{name}_fix", "dims": [BATCH, *shape]}
    return {**told, "fix_point": each.fix} if fixed else told


def compiled(out: Path, source: Path, cuts: list[str], **change: Any) -> Path:
    """An artifact as the step vitis leaves it: the network cut into subgraphs behind `cuts`."""
    net = read_network(source)
    names = [layer.name for layer in net.layers]
    parts: list[dict[str, Any]] = [
        {"name": "in", "device": "USER", "inputs": [], "outputs": [tensor(net, "image")]}
    ]
    before, start = "image", 0
    for cut in cuts:
        end = names.index(cut) + 1
        ends = {"inputs": [tensor(net, before)], "outputs": [tensor(net, cut)]}
        part = {"name": f"dpu_{cut}", "device": "DPU", "layers": names[start:end], **ends}
        parts.append({**part, "fingerprint": FINGERPRINT})
        before, start = cut, end
    last = {"name": "softmax_0", "dims": [BATCH, *net.layers[-1].shape]}
    given = tensor(net, before)
    real = {"name": f"{before}_float", "dims": last["dims"]}
    ops = [
        {"name": "to_float", "type": "fix2float", "inputs": [given["name"]], "output": real},
        {
            "name": "flat",
            "type": "reshape",
            "inputs": [real["name"]],
            "output": {**real, "name": "flat"},
        },
        {"name": "softmax", "type": "softmax", "inputs": ["flat"], "output": last},
    ]
    cpu = {"name": "cpu", "device": "CPU", "inputs": [given], "outputs": [last], "ops": ops}
    told = {"standin": "a graph made by a test", "network": str(source), "parts": [*parts, cpu]}
    out.mkdir()
    (out / "model.xmodel").write_text(json.dumps({**told, **change}))
    write_signature(out, read_signature(source))
    write_compiled(
        out,
        Compiled(
            dpu="DPUCZDX8G",
            fingerprint=FINGERPRINT,
            inputs=(Port(name="image", layer="image"),),
            outputs=(Port(name="output_0", layer="softmax_0"),),
            layers=("image", *(layer.name for layer in net.layers)),
        ),
    )
    return out


@pytest.fixture(scope="session")
def source(quantised: Get) -> Path:
    """A quantised network whose batch is free."""
    return quantised("chain")


@pytest.fixture
def artifact(source: Path, tmp_path: Path) -> Path:
    """It, in two subgraphs on the DPU and a softmax on the CPU; a free batch."""
    free = shutil.copytree(source, tmp_path / "source")
    told = read_signature(free)
    open_batch = [
        tuple(msgspec.structs.replace(s, shape=(None, *s.shape[1:])) for s in specs)
        for specs in (told.inputs, told.outputs)
    ]
    write_signature(
        free, msgspec.structs.replace(told, inputs=open_batch[0], outputs=open_batch[1])
    )
    return compiled(tmp_path / "artifact", free, ["max_pool_0", "dense_0"])


def pictures(count: int) -> dict[str, Any]:
    return {"image": np.random.default_rng(5).random((count, 16, 16, 3), np.float32)}


@pytest.mark.parametrize("count", [1, 4, 11])
def test_it_computes_what_the_emulation_computes(runtime: Any, artifact: Path, count: int) -> None:
    feeds = pictures(count)
    truth = pof2.load(artifact.parent / "source").run(feeds)
    engine = vart.load(artifact)
    found = engine.run(feeds)
    assert found["output_0"].shape == (count, 4)
    assert found["output_0"].dtype == np.float32
    np.testing.assert_array_equal(found["output_0"], truth["output_0"])
    engine.close()


def test_batches_go_to_all_runners_and_never_two_to_one(runtime: Any, artifact: Path) -> None:
    before = runtime.Runner.made
    engine = vart.load(artifact, runners=3)
    assert runtime.Runner.made - before == 3 * 2
    feeds = pictures(10 * BATCH)
    truth = pof2.load(artifact.parent / "source").run(feeds)
    np.testing.assert_array_equal(engine.run(feeds)["output_0"], truth["output_0"])
    assert len(runtime.calls) == 2 * 10
    assert len({thread for thread, _ in runtime.calls}) <= 3
    engine.close()
    engine.close()
    with pytest.raises(Tf2aifError, match="closed"):
        engine.run(feeds)


def board(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board whose xdputil prints that."""
    folder.mkdir()
    (folder / "xdputil").write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    (folder / "xdputil").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_board_decides(
    runtime: Any, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = json.dumps({"kernels": [{"fingerprint": FINGERPRINT, "is_vivado_flow": False}]})
    board(tmp_path / "right", right, monkeypatch)
    before = runtime.Runner.made
    vart.load(artifact, fingerprint="0x603000b56011861").close()  # what the board says counts
    assert runtime.Runner.made > before
    before = runtime.Runner.made
    board(tmp_path / "wrong", right.replace("5601", "1601"), monkeypatch)
    with pytest.raises(Tf2aifError, match="board's DPU has the fingerprint 0x101000016010407"):
        vart.load(artifact)
    board(tmp_path / "broken", "no device", monkeypatch)
    with pytest.raises(Tf2aifError, match="xdputil cannot tell the board's fingerprint"):
        vart.load(artifact)
    assert runtime.Runner.made == before  # nothing was given to the board


def test_models_for_other_boards(runtime: Any, artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(Tf2aifError, match="board's DPU has the fingerprint 0x603000b56011861"):
        vart.load(artifact, fingerprint="0x603000b56011861")
    told = json.loads((artifact / "model.xmodel").read_text())
    told["parts"][2]["fingerprint"] = "0x603000b56011861"
    (artifact / "model.xmodel").write_text(json.dumps(told))
    with pytest.raises(Tf2aifError, match="is for the fingerprint 0x603000b56011861; the target"):
        vart.load(artifact)


def test_what_neither_dpu_nor_engine_computes(runtime: Any, artifact: Path) -> None:
    told = json.loads((artifact / "model.xmodel").read_text())
    told["parts"][-1]["ops"][-1]["type"] = "argmax"
    (artifact / "model.xmodel").write_text(json.dumps(told))
    with pytest.raises(Tf2aifError, match=r"operator argmax \('softmax'\) runs on neither"):
        vart.load(artifact).run(pictures(1))


def test_a_tensor_without_a_position(runtime: Any, artifact: Path) -> None:
    told = json.loads((artifact / "model.xmodel").read_text())
    del told["parts"][2]["inputs"][0]["fix_point"]
    (artifact / "model.xmodel").write_text(json.dumps(told))
    with pytest.raises(Tf2aifError, match="'quant_max_pool_0_fix' of the DPU has no fix_point"):
        vart.load(artifact).run(pictures(1))


def test_broken_artifacts(runtime: Any, artifact: Path) -> None:
    (artifact / "model.xmodel").write_bytes(b"")
    with pytest.raises(Tf2aifError, match="xir cannot read it"):
        vart.load(artifact)
    (artifact / "dpu.json").write_text("{}")
    with pytest.raises(Tf2aifError, match=r"not a dpu\.json"):
        vart.load(artifact)
    (artifact / "dpu.json").unlink()
    with pytest.raises(Tf2aifError, match=r"no dpu\.json in the artifact"):
        vart.load(artifact)


def test_without_the_runtime(artifact: Path) -> None:
    with pytest.raises(Tf2aifError, match=r"AMD's xir is not here(.|\n)*pof2"):
        vart.load(artifact)
    missing = toolchain.identity(Toolchain("vart", ()))
    assert isinstance(missing, Missing)
    assert "no module 'vart'" in missing.what


def test_the_runtime_is_found_as_files(runtime: Any) -> None:
    found = toolchain.identity(Toolchain("vart", ()))
    assert isinstance(found, Identity)
    assert found.versions == {"vart": "vart.py", "xir": "xir.py"}


@pytest.mark.parametrize(
    ("name", "layer", "is_it"),
    [
        ("quant_dense_1_fix", "dense_1", True),
        ("quant_dense_10_fix", "dense_1", False),
        ("dense_1", "dense_1", True),
        ("quant_conv2d_transpose_0_fix", "conv2d_0", False),
        ("quant_depthwise_conv2d_0_fix", "conv2d_0", False),
    ],
)
def test_tensors_bear_the_names_of_layers(name: str, layer: str, is_it: bool) -> None:
    layers = ["conv2d_0", "conv2d_transpose_0", "dense_1", "dense_10", "depthwise_conv2d_0"]
    assert vart.bears(name, layer, layers) is is_it
