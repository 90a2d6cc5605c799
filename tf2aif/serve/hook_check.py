"""Trying a hooks file before it ships, and running the check step through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..engines import Array, TensorSpec
from ..errors import Fault, Tf2aifError
from .datatypes import datatype_of
from .hooks import HookFailed, Hooks, load_hooks

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def try_hooks(
    path: Path, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()
) -> list[Fault]:
    """What is wrong with a hooks file, as far as it shows without the model. For `tf2aif check`.

    `decode` and `preprocess` are tried with the file's own `example`, `postprocess` and `encode`
    with zeros of the model's outputs, where these are known.
    """
    try:
        hooks = load_hooks(path)
    except Tf2aifError as error:
        return list(error.faults)
    faults = []
    for attempt, specs in ((_try_inputs, inputs), (_try_outputs, outputs)):
        try:
            attempt(hooks, specs)
        except HookFailed as error:
            faults.append(Fault(str(error), at=str(path), hint="the same would fail a request"))
    return faults


def through_hooks(hooks: Hooks, run: Run) -> Run:
    """`run` as `POST /predict` runs it: `preprocess` before it, `postprocess` after it.

    The check step measures accuracy through this. Where `postprocess` gives arrays by output name,
    these are the outputs that are scored; otherwise the model's own are, and `postprocess` and
    `encode` are run all the same, so that a hook that fails on real data fails the check. Samples
    are what `decode` gives. The function raises HookFailed.
    """

    def run_through(feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = run(hooks.prepare(dict(feeds)))
        result = hooks.result_of(outputs)
        hooks.answer_of(outputs)
        if _is_outputs(result):
            return {**outputs, **result}
        return outputs

    return run_through


def _try_inputs(hooks: Hooks, inputs: tuple[TensorSpec, ...]) -> None:
    if hooks.example is None:
        return
    body, content_type = hooks.payload()
    made = hooks.inputs_of(body, content_type, tuple(spec.name for spec in inputs))
    for spec in inputs:
        if spec.name not in made:
            raise HookFailed(f"the hooks give no input '{spec.name}' of the example")
        if not _fits(made[spec.name], spec):
            given = made[spec.name]
            raise HookFailed(
                f"input '{spec.name}' takes {datatype_of(spec.dtype)} {list(spec.shape)}; "
                f"of the example the hooks make {given.dtype} {list(given.shape)}"
            )


def _try_outputs(hooks: Hooks, outputs: tuple[TensorSpec, ...]) -> None:
    if not outputs:
        return
    zeros = {
        spec.name: np.zeros([each or 1 for each in spec.shape], spec.dtype) for spec in outputs
    }
    hooks.answer_of(zeros)


def _fits(array: Array, spec: TensorSpec) -> bool:
    """Axis 0 is not compared: it is the batch, of any length."""
    if array.ndim != len(spec.shape) or array.dtype != np.dtype(spec.dtype):
        return False
    return all(
        wanted in (None, given)
        for wanted, given in zip(spec.shape[1:], array.shape[1:], strict=True)
    )


def _is_outputs(result: object) -> bool:
    return isinstance(result, dict) and all(
        isinstance(each, np.ndarray) for each in result.values()
    )
