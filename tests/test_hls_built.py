"""HLS projects and their C simulations, written by hls4ml and compiled by g++, and their engine."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hls_networks import everything, write_layers
from models import array_set, content, run_step

from tf2aif import engines
from tf2aif.engines import hls as engine
from tf2aif.engines.batches import run_batches
from tf2aif.engines.network import read_network
from tf2aif.engines.operators import run_float
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.hls.emulate import emulate
from tf2aif.hls.fixed import parse
from tf2aif.hls.lower import lower
from tf2aif.hls.types import changed, read_spelled, uniform
from tf2aif.steps import Job, hls, hls_synthesis, hls_widths
from tf2aif.toolchains import Missing, identity
from tf2aif.trials import VARIABLE
from tf2aif.worker import Request
from tf2aif.workers import Workers

STANDINS = Path(__file__).parent / "standins" / "hls"

PYNQ = {"backend": "VivadoAccelerator", "board": "pynq-z2", "part": "xc7z020clg400-1",
        "io_type": "io_stream", "strategy": "Resource", "reuse_factor": 8}  # fmt: skip

MIXED = {
    "relu_0": {"result": "ufixed<5,2,RND,SAT>"},
    "conv2d_0": {"weight": "fixed<6,1>", "bias": "fixed<5,2>", "result": "fixed<9,3>"},
    "average_pool_0": {"result": "fixed<7,3,TRN,SAT>"},
    "concat_0": {"result": "fixed<10,4,RND,WRAP>"},
}

PARALLEL = {
    "io_type": "io_parallel",
    "strategy": "Latency",
    "reuse_factor": 1,
    "precision": "fixed<12,5>",
    "layers": MIXED,
}


class Builder:
    """Runs step `hls` in a worker of its own toolchain, as a build does."""

    def __init__(self, workers: Workers, folder: Path) -> None:
        self.workers, self.folder = workers, folder

    def build(self, name: str, model: Path, **options: Any) -> Path:
        out = self.folder / name
        if out.exists():
            return out
        out.mkdir()
        request = Request(
            step=f"test/{name}",
            kind="hls",
            module="tf2aif.steps.hls",
            toolchain="hls4ml",
            options=options,
            inputs={"model": str(model)},
            out=str(out),
        )
        try:
            done = self.workers.run(request, log=self.folder / f"{name}.log", timeout_s=400)
        except StepFailed as error:
            shutil.rmtree(out)
            if "index cannot be reached" in str(error):
                pytest.skip("needs a package index, from which toolchain hls4ml is made")
            raise
        assert done.result is not None
        (self.folder / f"{name}.json").write_bytes(msgspec.json.encode(done.result))
        return out

    def result(self, name: str) -> dict[str, Any]:
        """What the step said."""
        found: dict[str, Any] = msgspec.json.decode((self.folder / f"{name}.json").read_bytes())
        return found


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory, warm: Workers) -> Iterator[Builder]:
    """With an environment of hls4ml that is made once for the session, from its lock."""
    tool = identity("hls4ml")
    if isinstance(tool, Missing):
        pytest.skip(f"toolchain hls4ml lacks {tool.what}")
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the C simulation")
    folder = tmp_path_factory.mktemp("hls")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(folder / "cache"))
        yield Builder(warm, folder)


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with each kind of layer, and two outputs."""
    return write_layers(tmp_path_factory.mktemp("layers") / "two", everything())


@pytest.fixture(scope="session")
def built(builder: Builder, layers: Path) -> Path:
    """Its project and simulation, streamed."""
    return builder.build("stream", layers, reuse_factor=8)


def samples(count: int, seed: int = 11) -> dict[str, Any]:
    """Some beyond the range of 16 bits with 6 before the point."""
    values = np.random.default_rng(seed).normal(0, 1, (count, 8, 8, 1))
    values[: count // 4] *= 40
    return {"image": values.astype(np.float32)}


def expected(artifact: Path, model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """What the arithmetic of the artifact's types gives."""
    pipeline = lower(read_network(model))
    types = changed(uniform(pipeline, parse(hls.DEFAULT)), read_spelled(artifact))
    return emulate(pipeline, types, feeds)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stream", {"reuse_factor": 8}),
        ("parallel", PARALLEL),
        ("pynq", PYNQ),
    ],
)
def test_simulation_and_emulation_agree_bit_by_bit(
    name: str, options: dict[str, Any], builder: Builder, layers: Path, tmp_path: Path
) -> None:
    """Whatever way the project is built: truncated, rounded, wrapped, saturated."""
    model = layers
    if name == "pynq":  # of one output
        model = write_layers(tmp_path / "one", everything(outputs=1))
    artifact = builder.build(name, model, **options)
    assert builder.result(name)["bit_equal_samples"] == hls.TRIED
    feeds = samples(40)
    loaded = engine.load(artifact)
    found = loaded.simulate(feeds)
    loaded.close()
    for output, values in expected(artifact, model, feeds).items():
        np.testing.assert_array_equal(found[output], values)


def test_the_engine_answers_as_the_source_does(built: Path, layers: Path) -> None:
    """Names, shapes, the softmax at the door; to what 16 bits can tell."""
    feeds = {"image": samples(40)["image"][10:]}
    loaded = engine.load(built, threads=2)
    assert [spec.name for spec in loaded.outputs] == ["y0", "y1"]
    found = run_batches(loaded, feeds)
    loaded.close()
    truth = run_float(read_network(layers), feeds)
    for name, values in truth.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, atol=0.02)
    np.testing.assert_allclose(found["y0"].sum(axis=1), 1, atol=1e-5)


def test_the_same_network_gives_the_same_bytes(
    built: Path, builder: Builder, layers: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(layers, tmp_path / "elsewhere")
    again = builder.build("again", copy, reuse_factor=8)
    assert content(again) == content(built)
    for name, data in content(built).items():
        assert str(builder.folder).encode() not in data, name
        assert b"/site-packages/" not in data, name


def test_engines_of_one_file_are_each_their_own(built: Path) -> None:
    """The simulation has static buffers: neither order, nor threads, nor another engine count."""
    one, other = engine.load(built), engine.load(built)
    feeds = samples(12)
    truth = one.run(feeds)
    found: list[dict[str, Any]] = []

    def ask(loaded: engine.Simulation) -> None:
        for _ in range(4):
            backwards = {name: values[::-1].copy() for name, values in feeds.items()}
            found.append({name: values[::-1] for name, values in loaded.run(backwards).items()})

    threads = [threading.Thread(target=ask, args=(each,)) for each in (one, other, one)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for answer in found:
        for name, values in truth.items():
            np.testing.assert_array_equal(answer[name], values)
    one.close()
    one.close()
    with pytest.raises(Tf2aifError, match="closed"):
        one.run(feeds)
    np.testing.assert_array_equal(other.run(feeds)["y1"], truth["y1"])
    other.close()


def test_another_library_at_the_same_path_is_another_engine(
    built: Path, builder: Builder, layers: Path, tmp_path: Path
) -> None:
    """The loader of the C library goes by names, and would give the first one again."""
    another = builder.build("parallel", layers, **PARALLEL)
    place = shutil.copytree(built, tmp_path / "artifact")
    feeds = samples(8)
    first = engine.load(place)
    before = first.run(feeds)["y1"]
    shutil.copyfile(another / "simulation.so", place / "simulation.so")
    second = engine.load(place)
    assert not np.array_equal(second.run(feeds)["y1"], before)
    np.testing.assert_array_equal(first.run(feeds)["y1"], before)
    first.close()
    second.close()


def described(artifact: Path, **changes: Any) -> None:
    path = artifact / "hls.json"
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


def test_artifacts_that_cannot_be_loaded(built: Path, tmp_path: Path) -> None:
    place = shutil.copytree(built, tmp_path / "artifact")
    described(place, machine="riscv64")
    with pytest.raises(Tf2aifError, match="compiled for riscv64; this machine is") as caught:
        engine.load(place)
    assert "build the variant" in caught.value.faults[0].hint
    described(place, machine=os.uname().machine, outputs=[])
    with pytest.raises(Tf2aifError, match=r"not those of signature\.json"):
        engine.load(place)
    shutil.copyfile(built / "hls.json", place / "hls.json")
    (place / "simulation.so").write_bytes(b"\x7fELF and no more")
    with pytest.raises(Tf2aifError, match="cannot be loaded"):
        engine.load(place)
    (place / "simulation.so").unlink()
    with pytest.raises(Tf2aifError, match=r"no simulation\.so"):
        engine.load(place)


def test_the_library_needs_no_c_plus_plus_library(built: Path) -> None:
    """An image has Python, numpy and a C library."""
    data = (built / "simulation.so").read_bytes()
    assert b"libc.so.6" in data
    assert b"libstdc++.so" not in data
    assert b"libgcc_s.so" not in data


def test_the_step_names_what_it_refuses(builder: Builder, layers: Path) -> None:
    """Through the worker, as a build sees it."""
    with pytest.raises(StepFailed, match="no layer 'conv2d_7'"):
        builder.build("refused", layers, layers={"conv2d_7": {"result": "fixed<8,3>"}})


# -- a trained network, from its model to the search and the simulation of what it found --


def test_digits_from_the_model_to_the_simulation(
    exported: Path, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that the planner makes scores as the search did, to the last sample."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trials"))
    stored = np.load(exported / "evaluation.npz")
    run_step("import", tmp_path / "import", {"source": exported / "model"}, batch=1)
    run_step("layers", tmp_path / "layers", {"model": tmp_path / "import"})
    given = {
        "model": tmp_path / "layers",
        "calibration": array_set(
            tmp_path / "calibration", image=np.load(exported / "calibration.npy")
        ),
        "evaluation": array_set(tmp_path / "evaluation", image=stored["x"]),
    }
    described_set = msgspec.json.decode((given["evaluation"] / "set.json").read_bytes())
    encoded = msgspec.json.encode({**described_set, "labels": True})
    (given["evaluation"] / "set.json").write_bytes(encoded)
    np.save(given["evaluation"] / "labels.npy", stored["y"])
    source = {"model": tmp_path / "import", "evaluation": given["evaluation"]}
    run_step("reference", tmp_path / "reference", source)
    given["reference"] = tmp_path / "reference"
    (tmp_path / "widths").mkdir()
    options = {"metric": "top-1", "allowed_drop": 0.02, "trials": 80}
    job = Job(step="t", kind="hls-widths", options=options, inputs=given, out=tmp_path / "widths")
    found = hls_widths.run(job)
    artifact = builder.build("digits", tmp_path / "widths")
    assert found["bits"] == builder.result("digits")["bits"]
    assert found["bits"] < found["bits_of_16"] / 2
    monkeypatch.setitem(engines.ENGINES, "hls", engine.__name__)
    checked = run_step(
        "check",
        tmp_path / "check",
        {"artifact": artifact, **{k: given[k] for k in ("evaluation", "reference")}},
        engine="hls",
        metric="top-1",
    )
    assert checked["drop"] == found["drop"]
    assert checked["drop"] <= 0.02


@pytest.mark.kws
def test_keyword_spotting_holds_its_gate(kws: Path, builder: Builder, tmp_path: Path) -> None:
    """The whole network of 22604 weights, bit by bit, on the first 150 of its samples."""
    run_step("import", tmp_path / "import", {"source": kws / "model"}, batch=1)
    run_step("layers", tmp_path / "layers", {"model": tmp_path / "import"})
    artifact = builder.build("kws", tmp_path / "layers")
    assert builder.result("kws")["bit_equal_samples"] == hls.TRIED
    stored = np.load(kws / "samples.npz")
    loaded = engine.load(artifact)
    name = loaded.inputs[0].name
    feeds = {name: stored["x"][:150]}
    found = next(iter(run_batches(loaded, feeds).values()))
    loaded.close()
    truth = next(iter(run_float(read_network(tmp_path / "layers"), feeds).values()))
    labels = stored["y"][:150]
    drop = (truth.argmax(1) == labels).mean() - (found.argmax(1) == labels).mean()
    assert drop <= 0.02
    assert (truth.argmax(1) == found.argmax(1)).mean() >= 0.97


# -- synthesis, by stand-ins for the vendor's tools --


def synthesise(artifact: Path, out: Path, **options: Any) -> dict[str, Any]:
    out.mkdir(parents=True)
    job = Job(
        step="t/hls-synthesis",
        kind="hls-synthesis",
        options=options,
        inputs={"model": artifact},
        out=out,
    )
    return dict(hls_synthesis.run(job))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as a worker has it; the stand-ins on PATH."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{STANDINS}:{os.environ['PATH']}")
    return folder


def test_synthesis_by_a_stand_in_for_vitis(built: Path, scratch: Path, tmp_path: Path) -> None:
    before = content(built)
    report = synthesise(built, tmp_path / "out")
    assert report == {
        "tool": "vitis-run",
        "version": "2024.1",
        "part": "xczu9eg-ffvb1156-2-e",
        "clock_target_ns": 5.0,
        "clock_estimated_ns": 3.642,
        "latency_cycles": 2210,
        "interval_cycles": 1160,
        "latency_us": 11.05,
        "resources": {
            "BRAM_18K": {"used": 48, "available": 1824},
            "DSP": {"used": 1310, "available": 2520},
            "FF": {"used": 40210, "available": 548160},
            "LUT": {"used": 61300, "available": 274080},
            "URAM": {"used": 0, "available": 0},
        },
    }
    made = content(tmp_path / "out")
    assert set(made) - set(before) == {"csynth.xml", "synthesis.json", "ip.zip"}
    assert {name: made[name] for name in before} == before == content(built)
    engine.load(tmp_path / "out").close()


def test_synthesis_by_a_stand_in_for_vivado_hls(
    builder: Builder, scratch: Path, tmp_path: Path
) -> None:
    artifact = builder.build("pynq", write_layers(tmp_path / "one", everything(outputs=1)), **PYNQ)
    report = synthesise(artifact, tmp_path / "out", export=False)
    assert report["part"] == "xc7z020clg400-1"
    assert report["tool"] == "vivado_hls"
    assert not (tmp_path / "out" / "ip.zip").exists()


def test_synthesis_that_fails(
    built: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(built, tmp_path / "broken")
    (broken / "project" / "firmware" / "defines.h").unlink()
    with pytest.raises(StepFailed, match=r"vitis-run failed \(exit 1\)") as caught:
        synthesise(broken, tmp_path / "one")
    assert caught.value.faults[0].at == "ERROR: the project lacks firmware/defines.h"
    assert list((tmp_path / "one").iterdir()) == []
    with pytest.raises(StepFailed, match="not an HLS project"):
        synthesise(tmp_path, tmp_path / "two")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    shutil.rmtree(scratch / "project", ignore_errors=True)
    with pytest.raises(StepFailed, match="vitis-run is not on PATH"):
        synthesise(built, tmp_path / "three")


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ("<DSP>2520<", "<DSP>1000<", "does not fit xczu9eg"),
        ("<Worst-caseLatency>2210</Worst-caseLatency>", "", "has no .*Worst-caseLatency"),
        ("</profile>", "", "cannot be read"),
    ],
)
def test_reports_that_say_no(was: str, becomes: str, words: str, tmp_path: Path) -> None:
    text = (STANDINS / "csynth.xml").read_text()
    assert was in text
    (tmp_path / "csynth.xml").write_text(text.replace(was, becomes))
    with pytest.raises(StepFailed, match=words):
        hls_synthesis._check_fits(hls_synthesis.read_report(tmp_path / "csynth.xml", "vitis-run"))


def test_a_latency_that_the_tool_does_not_know(tmp_path: Path) -> None:
    text = (STANDINS / "csynth.xml").read_text().replace("2210", "undef")
    (tmp_path / "csynth.xml").write_text(text)
    report = hls_synthesis.read_report(tmp_path / "csynth.xml", "vitis-run")
    assert report.latency_cycles is None
    assert report.latency_us is None
    assert report.interval_cycles == 1160
