"""The user's model file, whatever wrote it: told by its content, opened by the first way that can.

| content | ways, in order |
|---|---|
| SavedModel folder | `tf.saved_model.load`; `tf.compat.v1.saved_model.load` |
| `.keras`, `.h5` | `keras`; `tf_keras` (files of Keras 2) |

Users have SavedModels that the first loader refuses (they carry the slots of an old optimizer) and
`.h5` files that Keras 3 refuses (arguments that Keras 2 had).
"""

from __future__ import annotations

import difflib
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..engines import Array, Tensors
from ..errors import StepFailed, Tf2aifError
from .canonical import Frozen
from .freeze import freeze

DEFAULT_SIGNATURE = "serving_default"

Call = Callable[[Tensors], dict[str, Array]]


class Source(NamedTuple):
    """An opened model: its frozen graph, itself as a function, and how it was opened."""

    frozen: Frozen
    call: Call
    signature: str
    loaded_with: str


def open_source(path: Path, signature: str | None) -> Source:
    """Open a model and choose its signature.

    `path` is a SavedModel folder, a `.keras` or `.h5` file, or the artifact of the step `model`.
    Raises StepFailed where nothing can read it, or where it has no such signature.
    """
    path = _model_in(path)
    if path.is_dir():
        return _try(
            path,
            signature,
            {
                "tf.saved_model.load": _open_saved_model,
                "tf.compat.v1.saved_model.load": _open_version_1,
            },
        )
    if signature not in (None, DEFAULT_SIGNATURE):
        raise _no_signature(signature, [DEFAULT_SIGNATURE])
    return _try(path, signature, {"keras": _open_keras, "tf_keras": _open_tf_keras})


def find_format(path: Path) -> str | None:
    """`saved_model`, `keras` or `h5`, by what is in the file or folder; None for anything else."""
    if path.is_dir():
        known = any((path / f"saved_model.{end}").is_file() for end in ("pb", "pbtxt"))
        return "saved_model" if known else None
    if not path.is_file():
        return None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "keras" if "config.json" in archive.namelist() else None
    with path.open("rb") as file:
        return "h5" if file.read(8) == b"\x89HDF\r\n\x1a\n" else None


def _model_in(path: Path) -> Path:
    """The model itself: the artifact of the step `model` is a folder around it."""
    for candidate in (path, path / "model.keras", path / "saved_model"):
        if find_format(candidate):
            return candidate
    raise StepFailed(
        "this is no model" if path.exists() else "there is no such file or folder",
        at=str(path),
        hint="give a SavedModel folder (it holds saved_model.pb), a .keras file or an .h5 file",
    )


def _try(path: Path, signature: str | None, ways: Mapping[str, Callable[..., Source]]) -> Source:
    """The first way that opens it; where all fail, every reason is told."""
    from google.protobuf.message import DecodeError
    from tensorflow.errors import OpError

    reasons = []
    for name, way in ways.items():
        try:
            return way(path, signature)
        except Tf2aifError:
            raise
        except (
            AttributeError,
            ImportError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            DecodeError,
            OpError,
        ) as error:
            reasons.append(f"{name}: {_first_line(error)}")
    raise StepFailed(
        "no way to read this model\n  " + "\n  ".join(reasons),
        at=str(path),
        hint="export it as a SavedModel with the TensorFlow and the code that made it",
    )


def _open_saved_model(path: Path, signature: str | None) -> Source:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path), tags=_tags(path))
    name = _choose(signature, list(loaded.signatures))
    function = loaded.signatures[name]
    return _from_function(function, name, "tf.saved_model.load", keep=loaded)


def _open_version_1(path: Path, signature: str | None) -> Source:
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    v1 = tf.compat.v1
    session = v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta = v1.saved_model.loader.load(session, _tags(path), str(path))
    signatures = {n: s for n, s in meta.signature_def.items() if not n.startswith("__")}
    name = _choose(signature, list(signatures))
    inputs = {key: info.name for key, info in sorted(signatures[name].inputs.items())}
    outputs = {key: info.name for key, info in sorted(signatures[name].outputs.items())}
    graph = convert_to_constants.convert_variables_to_constants_from_session_graph(
        session, session.graph.as_graph_def(), [_node(tensor) for tensor in outputs.values()]
    )
    wrapped = v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    function = wrapped.prune(
        [wrapped.graph.get_tensor_by_name(tensor) for tensor in inputs.values()],
        [wrapped.graph.get_tensor_by_name(tensor) for tensor in outputs.values()],
    )

    def call(feeds: Tensors) -> dict[str, Array]:
        found = {inputs[key]: array for key, array in feeds.items()}
        return dict(session.run(outputs, feed_dict=found))

    frozen = freeze(function, list(inputs), list(outputs))
    return Source(frozen, call, name, "tf.compat.v1.saved_model.load")


def _open_keras(path: Path, _signature: str | None) -> Source:
    """As `model.export` would write it, so that both ways give one graph."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        model = keras.models.load_model(_with_ending(path, Path(folder)), compile=False)
        exported = Path(folder, "exported")
        model.export(exported, format="tf_saved_model", verbose=False)
        source = _open_saved_model(exported, DEFAULT_SIGNATURE)
    return source._replace(loaded_with="keras")


def _open_tf_keras(path: Path, _signature: str | None) -> Source:
    """As `model.save(folder)` of Keras 2 would write it: outputs bear their layers' names."""
    import tensorflow as tf
    import tf_keras

    with tempfile.TemporaryDirectory() as folder:
        model = tf_keras.models.load_model(_with_ending(path, Path(folder)), compile=False)
    specs = [
        tf.TensorSpec(i.shape, i.dtype, name=n)
        for i, n in zip(model.inputs, model.input_names, strict=True)
    ]

    def serve(**feeds: Any) -> dict[str, Any]:
        given = [feeds[name] for name in model.input_names]
        results = tf.nest.flatten(model(given if len(given) > 1 else given[0], training=False))
        return dict(zip(model.output_names, results, strict=True))

    traced = tf.function(serve, autograph=False)
    function = traced.get_concrete_function(**{spec.name: spec for spec in specs})
    return _from_function(function, DEFAULT_SIGNATURE, "tf_keras", keep=model)


def _with_ending(path: Path, folder: Path) -> Path:
    """The file under a name that Keras takes: it goes by the ending, we by the content."""
    link = folder / f"model.{find_format(path)}"
    link.symlink_to(path.absolute())
    return link


def _from_function(function: Any, name: str, way: str, keep: Any) -> Source:
    """`keep` owns the variables, which a function holds weakly."""
    import tensorflow as tf

    inputs = sorted(function.structured_input_signature[1])
    outputs = sorted(function.structured_outputs)

    def call(feeds: Tensors, _owner: Any = keep) -> dict[str, Array]:
        results = function(**{key: tf.constant(array) for key, array in feeds.items()})
        return {key: results[key].numpy() for key in outputs}

    return Source(freeze(function, inputs, outputs), call, name, way)


def _tags(path: Path) -> list[str]:
    """The tags of the graph for serving, or of the only one."""
    from tensorflow.python.saved_model import loader_impl

    graphs = loader_impl.parse_saved_model(str(path)).meta_graphs
    found = [list(graph.meta_info_def.tags) for graph in graphs]
    serving = [tags for tags in found if "serve" in tags] or found
    return min(serving, key=len)


def _choose(wanted: str | None, there: list[str]) -> str:
    if not there:
        raise StepFailed(
            "the SavedModel has no signature",
            hint="save it with signatures=, or a Keras model with model.export(folder)",
        )
    if wanted in there:
        return str(wanted)
    if wanted is None and (DEFAULT_SIGNATURE in there or len(there) == 1):
        return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in there else there[0]
    raise _no_signature(wanted, there)


def _no_signature(wanted: str | None, there: list[str]) -> StepFailed:
    nearest = difflib.get_close_matches(wanted or "", there, n=len(there), cutoff=0.0)
    ordered = ", ".join([*nearest, *sorted(set(there) - set(nearest))])
    if wanted is None:
        return StepFailed(
            "the model has several signatures, none of them serving_default",
            hint=f"set 'signature' to one of: {ordered}",
        )
    return StepFailed(f"the model has no signature '{wanted}'", hint=f"there are: {ordered}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:300]}"


def _node(tensor: str) -> str:
    return tensor.partition(":")[0]
