"""The HLS path without its tools: types, stages, exact arithmetic, and the search for widths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hls_networks import SIDE, Drawn, conv, everything, write_layers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import array_set, content

from tf2aif.engines import network
from tf2aif.engines.operators import run_float as reference_float
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.hls import compiler
from tf2aif.hls.emulate import emulate, ranges, run_float
from tf2aif.hls.fixed import Fixed, integer_bits, nearest, parse, product, quantize, total
from tf2aif.hls.lower import lower
from tf2aif.hls.search import UNIFORM, Found, Verdict, search
from tf2aif.hls.stages import Pipeline
from tf2aif.hls.types import (
    Spelled,
    accumulators,
    changed,
    cost_bits,
    is_exact,
    read_spelled,
    result_types,
    uniform,
    write_types,
)
from tf2aif.steps import Job, hls, hls_widths
from tf2aif.trials import VARIABLE, Trials

WIDE = parse("fixed<30,10,RND,SAT>")


@st.composite
def fixed_types(draw: st.DrawFn) -> Fixed:
    return Fixed(
        width=draw(st.integers(1, 24)),
        integer=draw(st.integers(-6, 20)),
        signed=draw(st.booleans()),
        rounding=draw(st.sampled_from(["TRN", "RND"])),
        overflow=draw(st.sampled_from(["WRAP", "SAT"])),
    )


def slow_quantize(value: float, fixed: Fixed) -> Fraction:
    """UG1399's words, in Python's own unbounded integers."""
    scaled = Fraction(value) * Fraction(2) ** fixed.fraction
    stored = floor(scaled + Fraction(1, 2)) if fixed.rounding == "RND" else floor(scaled)
    low = -(2 ** (fixed.width - 1)) if fixed.signed else 0
    high = low + 2**fixed.width - 1
    if fixed.overflow == "SAT":
        stored = min(max(stored, low), high)
    else:
        stored = (stored - low) % 2**fixed.width + low
    return stored / Fraction(2) ** fixed.fraction


@given(
    fixed_types(),
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=8),
    st.integers(-40, 40),
)
@example(parse("fixed<8,4,RND,SAT>"), [-0.03125, 0.03125, 7.999, -8.0, 8.0], 0)
@example(parse("fixed<4,4>"), [7.5, 8.0, -8.5, -9.0], 0)
@settings(max_examples=300, deadline=None)
def test_quantisation_is_that_of_the_hardware(
    fixed: Fixed, values: list[float], halves: int
) -> None:
    """Halves of a step, where rounding is decided, are among the values."""
    tried = [*values, (halves + 0.5) * 2.0**-fixed.fraction, fixed.low, fixed.high]
    found = quantize(np.array(tried), fixed)
    assert [Fraction(value) for value in found] == [slow_quantize(v, fixed) for v in tried]


@given(fixed_types())
def test_a_type_is_spelled_and_read_back(fixed: Fixed) -> None:
    assert parse(fixed.spell()) == fixed


@pytest.mark.parametrize("text", ["fixed16", "fixed<16>", "fixed<0,0>", "fixed<99,3>", "", "int8"])
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(Tf2aifError, match=r"fixed-point type|out of range") as caught:
        parse(text)
    assert "fixed<WIDTH,INTEGER>" in caught.value.faults[0].hint


@given(fixed_types(), fixed_types(), fixed_types(), st.integers(1, 500))
def test_accumulators_hold_every_sum(left: Fixed, right: Fixed, bias: Fixed, count: int) -> None:
    sums = total(product(left, right), count, bias)
    ends = [
        Fraction(a) * Fraction(b) for a in (left.low, left.high) for b in (right.low, right.high)
    ]
    for some in (min(ends), max(ends), Fraction(2) ** -(left.fraction + right.fraction)):
        for other in (Fraction(bias.low), Fraction(bias.high)):
            value = some * count + other
            assert Fraction(sums.low) <= value <= Fraction(sums.high)
            assert (value * Fraction(2) ** sums.fraction).denominator == 1


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_integer_bits_reach_and_no_bit_is_too_many(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    if max(abs(low), abs(high)) < 1e-3:
        return
    bits = integer_bits(low, high)
    assert -(2.0 ** (bits - 1)) <= low <= high < 2.0 ** (bits - 1)
    less = 2.0 ** (bits - 2)
    assert not (-less <= low and high < less)


def test_a_constant_is_rounded_to_the_nearest() -> None:
    assert nearest(np.array([0.24, 0.26, 9.0, -9.0]), parse("fixed<4,2>")).tolist() == [
        0.25,
        0.25,
        1.75,
        -2.0,
    ]


# -- stages --


def test_every_kind_of_layer_becomes_a_stage() -> None:
    net = everything()
    pipeline = lower(net)
    assert {stage.kind for stage in pipeline.stages} >= {
        "input", "conv", "relu", "max_pool", "depthwise", "add", "concat", "pad",
        "average_pool", "reshape", "dense", "global_average",
    }  # fmt: skip
    assert [(o.name, o.door) for o in pipeline.outputs] == [("y0", "softmax"), ("y1", "none")]
    assert pipeline.weights() == sum(array.size for array in net.weights.values())


@pytest.mark.parametrize("padded", [False, True])
def test_stages_compute_what_the_layers_compute(padded: bool) -> None:
    from tf2aif.engines.hls import DOORS

    net = everything(padded_pool=padded)
    pipeline = lower(net)
    samples = np.random.default_rng(0).normal(0, 1, (5, 8, 8, 1)).astype(np.float32)
    truth = reference_float(net, {"image": samples})
    exact = run_float(pipeline, {"image": samples})
    close = emulate(pipeline, uniform(pipeline, WIDE), {"image": samples})
    for output in pipeline.outputs:
        door = DOORS[output.door]
        np.testing.assert_allclose(door(exact[output.name]), truth[output.name], atol=1e-5)
        np.testing.assert_allclose(door(close[output.name]), truth[output.name], atol=1e-4)


def refused() -> Mapping[str, tuple[Drawn, str]]:
    net = Drawn(8, 8, 2)
    leaky = Drawn(8, 8, 2)
    leaky.add(network.LeakyRelu, (8, 8, 2), alpha=0.1)
    conv(leaky, (8, 8, 2), 3, 2)
    middle = Drawn(4)
    middle.add(network.Softmax, (4,))
    middle.add(network.Dense, (2,), kernel=(4, 2))
    multiplier = Drawn(8, 8, 2)
    kind = network.DepthwiseConv2D
    kernel = (3, 3, 2, 2)
    multiplier.add(kind, (8, 8, 4), strides=(1, 1), padding=SIDE, kernel=kernel)
    net.add(
        network.Conv2D,
        (8, 8, 3),
        strides=(1, 1),
        padding=(2, 2, 2, 2),
        dilations=(2, 2),
        kernel=(3, 3, 2, 3),
    )
    return {
        "leaky": (leaky, r"leaky_relu_0 \(leaky_relu\): leaky_relu is not supported"),
        "middle": (middle, "softmax is computed at the end only"),
        "multiplier": (multiplier, "multiplier 2"),
        "dilated": (net, r"dilated by \(2, 2\)"),
    }


@pytest.mark.parametrize("name", refused())
def test_a_layer_without_a_stage_is_named(name: str) -> None:
    net, words = refused()[name]
    with pytest.raises(StepFailed, match="have no stage") as caught:
        lower(net.network())
    assert re.search(words, caught.value.faults[0].at)


def test_an_input_may_be_called_as_c_plus_plus_likes_nothing_to_be() -> None:
    net = Drawn(4, name="3 double:0")
    net.add(network.Dense, (2,), kernel=(4, 2))
    assert lower(net.network()).inputs == {"3 double:0": "x3_double_0_in"}


# -- types --


def test_types_are_written_read_and_changed(tmp_path: Path) -> None:
    pipeline = lower(everything())
    types = uniform(pipeline, parse("fixed<16,6,RND,SAT>"))
    types = changed(types, {"conv2d_0": Spelled(weight="fixed<8,1>")})
    write_types(tmp_path, types)
    assert changed(uniform(pipeline, WIDE), read_spelled(tmp_path)) == types
    assert read_spelled(tmp_path / "nowhere") == {}
    assert cost_bits(pipeline, types) < cost_bits(pipeline, uniform(pipeline, WIDE))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"conv2d_9": {"result": "fixed<8,3>"}}, "no layer 'conv2d_9'"),
        ({"relu_0": {"weight": "fixed<8,3>"}}, "'relu_0' has no weight"),
    ],
)
def test_a_wrong_type_is_told(
    layers: dict[str, dict[str, str]], words: str, tmp_path: Path
) -> None:
    options = msgspec.convert({"layers": layers}, hls.Options)
    with pytest.raises(StepFailed, match=words) as caught:
        hls.choose_types(lower(everything()), tmp_path, options)
    assert caught.value.faults[0].hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fixed<16;6>"}, r"precision: 'fixed<16;6>' is no fixed-point type; spell"),
        ({"layers": {"conv2d_0": {"result": "int8"}}}, r"layers\.conv2d_0: 'int8' is no fixed"),
        ({"layers": {"conv2d_0": {"kernel": "fixed<8,3>"}}}, "unknown field `kernel`"),
    ],
)
def test_a_wrong_type_is_told_before_any_step(options: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(options, hls.Options)


def test_what_moves_values_has_the_type_of_what_goes_in() -> None:
    pipeline = lower(everything())
    types = changed(uniform(pipeline, WIDE), {"relu_0": Spelled(result="ufixed<5,2>")})
    assert result_types(pipeline, types)["max_pool_0"] == parse("ufixed<5,2>")
    assert accumulators(pipeline, types)["max_pool_0"] == parse("ufixed<5,2>")


def test_sums_that_float64_cannot_hold_are_known() -> None:
    pipeline = lower(everything())
    assert is_exact(pipeline, uniform(pipeline, parse("fixed<16,6>")))
    assert not is_exact(pipeline, uniform(pipeline, parse("fixed<32,6>")))


def test_what_is_too_large_or_cannot_be_streamed_is_told() -> None:
    pipeline = lower(everything(padded_pool=True))
    with pytest.raises(StepFailed, match="practical up to 10") as caught:
        hls.check_fits(pipeline, hls.Options(largest_weights=10))
    assert "DPU" in caught.value.faults[0].hint
    with pytest.raises(StepFailed, match="cannot be streamed") as caught:
        hls.check_fits(pipeline, hls.Options(io_type="io_stream"))
    assert caught.value.faults[0].at == "max_pool_0 (max_pool)"
    hls.check_fits(pipeline, hls.Options(io_type="io_parallel"))
    with pytest.raises(StepFailed, match="one input and one output"):
        hls.check_fits(pipeline, hls.Options(backend="VivadoAccelerator", board="pynq-z2"))


# -- the search --


def toy(least: Mapping[str, int]) -> tuple[Pipeline, Any]:
    """A pipeline, and a judge that holds as long as every weight has so many fraction bits."""
    pipeline = lower(everything())

    def judge(types: Mapping[str, Any]) -> Verdict:
        short = sum(
            max(0, least[name] - chosen.weight.fraction)
            for name, chosen in types.items()
            if chosen.weight is not None
        )
        return Verdict(score=1.0 - short, drop=float(short), holds=short == 0)

    return pipeline, judge


def run_search(least: Mapping[str, int], trials: int) -> tuple[Pipeline, Found]:
    pipeline, judge = toy(least)
    samples = np.random.default_rng(0).normal(0, 1, (8, 8, 8, 1))
    return pipeline, search(pipeline, ranges(pipeline, {"image": samples}), judge, trials)


LEAST = {"conv2d_0": 9, "depthwise_conv2d_0": 4, "scale_0": 6, "conv2d_1": 3, "dense_0": 7,
         "dense_1": 5}  # fmt: skip


def test_the_search_ends_where_one_bit_less_does_not_hold() -> None:
    _, found = run_search(LEAST, 1000)
    assert found.finished
    assert found.verdict.holds
    fractions = {n: c.weight.fraction for n, c in found.types.items() if c.weight is not None}
    # The judge looks at the weights only; a type has two bits at least.
    widths = {n: c.weight.width for n, c in found.types.items() if c.weight is not None}
    assert {n: f for n, f in fractions.items() if widths[n] > 2} == {
        n: f for n, f in LEAST.items() if widths[n] > 2
    }
    assert fractions["conv2d_0"] == 9
    assert all(c.result.width <= 2 for c in found.types.values())
    assert found.curve[0].changed == "all 16 bits"
    assert min(p.bits for p in found.curve if p.holds) < found.curve[0].bits / 3


def test_the_search_is_bounded_and_repeats_itself() -> None:
    _, whole = run_search(LEAST, 1000)
    _, short = run_search(LEAST, len(UNIFORM) + 3)
    assert not short.finished
    assert len(short.curve) <= len(UNIFORM) + 3
    assert short.curve == whole.curve[: len(short.curve)]
    assert short.verdict.holds
    assert run_search(LEAST, 1000)[1] == whole


def test_more_than_16_bits_where_those_do_not_hold() -> None:
    _, found = run_search({**LEAST, "dense_1": 18}, 1000)
    assert found.curve[0].holds is False
    assert found.types["dense_1"].weight is not None
    assert found.types["dense_1"].weight.fraction == 18


def test_no_width_holds() -> None:
    with pytest.raises(StepFailed, match="no fixed-point width up to 24 bits holds the gate"):
        run_search({**LEAST, "dense_1": 90}, 1000)


# -- trials --


def test_a_trial_is_kept_and_found_again(tmp_path: Path) -> None:
    trials = Trials(tmp_path, {"inputs": "a"})
    assert trials.look({"w": 3}) is None
    trials.keep({"w": 3}, {"score": 0.5})
    assert trials.look({"w": 3}) == {"score": 0.5}
    assert trials.look({"w": 4}) is None
    assert Trials(tmp_path, {"inputs": "b"}).look({"w": 3}) is None
    assert Trials(tmp_path, {"inputs": "a"}).look({"w": 3}) == {"score": 0.5}
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(b'{"score')
    assert trials.look({"w": 3}) is None


def test_trials_that_cannot_be_kept_are_lost_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trials = Trials(tmp_path / "file", {})
    trials.keep(1, 2)
    assert trials.look(1) is None


# -- the step --


@pytest.fixture
def widths_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A network of one output, its samples, and its own float outputs as the reference."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trials"))
    net = everything(outputs=1)
    generator = np.random.default_rng(5)
    evaluation = generator.normal(0, 1, (120, 8, 8, 1)).astype(np.float32)
    folder = tmp_path / "reference"
    folder.mkdir()
    (folder / "outputs.json").write_bytes(msgspec.json.encode({"outputs": ["y"]}))
    np.save(folder / "y0.npy", reference_float(net, {"image": evaluation})["y"])
    return {
        "model": write_layers(tmp_path / "layers", net),
        "calibration": array_set(tmp_path / "calibration", image=evaluation[:40]),
        "evaluation": array_set(tmp_path / "evaluation", image=evaluation),
        "reference": folder,
    }


def run_widths(out: Path, given: dict[str, Path], **options: Any) -> dict[str, Any]:
    out.mkdir()
    job = Job(step="t/hls-widths", kind="hls-widths", options=options, inputs=given, out=out)
    return dict(hls_widths.run(job))


def test_widths_hold_the_gate_and_are_the_same_again(
    widths_inputs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"trials": 60, "allowed_drop": 0.05, "metric": "top-1"}
    first = run_widths(tmp_path / "one", widths_inputs, **options)
    assert 0 <= first["drop"] <= 0.05
    assert first["bits"] < first["bits_of_16"] * 0.6
    assert (tmp_path / "one" / "layers.json").is_file()
    kept = list((tmp_path / "trials").rglob("*.json"))
    assert len(kept) == first["trials"]
    again = run_widths(tmp_path / "two", widths_inputs, **options)
    assert again == first
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert len(list((tmp_path / "trials").rglob("*.json"))) == len(kept)
    points = msgspec.json.decode((tmp_path / "one" / "curve.json").read_bytes())["points"]
    assert [p["bits"] for p in points if p["holds"]][-1] == first["bits"]
    assert "all 16 bits: " in capfd.readouterr().out


def test_without_a_metric_the_cosine_is_held(
    widths_inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = run_widths(tmp_path / "out", widths_inputs, trials=12, allowed_drop=0.01)
    assert found["curve"]["metric"] == "cosine"
    assert 0 < found["drop"] <= 0.01


def test_a_gate_that_nothing_holds(widths_inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no fixed-point width up to 24 bits holds"):
        run_widths(tmp_path / "out", widths_inputs, allowed_drop=-1.0, metric="top-1")


def test_an_output_that_is_not_there(widths_inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="one is scored") as caught:
        run_widths(tmp_path / "out", widths_inputs, metric="top-1", output="z")
    assert "evaluation.output" in caught.value.faults[0].hint


# -- the compiler --


def stand_in(folder: Path, script: str) -> None:
    """A g++ on PATH that is none: it does what the script says."""
    folder.mkdir()
    (folder / "g++").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "g++").chmod(0o755)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepFailed, match=r"no g\+\+ on PATH") as caught:
        compiler.find_compiler()
    assert "apt-get install g++" in caught.value.faults[0].hint


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'network.cpp:3: error: no such type' >&2; exit 1", "cannot compile"),
        ("echo 'g++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1", "memory"),
        ("kill -9 $$", "ended from outside"),
    ],
)
def test_a_compiler_that_ends_early_leaves_nothing(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "project" / "firmware" / "weights").mkdir(parents=True)
    (tmp_path / "project" / "firmware" / "network.cpp").write_text("")
    out.mkdir()
    stand_in(tmp_path / "bin", f"echo half > {out}/{compiler.LIBRARY}; {script}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(StepFailed, match=words) as caught:
        compiler.compile_library(tmp_path / "project", lower(everything()), tmp_path, out)
    assert caught.value.faults[0].hint
    assert list(out.iterdir()) == []
