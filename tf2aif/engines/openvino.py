"""OpenVINO on the CPU: runs `model.xml` and `model.bin`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .signature import Signature, artifact_file, check_feeds, read_signature
from .threads import thread_count

REQUIREMENTS = ("numpy>=1.26,<3", "openvino>=2026.2,<2027")


def load(
    artifact: Path, *, threads: int | None = None, hint: str = "LATENCY", device: str = "CPU"
) -> OpenVINO:
    """Load the artifact in that folder; `threads` is by default one for each CPU.

    `hint` is OpenVINO's performance hint, LATENCY or THROUGHPUT. Arithmetic stays in float32 where
    the model says so: by itself OpenVINO takes bfloat16 or float16 where the CPU has them.
    Raises Tf2aifError where a file is missing, broken, or does not match its signature.
    """
    signature = read_signature(artifact)
    path = artifact_file(artifact, "model.xml")
    artifact_file(artifact, "model.bin")
    count = thread_count(threads)
    import openvino as ov

    config = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": count,
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
    }
    if hint != "LATENCY":
        del config["NUM_STREAMS"]
    try:
        compiled = ov.Core().compile_model(str(path), device, config)
        request = compiled.create_infer_request()
        outputs = [compiled.output(spec.name) for spec in signature.outputs]
        for spec in signature.inputs:
            compiled.input(spec.name)
    except RuntimeError as error:
        raise Tf2aifError(f"OpenVINO cannot load it: {error}", at=str(path)) from error
    return OpenVINO(signature, request, outputs)


class OpenVINO:
    """A compiled model and the one request that it is run with."""

    def __init__(self, signature: Signature, request: Any, outputs: list[Any]) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._request = request
        self._ports = outputs

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch; the outputs are copies of the caller's own."""
        if self._request is None:
            raise Tf2aifError("the engine is closed")
        arrays = check_feeds(feeds, self.inputs)
        try:
            results = self._request.infer(arrays, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise Tf2aifError(f"OpenVINO cannot run it: {error}") from error
        return {
            spec.name: results[port] for spec, port in zip(self.outputs, self._ports, strict=True)
        }

    def close(self) -> None:
        """Give the memory back."""
        self._request = None
        self._ports = []
