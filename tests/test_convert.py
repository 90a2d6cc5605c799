"""Import and converters: what comes out computes what the source computes, byte for byte again."""

from __future__ import annotations

import json
import os
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
from models import array_set, content, random_set, run_step

from tf2aif.engines import engine_module
from tf2aif.engines.batches import run_batches
from tf2aif.engines.signature import read_signature
from tf2aif.errors import StepFailed
from tf2aif.sampleset import read_set
from tf2aif.steps.shapes import stable_names

# Keras and TensorFlow warn of their own formats and internals.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Import = Callable[..., Path]

# step, engine, options, and the largest difference from the source's outputs (which reach about 1)
CONVERTERS = [
    ("native", "tensorflow", {}, 1e-6),
    ("tflite", "litert", {"precision": "fp32"}, 1e-5),
    ("tflite", "litert", {"precision": "fp16"}, 5e-3),
    ("tflite", "litert", {"precision": "dynamic"}, 5e-2),
    ("tflite", "litert", {"precision": "int8"}, 1e-1),
    ("tflite", "litert", {"precision": "int8", "inputs": "int8", "outputs": "uint8"}, 1e-1),
    ("openvino", "openvino", {}, 1e-5),
    ("openvino", "openvino", {"precision": "int8"}, 2e-1),
]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that saves a model of `models.MODELS` once, as `.keras`; its path."""
    folder = tmp_path_factory.mktemp("saved")

    def save(name: str) -> Path:
        path = folder / f"{name}.keras"
        if not path.exists():
            models.MODELS[name]().save(path)
        return path

    return save


@pytest.fixture(scope="session")
def imported(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Import:
    """A function that imports a model once for each batch."""
    folder = tmp_path_factory.mktemp("imported")

    def get(name: str, batch: int | str = 1) -> Path:
        out = folder / f"{name}-{batch}"
        if not out.exists():
            run_step("import", out, {"source": saved(name)}, batch=batch)
            random_set(out, folder / f"{name}-{batch}-set")
        return out

    return get


def samples_of(model: Path) -> Path:
    return model.with_name(f"{model.name}-set")


# Other batches are tried with the model and the precision that have most to lose.
CASES = [(name, 1, *case) for name in ("conv", "pair") for case in CONVERTERS]
CASES += [("pair", b, *c) for b in (5, "free") for c in CONVERTERS if "int8" in c[2].values()]


@pytest.mark.parametrize(("name", "batch", "step", "engine", "options", "tolerance"), CASES)
def test_artifact_computes_what_the_source_computes(
    imported: Import,
    tmp_path: Path,
    name: str,
    batch: int | str,
    step: str,
    engine: str,
    options: dict[str, Any],
    tolerance: float,
) -> None:
    model = imported(name, batch)
    inputs = {"model": model, "calibration": samples_of(model)}
    run_step(step, tmp_path / "artifact", inputs, **options)
    loaded = engine_module(engine).load(tmp_path / "artifact")
    samples = read_set(samples_of(model)).inputs
    truth = answers(imported(name, "free"), samples)
    found = run_batches(loaded, samples)
    assert found.keys() == truth.keys()
    for output, values in truth.items():
        assert found[output].shape == values.shape
        np.testing.assert_allclose(found[output], values, atol=tolerance * np.abs(values).max())
    loaded.close()


def answers(model: Path, samples: dict[str, Any]) -> dict[str, Any]:
    """What an imported model gives through its signature."""
    engine = engine_module("tensorflow").load(model)
    found = run_batches(engine, samples)
    engine.close()
    return found


@pytest.mark.parametrize(("step", "engine"), [("tflite", "litert"), ("openvino", "openvino")])
def test_recurrent_layers_convert_at_a_fixed_batch(
    imported: Import, tmp_path: Path, step: str, engine: str
) -> None:
    model = imported("recurrent", 2)
    run_step(step, tmp_path / "artifact", {"model": model})
    samples = read_set(samples_of(model)).inputs
    truth = answers(model, samples)
    found = run_batches(engine_module(engine).load(tmp_path / "artifact"), samples)
    np.testing.assert_allclose(found["output_0"], truth["output_0"], atol=1e-6)


def test_loops_are_refused_in_int8_and_open_lists_named(imported: Import, tmp_path: Path) -> None:
    model = imported("recurrent", 2)
    inputs = {"model": model, "calibration": samples_of(model)}
    with pytest.raises(StepFailed, match="While"):
        run_step("tflite", tmp_path / "a", inputs, precision="int8")
    with pytest.raises(StepFailed, match=r"TensorListReserve(.|\n)*'batch: 1'"):
        run_step("tflite", tmp_path / "b", {"model": imported("recurrent", "free")})


def test_quantisation_at_the_door_is_in_the_signature(imported: Import, tmp_path: Path) -> None:
    model = imported("pair")
    inputs = {"model": model, "calibration": samples_of(model)}
    run_step("tflite", tmp_path / "a", inputs, precision="int8", inputs="int8", outputs="uint8")
    signature = read_signature(tmp_path / "a")
    described = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    assert described["image"].dtype == "int8"
    assert described["image"].quantization is not None
    assert described["token"].dtype == "int32"
    assert described["token"].quantization is None
    assert described["output_0"].dtype == "uint8"
    assert [spec.name for spec in signature.inputs] == ["image", "token"]


def test_door_belongs_to_int8(imported: Import, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="belong to precision int8"):
        run_step("tflite", tmp_path / "a", {"model": imported("conv")}, inputs="int8")


@pytest.mark.parametrize("name", ["conv", "pair", "recurrent"])
def test_every_format_gives_the_same_import(
    saved: Callable[[str], Path], imported: Import, tmp_path: Path, name: str
) -> None:
    import keras

    model = keras.models.load_model(saved(name), compile=False)
    model.save(tmp_path / "model.h5")
    model.export(tmp_path / "exported", verbose=False)
    shutil.copy(tmp_path / "model.h5", tmp_path / "no-ending")
    for i, file in enumerate(("model.h5", "exported", "no-ending")):
        run_step("import", tmp_path / str(i), {"source": tmp_path / file})
        assert content(tmp_path / str(i)) == content(imported(name))


def test_keras_2_files_give_the_same_import(tmp_path: Path) -> None:
    model = models.legacy()
    model.save(tmp_path / "model.h5")
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "saved")
    ways = []
    for name in ("model.h5", "model.keras", "saved"):
        out = tmp_path / f"import-{name}"
        ways.append(run_step("import", out, {"source": tmp_path / name})["loaded_with"])
        assert content(out) == content(tmp_path / "import-model.h5")
    assert ways == ["tf_keras", "tf_keras", "tf.saved_model.load"]


@pytest.mark.parametrize("kind", ["import", "tflite", "openvino"])
def test_bytes_are_those_of_a_fresh_process(fresh: Path, twin: Path, kind: str) -> None:
    """The other process has its own counters, hash seed, place, and an export of its own."""
    folders = sorted(path.name for path in twin.iterdir() if path.name.startswith(kind))
    assert folders
    for name in folders:
        assert content(fresh / name) == content(twin / name), name


SCRIPT = """
import sys
from pathlib import Path
import keras
from test_convert import build_all
model = keras.models.load_model(sys.argv[1], compile=False)
model.export(sys.argv[2] + "-exported", verbose=False)
build_all(Path(sys.argv[2] + "-exported"), Path(sys.argv[2]))
"""


def build_all(source: Path, out: Path) -> None:
    """A model's import and every conversion, in folders named by what they are."""
    model = out / "import"
    run_step("import", model, {"source": source})
    samples = random_set(model, out / "samples", 8)
    for step, _, options, _ in CONVERTERS[1:]:
        inputs = {"model": model, "calibration": samples}
        run_step(step, out / "-".join([step, *options.values()]), inputs, **options)


@pytest.fixture(scope="module")
def twin(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pair` built in this process, from the `.keras` file."""
    out = tmp_path_factory.mktemp("twin")
    build_all(saved("pair"), out)
    return out


@pytest.fixture(scope="module")
def fresh(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pair` built in a fresh process, from weights exported there once more."""
    out = tmp_path_factory.mktemp("elsewhere") / "fresh"
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    environment = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": paths}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(saved("pair")), str(out)],
        check=True,
        env=environment,
        cwd=out.parent,
        capture_output=True,
    )
    return out


def test_import_says_how(saved: Callable[[str], Path], tmp_path: Path) -> None:
    result = run_step("import", tmp_path / "out", {"source": saved("pair")}, batch="free")
    assert result["loaded_with"] == "keras"
    assert result["difference"] < 1e-6
    assert [spec["shape"] for spec in result["inputs"]] == [(None, 6, 6, 1), (None, 3)]
    described = read_signature(tmp_path / "out")
    assert msgspec.to_builtins(described.outputs) == result["outputs"]


def test_made_up_names_do_not_depend_on_the_session() -> None:
    assert stable_names(["keras_tensor_12", "image", "keras_tensor_9"]) == {
        "image": "image",
        "keras_tensor_9": "input_layer",
        "keras_tensor_12": "input_layer_1",
    }
    assert stable_names(["input_layer_4"]) == {"input_layer_4": "input_layer"}


@pytest.fixture(scope="module")
def signatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signatures") / "model"
    models.write_signatures(path)
    return path


def test_one_of_several_signatures(signatures: Path, tmp_path: Path) -> None:
    options = {"signature": "count", "batch": "none"}
    result = run_step("import", tmp_path / "model", {"source": signatures}, **options)
    assert result["signature"] == "count"
    engine = engine_module("tensorflow").load(tmp_path / "model")
    numbers = np.array([1, 2, 3, 4], np.int32)
    flags = np.array([True, False, True, False])
    found = engine.run({"numbers": numbers, "flags": flags})
    assert found["sum"].shape == ()
    assert found["sum"] == 4
    assert found["not"].tolist() == [False, True, False, True]


def test_model_without_batch_axis_gets_one_sample_at_a_time(
    signatures: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    run_step("import", model, {"source": signatures}, signature="count", batch="none")
    samples = random_set(model, tmp_path / "set", 6, batched=False)
    run_step("reference", tmp_path / "reference", {"model": model, "evaluation": samples})
    run_step("tflite", tmp_path / "lite", {"model": model})
    found = run_batches(engine_module("litert").load(tmp_path / "lite"), read_set(samples).inputs)
    names = json.loads((tmp_path / "reference" / "outputs.json").read_bytes())["outputs"]
    assert names == ["not", "sum"]
    for i, name in enumerate(names):
        truth = np.load(tmp_path / "reference" / f"y{i}.npy")
        np.testing.assert_array_equal(found[name], truth)


def test_wrong_signature_lists_those_there_nearest_first(signatures: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"no signature 'cuont'(.|\n)*there are: count, double"):
        run_step("import", tmp_path / "a", {"source": signatures}, signature="cuont")
    with pytest.raises(StepFailed, match="several signatures"):
        run_step("import", tmp_path / "b", {"source": signatures})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": {"imgae": [6, 6, 1]}}, r"no input 'imgae'(.|\n)*there are: image"),
        ({"inputs": {"image": [6, 6, 3]}}, r"\(\?, 6, 6, 1\); the recipe asks for \(\?, 6, 6, 3\)"),
        ({"inputs": {"image": [6, 6, 1]}, "batch": "none"}, "asks for"),
    ],
)
def test_shapes_that_do_not_fit(
    saved: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StepFailed, match=message):
        run_step("import", tmp_path / "out", {"source": saved("pair")}, **options)


def test_fixed_batch_of_the_model_is_kept(signatures: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="fixes the batch of input 'flags' to 4"):
        run_step("import", tmp_path / "a", {"source": signatures}, signature="count", batch=2)


def test_open_axes_are_asked_for(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.GlobalMaxPooling2D()])
    model.save(tmp_path / "open.keras")
    source = {"source": tmp_path / "open.keras"}
    with pytest.raises(StepFailed, match=r"inputs: \{input_layer: \[...\]\}"):
        run_step("import", tmp_path / "a", source)
    name = model.layers[0].name if model.layers[0].name.startswith("input") else "input_layer"
    result = run_step("import", tmp_path / "b", source, inputs={name: [4, 5, 1]})
    assert result["inputs"][0]["shape"] == (1, 4, 5, 1)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.keras", None, "no such file"),
        ("text.h5", b"hello", "this is no model"),
        (
            "cut.h5",
            b"\x89HDF\r\n\x1a\n" + bytes(100),
            r"no way to read(.|\n)*keras: (.|\n)*tf_keras: ",
        ),
        (
            "cut/saved_model.pb",
            b"\x0a\xff",
            r"no way to read(.|\n)*tf.compat.v1.saved_model.load: ",
        ),
    ],
)
def test_files_that_are_no_model(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if data is not None:
        path.write_bytes(data)
    source = path.parent if path.name == "saved_model.pb" else path
    with pytest.raises(StepFailed, match=message):
        run_step("import", tmp_path / "out", {"source": source})


def save_function(folder: Path, function: Callable[..., Any], *specs: Any, **held: Any) -> Path:
    """A SavedModel of one function over tensors `x0`, `x1`, ..."""
    import tensorflow as tf

    module = tf.Module()
    for name, value in held.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(folder), signatures=module.serve.get_concrete_function())
    return folder


def test_what_cannot_be_frozen_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    keys, values = tf.constant([1, 2], tf.int64), tf.constant([3.0, 4.0])
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 0.0)
    spec = tf.TensorSpec([None], tf.int64)
    path = save_function(tmp_path / "table", table.lookup, spec, table=table)
    with pytest.raises(StepFailed, match="LookupTable"):
        run_step("import", tmp_path / "a", {"source": path})
    text = tf.TensorSpec([None], tf.string)
    path = save_function(tmp_path / "text", tf.strings.length, text)
    with pytest.raises(StepFailed, match="is of dtype string"):
        run_step("import", tmp_path / "b", {"source": path})


def test_model_that_draws_numbers_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    spec = tf.TensorSpec([None, 4])
    path = save_function(tmp_path / "noise", lambda x: x + tf.random.uniform(tf.shape(x)), spec)
    with pytest.raises(StepFailed, match=r"differs by(.|\n)*draw random numbers"):
        run_step("import", tmp_path / "out", {"source": path})


def test_model_that_refuses_random_numbers_is_unchecked(tmp_path: Path) -> None:
    import tensorflow as tf

    def pick(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_greater(x, 10)]):
            return x * 2

    path = save_function(tmp_path / "picky", pick, tf.TensorSpec([None], tf.int32))
    result = run_step("import", tmp_path / "out", {"source": path})
    assert result["difference"] is None
    assert "assert" in result["unchecked"].lower()


def test_int8_in_which_nothing_is_int8_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    spec = tf.TensorSpec([None, 4])
    path = save_function(tmp_path / "m", lambda x: tf.sin(x), spec)
    run_step("import", tmp_path / "model", {"source": path})
    samples = random_set(tmp_path / "model", tmp_path / "set")
    inputs = {"model": tmp_path / "model", "calibration": samples}
    with pytest.raises(StepFailed, match="nothing in the model that it can quantise"):
        run_step("openvino", tmp_path / "out", inputs, precision="int8")


def test_unsupported_operators_are_named(tmp_path: Path) -> None:
    import tensorflow as tf

    spec = tf.TensorSpec([None, 4])
    path = save_function(tmp_path / "m", lambda x: tf.math.digamma(x + 1.0), spec)
    run_step("import", tmp_path / "model", {"source": path})
    for step in ("tflite", "openvino"):
        with pytest.raises(StepFailed, match="does not support: Digamma"):
            run_step(step, tmp_path / step, {"model": tmp_path / "model"})


def test_model_larger_than_a_message(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tf2aif.steps.freeze.LIMIT_BYTES", 100)  # for 2 GiB
    with pytest.raises(StepFailed, match="less than 2 GiB"):
        run_step("import", tmp_path / "out", {"source": saved("conv")})


def test_version_1_loader_gives_the_same_import(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """TensorFlow refuses some files of its own; this one once its objects are damaged."""
    import keras
    from tensorflow.core.protobuf import saved_model_pb2

    model = keras.models.load_model(saved("conv"), compile=False)
    model.export(tmp_path / "model", verbose=False)
    run_step("import", tmp_path / "a", {"source": tmp_path / "model"})
    file = tmp_path / "model" / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for node in proto.meta_graphs[0].object_graph_def.nodes:
        for slot in node.children:
            slot.node_id = 10**6
    file.write_bytes(proto.SerializeToString())
    result = run_step("import", tmp_path / "b", {"source": tmp_path / "model"})
    assert result["loaded_with"] == "tf.compat.v1.saved_model.load"
    assert content(tmp_path / "a") == content(tmp_path / "b")


CODE = """
import random
import numpy
import keras
import tensorflow as tf

def build(units):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model.compile("sgd", "mse")
    data = numpy.random.rand(32, 4) + random.random()
    model.fit(data, data[:, :units], epochs=2, verbose=0)
    return model

class Twice(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x")])
    def __call__(self, x):
        return {"y": 2.0 * x}

def module():
    return Twice()

def number():
    return 3
"""


def test_function_makes_the_same_model_again(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(CODE)
    for out in ("a", "b"):
        run_step("model", tmp_path / out, {"code": code}, function="build", arguments={"units": 2})
    assert content(tmp_path / "a") == content(tmp_path / "b")
    options = {"function": "build", "arguments": {"units": 2}, "seed": 1}
    run_step("model", tmp_path / "c", {"code": code}, **options)
    assert content(tmp_path / "a") != content(tmp_path / "c")
    result = run_step("import", tmp_path / "d", {"source": tmp_path / "a"})
    assert result["outputs"][0]["shape"] == (1, 2)


def test_function_may_return_a_module(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(CODE)
    run_step("model", tmp_path / "a", {"code": code}, function="module")
    result = run_step("import", tmp_path / "b", {"source": tmp_path / "a"})
    assert [spec["name"] for spec in result["inputs"] + result["outputs"]] == ["x", "y"]
    with pytest.raises(StepFailed, match="returned a int"):
        run_step("model", tmp_path / "c", {"code": code}, function="number")


@pytest.mark.kws
def test_kws_keeps_its_accuracy(kws: Path, tmp_path: Path) -> None:
    """fp32 0.913 top-1 on the 1000 samples, full int8 with the first 200 at least 0.905."""
    with np.load(kws / "samples.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    model = tmp_path / "model"
    run_step("import", model, {"source": kws / "model"})
    inputs = {"model": model, "calibration": array_set(tmp_path / "set", input_1=x[:200])}
    accuracies = {}
    for step, engine, options, _ in CONVERTERS:
        out = tmp_path / "-".join([step, *options.values()])
        run_step(step, out, inputs, **options)
        found = run_batches(engine_module(engine).load(out), {"input_1": x})
        accuracies[out.name] = float(np.mean(found["dense"].argmax(1) == y))
    for name in ("native", "tflite-fp32", "openvino"):
        assert accuracies[name] == pytest.approx(0.913, abs=1e-3)
    assert min(accuracies.values()) >= 0.905, accuracies
