"""What recipes and targets say of one another: names, options, choices. No file is opened.

A name is looked up where it is used: targets, precisions, steps, engines, their options.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, get_type_hints

import msgspec

from ..engines import ENGINES, engine_module
from ..errors import Fault, FilesError
from ..sources import Source, plan_sources
from ..steps import STEPS, step_module
from .document import Document, Key
from .load import Files, LoadedRecipe, LoadedTarget, overridden, pipeline
from .recipe import Calibration, Data, TargetOverride
from .target import StepUse, Target

PLANNED = frozenset(
    (
        *("model", "import", "calibration", "evaluation", "reference"),
        *("check", "gate", "latency"),
        *("image-lock", "image-base", "image-packages", "image-app", "image-model"),
    )
)
"""Steps that the planner adds by itself: no pipeline names them."""

Samples = tuple[str, Key, str | Data]
"""What a sample set is for, where it stands, and what stands there."""


def reference_faults(files: Files) -> list[Fault]:
    """Everything that does not fit between the recipes and targets of a project."""
    used = {name for one in files.recipes for name in wanted_targets(one)}
    faults = [
        fault
        for name, target in files.targets.items()
        if name in used or not target.packaged
        for fault in target_faults(target)
    ]
    for recipe in files.recipes:
        faults += recipe_faults(recipe, files)
    return faults


def wanted_targets(loaded: LoadedRecipe) -> dict[str, TargetOverride]:
    """The targets that a recipe asks for, by name, with what it changes in them."""
    wanted = loaded.recipe.targets
    if isinstance(wanted, list):
        return {name: TargetOverride() for name in wanted}
    return {name: override or TargetOverride() for name, override in wanted.items()}


# Targets.


def target_faults(loaded: LoadedTarget) -> Iterator[Fault]:
    """Unknown engines and steps, and options that these do not have."""
    engine = loaded.target.engine
    yield from _engine_faults(engine.name, engine.options, loaded.document, ("engine",))
    if emulation := loaded.target.emulation:
        yield from _engine_faults(
            emulation.name, emulation.options, loaded.document, ("emulation",)
        )
    for precision in loaded.target.precisions:
        for index, use in enumerate(pipeline(loaded.target, precision)):
            key: Key = ("precisions", precision, index)
            if use.step not in STEPS or use.step in PLANNED:
                known = [name for name in STEPS if name not in PLANNED]
                yield _unknown("step", use.step, known, loaded.document.at((*key, "step")))
            else:
                yield from _option_faults(use, loaded.document, key)


def _engine_faults(
    name: str, options: Mapping[str, Any], document: Document, key: Key
) -> Iterator[Fault]:
    if name not in ENGINES:
        yield _unknown("engine", name, ENGINES, document.at((*key, "name")))
    elif options:  # the engine's module imports numpy: not for nothing
        yield from _engine_option_faults(name, options, document, (*key, "options"))


def _engine_option_faults(
    name: str, options: Mapping[str, Any], document: Document, key: Key
) -> Iterator[Fault]:
    module = engine_module(name)
    parameters = inspect.signature(module.load).parameters.values()
    known = {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY}
    for option, value in options.items():
        at = document.at((*key, option))
        if option not in known:
            yield _unknown("option", option, list(known), at, f"engine {name}")
            continue
        holder = SimpleNamespace(__annotations__={option: known[option]})
        kind = get_type_hints(holder, vars(module))[option]
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            yield Fault(f"option '{option}' of engine {name}: {error}", at)


def _option_faults(use: StepUse, document: Document, key: Key) -> list[Fault]:
    """What is wrong with the options of a step whose name is known."""
    options = step_module(use.step).Options
    try:
        msgspec.convert(use.options, options)
    except msgspec.ValidationError as error:
        from .words import word_faults

        return word_faults(document, options, str(error), use.options, key)
    return []


def _unknown(what: str, name: str, known: Iterable[str], at: str, of: str = "") -> Fault:
    from .words import nearest

    return Fault(f"unknown {what} '{name}'{of and ' of ' + of}", at, nearest(name, known))


# Recipes.


def recipe_faults(loaded: LoadedRecipe, files: Files) -> Iterator[Fault]:
    """Everything in a recipe that does not fit in itself or with the targets."""
    yield from _model_faults(loaded)
    for what, key, data in sample_sets(loaded):
        yield from _data_faults(loaded, what, key, data)
    yield from _wanted_faults(loaded, files)
    known = {n: o for n, o in wanted_targets(loaded).items() if n in files.targets}
    for name, override in known.items():
        yield from _override_faults(loaded, name, files.targets[name].target, override)
    yield from _variant_name_faults(loaded, files, known)
    if len(known) == len(wanted_targets(loaded)):  # else what the others have is not known
        yield from _gate_faults(loaded, files)


def _model_faults(loaded: LoadedRecipe) -> Iterator[Fault]:
    model = loaded.recipe.model
    if (model.path is None) == (model.function is None):
        found = "it has neither" if model.path is None else "it has both"
        hint = "path: a SavedModel folder, .keras or .h5; function: file.py:function"
        message = f"a model is one of path or function: {found}"
        yield Fault(message, loaded.at("model"), hint)
    elif model.function is None:
        for name in ("arguments", "files"):
            if getattr(model, name):
                message = f"'{name}' has no meaning without a function"
                yield Fault(message, loaded.at("model", name))


def sample_sets(loaded: LoadedRecipe) -> Iterator[Samples]:
    """Every sample set that a recipe names."""
    recipe = loaded.recipe
    if isinstance(recipe.calibration, Calibration):
        yield "calibration", ("calibration", "data"), recipe.calibration.data
    for name, override in wanted_targets(loaded).items():
        if isinstance(override.calibration, Calibration):
            key: Key = ("targets", name, "calibration", "data")
            yield "calibration", key, override.calibration.data
    if recipe.evaluation is not None:
        yield "evaluation", ("evaluation", "data"), recipe.evaluation.data
        if recipe.evaluation.labels is not None:
            yield "labels", ("evaluation", "labels"), recipe.evaluation.labels


def planned(data: str | Data) -> tuple[dict[str, Source], dict[str, str]]:
    """`plan_sources`, or nothing where `reference_faults` says why not."""
    try:
        return plan_sources(data)
    except FilesError:
        return {}, {}


def _data_faults(loaded: LoadedRecipe, what: str, key: Key, data: str | Data) -> Iterator[Fault]:
    at = loaded.at(*key)
    try:
        sources, _ = plan_sources(data)
    except FilesError as error:
        for fault in error.faults:
            message = f"{fault.message}: '{fault.at}'" if fault.at else fault.message
            yield Fault(message, at, fault.hint)
        return
    formats = {source.format for source in sources.values()}
    if "random" in formats:
        hint = "write `calibration: random`, so that every variant made with it says so"
        yield Fault("samples cannot be random here", at, hint if what == "calibration" else "")
    if what == "labels":
        if "" not in sources:
            yield Fault("labels are one array, not one for each input", at)
    elif "text" in formats:
        yield Fault("a text file holds labels, not samples", at)


def _wanted_faults(loaded: LoadedRecipe, files: Files) -> Iterator[Fault]:
    wanted = loaded.recipe.targets
    for index, name in enumerate(wanted):
        at = loaded.at("targets", index if isinstance(wanted, list) else name)
        if name not in files.targets and name not in files.broken:
            yield _unknown("target", name, files.targets, at)
        if isinstance(wanted, list) and name in wanted[:index]:
            yield Fault(f"target '{name}' is there twice", at)


def _override_faults(
    loaded: LoadedRecipe, name: str, target: Target, override: TargetOverride
) -> Iterator[Fault]:
    chosen = wanted_precisions(target, override)
    written = override.precisions or []
    for index, precision in enumerate(written):
        at = loaded.at("targets", name, "precisions", index)
        if precision not in target.precisions:
            yield _unknown("precision", precision, target.precisions, at, f"target {name}")
        if precision in written[:index]:
            yield Fault(f"precision '{precision}' is there twice", at)
    uses = [use for precision in chosen or target.precisions for use in pipeline(target, precision)]
    yield from _override_option_faults(loaded, name, uses, override)
    if target.engine.name in ENGINES:
        key: Key = ("targets", name, "engine")
        yield from _engine_option_faults(target.engine.name, override.engine, loaded.document, key)
    if (override.calibration or loaded.recipe.calibration) is None:
        needy = [
            precision
            for precision in chosen
            if any(
                needs_calibration(overridden(use, override)) for use in pipeline(target, precision)
            )
        ]
        if needy:
            yield _no_calibration(loaded, name, needy)


def _override_option_faults(
    loaded: LoadedRecipe, name: str, uses: Sequence[StepUse], override: TargetOverride
) -> Iterator[Fault]:
    faults: dict[Fault, None] = {}  # a step of several precisions says the same of each
    for step in override.options:
        key: Key = ("targets", name, "options", step)
        same = [use for use in uses if use.step == step]
        if not same:
            steps = dict.fromkeys(use.step for use in uses)
            yield _unknown("step", step, steps, loaded.at(*key), f"target {name}")
        for use in same if step in STEPS and step not in PLANNED else []:
            if not _option_faults(use, loaded.document, key):  # else the target's own fault
                changed = overridden(use, override)
                faults |= dict.fromkeys(_option_faults(changed, loaded.document, key))
    yield from faults


def wanted_precisions(target: Target, override: TargetOverride) -> list[str]:
    """The precisions that a recipe wants of a target, those that there are."""
    return [p for p in override.precisions or target.precisions if p in target.precisions]


def needs_calibration(use: StepUse) -> bool:
    """Whether a step, with these options, reads a calibration set."""
    if use.step not in STEPS or use.step in PLANNED:
        return False
    module = step_module(use.step)
    if not hasattr(module, "inputs"):
        return "calibration" in module.INPUTS
    try:
        return "calibration" in module.inputs(use.options)
    except msgspec.ValidationError:  # the options are wrong, and said to be
        return False


def _no_calibration(loaded: LoadedRecipe, target: str, precisions: Sequence[str]) -> Fault:
    variants = ", ".join(f"{target}-{precision}" for precision in precisions)
    wanted = loaded.recipe.targets
    place = wanted.index(target) if isinstance(wanted, list) else target
    need = "needs" if len(precisions) == 1 else "need"
    return Fault(
        f"{variants} {need} a calibration set, and the recipe names none",
        loaded.at("targets", place),
        "add `calibration: {data: FILE, samples: 200}`, "
        "or `calibration: random` for an untrained model",
    )


def _variant_name_faults(
    loaded: LoadedRecipe, files: Files, known: Mapping[str, TargetOverride]
) -> Iterator[Fault]:
    """`cpu` at `x-int8` and `cpu-x` at `int8` would be one variant's name."""
    owners: dict[str, str] = {}
    for name, override in known.items():
        for precision in wanted_precisions(files.targets[name].target, override):
            variant = f"{name}-{precision}"
            if owners.setdefault(variant, name) != name:
                message = f"'{variant}' is a variant of target {owners[variant]} and of {name}"
                yield Fault(message, loaded.at("targets"), "rename one of the precisions")


def _gate_faults(loaded: LoadedRecipe, files: Files) -> Iterator[Fault]:
    """Names in the gate that the recipe's targets do not have, those that it misspells included."""
    gate = loaded.recipe.gate
    wanted = wanted_targets(loaded)
    pairs = [
        (name, precision)
        for name, override in wanted.items()
        for precision in override.precisions or _precisions(files, name)
    ]
    precisions = dict.fromkeys(precision for _, precision in pairs)
    for name in gate.precisions:
        if name not in precisions:
            yield _unknown("precision", name, precisions, loaded.at("gate", "precisions", name))
    names = dict.fromkeys([*wanted, *(f"{name}-{precision}" for name, precision in pairs)])
    for name in gate.targets:
        if name not in names:
            yield _unknown("target or variant", name, names, loaded.at("gate", "targets", name))


def _precisions(files: Files, target: str) -> list[str]:
    return list(files.targets[target].target.precisions) if target in files.targets else []
