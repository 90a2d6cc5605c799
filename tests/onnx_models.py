"""Small ONNX models made by hand, and one trained on scikit-learn's digits: no TensorFlow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tf2aif.engines import TensorSpec
from tf2aif.engines.signature import Signature, write_signature

Dim = int | None
SIDE = 8


def write_artifact(
    out: Path,
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray[Any, Any]],
    inputs: dict[str, tuple[Dim, ...]],
    outputs: dict[str, tuple[Dim, ...]],
) -> Path:
    """A folder with `model.onnx` and `signature.json`; inputs and outputs are float32."""
    out.mkdir(parents=True)

    def infos(shapes: dict[str, tuple[Dim, ...]]) -> list[Any]:
        float32 = TensorProto.FLOAT
        return [
            helper.make_tensor_value_info(
                name,
                float32,
                [f"{name}_{i}" if n is None and i else n for i, n in enumerate(shape)],
            )
            for name, shape in shapes.items()
        ]

    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "model", infos(inputs), infos(outputs), stored)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    (out / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    signature = Signature(inputs=_specs(inputs), outputs=_specs(outputs))
    write_signature(out, signature)
    return out


def _specs(shapes: dict[str, tuple[Dim, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=n, dtype="float32", shape=s) for n, s in shapes.items())


def conv(out: Path, batch: Dim = None, middle: str = "Relu", seed: int = 0) -> Path:
    """A convolution, one operator of that name, and a product; 8x8 images, 4 outputs."""
    draw = np.random.default_rng(seed)
    weights = {
        "kernel": draw.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "matrix": draw.standard_normal((8 * 36, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"], name="first"),
        helper.make_node(middle, ["a"], ["b"], name="second"),
        helper.make_node("Flatten", ["b"], ["c"], name="third"),
        helper.make_node("MatMul", ["c", "matrix"], ["score"], name="fourth"),
    ]
    shapes = {"image": (batch, 1, SIDE, SIDE)}, {"score": (batch, 4)}
    return write_artifact(out, nodes, weights, *shapes)


def sums(out: Path) -> Path:
    """Two inputs with a free batch and a free length, and two outputs."""
    nodes = [
        helper.make_node("Add", ["left", "right"], ["total"], name="add"),
        helper.make_node("Relu", ["total"], ["clipped"], name="clip"),
    ]
    shape: tuple[Dim, ...] = (None, None)
    return write_artifact(
        out, nodes, {}, {"left": shape, "right": shape}, {"total": shape, "clipped": shape}
    )


def digits_data() -> tuple[Any, Any]:
    """scikit-learn's digits: float32 images of 64 numbers in 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target


def digits(out: Path, batch: Dim = None) -> Path:
    """A classifier of digits, trained for a moment: two dense layers."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    images, labels = digits_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        trained = MLPClassifier((32,), max_iter=40, random_state=0).fit(
            images[:1200], labels[:1200]
        )
    weights = {
        f"{kind}{i}": np.asarray(array, np.float32)
        for kind, arrays in (("w", trained.coefs_), ("b", trained.intercepts_))
        for i, array in enumerate(arrays)
    }
    nodes = [
        helper.make_node("Gemm", ["image", "w0", "b0"], ["h"], name="hidden"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["logits"], name="digit"),
        helper.make_node("Softmax", ["logits"], ["score"], name="softmax", axis=1),
    ]
    return write_artifact(out, nodes, weights, {"image": (batch, 64)}, {"score": (batch, 10)})


def quantise(model: Path, out: Path, *, symmetric: bool = True) -> Path:
    """Explicit Q/DQ by onnxruntime, calibrated on digits; asymmetric ones have zero points."""
    from onnxruntime import quantization as q

    class Digits(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(np.split(digits_data()[0][:256], 16))

        def get_next(self) -> Any:
            batch = next(self._batches, None)
            return None if batch is None else {"image": batch}

    out.mkdir(parents=True)
    q.quantize_static(
        str(model / "model.onnx"),
        str(out / "model.onnx"),
        Digits(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QInt8,
        weight_type=q.QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
        },
    )
    (out / "signature.json").write_bytes((model / "signature.json").read_bytes())
    return out


def zeros(shape: tuple[Dim, ...], free: int) -> np.ndarray[Any, Any]:
    """An array of that shape, where a free axis is `free` long."""
    return np.zeros([free if length is None else length for length in shape], np.float32)
