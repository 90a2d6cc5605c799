"""An environment laid out as Vitis AI's conda environment, with the stand-ins in it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def install(prefix: Path, version: str = "3.5", *, quantiser: bool = True) -> Path:
    """Make the environment below `prefix`; its `bin`, to be put on PATH."""
    binary, packages = prefix / "bin", prefix / "lib" / "python3.8" / "site-packages"
    binary.mkdir(parents=True)
    packages.mkdir(parents=True)
    (prefix / "conda-meta").mkdir()
    for name in ("vai_q_tensorflow2", "xcompiler", "xir"):
        (prefix / "conda-meta" / f"{name}-{version}.0-py38_0.json").write_text("{}")
    if quantiser:
        shutil.copytree(HERE / "site-packages", packages, dirs_exist_ok=True)
    _program(
        binary / "python",
        f'#!/bin/sh\nexport PYTHONPATH="{packages}" TF_USE_LEGACY_KERAS=1\n'
        f'exec "{sys.executable}" "$@"\n',
    )
    _program(
        binary / "vai_c_tensorflow2",
        f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "vai_c_tensorflow2"}" "$@"\n',
    )
    return binary


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    os.chmod(path, 0o755)
