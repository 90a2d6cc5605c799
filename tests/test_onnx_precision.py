"""Steps `onnx-cast` and `onnx-int8`: types and Q/DQ nodes in the graph, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from models import array_set, content, random_set
from onnx import TensorProto, helper
from onnx_made import digits, import_of, onnx_of, run_module
from test_onnx_graph import answers, model_of, spec

from tf2aif.engines import engine_module
from tf2aif.engines.batches import run_batches
from tf2aif.engines.signature import Signature, read_signature
from tf2aif.errors import StepFailed
from tf2aif.metrics import score
from tf2aif.sampleset import read_set
from tf2aif.steps import onnx_cast, onnx_int8
from tf2aif.steps.onnx_editor import inferred_types
from tf2aif.steps.onnx_graph import canonical_form, read_model
from tf2aif.steps.onnx_layers import quantised_weights, scale_of
from tf2aif.steps.onnx_ranges import entropy_bins, percentile_bins
from tf2aif.steps.onnx_types import emulation, lower
from tf2aif.steps.onnx_written import write_quantised

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CODES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def run_file(artifact: Path, file: str, samples: Any) -> dict[str, Any]:
    """What one of an artifact's two ONNX files gives for all samples."""
    signature = read_signature(artifact)
    session = onnxruntime.InferenceSession(str(artifact / file))
    engine = engine_module("onnxruntime").OnnxRuntime(signature, session)
    return run_batches(engine, samples)


# Half precision


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize(("name", "batch"), [("conv", 1), ("pair", "free"), ("recurrent", 1)])
def test_typed_model_and_its_emulation_are_near_the_source(
    tmp_path: Path, name: str, batch: int | str, precision: str, tolerance: float
) -> None:
    artifact = onnx_of(name, batch)
    result = run_module(onnx_cast, tmp_path / "out", {"model": artifact}, precision=precision)
    assert result["lowered"]
    typed = read_model(tmp_path / "out")
    onnx.checker.check_model(typed, full_check=True)
    weights = {
        each.data_type for each in typed.graph.initializer if each.name.endswith((".W", ".B"))
    }
    assert TensorProto.FLOAT not in weights
    doors = {each.type.tensor_type.elem_type for each in (*typed.graph.input, *typed.graph.output)}
    assert doors <= {TensorProto.FLOAT, TensorProto.INT32}
    samples = read_set(random_set(import_of(name, "free"), tmp_path / "set", 9)).inputs
    truth = run_file(artifact, "model.onnx", samples)
    found = run_file(tmp_path / "out", "check.onnx", samples)
    for output, values in truth.items():
        np.testing.assert_allclose(found[output], values, atol=tolerance * np.abs(values).max())
        assert not np.array_equal(found[output], values)


def test_loops_and_kept_operators_stay_float32(tmp_path: Path) -> None:
    result = run_module(onnx_cast, tmp_path / "a", {"model": onnx_of("recurrent")})
    assert result["kept"] == {"Loop": 1}
    options = {"keep": ["Softmax", "Conv_0"]}
    result = run_module(onnx_cast, tmp_path / "b", {"model": onnx_of("conv")}, **options)
    assert result["kept"] == {"Conv": 1, "Softmax": 1}
    types = inferred_types(read_model(tmp_path / "b"))
    assert types["Conv_0"] == TensorProto.FLOAT
    assert types["Conv_1"] == TensorProto.FLOAT16


def test_keep_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"'Sotfmax', which is no operator(.|\n)*Softmax \(1\)"):
        run_module(onnx_cast, tmp_path / "a", {"model": onnx_of("conv")}, keep=["Sotfmax"])


def chain(length: int, weight: float) -> tuple[Any, Signature]:
    """A factor, applied `length` times."""
    signature = Signature(inputs=(spec("x", 4),), outputs=(spec("y", 4),))
    nodes = [
        helper.make_node("Mul", [f"m{i}" if i else "x", "w"], [f"m{i + 1}"])
        for i in range(length - 1)
    ]
    nodes.append(helper.make_node("Mul", [f"m{length - 1}", "w"], ["y"]))
    return model_of(nodes, signature, {"w": np.float32(weight)}), signature


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_emulation_rounds_after_every_operator(half: Any) -> None:
    """Bit by bit what half precision arithmetic gives; the typed model on the CPU does not."""
    model, signature = chain(30, 1.01)
    typed = canonical_form(lower(model, half).model, signature)
    found = answers(
        canonical_form(emulation(typed), signature), np.linspace(1, 2, 4, dtype=np.float32)
    )
    dtype = np.float16 if half == "fp16" else ml_dtypes.bfloat16
    value, factor = np.linspace(1, 2, 4, dtype=np.float32).astype(dtype), dtype(np.float32(1.01))
    for _ in range(30):
        value = (value.astype(np.float32) * np.float32(factor)).astype(dtype)
    np.testing.assert_array_equal(found[0], value.astype(np.float32))


def test_emulation_shows_overflow() -> None:
    model, signature = chain(3, 300.0)
    typed = canonical_form(lower(model, "fp16").model, signature)
    x = np.ones(4, np.float32)
    assert np.isinf(answers(canonical_form(emulation(typed), signature), x)[0]).all()


def test_weights_beyond_the_range_are_named() -> None:
    model, _ = chain(2, 1e6)
    with pytest.raises(
        StepFailed, match=r"fp16 cannot hold the constant 'w'(.|\n)*1e\+06(.|\n)*bf16"
    ):
        lower(model, "fp16")
    lower(model, "bf16")


def test_bounds_of_a_clip_saturate_and_lost_weights_are_counted() -> None:
    signature = Signature(inputs=(spec("x", 4),), outputs=(spec("y", 4),))
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["c"]),
        helper.make_node("Mul", ["c", "w"], ["y"]),
    ]
    constants = {"low": np.float32(0), "high": np.float32(3e38)}
    constants["w"] = np.array([1, 1e-9, 0, 1e-9], np.float32)
    lowered = lower(model_of(nodes, signature, constants), "fp16")
    assert lowered.flushed == 2
    typed = canonical_form(lowered.model, signature)
    np.testing.assert_array_equal(answers(typed, np.ones(4, np.float32))[0], [1, 0, 0, 0])


def test_half_precision_that_nothing_can_have(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(msgspec.structs.replace(spec("x", 4), dtype="int32"),),
        outputs=(msgspec.structs.replace(spec("y", 4), dtype="int32"),),
    )
    info = [helper.make_tensor_value_info(n, TensorProto.INT32, [4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "signature.json").write_bytes(msgspec.json.encode(signature))
    with pytest.raises(StepFailed, match="nothing in the model can compute in fp16"):
        run_module(onnx_cast, tmp_path / "out", {"model": folder})


# Int8


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_int8_keeps_the_accuracy_of_digits(
    tmp_path: Path, calibration: str, rest: str, exported: Path
) -> None:
    home, out = digits(exported), tmp_path / "out"
    given = {"model": home / "onnx", "calibration": home / "calibration"}
    result = run_module(onnx_int8, out, given, calibration=calibration, rest=rest)
    assert (result["layers"], result["int8_layers"]) == (2, 2)
    model = read_model(out)
    onnx.checker.check_model(model, full_check=True)
    check_legal(model)
    evaluation = read_set(home / "evaluation")
    file = "check.onnx" if rest == "fp16" else "model.onnx"
    found = run_file(out, file, evaluation.inputs)["output_0"]
    truth = np.load(home / "reference" / "y0.npy")
    assert (
        score("top-1", found, evaluation.labels) >= score("top-1", truth, evaluation.labels) - 0.02
    )


def check_legal(model: Any) -> None:
    """What TensorRT takes: int8, zero points of 0, per channel weights, floating-point biases."""
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    makers = {tensor: node for node in model.graph.node for tensor in node.output}
    readers = [tensor for node in model.graph.node for tensor in node.input]
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero, scale = constants[node.input[2]], constants[node.input[1]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
        assert readers.count(node.output[0]) == 1
    for node in model.graph.node:
        if node.op_type == "Conv":
            weights = makers[node.input[1]]
            assert len(constants[weights.input[1]]) == len(constants[weights.input[0]])
            assert len(node.input) < 3 or node.input[2] in constants


def test_half_precision_beside_int8_has_exact_scales(tmp_path: Path, exported: Path) -> None:
    home, out = digits(exported), tmp_path / "out"
    given = {"model": home / "onnx", "calibration": home / "calibration"}
    run_module(onnx_int8, out, given, rest="fp16")
    types = inferred_types(read_model(out))
    doors = {spec.name for s in [read_signature(out)] for spec in (*s.inputs, *s.outputs)}
    assert {name for name, code in types.items() if code == TensorProto.FLOAT} == doors


def test_int8_without_layers_is_a_failure(tmp_path: Path, exported: Path) -> None:
    home = digits(exported)
    given = {"model": home / "onnx", "calibration": home / "calibration"}
    with pytest.raises(StepFailed, match="nothing in the model was quantised"):
        run_module(onnx_int8, tmp_path / "a", given, keep=["Conv", "MatMul"])


def test_kept_layers_are_not_quantised(tmp_path: Path, exported: Path) -> None:
    home = digits(exported)
    given = {"model": home / "onnx", "calibration": home / "calibration"}
    result = run_module(onnx_int8, tmp_path / "a", given, keep=["Conv_0"])
    assert (result["layers"], result["int8_layers"], result["kept"]) == (2, 1, ["Conv_0"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((4, 9, 8, 1), np.float32)}, r"float32 \(9, 8, 1\)(.|\n)*\(8, 8, 1\)"),
        ({"image": np.zeros((4, 8, 8, 1))}, "float64"),
        ({"picture": np.zeros((4, 8, 8, 1), np.float32)}, "lacks the input 'image'"),
        ({"image": np.zeros((0, 8, 8, 1), np.float32)}, "is empty"),
        ({"image": np.full((4, 8, 8, 1), np.inf, np.float32)}, "NaN or infinity in 'Reshape_0'"),
    ],
)
def test_calibration_sets_that_do_not_fit(
    tmp_path: Path, arrays: Any, message: str, exported: Path
) -> None:
    array_set(tmp_path / "set", **arrays)
    given = {"model": digits(exported) / "onnx", "calibration": tmp_path / "set"}
    with pytest.raises(StepFailed, match=message):
        run_module(onnx_int8, tmp_path / "out", given)


def test_bytes_of_every_precision_are_the_same_again(tmp_path: Path, exported: Path) -> None:
    home = digits(exported)
    given = {"model": home / "onnx", "calibration": home / "calibration"}
    for i in "ab":
        run_module(onnx_cast, tmp_path / i / "fp16", {"model": home / "onnx"})
        run_module(onnx_int8, tmp_path / i / "int8", given, calibration="entropy", rest="fp16")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 6


def test_residual_sums_have_a_pair_on_the_skipped_branch(tmp_path: Path) -> None:
    signature = Signature(inputs=(spec("x", 1, 2, 4, 4),), outputs=(spec("y", 1, 2, 4, 4),))
    weights = np.random.default_rng(1).standard_normal((2, 2, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["y"]),
    ]
    folder = tmp_path / "model"
    folder.mkdir()
    model = canonical_form(model_of(nodes, signature, {"w": weights}), signature)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "signature.json").write_bytes(msgspec.json.encode(signature))
    samples = np.random.default_rng(0).standard_normal((8, 2, 4, 4)).astype(np.float32)
    given = {"model": folder, "calibration": array_set(tmp_path / "set", x=samples)}
    result = run_module(onnx_int8, tmp_path / "out", given)
    assert (result["int8_layers"], result["quantize_nodes"], result["dequantize_nodes"]) == (
        2,
        3,
        5,
    )
    made = read_model(tmp_path / "out")
    (add,) = (node for node in made.graph.node if node.op_type == "Add")
    makers = {tensor: node.op_type for node in made.graph.node for tensor in node.output}
    assert [makers[tensor] for tensor in add.input] == ["Conv", "DequantizeLinear"]
    found, truth = answers(made, samples[:1])[0], answers(model, samples[:1])[0]
    np.testing.assert_allclose(found, truth, atol=0.05 * np.abs(truth).max())


# Scales and ranges


def test_weights_are_quantised_per_channel() -> None:
    weights = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    weights[:, 1] *= 100
    weights[:, 2] = 0
    stored, scale = quantised_weights(weights, 1)
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(np.abs(stored).max(axis=(0, 2)), [127, 127, 0, 127])
    error = np.abs(stored * scale[None, :, None] - weights)
    assert (error <= scale[None, :, None] * 0.5001).all()


def test_scales_for_half_precision_are_exact_and_never_too_small() -> None:
    limits = np.geomspace(1e-12, 1e4, 500).astype(np.float32)
    scales = scale_of(limits, half=True)
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert (scales * 127 >= limits * 0.999999).all()
    with pytest.raises(StepFailed, match="too wide for a scale in float16"):
        scale_of(np.float32(1e9), half=True)


def test_percentile_cuts_the_tail() -> None:
    assert percentile_bins(np.array([50, 40, 10]), 95.0) == 2.5
    assert percentile_bins(np.array([50, 40, 10]), 100.0) == 3.0
    assert percentile_bins(np.zeros(8, np.int64), 99.0) == 8.0


def test_entropy_cuts_outliers_and_keeps_even_distributions() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(200_000))
    outlying = np.histogram(np.append(values, 100.0), 2048, (0, 100))[0]
    even = np.histogram(np.random.default_rng(0).uniform(0, 1, 200_000), 2048, (0, 1))[0]
    assert entropy_bins(outlying) * 100 / 2048 < 10
    assert entropy_bins(even) > 1900
    assert entropy_bins(np.zeros(2048, np.int64)) == 2048


def test_nodes_are_counted_in_what_is_written(tmp_path: Path) -> None:
    """A float model that somebody calls quantised is refused, whatever the tool before returned."""
    signature = read_signature(onnx_of("conv"))
    with pytest.raises(StepFailed, match="nothing in the model was quantised"):
        write_quantised(read_model(onnx_of("conv")), signature, tmp_path, "fp32")


@pytest.mark.kws
def test_keyword_spotting_keeps_its_accuracy(kws: Path, tmp_path: Path) -> None:
    from models import run_step

    from tf2aif.steps import onnx_export

    run_step("import", tmp_path / "import", {"source": kws / "model"}, batch="free")
    run_module(onnx_export, tmp_path / "onnx", {"model": tmp_path / "import"})
    samples = np.load(kws / "samples.npz")
    array_set(tmp_path / "set", input_1=samples["x"][:200])
    run_module(onnx_cast, tmp_path / "fp16", {"model": tmp_path / "onnx"})
    for rest in ("fp32", "fp16"):
        given = {"model": tmp_path / "onnx", "calibration": tmp_path / "set"}
        run_module(onnx_int8, tmp_path / rest / "int8", given, rest=rest)
    feeds = {"input_1": samples["x"]}
    accuracy = {
        name: score("top-1", run_file(tmp_path / folder, file, feeds)["dense"], samples["y"])
        for name, folder, file in (
            ("fp32", "onnx", "model.onnx"),
            ("fp16", "fp16", "check.onnx"),
            ("int8", "fp32/int8", "model.onnx"),
            ("int8 and fp16", "fp16/int8", "check.onnx"),
        )
    }
    assert accuracy["fp32"] == pytest.approx(0.913)
    assert accuracy["fp16"] >= 0.911
    assert accuracy["int8"] >= 0.900
    assert accuracy["int8 and fp16"] >= 0.900
