"""Model headers without TensorFlow, against what TensorFlow itself wrote and reads."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf2aif.errors import FilesError
from tf2aif.spec.check import check
from tf2aif.spec.init import write_recipe_for
from tf2aif.spec.model_header import SERVING, Signature, Tensor, read_header
from tf2aif.spec.wire import as_signed, as_span, read_fields, read_message, read_text, whole

KWS = Path(__file__).parents[2] / "shared" / "kws"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of several kinds, written by TensorFlow and Keras."""
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("models")

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8, "image")])
        def serve(self, image: Any) -> Any:
            return {"mean": tf.reduce_mean(tf.cast(image, tf.float32), axis=1)}

        @tf.function(
            input_signature=[
                tf.TensorSpec([], tf.int64, "left"),
                tf.TensorSpec(None, tf.bool, "right"),
            ]
        )
        def pair(self, left: Any, right: Any) -> Any:
            return {"left": left + 1, "right": tf.logical_not(right)}

    module = Module()
    tf.saved_model.save(module, folder / "module", {"one": module.serve, "two": module.pair})
    tf.saved_model.save(module, folder / "plain")

    image = keras.Input((8, 8, 1), name="image", dtype="uint8")
    size = keras.Input((2,), batch_size=4, name="size")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    score = keras.layers.Dense(3)(keras.layers.Concatenate()([flat, size]))
    two = keras.Model([image, size], score)
    with warnings.catch_warnings():
        # Keras copies TensorFlow's variables in a way that numpy 2 deprecates; also h5 is legacy.
        warnings.simplefilter("ignore")
        save_keras(two, folder)
    return folder


def save_keras(two: Any, folder: Path) -> None:
    import keras

    two.save(folder / "two.keras")
    two.save(folder / "two.h5")
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]).save(folder / "line.keras")
    two.save_weights(folder / "two.weights.h5")


def test_signatures_of_a_saved_model(models: Path) -> None:
    header = read_header(models / "module")
    assert header.format == "saved_model"
    assert header.default() is None
    assert header.signatures["one"] == Signature(
        (Tensor("image", "uint8", (None, None, 3)),), (Tensor("mean", "float32", (None, 3)),)
    )
    assert header.signatures["two"].inputs == (
        Tensor("left", "int64", ()),
        Tensor("right", "bool", None),
    )


def test_a_saved_model_without_signatures(models: Path) -> None:
    assert read_header(models / "plain").signatures == {}


@pytest.mark.parametrize("name", ["two.keras", "two.h5"])
def test_inputs_of_a_keras_model(models: Path, name: str) -> None:
    header = read_header(models / name)
    inputs = {tensor.name: tensor for tensor in header.signatures[SERVING].inputs}
    assert inputs["image"] == Tensor("image", "uint8", (None, 8, 8, 1))
    assert inputs["size"] == Tensor("size", "float32", (4, 2))


def test_the_input_of_a_sequential_model(models: Path) -> None:
    (tensor,) = read_header(models / "line.keras").signatures[SERVING].inputs
    assert (tensor.dtype, tensor.shape) == ("float32", (None, 5))


def test_weights_alone_are_no_model(models: Path) -> None:
    with pytest.raises(FilesError, match="weights and no model"):
        read_header(models / "two.weights.h5")


def test_headers_agree_with_tensorflow(models: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    for folder in (models / "module", models / "plain"):
        proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        there = proto.meta_graphs[0].signature_def
        found = read_header(folder).signatures
        assert set(found) == {name for name in there if not name.startswith("__")}
        for name, signature in found.items():
            assert {t.name for t in signature.inputs} == set(there[name].inputs)
            assert {t.name for t in signature.outputs} == set(there[name].outputs)


@pytest.mark.kws
@pytest.mark.skipif(not KWS.exists(), reason="../shared/kws is not beside the checkout")
def test_the_keyword_spotting_model() -> None:
    assert read_header(KWS / "model").signatures[SERVING] == Signature(
        (Tensor("input_1", "float32", (None, 49, 10, 1)),),
        (Tensor("dense", "float32", (None, 12)),),
    )


@pytest.mark.parametrize("size", [0, 1, 10, 1000])
def test_a_model_cut_short_is_refused(models: Path, tmp_path: Path, size: int) -> None:
    content = (models / "module" / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(content[:size])
    with pytest.raises(FilesError, match="not a whole SavedModel"):
        read_header(tmp_path)


def test_an_archive_cut_short_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes((models / "line.keras").read_bytes()[:500])
    with pytest.raises(FilesError, match="not a model that we read"):
        read_header(tmp_path / "m.keras")


@pytest.mark.parametrize("config", ["", "[", "null", "{}", '{"config": {"layers": []}}'])
def test_an_odd_config_is_unknown_or_refused(tmp_path: Path, config: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", config)
    try:
        found = str(read_header(tmp_path / "m.keras").signatures)
    except FilesError as error:
        found = error.faults[0].message
    assert found == "{}" or found.startswith("not a whole .keras file")


def test_a_keras_2_config() -> None:
    from tf2aif.spec.model_header import _keras_signatures

    text = """{"class_name": "Sequential", "config": {"name": "s", "layers": [
      {"class_name": "Dense", "config": {"name": "dense", "dtype": "float32",
       "batch_input_shape": [null, 4], "units": 2}}]}}"""
    (tensor,) = _keras_signatures(json.loads(text))[SERVING].inputs
    assert tensor == Tensor("dense_input", "float32", (None, 4))


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_refused(content: bytes) -> None:
    stream = io.BytesIO(content)
    try:
        fields = list(read_fields(stream, whole(stream)))
    except ValueError:
        return
    for number, value in fields:
        assert number > 0
        if not isinstance(value, int):
            assert 0 <= value[0] <= value[1] <= len(content)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1)), st.text(max_size=9))
def test_fields_that_protobuf_wrote(sizes: list[int], name: str) -> None:
    from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto

    shape = TensorShapeProto()
    for size in sizes:
        shape.dim.add(size=size, name=name)
    stream = io.BytesIO(shape.SerializeToString())
    dims = read_message(stream, whole(stream)).get(2, [])
    found = [read_message(stream, as_span(dim)) for dim in dims]
    assert [as_signed(dim.get(1, [0])[0]) for dim in found] == sizes
    assert [read_text(stream, dim[2][0]) for dim in found if 2 in dim] == [name] * bool(name) * len(
        sizes
    )


@pytest.mark.parametrize("name", ["two.keras", "two.h5", "line.keras"])
def test_a_first_recipe_passes_the_check(models: Path, tmp_path: Path, name: str) -> None:
    dest = tmp_path / "recipes" / "My model.yaml"
    dest.parent.mkdir()
    dest.write_text(write_recipe_for(models / name, dest, tmp_path), encoding="utf-8")
    assert "name: my-model" in dest.read_text(encoding="utf-8")
    faults = check([dest], tmp_path)
    if name == "line.keras":
        assert not faults
    else:  # its inputs have two batch sizes: a person must say what is meant
        assert {fault.message for fault in faults} <= {
            "the model fixes the batch of input 'size' to 4"
        }


def test_a_first_recipe_for_a_model_with_several_signatures(models: Path, tmp_path: Path) -> None:
    dest = tmp_path / "module.yaml"
    text = write_recipe_for(models / "module", dest, tmp_path)
    dest.write_text(text, encoding="utf-8")
    assert "signature: one  # or: two" in text
    (fault,) = check([dest], tmp_path)
    assert fault.message == "input 'image' has shape (?, ?, 3): the model leaves an axis open"
    closed = text.replace("  # inputs:", "  inputs:").replace("  #   image: [SIZE", "    image: [7")
    dest.write_text(closed, encoding="utf-8")
    assert check([dest], tmp_path) == []


def test_a_first_recipe_for_a_function(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build():\n    ...\n", encoding="utf-8")
    dest = tmp_path / "recipes" / "model.yaml"
    dest.parent.mkdir()
    text = write_recipe_for(Path(f"{tmp_path}/model.py:build"), dest, tmp_path)
    dest.write_text(text, encoding="utf-8")
    assert "function: ../model.py:build" in text
    assert check([dest], tmp_path) == []


def test_no_model_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="no file or folder"):
        write_recipe_for(tmp_path / "gone", tmp_path / "gone.yaml")


def test_checking_never_loads_tensorflow(models: Path, tmp_path: Path) -> None:
    recipe = f"model: {{path: {models / 'line.keras'}}}\ntargets: [cpu, cpu-openvino, cpu-tf]\n"
    (tmp_path / "a.yaml").write_text(recipe + "calibration: random\n", encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from tf2aif.spec.check import check;"
        f"print(check([Path({str(tmp_path)!r})], Path({str(tmp_path)!r})));"
        "print({'tensorflow', 'keras', 'openvino', 'ai_edge_litert'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nset()\n"
