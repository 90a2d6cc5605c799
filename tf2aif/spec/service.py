"""Where a recipe's hooks lie, and where they will lie beside what is served."""

from __future__ import annotations

import os

from .recipe import Service


def hook_files(service: Service, folder: str) -> tuple[dict[str, str], str | None]:
    """The hooks file and what it reads: path below their common folder -> absolute path.

    Beside them the hooks file's own path below that folder, None where there are no hooks. Pure.
    """
    if not service.hooks:
        return {}, None
    named = (service.hooks, *service.files)
    paths = [os.path.normpath(os.path.join(folder, name)) for name in named]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    found = {os.path.relpath(path, root).replace(os.sep, "/"): path for path in paths}
    return found, os.path.relpath(paths[0], root).replace(os.sep, "/")
