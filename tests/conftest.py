"""What tests share: small real models, a user's project in a temporary folder, warm workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import UserProject, write_digits_data, write_model

from tf2aif.workers import Workers

# A shell that starts tests in the background has them ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Builds of other rooms' tests end before the images, which fetch packages; ours ask for them.
os.environ["TF2AIF_IMAGES"] = "no"

ROOT = Path(__file__).resolve().parent.parent
KWS = ROOT.parent / "shared" / "kws"


@pytest.fixture(scope="session")
def kws() -> Path:
    """The keyword-spotting model and its samples, which are not part of this project."""
    if not (KWS / "model" / "saved_model.pb").is_file():
        pytest.skip("needs ../shared/kws, the keyword-spotting model beside the checkout")
    return KWS


@pytest.fixture(scope="session")
def warm() -> Iterator[Workers]:
    """Workers that all builds of the session share, so that TensorFlow is imported once."""
    workers = Workers()
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained classifier of digits as a SavedModel, and its data beside it."""
    folder = tmp_path_factory.mktemp("exported")
    write_digits_data(folder)
    write_model(folder / "model", folder)
    return folder


@pytest.fixture
def make_project(
    tmp_path: Path, exported: Path, warm: Workers, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., UserProject]:
    """A function that makes a user's project, with a store of its own."""
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "cache"))

    def make(name: str = "project") -> UserProject:
        return UserProject.create(tmp_path / name, exported, warm)

    return make


@pytest.fixture
def project(make_project: Callable[..., UserProject]) -> UserProject:
    """A user's project: one recipe, a SavedModel, its data, and a loader."""
    return make_project()
