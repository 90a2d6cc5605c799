"""A recipe's hooks on the whole path: in the check step, in the variant's folder, in the server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from project import UserProject

HOOKS = """
import numpy as np
from levels import LEVELS

def decode(body, content_type):
    return {"image": np.frombuffer(body, np.uint8).reshape(-1, 8, 8, 1)}

def preprocess(inputs):
    return {"image": inputs["image"].astype(np.float32) / LEVELS}

def postprocess(outputs):
    (scores,) = outputs.values()
    return {"digit": scores.argmax(axis=1).tolist()}

def example():
    return bytes(64), "application/octet-stream"
"""


@pytest.fixture
def hooked(project: UserProject) -> UserProject:
    """The classifier behind hooks: samples are the raw grey levels, 0 to 16."""
    project.path("hooks.py").write_text(HOOKS)
    project.path("levels.py").write_text("LEVELS = 16\n")
    data = dict(np.load(project.path("evaluation.npz")))
    np.savez(project.path("raw.npz"), x=(data["x"] * 16).astype(np.uint8), y=data["y"])
    project.write(
        project.recipe(
            service={"hooks": "hooks.py", "files": ["levels.py"]},
            evaluation={"data": "raw.npz#x", "labels": "raw.npz#y", "metric": "top-1"},
            targets={"arm": {"precisions": ["fp32"]}},
        )
    )
    return project


def accuracy(project: UserProject) -> float:
    """The variant's score."""
    assert project.last is not None
    record = project.last.records()["digits/arm-fp32"]
    assert record is not None
    assert record.accuracy is not None, record.reason
    return record.accuracy.variant


def test_accuracy_is_measured_through_the_hooks(hooked: UserProject) -> None:
    hooked.build()
    right = accuracy(hooked)
    assert right > 0.85
    hooked.path("levels.py").write_text("LEVELS = 255\n")  # the wrong scale: all nearly black
    ran = hooked.build()
    assert ran >= {"evaluation", "reference", "check-arm-fp32"}
    assert "tflite-fp32" not in ran
    assert accuracy(hooked) < right - 0.2


def test_a_hook_that_raises_fails_the_variant_and_names_the_hook(hooked: UserProject) -> None:
    text = HOOKS.replace("scores.argmax(axis=1).tolist()", "1 / 0")
    hooked.path("hooks.py").write_text(text)
    hooked.build()
    assert hooked.last is not None
    failure = hooked.last.failures["digits/check-arm-fp32"].render()
    assert "postprocess" in failure
    assert "ZeroDivisionError" in failure


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("np.frombuffer(body, np.uint8).reshape(-1, 8, 8, 1)", "np.frombuffer(body, np.float64)"),
        ('{"digit": scores', '{"digit": score'),
        ("from levels", "from level"),
    ],
)
def test_check_tries_the_hooks(hooked: UserProject, broken: str, said: str) -> None:
    assert hooked.cli("check").returncode == 0
    hooked.path("hooks.py").write_text(HOOKS.replace(broken, said))
    run = hooked.cli("check")
    assert run.returncode == 2
    assert "recipes/digits.yaml:" in run.stderr
    assert "hooks.py" in run.stderr


@contextmanager
def served(project: UserProject, variant: str) -> Iterator[str]:
    """`tf2aif serve` in a process; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tf2aif", "serve", variant, "--port", "0"],
        cwd=project.root, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        word, address, *_ = process.stdout.readline().split()
        assert word == "ready"
        yield address
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
        assert process.stdout is not None
        process.stdout.close()


def test_the_variant_serves_with_its_hooks(hooked: UserProject) -> None:
    hooked.build()
    for name in ("hooks.py", "levels.py"):  # the variant has its own
        hooked.path(name).rename(hooked.path(name + ".away"))
    data = np.load(hooked.path("raw.npz"))
    with served(hooked, "digits/arm-fp32") as address:
        found = []
        for image in data["x"][:20]:
            request = urllib.request.Request(
                f"{address}/predict",
                data=image.tobytes(),
                headers={"Content-Type": "application/octet-stream"},
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                found += json.loads(answer.read())["digit"]
    assert np.mean(np.array(found) == data["y"][:20]) > 0.8


def test_checkout_moved_with_hooks(hooked: UserProject) -> None:
    hooked.build()
    moved = hooked.root.with_name("moved")
    shutil.move(hooked.root, moved)
    hooked.root = moved
    assert hooked.build() == set()
    assert hooked.did("restored") == set()
