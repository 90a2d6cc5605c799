"""Whether two artifacts that differ in their bytes give the same outputs. Runs in a worker.

Both are run by the engine that would serve them, over the same samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import StepFailed
from .steps import Job
from .steps.check import compare

if TYPE_CHECKING:
    from .engines import Array


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the two are run."""

    engine: str
    engine_options: dict[str, Any] = {}


def run(job: Job) -> Mapping[str, Any]:
    """`outputs`: how far each output of artifact `second` is from that of `first`.

    As `tf2aif.steps.check` says it; by output name, over all samples of `evaluation`.
    """
    from .sampleset import read_set

    options = msgspec.convert(job.options, Options)
    samples = read_set(job.inputs["evaluation"]).inputs
    first = _outputs(job.inputs["first"], options, samples)
    second = _outputs(job.inputs["second"], options, samples)
    shapes = [{name: values.shape for name, values in each.items()} for each in (first, second)]
    if shapes[0] != shapes[1]:
        raise StepFailed(f"the outputs were {shapes[0]}, they are {shapes[1]}")
    (job.out / "done").touch()
    found = {name: compare(second[name], first[name]) for name in first}
    return {"outputs": msgspec.to_builtins(found)}


def _outputs(artifact: Path, options: Options, samples: Mapping[str, Array]) -> dict[str, Array]:
    from .engines import engine_module
    from .engines.batches import run_batches

    engine = engine_module(options.engine).load(artifact, **options.engine_options)
    try:
        return run_batches(engine, samples)
    finally:
        engine.close()
