"""TensorFlow itself: runs `saved_model/` through its signature. The native baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Tf2aifError
from . import Array, Tensors, TensorSpec
from .signature import Signature, artifact_file, check_feeds, read_signature
from .threads import thread_count

REQUIREMENTS = ("numpy>=1.26,<3", "tensorflow>=2.21,<2.22")

SIGNATURE = "serving_default"


def load(artifact: Path, *, threads: int | None = None) -> TensorFlow:
    """Load the artifact in that folder.

    `threads` belongs to the whole process in TensorFlow: the first model that runs fixes it, and
    asking for another number later is a Tf2aifError. So are missing and broken files.
    """
    signature = read_signature(artifact)
    path = artifact_file(artifact, "saved_model")
    import tensorflow as tf

    _set_threads(tf, thread_count(threads) if threads is not None else None)
    try:
        loaded = tf.saved_model.load(str(path))
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        AttributeError,
        tf.errors.OpError,
    ) as error:
        raise Tf2aifError(f"TensorFlow cannot load it: {error}", at=str(path)) from error
    if SIGNATURE not in loaded.signatures:
        raise Tf2aifError(f"it has no signature '{SIGNATURE}'", at=str(path))
    function = loaded.signatures[SIGNATURE]
    if set(function.structured_outputs) != {spec.name for spec in signature.outputs}:
        raise Tf2aifError("its outputs are not those of signature.json", at=str(path))
    return TensorFlow(signature, loaded, function)


class TensorFlow:
    """A loaded SavedModel."""

    def __init__(self, signature: Signature, loaded: Any, function: Any) -> None:
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._loaded = loaded  # the function holds its captures weakly
        self._function = function

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one batch through the signature."""
        if self._function is None:
            raise Tf2aifError("the engine is closed")
        import tensorflow as tf

        arrays = check_feeds(feeds, self.inputs)
        try:
            results = self._function(**{n: tf.constant(a) for n, a in arrays.items()})
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise Tf2aifError(f"TensorFlow cannot run it: {error}") from error
        return {spec.name: results[spec.name].numpy() for spec in self.outputs}

    def close(self) -> None:
        """Give the memory back."""
        self._function = self._loaded = None


def _set_threads(tf: Any, threads: int | None) -> None:
    if threads is None or threads == _threads(tf):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise Tf2aifError(
            f"this process runs TensorFlow with {_threads(tf)} threads, not {threads}",
            hint="TensorFlow takes the number once in a process: ask for it before anything runs",
        ) from error


def _threads(tf: Any) -> int:
    return tf.config.threading.get_intra_op_parallelism_threads() or thread_count(None)
