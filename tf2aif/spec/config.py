"""A project's own settings as a frozen value: `tf2aif.yaml` beside its recipes, if there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ..errors import Fault, FilesError
from ..toolchains import TOOLCHAINS
from ..toolchains.lock import lock_faults
from ..toolchains.places import Place, place_faults
from .document import Document, Key, decode, parse

NAME = "tf2aif.yaml"
_OTHER = "tf2aif.yml"


class Remote(Struct, frozen=True, forbid_unknown_fields=True):
    """One shared cache."""

    url: Annotated[str, Meta(description="where it is", min_length=1)]
    write: Annotated[bool, Meta(description="what is built here is put there")] = False


class Cache(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Shared caches, asked in this order after the store of this machine."""

    remotes: Annotated[tuple[Remote, ...], Meta(description="the shared caches")] = ()
    trusted: Annotated[
        tuple[str, ...],
        Meta(description="public keys: what one of them has signed is taken from a shared cache"),
    ] = ()
    timeout_s: Annotated[
        float, Meta(gt=0, description="how long one answer of a shared cache may take, seconds")
    ] = 10.0


class Farm(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A farm that runs steps."""

    address: Annotated[
        str, Meta(description="`HOST`, `HOST:PORT`, or `local`: a farm on this machine")
    ]
    tls: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="the folder of this machine's certificate"),
    ] = None
    toolchains: Annotated[
        dict[str, str],
        Meta(
            description="toolchain -> how the label begins that is wanted of it, as "
            "`tf2aif farm status` shows it; by default this machine's own version"
        ),
    ] = {}


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of a project; without a file, each at its default."""

    toolchains: Annotated[
        dict[str, Place], Meta(description="toolchain -> where it runs, if not as it comes")
    ] = {}
    cache: Annotated[Cache, Meta(description="shared caches")] = Cache()
    farm: Annotated[
        Annotated[str, Meta(min_length=1)] | Farm | None,
        Meta(description="the farm that runs steps, or its address alone"),
    ] = None


def load_config(project: Path) -> Config:
    """The settings of the project in that folder; locks come with absolute paths.

    A build with nothing to do does not come here: the file's stat is in its stamp. Raises
    FilesError with all the faults of the file.
    """
    try:
        raw = (project / NAME).read_bytes()
    except FileNotFoundError:
        if (project / _OTHER).exists():
            raise FilesError([Fault("this file is not read", _OTHER, f"name it {NAME}")]) from None
        return Config()
    except OSError as error:
        raise FilesError([Fault(f"cannot be read: {error.strerror}", NAME)]) from error
    text = decode(raw, NAME)
    if not _has_content(text):
        return Config()
    return _convert(parse(text, NAME), project)


def config_files(project: Path, config: Config) -> tuple[str, ...]:
    """The files that the settings come from: a change of one can make a build stale."""
    locks = (place.venv for place in config.toolchains.values() if place.venv)
    return (str(project / NAME), *locks)


def _has_content(text: str) -> bool:
    """Whether anything but comments is in it."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())


def _convert(document: Document, project: Path) -> Config:
    try:
        config = msgspec.convert(document.value, Config)
    except msgspec.ValidationError as error:
        from .words import word_faults  # imports jsonschema

        raise FilesError(word_faults(document, Config, str(error))) from error
    faults = [fault for name in config.toolchains for fault in _faults(document, project, name)]
    if faults:
        raise FilesError(faults)
    places = {name: _absolute(place, project) for name, place in config.toolchains.items()}
    return msgspec.structs.replace(config, toolchains=places)


def _faults(document: Document, project: Path, name: str) -> Iterator[Fault]:
    """What is wrong with where one toolchain is to run."""
    at: Key = ("toolchains", name)
    if name not in TOOLCHAINS:
        from .words import nearest

        message = f"unknown toolchain '{name}'"
        yield Fault(message, document.at(at), nearest(name, TOOLCHAINS))
    written = document.value["toolchains"][name]
    wrong = list(place_faults(written))
    for key, message, hint in wrong:
        yield Fault(message, document.at((*at, key) if key else at), hint)
    if not wrong and isinstance(lock := written.get("venv"), str):
        yield from _lock_faults(project, lock, document.at((*at, "venv")))


def _lock_faults(project: Path, written: str, at: str) -> list[Fault]:
    try:
        text = _resolve(project, written).read_text(encoding="utf-8")
    except FileNotFoundError:
        return [Fault(f"no file '{written}'", at, "paths are relative to the project's folder")]
    except (OSError, UnicodeDecodeError) as error:
        return [Fault(f"'{written}' cannot be read as text: {error}", at)]
    return lock_faults(text, written)


def _absolute(place: Place, project: Path) -> Place:
    if not place.venv:
        return place
    return msgspec.structs.replace(place, venv=str(_resolve(project, place.venv)))


def _resolve(project: Path, written: str) -> Path:
    return Path(os.path.abspath(project / Path(written).expanduser()))
