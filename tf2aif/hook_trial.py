"""Trying the hooks of recipes, each in a worker of its own: a hook may do anything."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from .errors import Fault, StepFailed
from .spec.check_model import check_model, spec_of
from .spec.load import LoadedRecipe
from .worker import Request
from .workers import Workers

TIMEOUT_S = 60.0


def try_hooks(recipes: Sequence[LoadedRecipe]) -> Iterator[Fault]:
    """What is wrong with the hooks of these recipes, seen by calling each of them once."""
    hooked = [loaded for loaded in recipes if loaded.recipe.service.hooks]
    if hooked:
        with Workers() as workers, tempfile.TemporaryDirectory(prefix="tf2aif-check-") as scratch:
            for loaded in hooked:
                yield from _try(loaded, workers, Path(scratch))


def _try(loaded: LoadedRecipe, workers: Workers, scratch: Path) -> Iterator[Fault]:
    path = str((loaded.folder / str(loaded.recipe.service.hooks)).resolve())
    out = scratch / "out"
    out.mkdir(exist_ok=True)
    request = Request(
        step=f"{loaded.name}/hooks",
        kind="hook-trial",
        module="tf2aif.steps.hook_trial",
        toolchain="python",
        options=_signature(loaded),
        inputs={"hooks": path},
        out=str(out),
        folder=str(loaded.folder),
        code=path,
        environment=tuple(loaded.recipe.environment),
        seed=loaded.recipe.seed,
    )
    at = loaded.at("service", "hooks")
    try:
        outcome = workers.run(request, log=scratch / "hooks.log", timeout_s=TIMEOUT_S)
    except StepFailed as error:
        yield from (Fault(fault.message, at, fault.hint) for fault in error.faults)
        return
    for fault in msgspec.convert(outcome.result["faults"], list[dict[str, str]]):
        yield Fault(f"{loaded.recipe.service.hooks}: {fault['message']}", at, fault["hint"])


def _signature(loaded: LoadedRecipe) -> dict[str, list[object]]:
    """Inputs and outputs of the model with their batch axis, where its file says them."""
    known, _ = check_model(loaded)
    if known is None or not known.exact_names:
        return {}
    batch = () if loaded.recipe.model.batch == "none" else (None,)
    sides = {"inputs": known.inputs, "outputs": known.outputs}
    return {
        side: [
            msgspec.to_builtins(msgspec.structs.replace(spec, shape=(*batch, *spec.shape)))
            for tensor in tensors
            if (spec := spec_of(tensor)) is not None
        ]
        for side, tensors in sides.items()
    }
