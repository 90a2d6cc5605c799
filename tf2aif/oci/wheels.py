"""The layer of Python packages: what a lock names, compiled, less what no server reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import StepFailed
from .bytecode import compile_tree
from .inventory import normal_name, python_component
from .layers import Component, Layer, tree_entries, write_layer
from .lockfile import Wanted, install

FOLDER = "opt/tf2aif/packages"

# Tests and headers of numpy; in LiteRT the accelerators for other processors than the CPU and the
# tools that compile models for them: together half of what the two install. TensorFlow's headers,
# 430 MB, and clang's library, which it names and never imports, are for building operators.
_TENSORFLOW = ("tensorflow/include",)
_UNUSED = {
    "numpy": ("numpy/**/tests", "numpy/_core/include", "numpy/_core/lib"),
    "ai-edge-litert": (
        "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
        "ai_edge_litert/tools",
        "ai_edge_litert/vendors",
    ),
    "libclang": ("clang",),
    "tensorflow": _TENSORFLOW,
    "tensorflow-cpu": _TENSORFLOW,
}
# Scripts for people, stubs for type checkers, and what an installer wrote for its own use.
_EVERYWHERE = ("bin", "**/*.pyi", "*.dist-info/RECORD", "*.dist-info/INSTALLER",
               "*.dist-info/REQUESTED", "*.dist-info/direct_url.json", ".lock")  # fmt: skip


def build_layer(lock: Path, wanted: Wanted, out: Path, scratch: Path, *, epoch: int) -> Layer:
    """Install the lock's wheels and make a layer of them in `out`, below `/opt/tf2aif/packages`.

    Raises StepFailed where one cannot be had, or has another hash than the lock says.
    """
    root = scratch / "packages"
    install(lock, wanted, root)
    components = tuple(_components(root))
    if not components:
        raise StepFailed("the lock names no package", at=str(lock))
    for name in ("*", *(component.name for component in components)):
        _drop(root, _EVERYWHERE if name == "*" else _UNUSED.get(normal_name(name), ()))
    compile_tree(root, f"/{FOLDER}", wanted.python)
    return write_layer(
        tree_entries(root, FOLDER),
        out,
        created_by=f"tf2aif: {len(components)} Python packages",
        epoch=epoch,
        components=components,
    )


def _drop(root: Path, patterns: tuple[str, ...]) -> None:
    for path in [path for pattern in patterns for path in root.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _components(root: Path) -> Iterator[Component]:
    for path in sorted(root.glob("*.dist-info/METADATA")):
        yield python_component(path.read_text(encoding="utf-8"))
