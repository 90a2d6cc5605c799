"""TensorFlow on an NVIDIA GPU: runs `saved_model/`. The native baseline of GPU targets.

TensorFlow goes on with the CPU, with a warning in its log, where it cannot use the GPU. Here that
is an error.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..errors import Tf2aifError
from . import tensorflow
from .signature import artifact_file, read_signature

REQUIREMENTS = ("numpy>=1.26,<3", "tensorflow[and-cuda]>=2.21,<2.22")


def load(artifact: Path, *, threads: int | None = None) -> tensorflow.TensorFlow:
    """Load the artifact in that folder; TensorFlow puts what it can on the first GPU.

    `threads` are those of the CPU, as engine `tensorflow` has them. Raises Tf2aifError where a
    file is missing or broken, and where TensorFlow sees no GPU.
    """
    read_signature(artifact)
    path = artifact_file(artifact, "saved_model")
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        raise Tf2aifError(
            "TensorFlow sees no GPU here",
            at=str(path),
            hint="it needs an NVIDIA driver, and a TensorFlow with CUDA: "
            "pip install 'tensorflow[and-cuda]', or the vendor's build for a Jetson",
        )
    for gpu in gpus:
        with suppress(RuntimeError):  # something has run on it already
            tf.config.experimental.set_memory_growth(gpu, True)
    return tensorflow.load(artifact, threads=threads)
