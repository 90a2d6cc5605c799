"""Step and engine `tensorrt` against stand-ins for TensorRT and CUDA (tests/standins)."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_models
import pytest
from gpu_standins import FOLDER, cuda, cuda_library, run_step, tensorrt

from tf2aif.engines import Engine, tensorrt_system
from tf2aif.engines import tensorrt as engine
from tf2aif.engines.batches import run_batches
from tf2aif.engines.onnxruntime import load as load_onnx
from tf2aif.engines.requirement import read_requirement, write_requirement
from tf2aif.engines.signature import read_signature
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.steps import tensorrt as step
from tf2aif.workers import Request, Workers

__all__ = ["cuda", "cuda_library", "tensorrt"]

HERE = Path(__file__).parent
PROFILES = [{"min": 1, "opt": 1, "max": 1}, {"min": 2, "opt": 8, "max": 16}]


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {"image": draw.standard_normal((count, 1, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.conv(tmp_path_factory.mktemp("free") / "model")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.conv(tmp_path_factory.mktemp("fixed") / "model", batch=3)


def build(model: Path, out: Path, **options: Any) -> dict[str, Any]:
    return run_step("tensorrt", out, {"model": model}, timing_cache=False, **options)


@pytest.fixture
def plan(tensorrt: Any, free: Path, tmp_path: Path) -> Path:
    """An engine with two profiles: one for a single row, one for 2 to 16."""
    build(free, tmp_path / "plan", batches=PROFILES)
    return tmp_path / "plan"


@pytest.fixture
def loaded(plan: Path) -> Iterator[Engine]:
    made = engine.load(plan)
    yield made
    made.close()


# -- the step --


def test_an_engine_and_all_that_belongs_to_it(tensorrt: Any, free: Path, tmp_path: Path) -> None:
    result = build(free, tmp_path / "plan", optimization_level=5, workspace_mb=64, tf32=False)
    made = {path.name for path in (tmp_path / "plan").iterdir()}
    assert made == {"engine.plan", "engine.json", "inspector.json", "signature.json"}
    needs = read_requirement(tmp_path / "plan")
    assert (needs.version, needs.gpu) == ("10.16.1.11", "Stand-in GPU")
    assert (needs.compute_capabilities, needs.multiprocessors) == (("8.9",), 58)
    assert needs.cuda == "13.0"
    assert read_signature(tmp_path / "plan") == read_signature(free)
    inside = (tmp_path / "plan" / "engine.plan").read_bytes()
    told = msgspec.json.decode(inside.partition(b"\n")[2])
    assert (told["flags"], told["level"], told["detailed"]) == ([], 5, True)
    assert told["profiles"] == [{"image": [[1, 1, 8, 8], [8, 1, 8, 8], [32, 1, 8, 8]]}]
    inspected = msgspec.json.decode((tmp_path / "plan" / "inspector.json").read_bytes())
    assert result["layers"] == len(inspected["Layers"]) == 4


def test_options_become_the_vendors_flags(tensorrt: Any, free: Path, tmp_path: Path) -> None:
    build(
        free,
        tmp_path / "plan",
        version_compatible=True,
        hardware_compatibility="same-compute-capability",
        strip_weights=True,
    )
    content = (tmp_path / "plan" / "engine.plan").read_bytes().partition(b"\n")[2]
    told = msgspec.json.decode(content)
    assert told["flags"] == ["REFIT_IDENTICAL", "STRIP_PLAN", "TF32", "VERSION_COMPATIBLE"]
    assert told["compatibility"] == "SAME_COMPUTE_CAPABILITY"
    needs = read_requirement(tmp_path / "plan")
    assert needs.version_compatible
    assert needs.stripped
    assert (tmp_path / "plan" / "weights.onnx").read_bytes() == (free / "model.onnx").read_bytes()


def test_inputs_of_the_step() -> None:
    assert step.inputs({}) == ("model", "timing")
    assert step.inputs({"timing_cache": False}) == ("model",)


def test_wrong_models_and_options(tensorrt: Any, tmp_path: Path) -> None:
    refused = onnx_models.conv(tmp_path / "det", middle="Det")
    with pytest.raises(StepFailed, match=r"tensorrt 10\.16\.1\.11 does not take: Det \(node 'sec"):
        build(refused, tmp_path / "a")
    with pytest.raises(StepFailed, match="input 'left' has a free axis 1"):
        build(onnx_models.sums(tmp_path / "sums"), tmp_path / "b")
    with pytest.raises(msgspec.ValidationError, match="unknown field `fp16`"):
        build(refused, tmp_path / "c", fp16=True)
    other = onnx_models.conv(tmp_path / "other")
    renamed = (other / "signature.json").read_text().replace('"image"', '"picture"')
    (other / "signature.json").write_text(renamed)
    with pytest.raises(StepFailed, match="the ONNX file's inputs are image, the signature's pict"):
        build(other, tmp_path / "d")


def test_no_device_time_is_spent_on_a_model_that_cannot_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free axis is found although TensorRT is not even there."""
    monkeypatch.setattr(step, "vendor_library", lambda: pytest.fail("the library was loaded"))
    with pytest.raises(StepFailed, match="has a free axis 1"):
        build(onnx_models.sums(tmp_path / "sums"), tmp_path / "out")


def test_a_tensorrt_that_is_too_old(
    tensorrt: Any, free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "__version__", "8.6.2")
    with pytest.raises(StepFailed, match=r"TensorRT 8\.6\.2 is too old(.|\n)*JetPack 6"):
        build(free, tmp_path / "out")


# -- the timing cache --


def time_kernels(model: Path, folder: Path) -> Path:
    run_step("onnx-structure", folder / "structure", {"model": model})
    run_step("tensorrt-timing", folder / "timing", {"structure": folder / "structure"})
    return folder / "timing"


def test_a_timing_cache_makes_builds_repeatable(tensorrt: Any, free: Path, tmp_path: Path) -> None:
    plans = [tmp_path / name for name in ("a", "b", "c", "d")]
    for out in plans[:2]:
        build(free, out)
    timing = time_kernels(free, tmp_path)
    for out in plans[2:]:
        run_step("tensorrt", out, {"model": free, "timing": timing})
    contents = [(out / "engine.plan").read_bytes() for out in plans]
    assert contents[0] != contents[1]
    assert contents[2] == contents[3]


def test_a_model_trained_anew_finds_its_timings(tensorrt: Any, free: Path, tmp_path: Path) -> None:
    again = onnx_models.conv(tmp_path / "again", seed=1)
    assert (again / "model.onnx").read_bytes() != (free / "model.onnx").read_bytes()
    structures = []
    for name, model in (("one", free), ("two", again)):
        result = run_step("onnx-structure", tmp_path / name, {"model": model})
        structures.append((tmp_path / name / "model.onnx").read_bytes())
        assert result["replaced"] == 2
    assert structures[0] == structures[1]
    wider = onnx_models.conv(tmp_path / "wider", batch=2)
    run_step("onnx-structure", tmp_path / "three", {"model": wider})
    assert (tmp_path / "three" / "model.onnx").read_bytes() != structures[0]


def test_the_structure_of_a_quantised_model(tmp_path: Path) -> None:
    """Scales and int8 weights are replaced, zero points and shapes are not."""
    import onnx
    from onnx import numpy_helper

    int8 = onnx_models.quantise(onnx_models.digits(tmp_path / "fp32"), tmp_path / "int8")
    run_step("onnx-structure", tmp_path / "structure", {"model": int8})
    before, after = (
        {
            t.name: numpy_helper.to_array(t)
            for t in onnx.load(str(f / "model.onnx")).graph.initializer
        }
        for f in (int8, tmp_path / "structure")
    )
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert (values.dtype, values.shape) == (after[name].dtype, after[name].shape)
        if values.dtype == np.int8 and not values.any():
            assert not after[name].any()
        elif values.dtype != np.int64:
            assert (after[name] > 0).all()
    onnx.checker.check_model(str(tmp_path / "structure" / "model.onnx"), full_check=True)


def test_an_operator_that_tensorrt_lacks_is_told_without_tensorrt(tmp_path: Path) -> None:
    model = onnx_models.conv(tmp_path / "model", middle="Det")
    with pytest.raises(StepFailed, match=r"TensorRT has no operator for: Det \(node '") as caught:
        run_step("onnx-structure", tmp_path / "structure", {"model": model})
    assert "gpu-ort" in caught.value.faults[0].hint


def test_batches_that_are_not_in_order_are_told_before_any_step() -> None:
    options = {"batches": [{"min": 8, "opt": 2, "max": 4}]}
    with pytest.raises(msgspec.ValidationError, match="min 8, opt 2, max 4 are not in this order"):
        msgspec.convert(options, step.Options)


def test_timings_of_another_gpu(tensorrt: Any, cuda: Any, free: Path, tmp_path: Path) -> None:
    timing = time_kernels(free, tmp_path)
    cuda.standin_be(b"Other GPU", 9, 0, 132, 13000)
    with pytest.raises(StepFailed, match="the timing cache is for another GPU"):
        run_step("tensorrt", tmp_path / "plan", {"model": free, "timing": timing})


# -- the engine --


@pytest.mark.parametrize("rows", [1, 2, 9, 16, 17, 40])
def test_any_number_of_rows(loaded: Engine, free: Path, rows: int) -> None:
    found, truth = loaded.run(images(rows)), load_onnx(free).run(images(rows))
    assert found["score"].shape == (rows, 4)
    np.testing.assert_allclose(found["score"], truth["score"], rtol=1e-6)


def test_rows_below_the_smallest_profile(tensorrt: Any, free: Path, tmp_path: Path) -> None:
    build(free, tmp_path / "plan", batches=[{"min": 4, "opt": 4, "max": 8}])
    made = engine.load(tmp_path / "plan")
    found, truth = made.run(images(3)), load_onnx(free).run(images(3))
    np.testing.assert_allclose(found["score"], truth["score"], rtol=1e-6)
    with pytest.raises(Tf2aifError, match="a batch of 0 rows"):
        made.run(images(0))
    made.close()


def test_two_inputs_and_free_lengths(tensorrt: Any, tmp_path: Path) -> None:
    model = onnx_models.sums(tmp_path / "model")
    axes = [{"input": n, "axis": 1, "min": 1, "opt": 8, "max": 16} for n in ("left", "right")]
    build(model, tmp_path / "plan", axes=axes)
    made = engine.load(tmp_path / "plan")
    left, right = (np.full((3, 5), value, np.float32) for value in (2, -3))
    found = made.run({"right": right, "left": left})
    assert (found["total"] == -1).all()
    assert (found["clipped"] == 0).all()
    with pytest.raises(Tf2aifError, match=r"input 'left' of shape \(3, 17\) is outside the engine"):
        made.run({"left": np.zeros((3, 17), np.float32), "right": np.zeros((3, 17), np.float32)})
    with pytest.raises(Tf2aifError, match="cannot run it"):
        made.run({"left": left, "right": right[:2]})
    assert (made.run({"left": left, "right": right})["total"] == -1).all()
    made.close()


def test_fixed_shapes_run_as_one_graph(
    tensorrt: Any, cuda: Any, fixed: Path, tmp_path: Path
) -> None:
    build(fixed, tmp_path / "plan")
    made, plain = engine.load(tmp_path / "plan"), load_onnx(fixed)
    before = cuda.standin_launches()
    for seed in range(4):
        found = made.run(images(3, seed))
        truth = plain.run(images(3, seed))
        np.testing.assert_allclose(found["score"], truth["score"], rtol=1e-6)
    assert cuda.standin_launches() - before == 3  # the first run is captured after it was done
    with pytest.raises(Tf2aifError, match=r"shape \(2, 1, 8, 8\), the model wants \(3,"):
        made.run(images(2))
    made.close()


@pytest.mark.parametrize("how", ["asked", "refused"])
def test_without_a_graph(tensorrt: Any, cuda: Any, fixed: Path, tmp_path: Path, how: str) -> None:
    build(fixed, tmp_path / "plan")
    cuda.standin_refuse_capture(how == "refused")
    made = engine.load(tmp_path / "plan", cuda_graph=how == "refused")
    before = cuda.standin_launches()
    for seed in range(3):
        found, truth = made.run(images(3, seed)), load_onnx(fixed).run(images(3, seed))
        np.testing.assert_allclose(found["score"], truth["score"], rtol=1e-6)
    assert cuda.standin_launches() == before
    made.close()


def test_results_belong_to_the_caller(loaded: Engine) -> None:
    first = loaded.run(images(2))["score"]
    kept = first.copy()
    loaded.run(images(2, seed=1))
    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata


def test_everything_is_given_back(cuda: Any, plan: Path, fixed: Path, tmp_path: Path) -> None:
    build(fixed, tmp_path / "fixed")
    before = cuda.standin_live()
    for folder, rows in ((plan, 5), (tmp_path / "fixed", 3)):
        made = engine.load(folder)
        made.run(images(rows))
        made.run(images(rows))
        assert cuda.standin_live() > before
        made.close()
        made.close()
        assert cuda.standin_live() == before
        with pytest.raises(Tf2aifError, match="closed"):
            made.run(images(rows))


def test_no_memory_is_taken_while_requests_run(cuda: Any, loaded: Engine) -> None:
    loaded.run(images(1))  # its graph is made now
    before = cuda.standin_live()
    for rows in (1, 16, 3, 40):
        loaded.run(images(rows))
    assert cuda.standin_live() == before


def test_samples_of_a_whole_set(loaded: Engine, free: Path) -> None:
    found = run_batches(loaded, images(70))
    np.testing.assert_allclose(found["score"], load_onnx(free).run(images(70))["score"], rtol=1e-6)


def test_what_it_says_of_itself(loaded: Any) -> None:
    assert loaded.facts["library"] == "tensorrt 10.16.1.11"
    assert loaded.facts["gpu"] == "Stand-in GPU"
    assert loaded.facts["profiles"] == "1-1 (tuned for 1), 2-16 (tuned for 8)"
    assert int(loaded.facts["device-memory-bytes"]) > 4096


def test_weights_come_back_to_a_stripped_engine(tensorrt: Any, free: Path, tmp_path: Path) -> None:
    build(free, tmp_path / "plan", strip_weights=True)
    made = engine.load(tmp_path / "plan")
    found, truth = made.run(images(4)), load_onnx(free).run(images(4))
    np.testing.assert_allclose(found["score"], truth["score"], rtol=1e-6)
    made.close()
    shutil.copyfile(
        onnx_models.digits(tmp_path / "other") / "model.onnx", tmp_path / "plan" / "weights.onnx"
    )
    with pytest.raises(Tf2aifError, match="cannot put the weights back: the weights are not those"):
        engine.load(tmp_path / "plan")
    (tmp_path / "plan" / "weights.onnx").unlink()
    with pytest.raises(Tf2aifError, match=r"no weights\.onnx in the artifact"):
        engine.load(tmp_path / "plan")


def test_the_lean_runtime_has_no_refitter(
    tensorrt: Any, free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(free, tmp_path / "plan", strip_weights=True)
    monkeypatch.delattr(tensorrt, "Refitter")
    with pytest.raises(Tf2aifError, match=r"cannot put weights(.|\n)*tensorrt-system"):
        engine.load(tmp_path / "plan")


def test_the_engine_of_a_base_image_is_the_same(plan: Path) -> None:
    assert tensorrt_system.load is engine.load
    assert not any("tensorrt" in each for each in tensorrt_system.REQUIREMENTS)


# -- what does not fit --


def test_another_gpu_is_one_clear_message(cuda: Any, plan: Path) -> None:
    cuda.standin_be(b"NVIDIA H100", 9, 0, 132, 13000)
    with pytest.raises(Tf2aifError) as told:
        engine.load(plan)
    assert "it needs compute capability 8.9, the GPU (NVIDIA H100) has 9.0" in str(told.value)
    assert "engine.json" in str(told.value)
    assert told.value.exit_code == 1


def test_another_version(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_TENSORRT_VERSION", "10.15.1.29")
    with pytest.raises(Tf2aifError, match=r"needs tensorrt 10\.16\.1\.11, here is 10\.15\.1\.29"):
        engine.load(plan)


def test_a_later_version_takes_a_version_compatible_engine(
    tensorrt: Any, free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(free, tmp_path / "plan", version_compatible=True)
    monkeypatch.setenv("STANDIN_TENSORRT_VERSION", "10.17.0.1")
    monkeypatch.setattr(tensorrt, "__version__", "10.17.0.1")
    engine.load(tmp_path / "plan").close()


def test_broken_artifacts(plan: Path, tmp_path: Path) -> None:
    needs = read_requirement(plan)
    (plan / "engine.json").write_text("{}")
    with pytest.raises(Tf2aifError, match="not what an engine needs"):
        engine.load(plan)
    (plan / "engine.json").unlink()
    with pytest.raises(Tf2aifError, match=r"no engine\.json"):
        engine.load(plan)
    write_requirement(plan, needs)
    whole = (plan / "engine.plan").read_bytes()
    for content, words in ((b"no plan", "magicTag"), (whole[:200], "Size specified"), (b"", "mag")):
        (plan / "engine.plan").write_bytes(content)
        with pytest.raises(Tf2aifError, match=f"tensorrt cannot load it: .*{words}"):
            engine.load(plan)
    (plan / "engine.plan").write_bytes(whole)
    signature = (plan / "signature.json").read_text()
    (plan / "signature.json").write_text(signature.replace('"score"', '"other"'))
    with pytest.raises(Tf2aifError, match=r"not those of signature\.json"):
        engine.load(plan)
    (plan / "engine.plan").unlink()
    with pytest.raises(Tf2aifError, match=r"no engine\.plan in the artifact"):
        engine.load(plan)


def test_wrong_feeds(loaded: Engine) -> None:
    with pytest.raises(Tf2aifError, match="missing: image"):
        loaded.run({})
    with pytest.raises(Tf2aifError, match="float64, the model wants float32"):
        loaded.run({"image": np.zeros((1, 1, 8, 8))})


def test_threads_are_checked(plan: Path) -> None:
    with pytest.raises(Tf2aifError, match="threads is 0"):
        engine.load(plan, threads=0)


def test_no_such_gpu(plan: Path) -> None:
    with pytest.raises(Tf2aifError, match="cuDeviceGet: invalid device ordinal"):
        engine.load(plan, device=3)


def test_a_gpu_that_is_full(tensorrt: Any, cuda: Any, tmp_path: Path) -> None:
    model = onnx_models.sums(tmp_path / "model")
    axes = [{"input": n, "axis": 1, "min": 1, "opt": 8, "max": 1 << 20} for n in ("left", "right")]
    build(model, tmp_path / "plan", axes=axes)
    before = cuda.standin_live()
    with pytest.raises(Tf2aifError, match="CUDA failed: cuMemAlloc_v2: out of memory"):
        engine.load(tmp_path / "plan")
    assert cuda.standin_live() == before


def test_no_tensorrt(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tf2aif.engines.tensorrt_library.find_spec", lambda name: None)
    with pytest.raises(Tf2aifError, match="tensorrt is not installed here"):
        engine.load(plan)


def test_a_library_that_crashes_is_found_out_in_a_child(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER / "crashing"))
    with pytest.raises(Tf2aifError, match=r"tensorrt does not work here: it crashes \(SIGSEGV\)"):
        engine.load(plan)


# -- through a worker, as a build runs it --


def request(model: Path, out: Path) -> Request:
    out.mkdir()
    return Request(
        step="digits/tensorrt-fp32",
        kind="tensorrt",
        module="tf2aif.steps.tensorrt",
        toolchain="python",
        options={"timing_cache": False},
        inputs={"model": str(model)},
        out=str(out),
    )


def test_a_crash_in_the_vendors_process_is_one_failed_step(
    fixed: Path, cuda_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda_library.parent))
    with Workers() as workers:
        monkeypatch.setenv("PYTHONPATH", str(FOLDER / "crashing"))
        with pytest.raises(StepFailed, match=r"SIGSEGV|segmentation fault") as told:
            workers.run(request(fixed, tmp_path / "a"), log=tmp_path / "log.txt")
        assert "log.txt" in str(told.value)
        assert "tensorrt" in (tmp_path / "log.txt").read_text()
        monkeypatch.setenv("PYTHONPATH", str(FOLDER))
        done = workers.run(request(fixed, tmp_path / "b"), log=tmp_path / "log2.txt")
    assert done.result["library"] == "tensorrt 10.16.1.11"
    assert (tmp_path / "b" / "engine.plan").exists()
    assert "building an engine of 4 layers" in (tmp_path / "log2.txt").read_text()


def test_without_a_driver_the_step_says_so(
    tensorrt: Any, free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tf2aif.engines.cuda.LIBRARY", "libcuda-is-not-here.so.1")
    with pytest.raises(StepFailed, match="there is no NVIDIA driver here"):
        build(free, tmp_path / "out")


def test_the_driver_is_called_with_what_it_takes(cuda: ctypes.CDLL) -> None:
    from tf2aif.engines.cuda import Buffer, Cuda, Stream

    device = Cuda()
    stream, buffer = Stream(device), Buffer(device, 16)
    assert (device.name(), device.compute_capability()) == ("Stand-in GPU", "8.9")
    assert (device.multiprocessors(), device.version()) == (58, "13.0")
    here = buffer.host((4,), "float32")
    here[:] = [1, 2, 3, 4]
    buffer.upload(16, stream)
    here[:] = 0
    buffer.download(16, stream)
    stream.wait()
    assert here.tolist() == [1, 2, 3, 4]
    with pytest.raises(Tf2aifError, match="does not fit 16 bytes"):
        buffer.host((5,), "float32")
    for each in (buffer, stream, device):
        each.close()
        each.close()
