"""ONNX Runtime on the CPU: runs `model.onnx`.

Source: the onnxruntime distribution, its Python API.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .signature import Signature, artifact_file, check_feeds, read_signature
from .threads import thread_count

REQUIREMENTS = ("numpy>=1.26,<3", "onnxruntime>=1.20,<2")

PROVIDERS = ("CPUExecutionProvider",)


def load(
    artifact: Path, *, threads: int | None = None, providers: tuple[str, ...] = PROVIDERS
) -> OnnxRuntime:
    """Load the artifact in that folder; `threads` is by default one for each CPU.

    `providers` are ONNX Runtime's execution providers, best first. Raises Tf2aifError where a
    file is missing, broken, or does not match its signature, and where a provider is not there.
    """
    signature = read_signature(artifact)
    # What a half precision model computes, in operators that a CPU has: see docs/why/onnx.md.
    check = artifact / "check.onnx"
    path = check if check.is_file() else artifact_file(artifact, "model.onnx")
    count = thread_count(threads)
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    missing = [each for each in providers if each not in onnxruntime.get_available_providers()]
    if missing:
        raise Tf2aifError(
            f"ONNX Runtime has no {missing[0]} here",
            at=str(path),
            hint=f"it has: {', '.join(onnxruntime.get_available_providers())}",
        )
    return OnnxRuntime(signature, make_session(signature, path, count, list(providers)))


def make_session(signature: Signature, path: Path, threads: int, providers: list[Any]) -> Any:
    """A session of that model with these providers, best first.

    Raises Tf2aifError where the model cannot be loaded or is not what its signature says.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: warnings name no cause that a user could act on
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its own classes, each straight below Exception
        raise Tf2aifError(f"ONNX Runtime cannot load it: {error}", at=str(path)) from error
    _match(signature, session, path)
    return session


class OnnxRuntime:
    """A loaded `model.onnx`."""

    def __init__(self, signature: Signature, session: Any) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._session = session
        self._names = [spec.name for spec in signature.outputs]

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch; the outputs are arrays of the caller's own."""
        if self._session is None:
            raise Tf2aifError("the engine is closed")
        arrays = check_feeds(feeds, self.inputs)
        try:
            outputs = self._session.run(self._names, arrays)
        except Exception as error:  # as in `load`
            raise Tf2aifError(f"ONNX Runtime cannot run it: {error}") from error
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        """Give the memory back."""
        self._session = None


def _match(signature: Signature, session: Any, path: Path) -> None:
    told = {spec.name for spec in signature.inputs}, {spec.name for spec in signature.outputs}
    found = (
        {each.name for each in session.get_inputs()},
        {each.name for each in session.get_outputs()},
    )
    if told != found:
        raise Tf2aifError(
            "its inputs and outputs are not those of signature.json",
            at=str(path),
            hint="build the variant again; both files come from one step",
        )
