"""Checking recipes and targets: everything that can be known without running anything.

All faults of all files at once: what is wrong in them, what does not fit between them, and the
files, functions, headers and shapes that they name. TensorFlow is never loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import Fault, FilesError
from ..oci.base_check import base_faults
from .check_model import check_model
from .document import read
from .files import missing_file, resolve
from .load import (
    INIT,
    Files,
    LoadedRecipe,
    duplicate_names,
    load_recipe,
    load_target,
    named_files,
    read_files,
    shown,
    yaml_below,
)
from .python_source import bound_names, parse, source_faults
from .recipe import Recipe
from .references import reference_faults
from .target import Target
from .words import nearest, nearest_or_none

HOOKS = ("decode", "preprocess", "postprocess", "encode", "example")


def check(paths: Sequence[Path], project: Path) -> list[Fault]:
    """All faults of recipe and target files, or of folders of them, in the order of their lines.

    Without paths: of `recipes/`, `targets/` and `tf2aif.yaml` in the project. What a file is, a
    recipe or a target, is seen in its keys. Hooks are tried, each recipe's in a process of its
    own, where nothing else is wrong.
    """
    given = list(paths) or [project / name for name in ("recipes", "targets")]
    there = [path for path in given if paths or path.is_dir()]
    if not there:
        return [Fault("no recipes/ and no targets/ in this folder", hint=INIT)]
    files, faults = read_files([], project)  # the targets that the project has
    recipes: list[LoadedRecipe] = []
    targets = dict(files.targets)
    for path in _yaml_files(there, project, faults):
        try:
            if _is_target(path, project):
                targets[path.stem] = load_target(path, shown(path, project))
            else:
                recipes.append(load_recipe(path, shown(path, project)))
        except FilesError as error:
            faults += error.faults
    faults += duplicate_names(recipes)
    named = named_files(there)
    for loaded in recipes:
        if loaded.path.resolve() in named:
            faults += loaded.need_faults()
    faults += check_files(Files(tuple(recipes), targets, files.broken))
    if not paths:
        faults += _settings_faults(project)
    for target in targets.values():
        if not target.packaged:
            faults += base_faults(target.target, project, target.document.at(("base",)))
    if not faults:
        from ..hook_trial import try_hooks

        faults += try_hooks([one for one in recipes if not one.lacking()])
    return in_order(faults)


def check_files(files: Files) -> list[Fault]:
    """All faults between files that could be read, and of what they name."""
    faults = reference_faults(files)
    for loaded in files.recipes:
        if not loaded.lacking():  # it is left out, or what it needs is a fault already
            faults += recipe_file_faults(loaded)
    return in_order(faults)


def recipe_file_faults(loaded: LoadedRecipe) -> Iterator[Fault]:
    """What is wrong with the files that a recipe names: model, samples, code."""
    from .check_samples import sample_faults  # imports numpy's readers and PIL's names

    known, faults = check_model(loaded)
    yield from faults
    yield from sample_faults(loaded, known)
    yield from _metric_faults(loaded)
    yield from _service_faults(loaded)


def _settings_faults(project: Path) -> tuple[Fault, ...]:
    """What is wrong with the project's own settings."""
    from .config import load_config

    try:
        load_config(project)
    except FilesError as error:
        return error.faults
    return ()


def in_order(faults: Iterable[Fault]) -> list[Fault]:
    """Faults by file and line, each once."""

    def place(fault: Fault) -> tuple[str, int]:
        found = re.match(r"(.*?):(\d+)(?:: |$)", fault.at)
        return (found[1], int(found[2])) if found else (fault.at, 0)

    return sorted(dict.fromkeys(faults), key=place)


def _yaml_files(paths: Iterable[Path], project: Path, faults: list[Fault]) -> Iterator[Path]:
    """The files given, each once, without those in the project's `targets/`: they were read."""
    seen: set[Path] = set()
    for path in paths:
        below = sorted(yaml_below(path)) if path.is_dir() else [path]
        if not below:
            faults.append(Fault("no recipe and no target in this folder", shown(path, project)))
        for one in below:
            real = one.resolve()
            if real not in seen and real.parent != (project / "targets").resolve():
                yield one
            seen.add(real)


def _is_target(path: Path, project: Path) -> bool:
    """Whether a file's keys are rather a target's than a recipe's. Raises FilesError."""
    keys = set(read(path, shown(path, project)).value)
    return len(keys & set(Target.__struct_fields__)) > len(keys & set(Recipe.__struct_fields__))


def _metric_faults(loaded: LoadedRecipe) -> list[Fault]:
    evaluation = loaded.recipe.evaluation
    if evaluation is None or ":" not in evaluation.metric:
        return []
    written, _, function = evaluation.metric.rpartition(":")
    at = loaded.at("evaluation", "metric")
    missing = missing_file(loaded, written, at)
    return missing or source_faults(resolve(loaded, written), function, at)


def _service_faults(loaded: LoadedRecipe) -> Iterator[Fault]:
    service = loaded.recipe.service
    for index, written in enumerate(service.files):
        yield from missing_file(loaded, written, loaded.at("service", "files", index))
    if service.hooks is None:
        return
    at = loaded.at("service", "hooks")
    missing = missing_file(loaded, service.hooks, at)
    yield from missing or _hook_faults(resolve(loaded, service.hooks), at)


def _hook_faults(path: Path, at: str) -> Iterator[Fault]:
    tree = parse(path, at)
    if isinstance(tree, Fault):
        yield tree
        return
    names = dict(bound_names(tree))
    if "*" in names or any(hook in names for hook in HOOKS):
        return
    close = next((n for n in names if nearest_or_none(n, HOOKS)), None)
    hint = nearest(close or "", HOOKS)
    yield Fault(f"{path.name} has none of the hooks at its top level", at, hint)
