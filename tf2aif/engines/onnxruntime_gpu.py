"""ONNX Runtime on an NVIDIA GPU: runs `model.onnx` with the CUDA or the TensorRT provider.

ONNX Runtime goes on with the CPU, without an error, where a provider cannot be made. Here that is
an error: what the session really has is looked at, and kept in `facts`.

Source: the onnxruntime-gpu distribution, its Python API.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..errors import Tf2aifError
from .onnxruntime import OnnxRuntime, make_session
from .signature import artifact_file, read_signature
from .threads import thread_count

REQUIREMENTS = ("numpy>=1.26,<3", "onnxruntime-gpu[cuda,cudnn]>=1.21,<2")

_PROVIDERS = {
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


def load(
    artifact: Path,
    *,
    threads: int | None = None,
    provider: Literal["cuda", "tensorrt"] = "cuda",
    device: int = 0,
) -> OnnxRuntimeGpu:
    """Load the artifact in that folder onto GPU number `device`.

    `threads` are those of the operators that the provider leaves to the CPU, by default one for
    each CPU. With `tensorrt` the provider builds its engines when it is loaded, every time: minutes
    for a large model; the target `gpu` builds one once. Raises Tf2aifError where a file is
    missing or broken, and where the session would run on the CPU.
    """
    signature = read_signature(artifact)
    path = artifact_file(artifact, "model.onnx")
    count = thread_count(threads)
    if provider not in _PROVIDERS:
        raise Tf2aifError(f"unknown provider '{provider}'", hint=f"one of: {', '.join(_PROVIDERS)}")
    import onnxruntime

    wanted = _PROVIDERS[provider]
    _find(onnxruntime, wanted[0], path)
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21: CUDA and cuDNN of wheels
        onnxruntime.preload_dlls()
    chosen = [(name, {"device_id": str(device)}) for name in wanted]
    session = make_session(signature, path, count, [*chosen, "CPUExecutionProvider"])
    real = session.get_providers()
    if real[: len(wanted)] != list(wanted):
        raise Tf2aifError(
            f"ONNX Runtime fell back to {', '.join(real)}: {wanted[0]} could not be made",
            at=str(path),
            hint="it needs a GPU with its driver, and the CUDA and cuDNN that this ONNX Runtime "
            "was built with: 'onnxruntime-gpu[cuda,cudnn]' brings them",
        )
    return OnnxRuntimeGpu(signature, session, tuple(real))


class OnnxRuntimeGpu(OnnxRuntime):
    """A loaded `model.onnx` that runs on the GPU; `facts` say with which providers."""

    def __init__(self, signature: Any, session: Any, providers: tuple[str, ...]) -> None:
        super().__init__(signature, session)
        self.facts = {"providers": ", ".join(providers)}


def _find(onnxruntime: Any, wanted: str, path: Path) -> None:
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise Tf2aifError(
            f"ONNX Runtime has no {wanted} here",
            at=str(path),
            hint=f"it has: {', '.join(available)}. The distribution onnxruntime-gpu brings it, "
            "and must not be beside onnxruntime",
        )
