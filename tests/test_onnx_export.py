"""Step `onnx`: what comes out computes what the source computes, byte for byte again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import content, random_set, run_step
from onnx_made import import_of, onnx_of, run_module

from tf2aif.engines import engine_module
from tf2aif.engines.batches import run_batches
from tf2aif.engines.signature import read_signature
from tf2aif.errors import StepFailed
from tf2aif.sampleset import read_set
from tf2aif.steps import onnx_compare, onnx_export
from tf2aif.steps.onnx_graph import all_nodes, read_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("batch", [1, 3, "free"])
@pytest.mark.parametrize("name", ["conv", "pair", "recurrent"])
def test_export_computes_what_the_source_computes(
    tmp_path: Path, name: str, batch: int | str
) -> None:
    model, artifact = import_of(name, batch), onnx_of(name, batch)
    assert read_signature(artifact) == read_signature(model)
    samples = read_set(random_set(import_of(name, "free"), tmp_path / "set", 7)).inputs
    found = run_batches(engine_module("onnxruntime").load(artifact), samples)
    truth = run_batches(engine_module("tensorflow").load(model), samples)
    assert list(found) == list(truth)
    for output, values in truth.items():
        np.testing.assert_allclose(found[output], values, atol=1e-6)


def test_file_is_canonical_and_valid() -> None:
    model = read_model(onnx_of("pair", "free"))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 17
    assert not model.producer_name
    assert not model.graph.value_info
    assert [each.name for each in model.graph.input] == ["image", "token"]
    assert [each.name for each in model.graph.output] == ["output_0", "output_1"]
    shapes = [each.type.tensor_type.shape.dim[0].dim_param for each in model.graph.input]
    assert shapes == ["batch", "batch"]
    names = [node.name for node in all_nodes(model.graph)]
    assert len(set(names)) == len(names)


def test_newer_opset(tmp_path: Path) -> None:
    result = run_module(onnx_export, tmp_path / "out", {"model": import_of("conv")}, opset=18)
    assert result["opset"] == read_model(tmp_path / "out").opset_import[0].version == 18


SCRIPT = """
import sys
from pathlib import Path
import keras
from models import run_step
from onnx_made import run_module
from tf2aif.steps import onnx_export
out = Path(sys.argv[2])
keras.models.load_model(sys.argv[1], compile=False).export(str(out / "exported"), verbose=False)
for batch in (1, "free"):
    model = out / f"import-{batch}"
    run_step("import", model, {"source": out / "exported"}, batch=batch)
    run_module(onnx_export, out / f"onnx-{batch}", {"model": model})
"""


@pytest.mark.parametrize("name", ["pair", "recurrent"])
def test_bytes_are_those_of_a_fresh_process_and_a_new_export(tmp_path: Path, name: str) -> None:
    model = import_of(name)
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "99",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    source = model.parent / f"{name}.keras"
    command = [sys.executable, "-c", SCRIPT, str(source), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    for batch in (1, "free"):
        assert content(tmp_path / f"onnx-{batch}") == content(onnx_of(name, batch))


def saved(folder: Path, function: Any, *specs: Any, batch: int | str = "free") -> Path:
    """The import of a function."""
    import tensorflow as tf

    module = tf.Module()
    module.f = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(folder / "saved"), signatures=module.f)
    run_step("import", folder / "import", {"source": folder / "saved"}, batch=batch)
    return folder / "import"


def test_operators_that_onnx_lacks_are_named(tmp_path: Path) -> None:
    import tensorflow as tf

    def function(x: Any) -> Any:
        matrix = tf.reshape(x, [-1, 1, 3])
        return {"y": tf.math.digamma(x) + tf.linalg.svd(matrix, compute_uv=False)}

    model = saved(tmp_path, function, tf.TensorSpec([None, 3], tf.float32, name="x"))
    with pytest.raises(StepFailed, match=r"Digamma \(Digamma_0\), Svd \(Svd_0\)"):
        run_module(onnx_export, tmp_path / "out", {"model": model})
    assert not list((tmp_path / "out").iterdir())


def test_an_operator_that_tf2onnx_fails_at_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    def function(x: Any) -> Any:
        return {"y": tf.scan(lambda a, b: a + b, tf.transpose(x))}

    model = saved(tmp_path, function, tf.TensorSpec([1, 3], tf.float32, name="x"), batch="none")
    with pytest.raises(StepFailed, match="tf2onnx cannot convert StatelessWhile_0"):
        run_module(onnx_export, tmp_path / "out", {"model": model})


def test_unusual_doors(tmp_path: Path) -> None:
    """An input that nothing uses, outputs of bool and int64, a constant, and the input itself."""
    import tensorflow as tf

    def function(x: Any, unused: Any) -> Any:
        return {"same": x, "flag": x > 0.5, "most": tf.argmax(x, -1), "fixed": tf.constant([1.0])}

    specs = [tf.TensorSpec([None, 3], tf.float32, name=name) for name in ("x", "unused")]
    model = saved(tmp_path, function, *specs)
    result = run_module(onnx_export, tmp_path / "out", {"model": model})
    assert result["difference"] == 0.0
    engine = engine_module("onnxruntime").load(tmp_path / "out")
    x = np.array([[0.25, 0.75, 0.5]], np.float32)
    found = engine.run({"x": x, "unused": x})
    assert {n: (a.dtype.name, a.tolist()) for n, a in found.items()} == {
        "same": ("float32", x.tolist()),
        "flag": ("bool", [[False, True, False]]),
        "most": ("int64", [1]),
        "fixed": ("float32", [1.0]),
    }


def test_a_model_that_refuses_random_numbers_is_unchecked(tmp_path: Path) -> None:
    import tensorflow as tf

    def function(x: Any) -> Any:
        return {"y": tf.gather(tf.constant([2.0]), x)}

    model = saved(tmp_path, function, tf.TensorSpec([None, 9], tf.int32, name="x"))
    result = run_module(onnx_export, tmp_path / "out", {"model": model})
    assert result["difference"] is None
    assert "is not in [0, 1)" in result["unchecked"]


def test_other_numbers_than_the_sources_are_refused(tmp_path: Path) -> None:
    """An artifact with one weight changed, held to the source model that it came from."""
    model = import_of("conv")
    signature = read_signature(model)
    source = onnx_export.read_source(model, signature)
    changed = tmp_path / "changed"
    changed.mkdir()
    for name, data in content(onnx_of("conv")).items():
        (changed / name).write_bytes(data)
    onnx_compare.compare_models(source, changed, signature, 1e-3)
    graph = read_model(changed)
    weights = graph.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weights) * 1.1
    weights.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), weights.name))
    (changed / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(StepFailed, match="output 'output_0' of the ONNX model differs by"):
        onnx_compare.compare_models(source, changed, signature, 1e-3)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        ([1.0, np.nan], [1.0, 1.0], "differs by nan"),
        ([1.0, 2.0], [1.0, np.inf], "differs by inf"),
        ([1, 2], [1, 3], "50.0% of output 'y'"),
        ([1.0], [1.0, 1.0], r"float64 \(2,\) in the ONNX model"),
    ],
)
def test_differences_that_fail(truth: list[Any], found: list[Any], message: str) -> None:
    with pytest.raises(StepFailed, match=message):
        onnx_compare.difference("y", np.array(truth), np.array(found), 1e-3)


def test_differences_that_do_not() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 2.0])
    assert onnx_compare.difference("y", odd, odd, 1e-3) == 0.0
    near = np.array([1.0, 2.001])
    assert onnx_compare.difference("y", np.array([1.0, 2.0]), near, 1e-3) == pytest.approx(5e-4)


def test_a_broken_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(StepFailed, match="cannot read the ONNX model"):
        read_model(tmp_path)
