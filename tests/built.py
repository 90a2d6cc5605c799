"""A small project whose variants for this machine are built, once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from project import UserProject
from serving import TARGET

from tf2aif.workers import Workers


@pytest.fixture(scope="session")
def digits(
    tmp_path_factory: pytest.TempPathFactory, exported: Path, warm: Workers
) -> Iterator[Path]:
    """The folder of the built variants: `<target>-fp32`, `<target>-int8`, `<target>-tf-fp32`."""
    root = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(root / "cache"))
        project = UserProject.create(root / "project", exported, warm)
        targets = {TARGET: {"precisions": ["fp32", "int8"]}, f"{TARGET}-tf": None}
        project.write(project.recipe(targets=targets))
        project.build()
        assert project.last is not None
        assert not project.last.failures
        yield project.root / "build" / "digits"
