"""The layer graph: it computes what the model computes, as the Keras models of it do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import content, run_step
from networks import NETWORKS, REFUSED

from tf2aif.engines import engine_module
from tf2aif.engines.network import Network, read_network, write_network
from tf2aif.engines.operators import layer_kinds, run_float
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.network.equalise import equalise, replace_relu6
from tf2aif.network.h5 import write_h5
from tf2aif.network.keras_layers import keras_layers
from tf2aif.network.keras_model import build_keras, keras_config

pytest_plugins = ["network_fixtures"]

# Keras and TensorFlow warn of their own formats and internals.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Get = Callable[..., Path]


def feeds_for(net: Network, batch: int = 3) -> dict[str, Any]:
    generator = np.random.default_rng(4)
    return {each.name: generator.random((batch, *each.shape), np.float32) for each in net.inputs}


def close(found: Any, truth: Any) -> None:
    np.testing.assert_allclose(found, truth, atol=1e-4 * np.abs(truth).max())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_layers_compute_what_the_model_computes(imported: Get, layers: Get, name: str) -> None:
    net = read_network(layers(name))
    engine = engine_module("tensorflow").load(imported(name, "free"))
    feeds = feeds_for(net)
    truth, found = engine.run(feeds), run_float(net, feeds)
    assert list(found) == [spec.name for spec in engine.outputs]
    for output, values in truth.items():
        close(found[output], values)
    engine.close()


def test_the_models_have_every_kind_of_layer(layers: Get) -> None:
    found = {type(layer) for name in NETWORKS for layer in read_network(layers(name)).layers}
    assert found | {kind for kind in layer_kinds() if kind.__name__ in ("Pad",)} == set(
        layer_kinds()
    )


@pytest.mark.parametrize("name", ["zoo", "sequence", "two_inputs"])
@pytest.mark.parametrize("batch", ["free", 5])
def test_the_batch_changes_no_layer(layers: Get, name: str, batch: int | str) -> None:
    one, other = read_network(layers(name)), read_network(layers(name, batch))
    assert [(a.name, type(a), a.shape) for a in one.layers] == [
        (a.name, type(a), a.shape) for a in other.layers
    ]
    for key, values in one.weights.items():
        np.testing.assert_array_equal(other.weights[key], values)


def test_what_exporters_spell_out_is_one_layer_again(layers: Get) -> None:
    kinds = [type(layer).__name__ for layer in read_network(layers("zoo")).layers]
    assert kinds.count("PRelu") == kinds.count("HardSwish") == kinds.count("HardSigmoid") == 1
    assert kinds.count("Resize") == 2
    assert "Pad" not in kinds
    # The offset of the rescaling cannot pass the zeros of the padding; all other scales are folded.
    assert kinds.count("Scale") == 1
    assert kinds[0] == "Scale"


def test_kws_is_read_from_a_saved_model_of_old_keras(kws: Path, tmp_path: Path) -> None:
    run_step("import", tmp_path / "model", {"source": kws / "model"}, batch=1)
    result = run_step("layers", tmp_path / "layers", {"model": tmp_path / "model"})
    assert result["layers"]["depthwise_conv2d"] == 4
    assert result["layers"]["conv2d"] == 5
    assert "scale" not in result["layers"]
    assert result["difference"] < 1e-5


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_layer_is_named(imported: Get, tmp_path: Path, name: str) -> None:
    with pytest.raises(StepFailed, match=REFUSED[name][1]):
        run_step("layers", tmp_path / "layers", {"model": imported(name)})
    assert not list((tmp_path / "layers").iterdir())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_keras_3_computes_the_same(layers: Get, name: str) -> None:
    net = read_network(layers(name))
    feeds = feeds_for(net)
    model = build_keras(net)
    given = list(feeds.values())
    made = model(given if len(given) > 1 else given[0])
    made = made if isinstance(made, list | tuple) else [made]
    for values, truth in zip(made, run_float(net, feeds).values(), strict=True):
        close(np.asarray(values), truth)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_keras_2_reads_the_file(layers: Get, tmp_path: Path, name: str) -> None:
    import tf_keras

    net = read_network(layers(name))
    write_h5(tmp_path / "model.h5", net)
    model = tf_keras.models.load_model(tmp_path / "model.h5", compile=False)
    feeds = feeds_for(net)
    given = list(feeds.values())
    made = model(given if len(given) > 1 else given[0])
    made = made if isinstance(made, list | tuple) else [made]
    for values, truth in zip(made, run_float(net, feeds).values(), strict=True):
        close(np.asarray(values), truth)


def test_the_config_has_only_fields_that_keras_2_12_knows(layers: Get) -> None:
    config = keras_config(read_network(layers("zoo")))
    text = json.dumps(config)
    for newer in ("batch_shape", "optional", "DTypePolicy", "registered_name", "build_config"):
        assert f'"{newer}"' not in text
    told = {layer["name"] for layer in config["config"]["layers"]}
    assert told == {"image", *(layer.name for layer in keras_layers(read_network(layers("zoo"))))}


def test_bytes_depend_on_the_model_only(imported: Get, layers: Get, tmp_path: Path) -> None:
    run_step("layers", tmp_path / "again", {"model": imported("zoo")})
    assert content(tmp_path / "again") == content(layers("zoo"))
    net = read_network(layers("zoo"))
    (tmp_path / "copy").mkdir()
    write_network(tmp_path / "copy", net)
    written = content(tmp_path / "copy")
    assert {name: content(layers("zoo"))[name] for name in written} == written
    for name in ("a.h5", "b.h5"):
        write_h5(tmp_path / name, net)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_equalised_layers_compute_the_same(layers: Get) -> None:
    net = replace_relu6(read_network(layers("chain")))
    even = equalise(net)
    assert any(not np.array_equal(even.weights[key], net.weights[key]) for key in net.weights)
    feeds = feeds_for(net)
    for found, truth in zip(
        run_float(even, feeds).values(), run_float(net, feeds).values(), strict=True
    ):
        close(found, truth)
    spread = [
        np.ptp(np.log(np.abs(_of_depthwise(each)).max(axis=(0, 1, 3)))) for each in (net, even)
    ]
    assert spread[1] < spread[0]


def _of_depthwise(net: Network) -> Any:
    return net.weights["depthwise_conv2d_0/kernel"]


def test_broken_files(layers: Get, tmp_path: Path) -> None:
    with pytest.raises(Tf2aifError, match=r"no layers\.json in the artifact"):
        read_network(tmp_path)
    net = read_network(layers("chain"))
    write_network(tmp_path, net._replace(layers=net.layers[1:]))
    with pytest.raises(Tf2aifError, match="layer 'relu6_0' reads 'conv2d_0', not there"):
        read_network(tmp_path)
    write_network(tmp_path, net._replace(layers=net.layers[:-1]))
    with pytest.raises(Tf2aifError, match="an output is 'softmax_0', which no layer makes"):
        read_network(tmp_path)
    write_network(tmp_path, net)
    weights = tmp_path / "weights.npz"
    for cut in (weights.read_bytes()[:-40], b"", b"no archive"):
        weights.write_bytes(cut)
        with pytest.raises(Tf2aifError, match="broken weights"):
            read_network(tmp_path)
    (tmp_path / "layers.json").write_text('{"layers": 1}')
    with pytest.raises(Tf2aifError, match="not a layer graph"):
        read_network(tmp_path)
