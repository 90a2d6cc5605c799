"""Reading recipes and targets: YAML in, frozen values out, all faults of all files at once.

The good path converts with msgspec and nothing else; `jsonschema` is imported only to word what
is wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

import tf2aif

from ..errors import Fault, FilesError
from .document import Document, Key, read
from .recipe import NAME, Recipe, TargetOverride
from .target import StepUse, Target

ENDINGS = (".yaml", ".yml")
INIT = "`tf2aif init MODEL` writes a recipe for a model"
PUT_THERE = "put it there, or build the folder: recipes that lack something are left out of that"

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class LoadedRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe and where it stands. Its paths are relative to `folder`."""

    name: str
    path: Path
    folder: Path
    recipe: Recipe
    document: Document

    def at(self, *key: str | int) -> str:
        """Where a key stands, as faults say it: `recipes/kws.yaml:3: model.path`."""
        return self.document.at(key)

    def resolve(self, written: str) -> Path:
        """A path as the recipe writes it: from the recipe's own folder."""
        return Path(os.path.normpath(self.folder / Path(written).expanduser()))

    def lacking(self) -> tuple[str, ...]:
        """What the recipe needs and is not there, as it is written."""
        return tuple(one for one in self.recipe.needs if not self.resolve(one).exists())

    def need_faults(self) -> Iterator[Fault]:
        """A fault for each thing that the recipe needs and is not there."""
        for index, written in enumerate(self.recipe.needs):
            if not self.resolve(written).exists():
                what = f"recipe '{self.name}' needs '{written}', which is not there"
                yield Fault(what, self.at("needs", index), PUT_THERE)


class LoadedTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A target and where it stands."""

    name: str
    path: Path
    target: Target
    document: Document
    packaged: bool = False

    def at(self, *key: str | int) -> str:
        """Where a key stands, as faults say it: `targets/alveo.yaml:3: engine.name`."""
        return self.document.at(key)


class Project(msgspec.Struct, frozen=True):
    """What a build works on: the recipes asked for, and every target there is, by name."""

    recipes: tuple[LoadedRecipe, ...]
    targets: dict[str, Target]
    left_out: tuple[LoadedRecipe, ...] = ()
    """Recipes of a folder that need what is not there."""


def load_project(recipe_paths: Sequence[Path], project: Path) -> Project:
    """Read recipes (files, or folders of them) and all targets.

    `project` is the folder whose `targets/` adds to and overrides the packaged ones. Raises
    FilesError with all faults of all files, and of what does not fit between them; what they name
    outside (models, samples, code) is `tf2aif.spec.check`'s to look at.
    """
    from .references import reference_faults  # it rests on this module

    files, faults = read_files(recipe_paths, project)
    faults += reference_faults(files)
    if faults:
        raise FilesError(faults)
    targets = {one.name: one.target for one in files.targets.values()}
    return Project(files.recipes, targets, files.left_out)


class Files(msgspec.Struct, frozen=True):
    """All that could be read, beside the faults of what could not."""

    recipes: tuple[LoadedRecipe, ...]
    targets: dict[str, LoadedTarget]
    broken: frozenset[str] = frozenset()
    """Names of targets whose files are wrong: a recipe that asks for them is not."""
    left_out: tuple[LoadedRecipe, ...] = ()


def read_files(recipe_paths: Sequence[Path], project: Path) -> tuple[Files, list[Fault]]:
    """Read recipes and targets; what cannot be read becomes faults."""
    faults: list[Fault] = []
    targets, broken = _read_targets(project, faults)
    recipes, left_out = [], []
    named = named_files(recipe_paths)
    for path in _recipe_files(recipe_paths, project, faults):
        try:
            loaded = load_recipe(path, shown(path, project))
        except FilesError as error:
            faults += error.faults
            continue
        if loaded.lacking() and path.resolve() not in named:
            left_out.append(loaded)
            continue
        recipes.append(loaded)
        faults += loaded.need_faults()
    files = Files(tuple(recipes), targets, frozenset(broken), tuple(left_out))
    faults += duplicate_names(files.recipes)
    return files, faults


def named_files(paths: Iterable[Path]) -> frozenset[Path]:
    """Of these paths the files: who names a recipe wants it, and not only what can be built."""
    return frozenset(path.resolve() for path in paths if path.is_file())


def load_recipe(path: Path, shown_as: str | None = None) -> LoadedRecipe:
    """Read one recipe. Raises FilesError with all its faults."""
    document = read(path, shown_as)
    recipe = convert(document, Recipe)
    name = recipe.name or _check_stem(path, document.shown, "set `name:` in it")
    return LoadedRecipe(name=name, path=path, folder=path.parent, recipe=recipe, document=document)


def load_target(path: Path, shown_as: str | None = None, *, packaged: bool = False) -> LoadedTarget:
    """Read one target; its name is the file's without its ending. Raises FilesError."""
    document = read(path, shown_as)
    name = _check_stem(path, document.shown, "rename it")
    target = convert(document, Target)
    return LoadedTarget(name=name, path=path, target=target, document=document, packaged=packaged)


def load_targets(project: Path) -> dict[str, Target]:
    """Every target by name: the packaged ones, added to and overridden by `project/targets/`.

    Raises FilesError with all faults of all files.
    """
    faults: list[Fault] = []
    targets, _ = _read_targets(project, faults)
    if faults:
        raise FilesError(faults)
    return {name: one.target for name, one in targets.items()}


def pipeline(target: Target, precision: str) -> tuple[StepUse, ...]:
    """The steps that make one precision of a target, in order, with their options.

    >>> cpu = load_targets(Path("."))["cpu"]
    >>> pipeline(cpu, "fp16")
    (StepUse(step='tflite', options={'precision': 'fp16'}),)
    """
    return tuple(
        StepUse(step=use["step"], options={k: v for k, v in use.items() if k != "step"})
        for use in target.precisions[precision]
    )


def overridden(use: StepUse, override: TargetOverride) -> StepUse:
    """A step of a pipeline with the recipe's own options over the target's."""
    return StepUse(step=use.step, options={**use.options, **override.options.get(use.step, {})})


def packaged_targets() -> Path:
    """The folder of the targets that come with tf2aif: in a wheel, or in a checkout."""
    package = Path(tf2aif.__file__).parent
    installed = package / "data" / "targets"
    return installed if installed.is_dir() else package.parent / "targets"


def shown(path: Path, project: Path) -> str:
    """A path as faults name it: from the project's folder, where it is below it."""
    if path.is_relative_to(project):
        return str(path.relative_to(project))
    return str(path)


def convert(document: Document, struct: type[_Struct]) -> _Struct:
    """A document as a frozen value. Raises FilesError with all its faults."""
    try:
        value = msgspec.convert(document.value, struct)
    except msgspec.ValidationError as error:
        from .words import word_faults  # imports jsonschema

        raise FilesError(word_faults(document, struct, str(error))) from error
    faults = list(_step_faults(document, value)) if isinstance(value, Target) else []
    if faults:
        raise FilesError(faults)
    return value


def _step_faults(document: Document, target: Target) -> Iterator[Fault]:
    for precision, uses in target.precisions.items():
        for index, use in enumerate(uses):
            key: Key = ("precisions", precision, index)
            if "step" not in use:
                yield Fault("missing key 'step'", document.at(key), "each entry is `step: NAME`")
            elif not isinstance(use["step"], str):
                yield Fault("a step's name is text", document.at((*key, "step")))


def _read_targets(project: Path, faults: list[Fault]) -> tuple[dict[str, LoadedTarget], set[str]]:
    targets: dict[str, LoadedTarget] = {}
    broken: set[str] = set()
    packaged = packaged_targets().resolve()
    for folder in dict.fromkeys((packaged, (project / "targets").resolve())):
        seen: dict[str, Path] = {}
        for path in _yaml_files(folder):
            if path.stem in seen:
                hint = f"{seen[path.stem].name} says it too: keep one of them"
                faults.append(Fault(f"duplicate target '{path.stem}'", shown(path, project), hint))
                continue
            seen[path.stem] = path
            try:
                name = shown(path, project.resolve())
                targets[path.stem] = load_target(path, name, packaged=folder == packaged)
                broken.discard(path.stem)
            except FilesError as error:
                faults += error.faults
                broken.add(path.stem)
    return targets, broken


def _yaml_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(filter(_is_yaml, folder.iterdir()), key=lambda path: path.stem)


def _is_yaml(path: Path) -> bool:
    return path.suffix in ENDINGS and not path.name.startswith(".") and path.is_file()


def _recipe_files(paths: Iterable[Path], project: Path, faults: list[Fault]) -> list[Path]:
    """The files asked for, each once, in the order asked, folders sorted."""
    found: dict[Path, Path] = {}
    for path in paths:
        below = sorted(yaml_below(path)) if path.is_dir() else [path]
        if not below or not path.exists():
            what = "no recipe in this folder" if path.exists() else "no such file or folder"
            faults.append(Fault(what, shown(path, project), INIT))
            continue
        for one in below:
            found.setdefault(one.resolve(), one)
    return list(found.values())


def yaml_below(folder: Path) -> Iterator[Path]:
    """Every YAML file in a folder and its folders, hidden ones left out."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from yaml_below(path)
        elif _is_yaml(path):
            yield path


def _check_stem(path: Path, shown_as: str, hint: str) -> str:
    if not re.fullmatch(NAME, path.stem) or len(path.stem) > 63:
        message = f"'{path.stem}' cannot be a name: lower-case letters, digits, '.', '_' and '-'"
        raise FilesError([Fault(message, shown_as, hint)])
    return path.stem


def duplicate_names(recipes: Iterable[LoadedRecipe]) -> Iterator[Fault]:
    """A fault for each recipe whose name an earlier one has."""
    first: dict[str, LoadedRecipe] = {}
    for one in recipes:
        if one.name in first:
            hint = (
                f"{first[one.name].document.shown} has it too: set another `name:` in one of them"
            )
            yield Fault(f"duplicate recipe '{one.name}'", one.at("name"), hint)
        first.setdefault(one.name, one)
