"""LiteRT on the CPU, with the XNNPACK delegate: runs `model.tflite`.

Source: the ai-edge-litert distribution; its interpreter applies XNNPACK by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .signature import Signature, artifact_file, check_feeds, read_signature
from .threads import thread_count

REQUIREMENTS = ("numpy>=1.26,<3", "ai-edge-litert>=2.1,<3")

SIGNATURE = "serving_default"


def load(artifact: Path, *, threads: int | None = None) -> LiteRT:
    """Load the artifact in that folder; `threads` is by default one for each CPU.

    Raises Tf2aifError where a file is missing, broken, or does not match its signature.
    """
    signature = read_signature(artifact)
    path = artifact_file(artifact, "model.tflite")
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=thread_count(threads))
        inputs, outputs = _indices(interpreter)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise Tf2aifError(f"LiteRT cannot load it: {error}", at=str(path)) from error
    _match(signature, inputs, outputs, path)
    return LiteRT(signature, interpreter, inputs, outputs)


class LiteRT:
    """A loaded `model.tflite`. A free batch axis is resized when a batch of another size comes."""

    def __init__(
        self,
        signature: Signature,
        interpreter: Any,
        inputs: dict[str, int],
        outputs: dict[str, int],
    ) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._interpreter = interpreter
        self._indices = inputs
        self._results = outputs
        self._shapes = {
            spec.name: spec.shape if None not in spec.shape else None for spec in self.inputs
        }

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch; the outputs are copies of the caller's own."""
        if self._interpreter is None:
            raise Tf2aifError("the engine is closed")
        arrays = check_feeds(feeds, self.inputs)
        try:
            self._resize(arrays)
            for name, array in arrays.items():
                self._interpreter.set_tensor(self._indices[name], array)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise Tf2aifError(f"LiteRT cannot run it: {error}") from error
        return {
            spec.name: self._interpreter.get_tensor(self._results[spec.name])
            for spec in self.outputs
        }

    def close(self) -> None:
        """Give the memory back."""
        self._interpreter = None

    def _resize(self, arrays: dict[str, Array]) -> None:
        changed = [name for name, array in arrays.items() if array.shape != self._shapes[name]]
        for name in changed:
            self._interpreter.resize_tensor_input(self._indices[name], arrays[name].shape)
        if changed:
            self._interpreter.allocate_tensors()
            self._shapes |= {name: arrays[name].shape for name in changed}


def _indices(interpreter: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Where the inputs and outputs of the signature are.

    The runner must be gone before memory is planned: it holds on to the interpreter, which then
    fears for arrays that might be mapped into it.
    """
    runner = interpreter.get_signature_runner(SIGNATURE)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    return (
        {name: detail["index"] for name, detail in inputs.items()},
        {name: detail["index"] for name, detail in outputs.items()},
    )


def _match(
    signature: Signature, inputs: dict[str, int], outputs: dict[str, int], path: Path
) -> None:
    if {spec.name for spec in signature.inputs} != set(inputs) or {
        spec.name for spec in signature.outputs
    } != set(outputs):
        raise Tf2aifError(
            "its inputs and outputs are not those of signature.json",
            at=str(path),
            hint="build the variant again; both files come from one step",
        )
