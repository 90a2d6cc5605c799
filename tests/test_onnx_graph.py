"""The canonical form of ONNX graphs, and what simplifies them: small graphs, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tf2aif.engines import TensorSpec
from tf2aif.engines.signature import Signature
from tf2aif.errors import StepFailed
from tf2aif.steps import onnx_graph
from tf2aif.steps.onnx_graph import all_nodes, canonical_form
from tf2aif.steps.onnx_simplify import fold_constants, simplify

FLOAT = TensorProto.FLOAT


def spec(name: str, *shape: int | None) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def model_of(
    nodes: Sequence[Any],
    signature: Signature,
    constants: dict[str, np.ndarray[Any, Any]],
    opset: int = 17,
) -> Any:
    """A model of these nodes; its inputs and outputs are the signature's."""
    infos = [
        [helper.make_tensor_value_info(s.name, FLOAT, list(s.shape)) for s in specs]
        for specs in (signature.inputs, signature.outputs)
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", infos[0], infos[1], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def answers(model: Any, *feeds: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [each.name for each in model.graph.input]
    return list(session.run(None, dict(zip(names, feeds, strict=True))))


def operators(model: Any) -> list[str]:
    return sorted(node.op_type for node in all_nodes(model.graph))


SIGNATURE = Signature(
    inputs=(spec("x", None, 3),), outputs=(spec("y", None, 3), spec("z", None, 3))
)
# Two branches of one input; `twin` equals `weight`; `lost` is needed by nothing.
NODES = (
    ("Identity", ["x"], ["a"]),
    ("Mul", ["a", "weight"], ["b"]),
    ("Add", ["b", "twin"], ["y"]),
    ("Neg", ["a"], ["c"]),
    ("Add", ["c", "b"], ["z"]),
    ("Exp", ["x"], ["lost"]),
)
WEIGHT = np.array([1, 2, 3], np.float32)


@given(st.permutations(range(len(NODES))), st.lists(st.integers(0, 99), min_size=6, unique=True))
@settings(max_examples=25, deadline=None)
def test_order_and_names_change_no_byte(order: list[int], names: list[int]) -> None:
    renamed = {t: f"n{names[i % 6]}_{t}" for i, t in enumerate("abcxyz") if t in "abc"}
    nodes = []
    for i in order:
        op, ins, outs = NODES[i]
        node = helper.make_node(
            op, [renamed.get(t, t) for t in ins], [renamed.get(t, t) for t in outs]
        )
        node.name, node.doc_string = f"exporter_{names[i]}", "a note"
        nodes.append(node)
    constants = {"weight": WEIGHT, "twin": WEIGHT}
    shuffled = canonical_form(model_of(nodes, SIGNATURE, constants), SIGNATURE)
    plain = [helper.make_node(op, ins, outs) for op, ins, outs in NODES]
    expected = canonical_form(model_of(plain, SIGNATURE, constants), SIGNATURE)
    assert shuffled.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def test_canonical_form_keeps_what_is_computed_and_drops_the_rest() -> None:
    nodes = [helper.make_node(op, ins, outs) for op, ins, outs in NODES]
    model = model_of(nodes, SIGNATURE, {"weight": WEIGHT, "twin": WEIGHT})
    made = canonical_form(model, SIGNATURE)
    onnx.checker.check_model(made, full_check=True)
    assert operators(made) == ["Add", "Add", "Mul", "Neg"]
    assert [each.name for each in made.graph.initializer] == ["Mul_0.B"]
    assert [d.dim_param for d in made.graph.input[0].type.tensor_type.shape.dim] == ["batch", ""]
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    for found, wanted in zip(answers(made, x), answers(model, x), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_canonical_form_is_a_fixed_point() -> None:
    nodes = [helper.make_node(op, ins, outs) for op, ins, outs in NODES]
    once = canonical_form(model_of(nodes, SIGNATURE, {"weight": WEIGHT, "twin": WEIGHT}), SIGNATURE)
    twice = canonical_form(once, SIGNATURE)
    assert once.SerializeToString(deterministic=True) == twice.SerializeToString(deterministic=True)


def test_outputs_that_are_inputs_constants_or_twice_the_same() -> None:
    outputs = tuple(spec(name, None, 3) for name in ("p", "q", "r", "s"))
    signature = Signature(inputs=(spec("x", None, 3),), outputs=outputs)
    nodes = [
        helper.make_node("Relu", ["x"], ["p"]),
        helper.make_node("Identity", ["p"], ["q"]),
        helper.make_node("Identity", ["x"], ["r"]),
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(WEIGHT[None])),
    ]
    made = canonical_form(model_of(nodes, signature, {}), signature)
    x = -np.ones((1, 3), np.float32)
    found = answers(made, x)
    for array, wanted in zip(found, (0 * x, 0 * x, x, WEIGHT[None]), strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_bodies_read_the_graphs_around_them() -> None:
    branches = {}
    for name, op in (("then_branch", "Add"), ("else_branch", "Sub")):
        info = helper.make_tensor_value_info(f"{name}_y", FLOAT, ["made_up"])
        inner = [
            helper.make_node("Identity", ["outer"], [f"{name}_i"]),
            helper.make_node(op, [f"{name}_i", "weight"], [f"{name}_y"]),
        ]
        branches[name] = helper.make_graph(inner, name, [], [info])
    signature = Signature(inputs=(spec("x", 3),), outputs=(spec("y", 3),))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("Neg", ["x"], ["outer"]),
        helper.make_node("If", ["positive"], ["y"], **branches),
    ]
    model = model_of(nodes, signature, {"weight": WEIGHT, "zero": np.float32(0)})
    made = canonical_form(model, signature)
    onnx.checker.check_model(made, full_check=True)
    assert "Identity" not in operators(made)
    for sign in (1, -1):
        x = sign * WEIGHT
        np.testing.assert_array_equal(answers(made, x)[0], answers(model, x)[0])


def test_a_lost_output_is_named() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    signature = Signature(inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs[:1])
    model = model_of(nodes, signature, {})
    with pytest.raises(StepFailed, match="lacks the model's output 'z'"):
        canonical_form(model, SIGNATURE)


def test_two_gibibytes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    nodes = [helper.make_node(op, ins, outs) for op, ins, outs in NODES]
    made = canonical_form(model_of(nodes, SIGNATURE, {"weight": WEIGHT, "twin": WEIGHT}), SIGNATURE)
    monkeypatch.setattr(onnx_graph, "LIMIT_BYTES", 12)
    with pytest.raises(StepFailed, match="less than 2 GiB"):
        onnx_graph.write_model(made, tmp_path)
    assert not list(tmp_path.iterdir())


def conv_model(after: Sequence[Any], **constants: Any) -> tuple[Any, Any]:
    """A padded depthwise convolution and what follows it, and the same simplified."""
    signature = Signature(inputs=(spec("x", 1, 2, 5, 5),), outputs=(spec("y", 1, 2, 6, 6),))
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((2, 1, 3, 3)).astype(np.float32)
    pads = np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64)
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "w"], ["c"], group=2, kernel_shape=[3, 3]),
        *after,
    ]
    model = model_of(nodes, signature, {"w": weights, "pads": pads, **constants})
    made = onnx.ModelProto()
    made.CopyFrom(model)
    simplify(made)
    return model, canonical_form(made, signature)


def test_padding_scale_and_bias_go_into_the_convolution() -> None:
    after = [
        helper.make_node("Mul", ["factor", "c"], ["m"]),
        helper.make_node("Add", ["m", "offset"], ["n"]),
        helper.make_node("Mul", ["n", "half"], ["y"]),
    ]
    factor = np.array([3, -2], np.float32).reshape(2, 1, 1)
    offset = np.array([1, 5], np.float32).reshape(1, 2, 1, 1)
    model, made = conv_model(after, factor=factor, offset=offset, half=np.float32(0.5))
    assert operators(made) == ["Conv", "Mul"]  # a scale after a bias stays where it is
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(answers(made, x)[0], answers(model, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "constants"),
    [
        # another reader of the convolution
        ([("Mul", ["c", "k"], ["m"]), ("Add", ["m", "c"], ["y"])], {"k": np.ones((2, 1, 1))}),
        # a factor for each column, not for each channel
        ([("Mul", ["c", "k"], ["y"])], {"k": np.arange(6.0)}),
        # what is added is no constant
        ([("Relu", ["c"], ["r"]), ("Neg", ["r"], ["s"]), ("Add", ["s", "r"], ["y"])], {}),
    ],
)
def test_what_is_not_the_convolutions_own_stays(after: Any, constants: Any) -> None:
    nodes = [helper.make_node(*each) for each in after]
    arrays = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    model, made = conv_model(nodes, **arrays)
    assert operators(made) == sorted(["Conv", *(each[0] for each in after)])
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(answers(made, x)[0], answers(model, x)[0])


def test_padding_that_is_not_zero_stays() -> None:
    signature = Signature(inputs=(spec("x", 1, 1, 4, 4),), outputs=(spec("y", 1, 1, 4, 4),))
    nodes = [
        helper.make_node("Pad", ["x", "pads", "one"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["y"]),
    ]
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    weights = np.ones((1, 1, 3, 3), np.float32)
    model = model_of(nodes, signature, {"pads": pads, "one": np.float32(1), "w": weights})
    simplify(model)
    assert operators(model) == ["Conv", "Pad"]


def test_constants_and_known_shapes_are_folded_and_random_numbers_are_not() -> None:
    signature = Signature(inputs=(spec("x", 2, 3),), outputs=(spec("y", 6), spec("z", 2, 3)))
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ReduceProd", ["shape"], ["length"], keepdims=1),
        helper.make_node("Reshape", ["x", "length"], ["y"]),
        helper.make_node("RandomNormalLike", ["w"], ["noise"], seed=1.0),
        helper.make_node("Add", ["x", "noise"], ["z"]),
    ]
    model = model_of(nodes, signature, {"w": np.zeros((2, 3), np.float32)})
    assert fold_constants(model) == 2
    assert operators(model) == ["Add", "RandomNormalLike", "Reshape"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(answers(model, x)[0], x.ravel())


def test_reshapes_that_only_put_the_batch_in_need_no_shape_of_their_input() -> None:
    signature = Signature(inputs=(spec("x", None, 2, 3),), outputs=(spec("y", None, 6),))
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["lengths"], axis=0),
        helper.make_node("Reshape", ["x", "lengths"], ["y"]),
    ]
    constants = {"first": np.array([0], np.int64), "rest": np.array([6], np.int64)}
    model = model_of(nodes, signature, constants)
    simplify(model)
    made = canonical_form(model, signature)
    assert operators(made) == ["Reshape"]
    assert onnx.numpy_helper.to_array(made.graph.initializer[0]).tolist() == [-1, 6]
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    np.testing.assert_array_equal(answers(made, x)[0], x.reshape(4, 6))


def test_a_constant_that_is_cheaper_to_compute_again_stays() -> None:
    signature = Signature(inputs=(spec("x", 1),), outputs=(spec("y", 1024, 1024),))
    nodes = [
        helper.make_node("Expand", ["one", "shape"], ["wide"]),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    shape = np.array([1024, 1024], np.int64)
    model = model_of(nodes, signature, {"one": np.ones(1, np.float32), "shape": shape})
    assert fold_constants(model) == 0
