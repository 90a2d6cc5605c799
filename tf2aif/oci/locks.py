"""Renew the locks: the present versions of Debian's packages and of Python's, for each target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from ..machine import this_platform
from ..spec.recipe import Recipe
from ..spec.target import Target
from . import debian
from .apt import lock_packages, write_lock
from .lockfile import Wanted, is_lock_of, resolve
from .planning import debian_lock, image_platform, packages_lock, requirements
from .shipped import CLIENT_PLATFORMS, CLIENT_REQUIREMENTS


class Renewed(Struct, frozen=True, kw_only=True):
    """A lock that was looked at."""

    path: str
    changed: bool


def renew(
    folder: Path,
    targets: Mapping[str, Target],
    recipes: Mapping[str, tuple[Recipe, tuple[str, ...]]],
    *,
    upgrade: bool = True,
) -> Iterator[Renewed]:
    """Write the locks of these targets, and of recipes whose hooks need packages, into a folder.

    `recipes` gives each recipe and the targets that it wants. Without `upgrade` what a lock names
    stays where it still fits, and Debian's locks stay as they are. Raises StepFailed,
    ToolchainMissing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = this_platform()
    own = {image_platform(t, here) for t in targets.values() if t.base == "debian"}
    for platform in sorted(own):
        path = folder / debian_lock(platform)
        if upgrade or not path.exists():
            yield _renew_debian(path, platform)
    for name, wanted in sorted(_wanted(targets, recipes)):
        yield _renew_packages(folder / name, wanted, upgrade=upgrade)


def _renew_debian(path: Path, platform: str) -> Renewed:
    before = path.read_bytes() if path.exists() else b""
    architecture = platform.partition("/")[2].replace("/", "")
    lock = lock_packages(debian.PACKAGES, debian.SUITE, architecture)
    write_lock(lock, path)
    return Renewed(path=str(path), changed=path.read_bytes() != before)


def _renew_packages(path: Path, wanted: Wanted, *, upgrade: bool) -> Renewed:
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if not upgrade and is_lock_of(before, wanted):
        return Renewed(path=str(path), changed=False)
    text = resolve(wanted, "" if upgrade else before)
    path.write_text(text, encoding="utf-8")
    return Renewed(path=str(path), changed=text != before)


def _wanted(
    targets: Mapping[str, Target], recipes: Mapping[str, tuple[Recipe, tuple[str, ...]]]
) -> Iterable[tuple[str, Wanted]]:
    """Each lock's name, and what it is resolved from; each once."""
    found: dict[str, Wanted] = {}
    for target in targets.values():
        found[_name(target)] = _resolved_from(target)
    for name, (recipe, wants) in recipes.items():
        for target in (targets[each] for each in wants if each in targets):
            if recipe.service.requirements:
                found[_name(target, name)] = _resolved_from(target, recipe)
    for platform in CLIENT_PLATFORMS:
        found[packages_lock("client", platform, debian.PYTHON)] = Wanted(
            requirements=CLIENT_REQUIREMENTS, platform=platform, python=debian.PYTHON
        )
    return found.items()


def _name(target: Target, recipe: str = "") -> str:
    platform = image_platform(target, this_platform())
    return packages_lock(target.engine.name, platform, target.python, recipe)


def _resolved_from(target: Target, recipe: Recipe | None = None) -> Wanted:
    return Wanted(
        requirements=requirements(target, recipe),
        platform=image_platform(target, this_platform()),
        python=target.python,
    )
