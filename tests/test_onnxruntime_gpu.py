"""Engine `onnxruntime-gpu`: a session that fell back to the CPU is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models
import onnxruntime
import pytest

from tf2aif.engines import onnxruntime_gpu as engine
from tf2aif.engines.nvidia import read_machine
from tf2aif.engines.onnxruntime import load as load_cpu
from tf2aif.errors import Tf2aifError

CUDA = "CUDAExecutionProvider"
HAS_CUDA = CUDA in onnxruntime.get_available_providers() and read_machine().present


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.conv(tmp_path_factory.mktemp("model") / "conv")


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this one has CUDA")
def test_an_onnxruntime_without_cuda(model: Path) -> None:
    with pytest.raises(Tf2aifError, match=rf"no {CUDA} here(.|\n)*onnxruntime-gpu"):
        engine.load(model)


@pytest.mark.skipif(HAS_CUDA, reason="CUDA works here")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fall_to_the_cpu_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real session, which goes on with the CPU where CUDA is promised and not to be had."""
    promised = [CUDA, "TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: promised)
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(Tf2aifError, match="fell back to CPUExecutionProvider"):
            engine.load(model, provider=provider)  # type: ignore[arg-type]


def test_wrong_options(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Tf2aifError, match=r"unknown provider 'rocm'(.|\n)*cuda, tensorrt"):
        engine.load(model, provider="rocm")  # type: ignore[arg-type]
    with pytest.raises(Tf2aifError, match="threads is 0"):
        engine.load(model, threads=0)
    with pytest.raises(Tf2aifError, match=r"no signature\.json"):
        engine.load(tmp_path)


@pytest.mark.skipif(not HAS_CUDA, reason="no NVIDIA GPU, or no onnxruntime-gpu, is here")
def test_on_a_gpu_it_agrees_with_the_cpu(model: Path) -> None:
    loaded, feeds = engine.load(model), {"image": onnx_models.zeros((5, 1, 8, 8), 1) + 0.5}
    assert loaded.facts["providers"].startswith(CUDA)
    np.testing.assert_allclose(
        loaded.run(feeds)["score"], load_cpu(model).run(feeds)["score"], atol=1e-2
    )
