"""import: any model file becomes a canonical, frozen SavedModel with one signature.

The same weights give the same bytes, exported again or saved in another format, so what follows
from the import is not built again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from . import Job

VERSION = 1
TOOLCHAIN = "tensorflow"
INPUTS = ("source",)

Batch = Annotated[int, Meta(ge=1)] | Literal["free", "none"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which signature, and the shapes of its inputs."""

    signature: str | None = None
    batch: Batch = 1
    inputs: dict[str, list[Annotated[int, Meta(ge=1)]]] = {}


def run(job: Job) -> Mapping[str, Any]:
    """Write `saved_model/` and `signature.json`; say how the model was opened and checked.

    Raises StepFailed where the model cannot be read or frozen, where shapes do not fit, and where
    the frozen graph does not compute what the source computes.
    """
    from ..engines.signature import natural_key, write_signature
    from .canonical import canonical_form
    from .compare import compare_source
    from .freeze import declared_shapes, fix_shapes, write_saved_model
    from .shapes import asked_shapes, input_shapes, stable_names
    from .source_model import open_source
    from .tensor_lists import fix_lists

    options = msgspec.convert(job.options, Options)
    source = open_source(job.inputs["source"], options.signature)
    names = stable_names(source.frozen.inputs)
    inputs = {names[name]: port for name, port in source.frozen.inputs.items()}
    ordered = {name: inputs[name] for name in sorted(inputs, key=natural_key)}
    frozen = source.frozen._replace(inputs=ordered)
    shapes = input_shapes(
        declared_shapes(frozen), asked_shapes(options.inputs, names), options.batch
    )
    if isinstance(options.batch, int):
        frozen = fix_lists(frozen, options.batch)
    frozen = canonical_form(frozen)
    signature = fix_shapes(frozen, shapes)
    write_saved_model(frozen, signature, job.out / "saved_model")
    write_signature(job.out, signature)
    return {
        "loaded_with": source.loaded_with,
        "signature": source.signature,
        "renamed": {old: new for old, new in names.items() if old != new},
        "inputs": msgspec.to_builtins(signature.inputs),
        "outputs": msgspec.to_builtins(signature.outputs),
        **compare_source(source, names, signature, frozen),
    }
