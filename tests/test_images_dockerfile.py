"""A base that a user's own Dockerfile makes, built by a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import docker_engine

from tf2aif.errors import StepFailed
from tf2aif.oci.bases import read_base, write_built
from tf2aif.oci.documents import Platform
from tf2aif.oci.engine import Engine, context_of
from tf2aif.oci.validate import verify


def test_a_dockerfile_becomes_a_base(tmp_path: Path):
    context, out, scratch, store = (tmp_path / n for n in ("context", "out", "scratch", "docker"))
    for folder in (context, out, scratch, store):
        folder.mkdir()
    (context / "python").write_text("#!")
    (context / "secret").write_text("not for the engine")
    (context / ".dockerignore").write_text("secret\n")
    (context / "Dockerfile").write_text(
        "FROM scratch\nCOPY python /usr/local/bin/python3.11\nENV A=1\n"
    )
    (context / "broken").write_text("FROM scratch\nCOPY secret /\n")
    with docker_engine(store) as address, Engine(address) as engine:
        with context_of(context) as files:
            engine.build(files, "base:test")
        with engine.saved("base:test") as archive:
            platform = Platform.parse("linux/amd64")
            write_built(archive, "dockerfile:Dockerfile", platform, "3.11", out, scratch)
        with context_of(context) as files, pytest.raises(StepFailed, match="secret"):
            engine.build(files, "base:broken", dockerfile="broken")
    base, _, image = read_base(out)
    assert base.python == "/usr/local/bin/python3.11"
    assert "A=1" in image.config["config"]["Env"]
    (out / "base.json").unlink()
    assert verify(out) == ()
