"""Objects as YAML: the same objects give the same bytes, and every reader sees strings as strings.

YAML 1.1 and 1.2 differ in which plain words are numbers, dates or booleans, and readers differ
more. So a plain word here is one that nobody could take for anything but text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import Fault, FilesError
from ..folders import fresh_folder
from .pod import Object

HEADER = "# Written by tf2aif deploy. Its source are the recipe and the target: change those.\n"
INDEX = "kustomization.yaml"
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@:-]*[A-Za-z0-9_/]|[A-Za-z]")
_WORDS = ("y", "yes", "n", "no", "true", "false", "on", "off", "null", "inf", "nan")


class _Writer(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's, with two spaces before the dash of a list, and no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _write_text(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Writer.add_representer(str, _write_text)


def render(objects: Sequence[Object]) -> str:
    """The objects as a stream of YAML documents, in their order."""
    return HEADER + "---\n".join(_document(each) for each in objects)


def write_folder(objects: Mapping[str, Sequence[Object]], folder: Path) -> list[Path]:
    """A file for each service and a `kustomization.yaml`, so that `kubectl apply -k` takes them.

    `objects` is by service. What an earlier call wrote there goes. Raises FilesError where the
    folder holds anything else.
    """
    _refuse_foreign(folder)
    names = {f"{service}.yaml": of_service for service, of_service in sorted(objects.items())}
    index = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(names),
    }
    with fresh_folder(folder) as out:
        for name, of_service in names.items():
            (out / name).write_text(render(of_service), encoding="utf-8")
        (out / INDEX).write_text(HEADER + _document(index), encoding="utf-8")
    return [folder / name for name in (*names, INDEX)]


def _document(value: Object) -> str:
    how = {"sort_keys": False, "allow_unicode": True, "width": 10**6}
    return str(yaml.dump(value, Dumper=_Writer, **how))


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FilesError([Fault("this is no folder", at=str(folder), hint="name a new one")])
    for path in sorted(folder.glob("*")):
        ours = path.is_file() and path.read_bytes().startswith(HEADER.encode())
        if not ours:
            message = "the folder holds what 'tf2aif deploy' has not written"
            raise FilesError(
                [Fault(message, at=str(path), hint="name a folder of its own with -o")]
            )
