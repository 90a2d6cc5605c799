"""The parts behind the door: hooks and the ready ones, the batcher, energy counters."""

from __future__ import annotations

import ctypes
import io
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf2aif.engines import TensorSpec
from tf2aif.serve.arguments import read_arguments
from tf2aif.serve.batcher import Batcher, Outcome
from tf2aif.serve.energy import Rapl, find_sources
from tf2aif.serve.hook_check import through_hooks, try_hooks
from tf2aif.serve.hooks import HookFailed, Hooks, decode_default, encode_default, load_hooks
from tf2aif.serve.images import decode_image, image_decoder, scaler
from tf2aif.serve.labels import read_labels, top_k
from tf2aif.spec.recipe import Images

PHOTO = np.random.default_rng(3).integers(0, 256, (13, 9, 3), dtype=np.uint8)

INPUT = TensorSpec(name="x", dtype="float32", shape=(1, 4, 4, 3))
OUTPUT = TensorSpec(name="y", dtype="float32", shape=(1, 2))


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_image_hooks_make_what_the_dataset_step_makes(color: Any, dtype: Any) -> None:
    from tf2aif import images

    scale, mean, std = (1 / 127.5, [1.0], [0.5]) if dtype == "float32" else (1.0, [], [])
    how = Images(size=(6, 5), color=color, scale=scale, mean=mean, std=std, dtype=dtype)
    data = encoded(PHOTO)
    decoded = image_decoder(size=(6, 5), color=color, name="x")(data, "image/png")
    assert decoded["x"].dtype == np.uint8
    made = scaler(scale=scale, mean=mean, std=std, dtype=dtype)(decoded)["x"]
    np.testing.assert_array_equal(made[0], images.decode_image(data, how, at="here"))


@pytest.mark.parametrize(
    "data", [b"", b"no image", encoded(PHOTO)[:60], encoded(PHOTO, "JPEG")[:90]]
)
def test_what_is_no_image_is_the_senders_fault(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an image that can be read"):
        decode_image(data)
    hooks = Hooks(decode=image_decoder(size=(4, 4), name="x"))
    with pytest.raises(HookFailed) as told:
        hooks.inputs_of(data, "image/png", ("x",))
    assert told.value.of_sender


def test_an_image_of_too_many_pixels() -> None:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    with pytest.raises(ValueError, match="9000 x 9000 pixels"):
        decode_image(stream.getvalue())


def test_top_k(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\ncow\n\n")
    labels = read_labels(tmp_path / "labels.txt")
    assert labels == ("cat", "dog", "cow")
    scores = np.array([[0.1, 0.5, 0.5], [3, 2, 1]], np.float32)
    best = top_k(2, labels=labels)({"y": scores})
    assert [[each["label"] for each in row] for row in best] == [["dog", "cow"], ["cat", "dog"]]
    soft = top_k(3, softmax=True, output="y")({"y": scores * 1000, "z": scores})
    assert soft[1][0] == {"class": 0, "score": 1.0}
    with pytest.raises(LookupError, match="one of: y, z"):
        top_k(1)({"y": scores, "z": scores})


def hooks_file(folder: Path, text: str) -> Path:
    (folder / "hooks.py").write_text(text)
    return folder / "hooks.py"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def decode(:", "not Python"),
        ("import nowhere", "ModuleNotFoundError"),
        ("raise SystemExit(1)", "SystemExit"),
        ("decode = 3", "hook 'decode' is not a function"),
        ("def encode(a, b): ...", "called with 1 arguments"),
        ("def example(): return 'text'", "hook 'example' gives (bytes, content type), not a str"),
        ("def example(): return b'[1]', 'application/json'", "takes FP32"),
        ("def postprocess(y): return y['z']", "KeyError: 'z' (hooks.py:1)"),
        ("def encode(y): return b'', 'a\\r\\nb: c'", "gives (bytes, content type)"),
        ("def postprocess(y): return object()", "cannot be written as JSON"),
    ],
)
def test_check_tries_the_hooks(tmp_path: Path, text: str, words: str) -> None:
    (fault,) = try_hooks(hooks_file(tmp_path, text), (INPUT,), (OUTPUT,))
    assert words in fault.message
    assert str(tmp_path) in fault.at


def test_good_hooks_have_no_faults(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'x'\n")
    text = (
        "import numpy as np\nfrom beside import NAME\n"
        "from tf2aif.serve.labels import top_k\n"
        "def decode(body: bytes, content_type: str):\n"
        "    return {NAME: np.zeros((1, 4, 4, 3), np.float32)}\n"
        "postprocess = top_k(1)\n"
        "def example(): return b'', 'image/png'\n"
    )
    assert try_hooks(hooks_file(tmp_path, text), (INPUT,), (OUTPUT,)) == []


def test_the_check_step_runs_the_path_that_ships(tmp_path: Path) -> None:
    text = (
        "def preprocess(inputs): return {'x': inputs['x'] + 1}\n"
        "def postprocess(outputs): return {'y': -outputs['y']}\n"
    )
    hooks = load_hooks(hooks_file(tmp_path, text))

    def double(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": feeds["x"] * 2, "z": feeds["x"]}

    got = through_hooks(hooks, double)({"x": np.array([3])})
    assert {name: array.tolist() for name, array in got.items()} == {"y": [-8], "z": [4]}
    failing = Hooks(encode=lambda result: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(HookFailed, match="hook 'encode' raised OSError: no"):
        through_hooks(failing, double)({"x": np.array([3])})


@given(st.binary(max_size=60), st.sampled_from(["", "application/json", "application/x-npy"]))
def test_any_payload_is_read_or_the_senders_fault(body: bytes, kind: str) -> None:
    try:
        decode_default(body, kind, ("x",))
    except HookFailed as failure:
        if not failure.of_sender:
            raise


def test_npy_payloads() -> None:
    stream = io.BytesIO()
    np.save(stream, PHOTO)
    decoded = decode_default(stream.getvalue(), "application/x-npy", ("x",))
    np.testing.assert_array_equal(decoded["x"], PHOTO)
    unsafe = io.BytesIO()
    np.save(unsafe, np.array([{}], object), allow_pickle=True)
    with pytest.raises(HookFailed, match=r"not a \.npy file"):
        decode_default(unsafe.getvalue(), "application/x-npy", ("x",))


def test_results_with_nan_are_not_json() -> None:
    assert encode_default({"y": np.float32(1)}) == (b'{"y":1.0}', "application/json")
    with pytest.raises(HookFailed, match="NaN or infinity"):
        encode_default({"y": np.array([np.nan])})


class Collector:
    """Takes outcomes; `wait` gives them when there are enough."""

    def __init__(self, count: int) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._count = count
        self._all = threading.Event()

    def taker(self, key: int) -> Any:
        def take(outcome: Outcome) -> None:
            self.outcomes[key] = outcome
            if len(self.outcomes) == self._count:
                self._all.set()

        return take

    def wait(self) -> dict[int, Outcome]:
        assert self._all.wait(10)
        return self.outcomes


def fail_on_seven(feeds: Mapping[str, Any], rows: int) -> dict[str, Any]:
    assert len(feeds["x"]) == rows
    if 7 in feeds["x"]:
        raise RuntimeError("seven")
    return {"y": feeds["x"] * 10}


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=12))
def test_a_batch_answers_each_request_its_own(requests: list[list[int]]) -> None:
    runs: list[int] = []
    batcher = Batcher(
        fail_on_seven, max_rows=lambda: 5, max_delay_s=0.0005, on_run=lambda n, s: runs.append(n)
    )
    collector = Collector(len(requests))
    for key, values in enumerate(requests):
        batcher.put({"x": np.array(values)}, len(values), collector.taker(key))
    outcomes = collector.wait()
    assert batcher.close(5)
    for key, values in enumerate(requests):
        outputs = outcomes[key].outputs
        if 7 in values:
            assert str(outcomes[key].error) == "seven"
        else:
            assert outputs is not None
            assert outputs["y"].tolist() == [value * 10 for value in values]
    assert all(count <= 5 for count in runs)
    assert sum(runs) == sum(len(values) for values in requests if 7 not in values)


def test_a_closed_batcher_finishes_what_waits_and_a_dropped_request_is_not_run() -> None:
    go, began, ran = threading.Event(), threading.Event(), []

    def run(feeds: Mapping[str, Any], rows: int) -> dict[str, Any]:
        began.set()
        assert go.wait(10)
        ran.append(int(feeds["x"][0]))
        return {"y": feeds["x"]}

    batcher = Batcher(run)
    collector = Collector(2)
    entries = [batcher.put({"x": np.array([k])}, 1, collector.taker(k)) for k in range(3)]
    assert began.wait(10)
    assert batcher.running_s() > 0
    assert batcher.run_now({"x": np.array([9])}, 1) is None
    batcher.drop(entries[1])
    go.set()
    assert batcher.close(10)
    assert sorted(collector.wait()) == [0, 2]
    assert ran == [0, 2]
    assert batcher.running_s() == 0
    with pytest.raises(RuntimeError, match="closed"):
        batcher.put({}, 1, print)


def rapl_folder(root: Path, name: str, used_uj: int) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    (folder / "energy_uj").write_text(f"{used_uj}\n")
    return folder


def test_rapl_counts_packages_and_wraps_around(tmp_path: Path) -> None:
    folder = rapl_folder(tmp_path, "intel-rapl:0", 900_000)
    rapl_folder(tmp_path, "intel-rapl:0:0", 1)
    (tmp_path / "intel-rapl:1").mkdir()  # one that cannot be read
    (source,) = find_sources(rapl=tmp_path, nvml="nowhere.so")
    assert isinstance(source, Rapl)
    assert source.name == "rapl:package-0"
    rapl_folder(tmp_path, "intel-rapl:0", 950_000)
    assert source.joules() == pytest.approx(0.05)
    (folder / "energy_uj").write_text("50000")
    assert source.joules() == pytest.approx(0.1)


NVML = """
static unsigned long long used_mj = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1); return index == 1 ? 3 : 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    if (device != (void *)1) return 2;
    *mj = used_mj; used_mj += 2500; return 0;
}
"""


def test_nvml_by_its_c_interface(tmp_path: Path) -> None:
    """Against a library with NVML's four functions: two GPUs, one of which refuses."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvml.so"
    command = [compiler, "-shared", "-fPIC", str(tmp_path / "nvml.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    assert ctypes.CDLL(str(library))
    (source,) = find_sources(rapl=tmp_path, nvml=str(library))
    assert (source.name, source.joules()) == ("nvml:0", 2.5)


def test_every_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["v", "--port", "9", "--energy", "--max-size", "3", "--queue", "4", "--hooks", "h.py"]
    config = read_arguments(words)
    assert (config.variant, config.port, config.energy) == (Path("v"), 9, True)
    assert (config.batching.max_size, config.limits.queue) == (3, 4)
    assert config.hooks == Path("h.py")
    with pytest.raises(SystemExit):
        read_arguments(["--help"])
    told = capsys.readouterr().out
    for option in ("--body-bytes", "--max-delay-ms", "--threads", "--drain-s"):
        assert option in told
