"""Checking and timing of variants: real artifacts, run by their real engines."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf2aif.engines import Array, Quantization, Tensors, TensorSpec, engine_module
from tf2aif.engines.batches import batch_size, run_batches
from tf2aif.engines.signature import Signature, write_signature
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.steps import Job, check, latency

SAMPLES = 37  # no multiple of a batch
FEATURES = 6
CLASSES = 4


class Linear:
    """An engine of numpy: `y` is the sum of `x` over its last axis and the batch's own size."""

    def __init__(self, shape: tuple[int | None, ...], how: Quantization | None = None) -> None:
        dtype = "int8" if how else "float32"
        self.inputs = (TensorSpec(name="x", dtype=dtype, shape=shape, quantization=how),)
        self.outputs = (TensorSpec(name="y", dtype=dtype, shape=shape[:-1], quantization=how),)
        self.seen: list[tuple[int, ...]] = []

    def run(self, feeds: Tensors) -> dict[str, Array]:
        (spec,) = self.inputs
        x = feeds["x"]
        assert x.dtype == spec.dtype
        assert all(size in (None, found) for size, found in zip(spec.shape, x.shape, strict=True))
        self.seen.append(x.shape)
        return {"y": x.sum(axis=-1, dtype=x.dtype)}

    def close(self) -> None:
        """Nothing is held."""


@given(st.integers(1, 70), st.sampled_from([None, 1, 2, 7, 64]))
def test_every_sample_comes_out_once_and_in_order(count: int, batch: int | None) -> None:
    samples = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    engine = Linear((batch, 3))
    outputs = run_batches(engine, {"x": samples})
    np.testing.assert_array_equal(outputs["y"], samples.sum(axis=1))
    assert {shape[0] for shape in engine.seen[:-1]} <= {batch or 32}
    if batch is None:
        assert sum(shape[0] for shape in engine.seen) == count


def test_without_a_batch_axis_samples_go_one_by_one() -> None:
    samples = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    engine = Linear((2, 3))
    np.testing.assert_array_equal(run_batches(engine, {"x": samples})["y"], samples.sum(axis=2))
    assert engine.seen == [(2, 3), (2, 3)]


def test_real_values_are_quantised_and_saturated_at_the_door() -> None:
    how = Quantization(scale=(0.5,), zero_point=(1,))
    samples = np.array([[1.0], [-0.75], [1000.0], [-1000.0]], np.float32)
    outputs = run_batches(Linear((None, 1), how), {"x": samples})
    assert outputs["y"].dtype == np.float32
    assert outputs["y"].tolist() == [1.0, -1.0, 63.0, -64.5]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"z": np.zeros((2, 3), np.float32)}, "samples are for inputs z; the artifact's are x"),
        ({"x": np.zeros((0, 3), np.float32)}, "at least one"),
        ({"x": np.zeros(3, np.float32)}, "do not fit"),
    ],
)
def test_samples_that_do_not_go_with_the_artifact(samples: Any, message: str) -> None:
    with pytest.raises(Tf2aifError, match=message):
        batch_size(Linear((None, 3)), samples)


def test_an_output_without_a_batch_axis_is_refused() -> None:
    class Summed(Linear):
        def run(self, feeds: Tensors) -> dict[str, Array]:
            return {"y": feeds["x"].sum()}

    with pytest.raises(Tf2aifError, match="output 'y' of shape \\(\\) has no batch axis"):
        run_batches(Summed((None, 3)), {"x": np.zeros((2, 3), np.float32)})


# Real artifacts


class Made:
    """A source model, its converted artifacts, and an evaluation set, in one folder."""

    def __init__(self, folder: Path, tf: Any) -> None:
        self.folder = folder
        self.tf = tf
        generator = np.random.default_rng(1)
        weights = generator.standard_normal((FEATURES, CLASSES)).astype(np.float32)
        self.samples = generator.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
        logits = self.samples @ weights
        self.outputs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        self.labels = self.outputs.argmax(axis=1)
        self.labels[:5] = (self.labels[:5] + 1) % CLASSES  # the model is wrong on five
        module = tf.Module()
        module.weights = tf.constant(weights)
        self.module = module
        self.save("model", None)
        self.save("model4", 4)
        self.write_sets()

    def save(self, name: str, batch: int | None) -> None:
        """A SavedModel and three TFLite files made from it."""
        tf, module = self.tf, self.module
        spec = tf.TensorSpec((batch, FEATURES), tf.float32, name="x")
        function = tf.function(
            lambda x: {"y": tf.nn.softmax(x @ module.weights)}, input_signature=[spec]
        )
        path = self.folder / name
        tf.saved_model.save(module, str(path / "saved_model"), {"serving_default": function})
        self.sign(path, TensorSpec(name="x", dtype="float32", shape=(batch, FEATURES)))
        for kind in ("fp32", "int8", "int8-io"):
            self.convert(path / "saved_model", self.folder / f"{name}-{kind}", kind, batch)

    def convert(self, source: Path, artifact: Path, kind: str, batch: int | None) -> None:
        tf = self.tf
        converter = tf.lite.TFLiteConverter.from_saved_model(str(source))
        if kind != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            size = batch or 1
            chunks = [self.samples[i : i + size] for i in range(0, SAMPLES - size, size)]
            converter.representative_dataset = lambda: ([chunk] for chunk in chunks)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if kind == "int8-io":
            converter.inference_input_type = converter.inference_output_type = tf.int8
        artifact.mkdir()
        (artifact / "model.tflite").write_bytes(converter.convert())
        self.sign(artifact, *self.specs(artifact / "model.tflite", batch))

    def specs(self, path: Path, batch: int | None) -> list[TensorSpec]:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        details = interpreter.get_input_details() + interpreter.get_output_details()
        specs = []
        for detail, (name, size) in zip(details, (("x", FEATURES), ("y", CLASSES)), strict=True):
            scale, zero_point = detail["quantization"]
            how = Quantization(scale=(float(scale),), zero_point=(int(zero_point),))
            dtype = np.dtype(detail["dtype"]).name
            specs.append(
                TensorSpec(
                    name=name, dtype=dtype, shape=(batch, size), quantization=how if scale else None
                )
            )
        return specs

    def sign(self, path: Path, x: TensorSpec, y: TensorSpec | None = None) -> None:
        y = y or TensorSpec(name="y", dtype="float32", shape=(x.shape[0], CLASSES))
        write_signature(path, Signature(inputs=(x,), outputs=(y,)))

    def write_sets(self) -> None:
        for name, labels in (("evaluation", True), ("unlabelled", False)):
            folder = self.folder / name
            folder.mkdir()
            contents = {"inputs": ["x"], "samples": SAMPLES, "random": False, "labels": labels}
            (folder / "set.json").write_text(json.dumps(contents))
            np.save(folder / "x0.npy", self.samples)
            if labels:
                np.save(folder / "labels.npy", self.labels)
        self.write_reference("reference", {"y": self.outputs})

    def write_reference(self, name: str, outputs: Mapping[str, Array]) -> None:
        (self.folder / name).mkdir()
        names = json.dumps({"outputs": list(outputs)})
        (self.folder / name / "outputs.json").write_text(names)
        for index, values in enumerate(outputs.values()):
            np.save(self.folder / name / f"y{index}.npy", values)

    def job(self, out: Path, kind: str, options: dict[str, Any], **inputs: str) -> Job:
        out.mkdir(exist_ok=True)
        paths = {name: self.folder / path for name, path in inputs.items()}
        return Job(step=f"demo/{kind}", kind=kind, options=options, inputs=paths, out=out)

    def check(self, out: Path, artifact: str, **changes: Any) -> Any:
        inputs = {"evaluation": "evaluation", "reference": "reference"}
        inputs |= {name: changes.pop(name) for name in [*inputs, "metric_file"] if name in changes}
        if "metric_file" in inputs:
            inputs["metric"] = inputs.pop("metric_file")
        options = {"engine": "litert", "metric": "top-1", **changes}
        return check.run(self.job(out, "check", options, artifact=artifact, **inputs))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    tf = pytest.importorskip("tensorflow", reason="the artifacts are made with TensorFlow")
    pytest.importorskip("ai_edge_litert", reason="the artifacts are run with LiteRT")
    return Made(tmp_path_factory.mktemp("made"), tf)


@pytest.mark.parametrize("artifact", ["model-fp32", "model4-fp32"])
def test_a_float_variant_agrees_with_its_source(made: Made, tmp_path: Path, artifact: str) -> None:
    result = made.check(tmp_path, artifact)
    assert result["source"] == result["variant"] == 32 / 37
    assert result["drop"] == 0.0
    assert (result["samples"], result["labels"], result["random"]) == (SAMPLES, True, False)
    difference = result["outputs"]["y"]
    assert 0 <= difference["mean"] <= difference["worst"] < 1e-6
    assert difference["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert difference["relative"] < 1e-6


@pytest.mark.parametrize("artifact", ["model-int8", "model-int8-io", "model4-int8-io"])
def test_an_int8_variant_differs_a_little(made: Made, tmp_path: Path, artifact: str) -> None:
    result = made.check(tmp_path, artifact)
    assert abs(result["drop"]) <= 2 / 37
    assert result["drop"] == pytest.approx(result["source"] - result["variant"], abs=1e-12)
    assert 1e-4 < result["outputs"]["y"]["worst"] < 0.1
    assert result["outputs"]["y"]["cosine"] > 0.99


def test_float_and_int8_doors_give_the_same_answers(made: Made, tmp_path: Path) -> None:
    float_door = made.check(tmp_path, "model-int8")["outputs"]["y"]
    int8_door = made.check(tmp_path, "model-int8-io")["outputs"]["y"]
    assert float_door == pytest.approx(int8_door, abs=1e-6)


def test_what_is_written_is_what_is_returned_every_time(made: Made, tmp_path: Path) -> None:
    result = made.check(tmp_path / "a", "model-int8")
    assert json.loads((tmp_path / "a" / "check.json").read_bytes()) == result
    made.check(tmp_path / "b", "model-int8")
    assert (tmp_path / "a/check.json").read_bytes() == (tmp_path / "b/check.json").read_bytes()


def test_the_source_s_answers_stand_in_for_labels(made: Made, tmp_path: Path) -> None:
    result = made.check(tmp_path, "model-fp32", evaluation="unlabelled")
    assert (result["source"], result["variant"], result["labels"]) == (1.0, 1.0, False)
    result = made.check(tmp_path, "model-int8", evaluation="unlabelled", metric="mse")
    assert result["source"] == 0.0
    assert result["drop"] == pytest.approx(result["variant"])
    assert result["drop"] > 0
    result = made.check(tmp_path, "model-int8", evaluation="unlabelled", metric="cosine")
    assert result["drop"] == pytest.approx(1 - result["outputs"]["y"]["cosine"], abs=1e-9)


def test_without_a_metric_only_outputs_are_compared(made: Made, tmp_path: Path) -> None:
    result = made.check(tmp_path, "model-int8", metric=None)
    assert (result["metric"], result["source"], result["variant"], result["drop"]) == (None,) * 4
    assert result["outputs"]["y"]["worst"] > 0


def test_tensorflow_checked_against_itself(made: Made, tmp_path: Path) -> None:
    result = made.check(tmp_path, "model", engine="tensorflow")
    assert result["drop"] == 0.0
    assert result["outputs"]["y"]["worst"] < 1e-6


def test_a_user_s_metric(made: Made, tmp_path: Path) -> None:
    (made.folder / "loss.py").write_text(
        "import numpy as np\n"
        "def loss(outputs, labels):\n"
        "    return -np.log(outputs[np.arange(len(labels)), labels]).mean()\n"
        "loss.higher_is_better = False\n"
    )
    result = made.check(tmp_path, "model-int8", metric="function:loss", metric_file="loss.py")
    assert result["drop"] == pytest.approx(result["variant"] - result["source"], rel=1e-9)


def test_the_scored_output_is_chosen(made: Made, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="the model has no output 'z'"):
        made.check(tmp_path, "model-fp32", output="z")
    assert made.check(tmp_path, "model-fp32", output="y")["drop"] == 0.0


def test_outputs_that_cannot_be_compared(made: Made, tmp_path: Path) -> None:
    broken = made.outputs.copy()
    broken[7, 1] = np.nan
    references = {
        "renamed": ({"z": made.outputs}, "the variant's outputs are y; the source's are z"),
        "short": ({"y": made.outputs[:-1]}, "has shape"),
        "nan": ({"y": broken}, "NaN or infinity in output 'y' of the source model: 1 samples, "),
        "two": ({"y": made.outputs, "z": made.outputs}, "the source's are y, z"),
    }
    for name, (outputs, message) in references.items():
        made.write_reference(name, outputs)
        with pytest.raises(StepFailed, match=message):
            made.check(tmp_path, "model-fp32", reference=name)


def test_differences_follow_their_definitions() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 0.0]])
    off = reference + np.array([[0.0, 1.0], [0.0, 0.0]])
    found = check.compare(off, reference)
    assert (found.worst, found.mean, found.relative) == (1.0, 0.25, 0.2)
    assert found.cosine == pytest.approx((29 / (5 * 34**0.5) + 1) / 2)
    same = check.compare(reference.astype(np.int8), reference.astype(np.int8))
    assert (same.worst, same.mean, same.cosine, same.relative) == (0, 0, 1, 0)
    # Unsigned integers do not wrap round.
    assert check.compare(np.array([[0]], np.uint8), np.array([[255]], np.uint8)).worst == 255


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_drop_is_as_people_write_it(source: int, variant: int) -> None:
    outputs = {"y": np.eye(2)[(np.arange(1000) >= variant).astype(int)]}
    reference = {"y": np.eye(2)[(np.arange(1000) >= source).astype(int)]}
    job = Job(step="s", kind="check", options={}, inputs={}, out=Path())
    labels = np.zeros(1000, np.int64)
    found = check.score_outputs(job, "top-1", None, outputs, reference, labels)
    wanted = source / 1000, variant / 1000, (source - variant) / 1000
    assert (found.source, found.variant, found.drop) == wanted


# Latency


@pytest.mark.parametrize("feed", [{"samples": "evaluation"}, {}], ids=["samples", "random"])
@pytest.mark.parametrize("name", ["model", "model4"])
def test_a_tiny_model_is_faster_without_tensorflow(
    made: Made, tmp_path: Path, name: str, feed: dict[str, str]
) -> None:
    options = {"engine": "litert", "budget_s": 0.3}
    job = made.job(tmp_path, "latency", options, artifact=f"{name}-int8-io", model=name, **feed)
    result = latency.run(job)
    assert json.loads((tmp_path / "latency.json").read_bytes()) == result
    assert result["batch"] == (4 if name == "model4" else 1)
    assert result["random"] == (not feed)
    for times in (result["native"], result["variant"]):
        assert 0 < times["p10_ms"] <= times["median_ms"] <= times["p90_ms"]
        assert times["runs"] >= latency.MIN_ROUNDS
    ratio = result["native"]["median_ms"] / result["variant"]["median_ms"]
    assert result["speedup"] == pytest.approx(ratio)
    assert result["speedup_low"] <= result["speedup"] <= result["speedup_high"]
    assert result["speedup"] > 2
    assert result["machine"]["cpus"] >= 1


def test_tensorflow_is_as_fast_as_itself(made: Made, tmp_path: Path) -> None:
    job = made.job(tmp_path, "latency", {"engine": "tensorflow"}, artifact="model", model="model")
    result = latency.run(job)
    assert 0.5 < result["speedup"] < 2.0


def test_engines_with_different_batches_are_not_compared(made: Made, tmp_path: Path) -> None:
    options = {"engine": "litert", "budget_s": 0.1}
    job = made.job(tmp_path, "latency", options, artifact="model4-fp32", model="model")
    assert latency.run(job)["batch"] == 4  # an open batch takes any size
    job = made.job(tmp_path, "latency", options, artifact="model-fp32", model="model4")
    with pytest.raises(StepFailed, match="different batches"):
        latency.run(job)


def test_two_functions_are_timed_in_turns() -> None:
    calls: list[float] = []

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        time.sleep(seconds)

    first, second = latency.take_turns(
        lambda: sleep(0.006), lambda: sleep(0.002), repeats=12, budget_s=0.0
    )
    assert len(first) == len(second) == latency.MIN_ROUNDS
    assert first.min() >= 6.0  # ms: a sleep is never shorter
    assert second.min() >= 2.0
    turns = sum(one != other for one, other in itertools.pairwise(calls))
    assert turns >= latency.MIN_ROUNDS
    ratio, low, high = latency.speed_up(first, second)
    assert low <= ratio <= high
    assert (ratio, low, high) == latency.speed_up(first, second)


def test_the_speed_up_is_the_ratio_of_the_medians() -> None:
    rounds = np.random.default_rng(3).uniform(0.9, 1.1, (40, 8))
    ratio, low, high = latency.speed_up(6.0 * rounds, 2.0 * rounds)
    assert ratio == pytest.approx(3.0)
    assert (low, high) == (pytest.approx(3.0), pytest.approx(3.0))
    ratio, low, high = latency.speed_up(6.0 * rounds, 2.0 * rounds[::-1])
    assert 2.9 < low < ratio < high < 3.1


def test_options_refuse_unknown_keys() -> None:
    for module in (check, latency):
        with pytest.raises(msgspec.ValidationError, match="unknown field `engin`"):
            msgspec.convert({"engine": "litert", "engin": 1}, module.Options)


def test_every_engine_named_here_is_in_the_table() -> None:
    assert engine_module("litert")
    assert engine_module("tensorflow")
