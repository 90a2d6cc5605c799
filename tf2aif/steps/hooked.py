"""The service's hooks inside steps: accuracy is measured through the code that ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..errors import StepFailed

if TYPE_CHECKING:
    from ..engines import Array
    from ..serve.hooks import Hooks


def load_hooked(path: Path) -> Hooks:
    """The hooks of a file, loaded so that all that they read is observed."""
    from ..serve.hooks import hooks_from
    from ..usercode import load_module

    return hooks_from(vars(load_module(path)), str(path))


def prepare(hooks: Hooks, batch: dict[str, Array], at: Path) -> dict[str, Array]:
    """One batch of samples, as `decode` gives them, through `preprocess`. Raises StepFailed."""
    from ..serve.hooks import HookFailed

    try:
        return hooks.prepare(batch)
    except HookFailed as error:
        raise StepFailed(str(error), at=str(at)) from error


def finish(hooks: Hooks, outputs: dict[str, Array], at: Path) -> dict[str, Array]:
    """A model's outputs through `postprocess` and `encode`.

    Where `postprocess` gives arrays by output name these are what is scored; else the model's own
    are, and the hooks have been tried on real data. Raises StepFailed.
    """
    from ..serve.hook_check import through_hooks
    from ..serve.hooks import HookFailed

    behind = msgspec.structs.replace(hooks, decode=None, preprocess=None)
    try:
        return through_hooks(behind, lambda _: outputs)({})
    except HookFailed as error:
        raise StepFailed(str(error), at=str(at)) from error
