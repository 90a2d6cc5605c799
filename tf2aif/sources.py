"""Where samples come from: what a recipe says, as values that a step's options can carry.

Pure and light: planning calls this, so nothing here reads a file or imports numpy.
`tf2aif.samples` reads what a `Source` describes.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from msgspec import Struct

from .errors import Fault, FilesError
from .spec.recipe import FUNCTION, Data, Images

Format = Literal["npy", "npz", "images", "tfrecord", "text", "function", "random"]

ENDINGS: dict[str, Format] = {
    ".npy": "npy",
    ".npz": "npz",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".tfrecord.gz": "tfrecord",
    ".tfrecords.gz": "tfrecord",
    ".txt": "text",
    ".csv": "text",
}
"""File ending -> format. Text holds labels only."""


class Source(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One array of samples: how it is read, and the key in `Job.inputs` of the file it is in."""

    format: Format
    input: str = ""  # the key in Job.inputs of its file, folder or code; "" where there is none
    array: str | None = None  # in an .npz
    feature: str | None = None  # in a TFRecord
    images: Images | None = None
    function: str | None = None
    arguments: dict[str, Any] = {}
    dtype: str | None = None  # of a raw bytes feature, as numpy names it
    shape: list[int] = []  # of one sample in a TFRecord


Planned = tuple[dict[str, Source], dict[str, str]]


def plan_sources(data: str | Data, prefix: str = "") -> Planned:
    """What a recipe says of a sample set, as (sources, files).

    Sources are by model input name; the name "" stands for the only input (or, for a function and
    for "random", for all of them). Files are keys of `Job.inputs` -> paths as the recipe wrote
    them: `data` (or `input.NAME` for each input), `code` for a function's file, `file.N` for other
    files that it reads. Each key is preceded by `prefix` and a dot where a prefix is given.

    Raises FilesError, where it cannot be known how the data is to be read.

    >>> sources, files = plan_sources("samples.npz#x")
    >>> sources[""].array, sources[""].input, files
    ('x', 'data', {'data': 'samples.npz'})
    >>> sources, files = plan_sources("data.py:labels", "labels")
    >>> sources[""].function, files
    ('labels', {'labels.code': 'data.py'})
    """
    if data == "random":
        return {"": Source(format="random")}, {}
    whole = _as_data(data) if isinstance(data, str) else data
    _check_choice(whole)
    start = f"{prefix}." if prefix else ""
    sources, files = _plan_function(whole, start) if whole.function else _plan_paths(whole, start)
    _check_used(whole, {source.format for source in sources.values()})
    return sources, files | {f"{start}file.{i}": path for i, path in enumerate(whole.files)}


def _plan_function(data: Data, start: str) -> Planned:
    file, _, name = str(data.function).rpartition(":")
    key = f"{start}code"
    source = Source(format="function", input=key, function=name, arguments=data.arguments)
    return {"": source}, {key: file}


def _plan_paths(data: Data, start: str) -> Planned:
    paths = data.inputs if data.path is None else {"": data.path}
    sources, files = {}, {}
    for name, written in paths.items():
        key = f"{start}input.{name}" if name else f"{start}data"
        sources[name], files[key] = _source_of(written, key, data)
    return sources, files


def _as_data(text: str) -> Data:
    if re.match(FUNCTION, text):
        return Data(function=text)
    return Data(path=text)


def _check_choice(data: Data) -> None:
    given = [name for name in ("path", "function", "inputs") if getattr(data, name)]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise FilesError([Fault(f"data needs one of path, function or inputs; found {found}")])


FIELDS: dict[str, tuple[Format, ...]] = {
    "images": ("images", "tfrecord"),
    "dtype": ("tfrecord",),
    "shape": ("tfrecord",),
    "arguments": ("function",),
    "files": ("function",),
}
"""Field of `Data` -> the formats that it has a meaning for."""


def _check_used(data: Data, formats: set[Format]) -> None:
    faults = [
        Fault(f"`{field}` has no meaning for {' and '.join(sorted(formats))} data")
        for field, meant in FIELDS.items()
        if getattr(data, field) and formats.isdisjoint(meant)
    ]
    if faults:
        raise FilesError(faults)


def _source_of(written: str, key: str, data: Data) -> tuple[Source, str]:
    """The source of one path, and the path without what follows its `#`."""
    path, _, part = written.partition("#")
    format_ = format_of(path, folder_of_images=data.images is not None)
    if part and format_ not in ("npz", "tfrecord"):
        fault = Fault(f"'#{part}' has no meaning for {format_} data", at=written)
        raise FilesError([fault])
    if format_ == "tfrecord" and not part:
        hint = f"write {path}#NAME, where NAME is the feature's"
        raise FilesError([Fault("a TFRecord needs the name of a feature", at=written, hint=hint)])
    source = Source(
        format=format_,
        input=key,
        array=part or None if format_ == "npz" else None,
        feature=part if format_ == "tfrecord" else None,
        images=data.images if format_ in ("images", "tfrecord") else None,
        dtype=data.dtype if format_ == "tfrecord" else None,
        shape=list(data.shape) if format_ == "tfrecord" else [],
    )
    return source, path


def format_of(path: str, *, folder_of_images: bool = False) -> Format:
    """How a path is read, by its ending; any other path is a folder of images where so said."""
    lower = path.lower()
    for ending, format_ in ENDINGS.items():
        if lower.endswith(ending):
            return format_
    if folder_of_images:
        return "images"
    hint = f"known endings: {', '.join(ENDINGS)}; file.py:function; a folder needs `images:`"
    raise FilesError([Fault("cannot tell how these samples are read", at=path, hint=hint)])


def is_code_key(key: str) -> bool:
    """Whether a key of `Job.inputs` is that of a function's file."""
    # A model may have an input of the name "code".
    return key == "code" or (key.endswith(".code") and not key.endswith("input.code"))
