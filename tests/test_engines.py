"""The contract of every engine in the table, on real artifacts."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import msgspec
import numpy as np
import pytest
from models import random_set, run_step

from tf2aif.engines import ENGINES, dequantize, engine_module, quantize
from tf2aif.engines.nvidia import read_machine
from tf2aif.engines.signature import read_signature, write_signature
from tf2aif.errors import Tf2aifError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STEPS = {"litert": "tflite", "tensorflow": "native", "openvino": "openvino"}
FILES = {
    "litert": "model.tflite",
    "tensorflow": "saved_model",
    "openvino": "model.xml",
    "onnxruntime": "model.onnx",
}

ELSEWHERE = {
    "tensorrt": "test_tensorrt",
    "tensorrt-system": "test_tensorrt",
    "tensorflow-gpu": "test_engines",
    "tensorflow-system": "test_engines",
    "tensorrt-rtx": "test_tensorrt_rtx",
    "onnxruntime-gpu": "test_onnxruntime_gpu",
    "vart": "test_vart",
    "hls": "test_hls",
    "pof2": "test_pof2",
}
"""Engines whose artifacts these models do not become -> the tests that hold them."""

Artifact = Callable[..., Path]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A function that makes `models.pair` for an engine, once for each batch; its folder."""
    folder = tmp_path_factory.mktemp("engines")

    def make(engine: str, batch: int | str = "free") -> Path:
        model, out = folder / f"import-{batch}", folder / f"{engine}-{batch}"
        if not model.exists():
            models.pair().save(folder / "pair.keras")
            run_step("import", model, {"source": folder / "pair.keras"}, batch=batch)
        if not out.exists():
            if engine in STEPS:
                run_step(STEPS[engine], out, {"model": model})
            else:
                export_onnx(model, out)
        return out

    return make


def export_onnx(model: Path, out: Path) -> None:
    """What no step of ours makes yet: the imported model as ONNX, by tf2onnx."""
    out.mkdir()
    words = ["--saved-model", str(model / "saved_model"), "--output", str(out / "model.onnx")]
    command = [sys.executable, "-m", "tf2onnx.convert", "--opset", "17", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    shutil.copyfile(model / "signature.json", out / "signature.json")


def feeds(batch: int, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "image": draw.random((batch, 6, 6, 1), np.float32),
        "token": draw.integers(0, 5, (batch, 3)).astype(np.int32),
    }


@pytest.fixture(params=sorted(FILES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_engine_is_held_to_something() -> None:
    here = Path(__file__).parent
    assert {name for name in ENGINES if name not in FILES} <= set(ELSEWHERE)
    assert not {tests for tests in ELSEWHERE.values() if not (here / f"{tests}.py").exists()}


@pytest.mark.parametrize("of_a_gpu", ["tensorflow-gpu", "tensorflow-system"])
def test_a_gpu_baseline_refuses_the_cpu(artifact: Artifact, of_a_gpu: str) -> None:
    if read_machine().present:
        pytest.skip("a GPU is here")
    with pytest.raises(Tf2aifError, match="TensorFlow sees no GPU here"):
        engine_module(of_a_gpu).load(artifact("tensorflow"))


def test_says_what_it_takes_and_gives(artifact: Artifact, name: str) -> None:
    engine = engine_module(name).load(artifact(name))
    described = [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs]
    assert described == [("image", "float32", (None, 6, 6, 1)), ("token", "int32", (None, 3))]
    assert [(spec.name, spec.shape) for spec in engine.outputs] == [
        ("output_0", (None, 3)),
        ("output_1", (None, 2)),
    ]


def test_free_batch_takes_any_size(artifact: Artifact, name: str) -> None:
    engine = engine_module(name).load(artifact(name))
    whole = engine.run(feeds(6))
    for size in (1, 4, 4, 2):
        part = engine.run({key: array[:size] for key, array in feeds(6).items()})
        for output, values in part.items():
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, whole[output][:size], atol=1e-5)


def test_results_belong_to_the_caller(artifact: Artifact, name: str) -> None:
    engine = engine_module(name).load(artifact(name))
    first = engine.run(feeds(2))
    kept = {key: array.copy() for key, array in first.items()}
    engine.run(feeds(2, seed=1))
    engine.close()
    for key, array in kept.items():
        np.testing.assert_array_equal(first[key], array)


def test_array_that_is_not_contiguous(artifact: Artifact, name: str) -> None:
    engine = engine_module(name).load(artifact(name))
    given = feeds(3)
    turned = {**given, "image": np.asfortranarray(given["image"])}
    np.testing.assert_array_equal(engine.run(turned)["output_0"], engine.run(given)["output_0"])


def test_engines_agree(artifact: Artifact) -> None:
    found = [engine_module(name).load(artifact(name)).run(feeds(5)) for name in FILES]
    for other in found[1:]:
        for key, values in found[0].items():
            np.testing.assert_allclose(other[key], values, atol=1e-5)


def test_threads(artifact: Artifact, name: str) -> None:
    module = engine_module(name)
    with pytest.raises(Tf2aifError, match="threads is 0"):
        module.load(artifact(name), threads=0)
    if name == "tensorflow":  # one number for the process, which these tests have long started
        with pytest.raises(Tf2aifError, match="takes the number once"):
            module.load(artifact(name), threads=7)
    else:
        one, three = (module.load(artifact(name), threads=n).run(feeds(2)) for n in (1, 3))
        np.testing.assert_allclose(one["output_0"], three["output_0"], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": None}, r"missing: token(.|\n)*image float32 \(\?, 6, 6, 1\)"),
        ({"tokens": np.zeros(3)}, "unknown: tokens"),
        ({"token": np.zeros((2, 3))}, "input 'token' is float64, the model wants int32"),
        ({"token": np.zeros((2, 4), np.int32)}, r"shape \(2, 4\), the model wants \(\?, 3\)"),
        ({"token": np.zeros((), np.int32)}, r"shape \(\), the model wants"),
    ],
)
def test_wrong_feeds(artifact: Artifact, name: str, change: dict[str, Any], message: str) -> None:
    engine = engine_module(name).load(artifact(name))
    given = {key: array for key, array in {**feeds(2), **change}.items() if array is not None}
    with pytest.raises(Tf2aifError, match=message):
        engine.run(given)
    assert engine.run(feeds(2))["output_0"].shape == (2, 3)


def test_inputs_that_disagree_in_their_batch(artifact: Artifact, name: str) -> None:
    engine = engine_module(name).load(artifact(name))
    with pytest.raises(Tf2aifError, match="cannot run it"):
        engine.run({**feeds(2), "token": feeds(3)["token"]})
    assert engine.run(feeds(2))["output_0"].shape == (2, 3)


def test_fixed_batch(artifact: Artifact, name: str) -> None:
    engine = engine_module(name).load(artifact(name, 3))
    assert engine.run(feeds(3))["output_1"].shape == (3, 2)
    with pytest.raises(Tf2aifError, match=r"shape \(2, 6, 6, 1\), the model wants \(3, 6, 6, 1\)"):
        engine.run(feeds(2))


def test_closing_twice_is_harmless(artifact: Artifact, name: str) -> None:
    engine = engine_module(name).load(artifact(name))
    engine.close()
    engine.close()
    with pytest.raises(Tf2aifError, match="closed"):
        engine.run(feeds(1))


def test_broken_artifacts(artifact: Artifact, name: str, tmp_path: Path) -> None:
    module = engine_module(name)
    with pytest.raises(Tf2aifError, match=r"no signature\.json"):
        module.load(tmp_path)
    folder = shutil.copytree(artifact(name), tmp_path / "artifact")
    signature = read_signature(folder)
    (folder / "signature.json").write_text("{}")
    with pytest.raises(Tf2aifError, match="not a signature"):
        module.load(folder)
    renamed = msgspec.structs.replace(signature.outputs[0], name="other")
    write_signature(folder, msgspec.structs.replace(signature, outputs=(renamed,)))
    with pytest.raises(Tf2aifError):
        module.load(folder)
    write_signature(folder, signature)
    broken = folder / FILES[name]
    broken = broken / "saved_model.pb" if broken.is_dir() else broken
    for content in (broken.read_bytes()[:200], b"", b"no model"):
        broken.write_bytes(content)
        with pytest.raises(Tf2aifError, match=f"{FILES[name]}"):
            module.load(folder)
    shutil.rmtree(folder / FILES[name]) if name == "tensorflow" else broken.unlink()
    with pytest.raises(Tf2aifError, match=f"no {FILES[name]} in the artifact"):
        module.load(folder)


def test_cut_weights_of_openvino(artifact: Artifact, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact("openvino"), tmp_path / "artifact")
    weights = folder / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(Tf2aifError, match="OpenVINO cannot load it"):
        engine_module("openvino").load(folder)


def test_unknown_engine_and_option(artifact: Artifact) -> None:
    with pytest.raises(Tf2aifError, match=r"unknown engine 'tflite'(.|\n)*litert"):
        engine_module("tflite")


def test_int8_at_the_door(artifact: Artifact, tmp_path: Path) -> None:
    model = artifact("tensorflow")
    inputs = {"model": model, "calibration": random_set(model, tmp_path / "set", 64)}
    doors = {"inputs": "int8", "outputs": "int8"}
    run_step("tflite", tmp_path / "q", inputs, precision="int8", **doors)
    engine = engine_module("litert").load(tmp_path / "q")
    image, output = engine.inputs[0].quantization, engine.outputs[0].quantization
    assert image is not None
    assert output is not None
    given = feeds(4)
    stored = engine.run({**given, "image": quantize(given["image"], "int8", image)})
    truth = engine_module("tensorflow").load(model).run(given)
    assert stored["output_0"].dtype == np.int8
    found = dequantize(stored["output_0"], output)
    np.testing.assert_allclose(found, truth["output_0"], atol=0.1)


@pytest.mark.parametrize("engine", ["litert", "openvino"])
def test_small_engines_leave_tensorflow_alone(artifact: Artifact, engine: str) -> None:
    script = (
        "import sys; from pathlib import Path; from tf2aif.engines import engine_module;"
        f"engine = engine_module({engine!r}).load(Path(sys.argv[1]));"
        "print(*(m for m in ('tensorflow', 'keras', 'nncf', 'jsonschema') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(artifact(engine))],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.strip() == ""


def test_engines_import_only_what_ships() -> None:
    folder = Path(sys.modules["tf2aif.engines"].__path__[0])
    found = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                own = [name.name for name in node.names] == ["__version__"]
                found |= set() if own else {node.module}
            assert not (isinstance(node, ast.ImportFrom) and node.level > 2)
    assert found == {"errors"}
