"""model: a user's function that makes, or trains, the source model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import StepFailed
from . import Job

VERSION = 1
TOOLCHAIN = "tensorflow"
INPUTS = ()

# No clock in an artifact: the first moment that a zip archive can name.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The function and its keyword arguments; `seed` is that of everything that draws numbers."""

    function: str
    arguments: dict[str, Any] = {}
    seed: int = 0


def run(job: Job) -> Mapping[str, Any]:
    """Call the function; write `model.keras`, or `saved_model/` of a tf.Module.

    Seeds of Python, numpy, Keras and TensorFlow are set before, and TensorFlow's operators are made
    deterministic, so training gives the same weights again on the same machine.
    Raises StepFailed where the function returns something else.
    """
    from ..usercode import load_function

    options = msgspec.convert(job.options, Options)
    _set_seeds(options.seed)
    function = load_function(job.inputs["code"], options.function)
    model = function(**options.arguments)
    return {"kind": _save(model, job.out, f"{job.inputs['code'].name}:{options.function}")}


def _set_seeds(seed: int) -> None:
    import keras
    import tensorflow as tf

    keras.utils.clear_session()  # a warm worker's counters, which end in the names of layers
    keras.utils.set_random_seed(seed)  # Python, numpy, TensorFlow
    tf.config.experimental.enable_op_determinism()


def _save(model: Any, out: Path, at: str) -> str:
    import keras
    import tensorflow as tf
    import tf_keras

    if isinstance(model, keras.Model | tf_keras.Model):
        model.save(out / "model.keras")
        _strip_session(out / "model.keras")
        return "keras"
    if isinstance(model, tf.Module):
        tf.saved_model.save(model, str(out / "saved_model"), signatures=_signatures(model, at))
        return "saved_model"
    raise StepFailed(
        f"the function returned a {type(model).__name__}",
        at=at,
        hint="return a Keras model or a tf.Module",
    )


def _signatures(model: Any, at: str) -> Any:
    """A tf.Module's own `signatures`, or its call as `serving_default`."""
    signatures = getattr(model, "signatures", None)
    if signatures:
        return signatures
    if getattr(model.__call__, "input_signature", None) is None:
        raise StepFailed(
            "the tf.Module has no signature",
            at=at,
            hint="decorate its __call__ with tf.function(input_signature=[...])",
        )
    return {"serving_default": model.__call__.get_concrete_function()}


def _strip_session(path: Path) -> None:
    """Write the archive again without its times and the addresses of objects in this process."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = msgspec.json.decode(members["metadata.json"])
    members["metadata.json"] = msgspec.json.encode({**metadata, "date_saved": ""})
    members["config.json"] = _number_objects(members["config.json"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)


def _number_objects(config: bytes) -> bytes:
    """Keras tells shared objects by `id()`; here they are numbered in the order of the file."""
    known: dict[bytes, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        return found[1] + str(known.setdefault(found[2], len(known))).encode()

    return re.sub(rb'("shared_object_id": ?)(\d+)', number, config)
