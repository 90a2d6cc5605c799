"""What can be known of a target's `base:` before anything is built or fetched."""

from __future__ import annotations

from pathlib import Path

from ..errors import Fault, Tf2aifError
from ..machine import this_platform
from ..spec.target import Target
from .documents import Platform
from .layout import Layout
from .planning import LOCKS, OTHER_BASE, PACKAGED_LOCKS, PYTHON, debian_lock, image_platform
from .reference import Reference


def base_faults(target: Target, project: Path, at: str) -> list[Fault]:
    """What is wrong with the base of a target; `at` is where it stands, for people.

    Files are looked for below the project, a layout's documents are read and verified; no
    registry, engine or archive is asked.
    """
    kind, _, name = target.base.partition(":")
    look = {"debian": _debian, "oci": _oci, "dockerfile": _dockerfile, "registry": _registry}[kind]
    return look(target, project / name if kind in ("oci", "dockerfile") else project, name, at)


def _debian(target: Target, project: Path, name: str, at: str) -> list[Fault]:  # noqa: ARG001
    if target.python != PYTHON:
        message = f"the Debian base has Python {PYTHON}, the target asks for {target.python}"
        return [Fault(message, at, "leave 'python:' out, or name another base")]
    platform = image_platform(target, this_platform())
    lock = debian_lock(platform)
    if any((folder / lock).is_file() for folder in (PACKAGED_LOCKS, project / LOCKS)):
        return []
    return [Fault(f"there is no Debian base for {platform}", at, OTHER_BASE)]


def _oci(target: Target, path: Path, name: str, at: str) -> list[Fault]:
    if not path.is_dir():
        hint = "paths are relative to the project; 'tf2aif image verify' looks into a layout"
        return [Fault(f"there is no image layout '{name}'", at, hint)]
    try:
        Layout(path).image(Platform.parse(image_platform(target, this_platform())))
    except Tf2aifError as error:
        return [Fault(f"{f.message} ({f.at})", at, f.hint) for f in error.faults]
    return []


def _dockerfile(target: Target, path: Path, name: str, at: str) -> list[Fault]:  # noqa: ARG001
    if path.is_file():
        return []
    message = f"there is no Dockerfile '{name}'"
    if path.is_dir():
        message = f"'{name}' is a folder, and a Dockerfile was expected"
    return [Fault(message, at, "paths are relative to the project; its folder is the context")]


def _registry(target: Target, project: Path, name: str, at: str) -> list[Fault]:  # noqa: ARG001
    try:
        reference = Reference.parse(name)
    except Tf2aifError as error:
        return [Fault(f"{f.message}: '{name}'", at, f.hint) for f in error.faults]
    if reference.digest:
        return []
    hint = f"registry:{name}@sha256:…; a build asks the registry and tells the present digest"
    return [Fault("a base from a registry is named by digest: a tag can move", at, hint)]
