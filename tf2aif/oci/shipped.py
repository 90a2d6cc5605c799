"""What of this package goes into an image, and the layer that it makes with a user's hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import __version__
from ..errors import StepFailed
from .bytecode import compile_tree
from .layers import Component, Entry, Layer, tree_entries, write_layer

FOLDER = "opt/tf2aif/app"
HOOKS = "variant/hooks"
SERVER = ("__init__.py", "errors.py", "py.typed", "engines", "serve")
CLIENT = (*SERVER, "client", "metrics.py", "sampleset.py")
REQUIREMENTS = (
    "httptools>=0.6,<1",
    "msgspec>=0.19,<1",
    "numpy>=1.26,<3",
    "prometheus-client>=0.20,<1",
    "uvicorn>=0.30,<1",
    "uvloop>=0.20,<1",
)
"""What the server needs beside its engine."""
CLIENT_REQUIREMENTS = ("httptools>=0.6,<1", "msgspec>=0.19,<1", "numpy>=1.26,<3")
CLIENT_PLATFORMS = ("linux/amd64", "linux/arm64")
PACKAGE = Path(__file__).resolve().parent.parent


def shipped_files(what: Iterable[str] = SERVER) -> dict[str, Path]:
    """Every source file that ships, by its path in the image's package folder.

    >>> "tf2aif/errors.py" in shipped_files()
    True
    """
    found: dict[str, Path] = {}
    for name in what:
        path = PACKAGE / name
        files = path.rglob("*.py") if path.is_dir() else (path,)
        for file in files:
            found[f"tf2aif/{file.relative_to(PACKAGE).as_posix()}"] = file
    return dict(sorted(found.items()))


def build_layer(
    sources: Mapping[str, Path],
    hooks: Mapping[str, Path],
    out: Path,
    scratch: Path,
    *,
    python: str,
    epoch: int,
) -> Layer:
    """The layer of our own code, and of the hooks below `/variant/hooks`, compiled, in `out`.

    Hooks are by their path below that folder; a folder among them goes in whole. Raises
    StepFailed where a file is missing.
    """
    root = scratch / "app"
    for name, path in sources.items():
        _copy(path, root / name)
    for name, path in hooks.items():
        _copy_tree(path, scratch / "hooks" / name)
    compile_tree(root, f"/{FOLDER}", python)
    entries: list[Entry] = list(tree_entries(root, FOLDER))
    if hooks:
        compile_tree(scratch / "hooks", f"/{HOOKS}", python)
        entries += tree_entries(scratch / "hooks", HOOKS)
    own = Component(type="application", name="tf2aif", version=__version__, licence="Apache-2.0")
    return write_layer(
        entries, out, created_by=f"tf2aif: tf2aif {__version__}", epoch=epoch, components=(own,)
    )


def _copy_tree(source: Path, dest: Path) -> None:
    if not source.is_dir():
        _copy(source, dest)
        return
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            _copy(path, dest / path.relative_to(source))


def _copy(source: Path, dest: Path) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        dest.write_bytes(source.read_bytes())
    except OSError as error:
        raise StepFailed(f"cannot read it: {error.strerror}", at=str(source)) from error
