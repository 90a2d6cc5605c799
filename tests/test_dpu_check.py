"""The pre-check: where layers go on each board, why, and what is said of models that fit none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from models import content, run_step

from tf2aif.engines import network
from tf2aif.engines.network import Input, Network, Output, read_network, write_network
from tf2aif.errors import StepFailed
from tf2aif.network.placement import reason_for_cpu
from tf2aif.spec.load import packaged_targets
from tf2aif.steps import dpu_check

pytest_plugins = ["network_fixtures"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Get = Callable[..., Path]


def options_of(board: str) -> dict[str, Any]:
    told = yaml.safe_load((packaged_targets() / f"{board}.yaml").read_text())
    found = next(dict(use) for use in told["precisions"]["int8"] if use["step"] == "dpu-check")
    del found["step"]
    return found


def on_cpu(network: Path, board: str, out: Path) -> dict[str, str]:
    return dict(run_step("dpu-check", out, {"model": network}, **options_of(board))["on_cpu"])


def test_a_network_made_for_dpus(layers: Get, tmp_path: Path) -> None:
    assert on_cpu(layers("chain"), "zynq-zcu102", tmp_path / "zynq") == {
        "softmax_0": "not among the operators of a DPU"
    }
    alveo = on_cpu(layers("chain"), "alveo-u250", tmp_path / "alveo")
    assert alveo["depthwise_conv2d_0"] == "no depthwise convolution"
    assert alveo["relu6_1"] == "no relu6"
    assert "conv2d_1" not in alveo


def test_the_table_and_what_passes_through(layers: Get, tmp_path: Path) -> None:
    on_cpu(layers("chain"), "zynq-zcu102", tmp_path / "out")
    made, source = content(tmp_path / "out"), content(layers("chain"))
    assert {name: made[name] for name in source} == source
    table = made["placement.txt"].decode()
    assert table.startswith("pre-check against the limits of DPUCZDX8G; the vendor's compiler")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert rows[0] == ["layer", "from", "output", "place", "why"]
    assert rows[1][:4] == ["conv2d_0", "Conv2D_0", "8x8x8", "DPU"]
    assert rows[-1][:4] == ["softmax_0", "Softmax_0", "4", "CPU"]
    placed = json.loads(made["placement.json"])
    assert [row["layer"] for row in placed["layers"]] == [
        layer.name for layer in read_network(layers("chain")).layers
    ]


def test_what_a_board_leaves_to_the_cpu_runs_in_floats(
    layers: Get, samples: Get, tmp_path: Path
) -> None:
    placed = on_cpu(layers("chain"), "alveo-u250", tmp_path / "check")
    given = {"model": tmp_path / "check", "calibration": samples("chain")}
    result = run_step("pof2", tmp_path / "pof2", given)
    assert set(result["floats"]) == set(placed)
    assert (tmp_path / "pof2" / "placement.txt").exists()
    stored = read_network(tmp_path / "pof2")
    assert stored.weights["depthwise_conv2d_0/kernel"].dtype == np.float32


KERNEL = {"strides": (1, 1), "padding": (0, 0, 0, 0)}
ZCU102 = msgspec.convert(options_of("zynq-zcu102"), dpu_check.Options).limits
U50 = msgspec.convert(options_of("alveo-u50"), dpu_check.Options).limits


def layer_of(kind: Any, shape: tuple[int, ...], **fields: Any) -> Any:
    return kind(name="layer", inputs=("x",), shape=shape, source="Op_0", **fields)


def network_of(layer: Any, shape: tuple[int, ...], *sizes: int) -> Network:
    kernel = {"layer/kernel": np.zeros(sizes, np.float32)} if sizes else {}
    given = (Input(name="x", dtype="float32", shape=shape),)
    return Network(given, (Output(name="y", tensor="layer"),), (layer,), kernel)


@pytest.mark.parametrize(
    ("kind", "given", "made", "sizes", "fields", "limits", "reason"),
    [
        (network.Conv2D, (32, 32, 3), (16, 16, 8), (17, 17, 3, 8), {}, ZCU102, "a window of 17x17"),
        (
            network.Conv2D,
            (32, 32, 3),
            (4, 4, 8),
            (3, 3, 3, 8),
            {"strides": (9, 9)},
            ZCU102,
            "strides",
        ),
        (
            network.Conv2D,
            (8, 8, 3),
            (4, 4, 8),
            (3, 3, 3, 8),
            {"strides": (5, 1)},
            U50,
            "strides of 5x1",
        ),
        (network.Conv2D, (8, 8, 3), (8, 8, 4097), (1, 1, 3, 4097), {}, U50, "4097 channels"),
        (
            network.Conv2D,
            (20, 20, 256),
            (5, 5, 8),
            (16, 16, 256, 8),
            {},
            U50,
            "takes 4096 rows of a bank; at most 2048",
        ),
        (
            network.Conv2D,
            (8, 8, 2048),
            (6, 6, 8),
            (3, 3, 2048, 8),
            {"dilations": (3, 1)},
            U50,
            "dilation",
        ),
        (
            network.Conv2D,
            (8, 8, 3),
            (12, 8, 8),
            (3, 3, 3, 8),
            {"padding": (3, 3, 1, 1)},
            ZCU102,
            "padding of",
        ),
        (network.DepthwiseConv2D, (8, 8, 3), (6, 6, 6), (3, 3, 3, 2), {}, ZCU102, "multiplier"),
        (network.Dense, (5000,), (8,), (5000, 8), {}, ZCU102, "5000 inputs; at most 4096"),
        (
            network.AveragePool,
            (25, 5, 64),
            (1, 1, 64),
            (),
            {"size": (25, 5), "strides": (1, 1), "padding": (0, 0, 0, 0)},
            U50,
            "a window of 25x5; from 1 to 8",
        ),
        (
            network.AveragePool,
            (8, 8, 4),
            (8, 8, 4),
            (),
            {"size": (3, 3), "strides": (1, 1), "padding": (1, 1, 1, 1)},
            ZCU102,
            "does not count its padding",
        ),
        (network.GlobalAverage, (5, 6, 4), (4,), (), {}, U50, "only square ones"),
        (network.HardSwish, (5, 6, 4), (5, 6, 4), (), {}, ZCU102, "no hard swish"),
        (network.Relu, (5, 6, 4), (5, 6, 4), (), {}, ZCU102, "follows no convolution"),
        (network.LeakyRelu, (5,), (5,), (), {"alpha": 0.3}, ZCU102, "a slope of 0.3"),
        (
            network.Resize,
            (4, 4, 1),
            (12, 12, 1),
            (),
            {"factors": (3, 3), "bilinear": True},
            ZCU102,
            "3, 3",
        ),
        (
            network.Resize,
            (4, 4, 1),
            (8, 8, 1),
            (),
            {"factors": (2, 2), "bilinear": True},
            U50,
            "no bilinear",
        ),
        (network.Softmax, (5,), (5,), (), {}, ZCU102, "not among the operators"),
    ],
)
def test_every_limit_has_its_reason(
    kind: Any,
    given: tuple[int, ...],
    made: tuple[int, ...],
    sizes: tuple[int, ...],
    fields: dict[str, Any],
    limits: dpu_check.Limits,
    reason: str,
) -> None:
    windowed = kind in (network.Conv2D, network.DepthwiseConv2D)
    layer = layer_of(kind, made, **({**KERNEL, **fields} if windowed else fields))
    assert reason in reason_for_cpu(network_of(layer, given, *sizes), layer, limits)


@pytest.mark.parametrize(("kernel", "strides"), [(1, 1), (16, 8)])
def test_the_ends_of_a_span_are_in_it(kernel: int, strides: int) -> None:
    layer = layer_of(network.Conv2D, (1, 1, 8), strides=(strides,) * 2, padding=(0, 0, 0, 0))
    net = network_of(layer, (16, 16, 16), kernel, kernel, 16, 8)
    assert reason_for_cpu(net, layer, ZCU102) == ""


def test_a_model_that_has_no_use_for_a_dpu(tmp_path: Path) -> None:
    kernel = np.zeros((5000, 2), np.float32)
    dense = network.Dense(name="dense_0", inputs=("x",), shape=(2,), source="MatMul_0")
    (tmp_path / "net").mkdir()
    write_network(
        tmp_path / "net",
        Network(
            (Input(name="x", dtype="float32", shape=(5000,)),),
            (Output(name="y", tensor="dense_0"),),
            (dense,),
            {"dense_0/kernel": kernel, "dense_0/bias": kernel[0]},
        ),
    )
    (tmp_path / "net" / "signature.json").write_text("{}")
    with pytest.raises(StepFailed, match=r"dense_0 \(MatMul_0\): 5000 inputs(.|\n)*another kind"):
        run_step(
            "dpu-check", tmp_path / "out", {"model": tmp_path / "net"}, **options_of("alveo-u50")
        )


def test_a_dpu_that_nobody_knows_is_told_before_any_step() -> None:
    options = {"dpu": "DPUXYZ", "limits": {"channel_parallel": 16, "bank_depth": 2048}}
    options["limits"]["conv"] = {"kernel": [1, 16], "strides": [1, 8]}  # type: ignore[index]
    with pytest.raises(msgspec.ValidationError, match="'DPUXYZ' is no DPU; known are: DPUCZDX8G"):
        msgspec.convert(options, dpu_check.Options)
