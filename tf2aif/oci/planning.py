"""Which steps make a variant's image: pure, from a recipe, a target and what `find_inputs` found.

Nothing heavy is imported here: a build with nothing to do comes through.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..engines import engine_module
from ..errors import Fault, FilesError
from ..facts import key
from ..spec.recipe import Recipe
from ..spec.service import hook_files
from ..spec.target import Container, Target
from .shipped import REQUIREMENTS, SERVER, shipped_files

Add = Callable[..., str]  # _Planner._add: the id of the step that is this, made now if need be
PACKAGED_LOCKS = Path(__file__).resolve().parent.parent / "data" / "locks"
LOCKS = "locks"  # the project's own, which override the packaged ones
SUITE, PYTHON = "bookworm", "3.11"  # of the Debian base
_REVISION = re.compile(r"[A-Za-z0-9._+/:-]{0,200}")
OTHER_BASE = "name another base: oci:FOLDER, registry:NAME@DIGEST or dockerfile:FILE"


class ImageInputs(Struct, frozen=True, kw_only=True):
    """What the images of a build are made from, beside recipes and targets."""

    project: str
    epoch: int = 0
    revision: str = ""  # what images say instead of the digest of what they were asked to be
    locks: dict[str, str] = {}  # file name -> path
    sources: dict[str, str] = {}  # path in the image -> path of our own code


class ImagePlan(Struct, frozen=True, kw_only=True):
    """The steps of a variant's image, from the bottom up, and what it is called by."""

    base: str
    packages: str
    app: str
    model: str
    platform: str
    revision: str
    description: str = ""
    epoch: int = 0
    builder: str = "tf2aif"

    @property
    def steps(self) -> tuple[str, ...]:
        """All of them."""
        return (self.base, self.packages, self.app, self.model)


class ImageOf(Struct, frozen=True, kw_only=True):
    """The variant that an image is of, as far as its steps are planned."""

    recipe_name: str
    folder: str
    recipe: Recipe
    target_name: str
    target: Target
    precision: str
    platform: str  # see `image_platform`
    engine_options: dict[str, Any]
    artifact: str
    check: str
    checked_by: str = ""  # the engine that the check ran, where it stands in for the device's

    @property
    def variant(self) -> str:
        """As people write it: `cpu-int8`."""
        return f"{self.target_name}-{self.precision}"


def find_inputs(project: Path, environ: Mapping[str, str] | None = None) -> ImageInputs:
    """Look for locks and our own sources. `SOURCE_DATE_EPOCH` is the time of every file, and
    `TF2AIF_REVISION` what images give as their revision. Raises FilesError.
    """
    variables = os.environ if environ is None else environ
    text, revision = variables.get("SOURCE_DATE_EPOCH", "0"), variables.get("TF2AIF_REVISION", "")
    if not text.isdigit():
        hint = "whole seconds since 1970"
        raise FilesError([Fault(f"SOURCE_DATE_EPOCH is {text!r}", "the environment", hint)])
    if not _REVISION.fullmatch(revision):
        hint = "such as a commit: letters, digits, and . _ + / : -"
        raise FilesError([Fault(f"TF2AIF_REVISION is {revision!r}", "the environment", hint)])
    locks: dict[str, str] = {}
    for folder in (PACKAGED_LOCKS, project / LOCKS):
        if folder.is_dir():
            locks |= {path.name: str(path) for path in sorted(folder.iterdir())}
    sources = {name: str(path) for name, path in shipped_files(SERVER).items()}
    return ImageInputs(
        project=str(project), epoch=int(text), revision=revision, locks=locks, sources=sources
    )


def plan_image(of: ImageOf, inputs: ImageInputs, add: Add, options: Mapping[str, Any]) -> ImagePlan:
    """Plan the steps of one variant's image.

    `options` are those of all steps that make and check the artifact: the image's revision is
    their digest. Raises FilesError for a Debian base that there is not.
    """
    hooks, hook = hook_files(of.recipe.service, of.folder)
    return ImagePlan(
        base=_base(of, inputs, add),
        packages=_packages(of, inputs, add),
        app=_app(of, inputs, add, hooks),
        model=_model(of, inputs, add, hook),
        platform=of.platform,
        revision=inputs.revision or key({"options": options, "hooks": sorted(hooks)}),
        description=of.recipe.description,
        epoch=inputs.epoch,
        builder=of.recipe.builder or of.target.builder,
    )


def image_platform(target: Target, here: str) -> str:
    """The platform of a target's images: its own, or that of this machine, `here`.

    An engine that is its own emulation is a simulation, compiled for the machine that built it; a
    board's processor cannot run that.
    """
    return here if target.runs_emulated else target.platform


def requirements(target: Target, recipe: Recipe | None = None) -> tuple[str, ...]:
    """What a server of that target needs, and the recipe's hooks: sorted, each once."""
    wanted = {*engine_module(target.engine.name).REQUIREMENTS, *REQUIREMENTS}
    return tuple(sorted(wanted | set(recipe.service.requirements if recipe else ())))


def packages_lock(engine: str, platform: str, python: str, recipe: str = "") -> str:
    """The name of a lock of Python packages; with a recipe's name, that of its own.

    >>> packages_lock("litert", "linux/arm64", "3.11")
    'litert-linux-arm64-py3.11.txt'
    """
    own = f"{recipe}-" if recipe else ""
    return f"{own}{engine}-{platform.replace('/', '-')}-py{python}.txt"


def debian_lock(platform: str) -> str:
    """The name of the lock of a Debian base.

    >>> debian_lock("linux/amd64")
    'debian-bookworm-amd64.json'
    """
    return f"debian-{SUITE}-{platform.partition('/')[2].replace('/', '')}.json"


def _base(of: ImageOf, inputs: ImageInputs, add: Add) -> str:
    base, files = of.target.base, dict[str, str]()
    kind, _, name = base.partition(":")
    lock = debian_lock(of.platform)
    if lock in inputs.locks and (base == "debian" or of.target.python == PYTHON):
        files = {"lock": inputs.locks[lock]}  # of other bases: to bring Python where it lacks
    elif base == "debian":
        message = f"there is no Debian base for {of.platform}"
        raise FilesError([Fault(message, f"targets/{of.target_name}.yaml: base", OTHER_BASE)])
    if kind == "oci" and name:
        base, files = "oci", {**files, "layout": _path(inputs, name)}
    elif kind == "dockerfile" and name:
        path = _path(inputs, name)
        base = f"dockerfile:{os.path.basename(path)}"
        files = {**files, "context": os.path.dirname(path)}
    options = {"base": base, "platform": of.platform, "python": of.target.python}
    return add(
        f"image-base-{of.target_name}",
        "image-base",
        options={**options, "epoch": inputs.epoch},
        files=files,
        limits=of.target.limits,
    )


def _packages(of: ImageOf, inputs: ImageInputs, add: Add) -> str:
    target, engine = of.target, of.target.engine.name
    machine = {"platform": of.platform, "python": target.python}
    names = [packages_lock(engine, **machine)]
    if of.recipe.service.requirements:
        names.insert(0, packages_lock(engine, **machine, recipe=of.recipe_name))
    found = [inputs.locks[name] for name in names if name in inputs.locks]
    lock = add(
        f"image-lock-{of.target_name}",
        "image-lock",
        options={"requirements": list(requirements(target, of.recipe)), **machine},
        files={"lock": found[0]} if found else {},
        limits=target.limits,
    )
    return add(
        f"image-packages-{of.target_name}",
        "image-packages",
        options={**machine, "epoch": inputs.epoch},
        inputs={"lock": lock},
        limits=target.limits,
    )


def _app(of: ImageOf, inputs: ImageInputs, add: Add, hooks: Mapping[str, str]) -> str:
    files = {f"source/{name}": path for name, path in inputs.sources.items()}
    return add(
        f"image-app-{of.target.python}",
        "image-app",
        options={"python": of.target.python, "epoch": inputs.epoch},
        files={**files, **{f"hook/{name}": path for name, path in hooks.items()}},
    )


def _model(of: ImageOf, inputs: ImageInputs, add: Add, hook: str | None) -> str:
    return add(
        f"image-model-{of.variant}",
        "image-model",
        options={
            "recipe": of.recipe_name,
            "variant": of.variant,
            "target": of.target_name,
            "precision": of.precision,
            "platform": of.platform,
            "engine": {"name": of.target.engine.name, "options": of.engine_options},
            "batch": of.recipe.model.batch,
            "hooks": f"hooks/{hook}" if hook else None,
            "labels": of.target.labels,
            "epoch": inputs.epoch,
            **_particular(of),
        },
        inputs={"artifact": of.artifact, "check": of.check},
        limits=of.target.limits,
    )


def _particular(of: ImageOf) -> dict[str, Any]:
    """What is said of few variants only: the options of all others stay as they are."""
    usual = msgspec.to_builtins(Container())
    asked = msgspec.to_builtins(of.target.container)
    found = {
        "checked_by": of.checked_by,
        "container": {name: value for name, value in asked.items() if value != usual[name]},
        "emulates": of.target_name if of.target.runs_emulated else None,
    }
    return {name: value for name, value in found.items() if value}


def _path(inputs: ImageInputs, name: str) -> str:
    return os.path.normpath(os.path.join(inputs.project, name))
