"""Builds with images in a user's project: what runs again, and that two checkouts agree."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import need
from project import UserProject
from test_oci_layers import image_of, write

from tf2aif.errors import FilesError, StepFailed
from tf2aif.oci.bases import adopt, write_pulled
from tf2aif.oci.documents import Platform
from tf2aif.oci.inventory import take_inventory
from tf2aif.oci.layers import Entry
from tf2aif.oci.layout import Layout
from tf2aif.oci.lockfile import Wanted, is_lock_of, pins, resolve
from tf2aif.oci.outputs import find_image
from tf2aif.oci.planning import find_inputs
from tf2aif.oci.validate import verify
from tf2aif.oci.variant_image import withhold

HOOKS = "def postprocess(outputs):\n    return {name: y.tolist() for name, y in outputs.items()}\n"
BASE = "base"  # a layout in the project, so that these tests fetch nothing but Python packages


def small_base(folder: Path, platform: str = "linux/amd64", python: str = "3.11") -> Layout:
    """A base of two files: enough for composing, not for running."""
    files = [f"usr/bin/python{python}", "usr/bin/tini"]
    work = folder.with_name(f"{folder.name}-layer-{platform.partition('/')[2]}")
    layer = write(work, [Entry(path=name, source=b"#!", mode=0o755) for name in files])
    return image_of(folder, layer, platform=platform)


@pytest.fixture
def prepared(make_project: Callable[..., UserProject]) -> Callable[[str], UserProject]:
    """A function that makes a project of one variant, `cpu-fp32`, on the small base."""
    need("uv")

    def make(name: str) -> UserProject:
        project = make_project(name)
        small_base(project.root / BASE)
        shutil.rmtree(project.root / f"{BASE}-layer-amd64")
        recipe = project.root / "recipes" / "digits.yaml"
        text = recipe.read_text()
        start = text.index("targets:")
        recipe.write_text(text[:start] + "targets: [small]\nservice: {hooks: serving/hooks.py}\n")
        (project.root / "recipes" / "serving").mkdir()
        (project.root / "recipes" / "serving" / "hooks.py").write_text(HOOKS)
        (project.root / "targets").mkdir(exist_ok=True)
        (project.root / "targets" / "small.yaml").write_text(
            f"platform: linux/amd64\nbase: oci:{BASE}\nengine: {{name: litert}}\n"
            "precisions: {fp32: [{step: tflite, precision: fp32}]}\n"
        )
        return project

    return make


def test_two_checkouts_make_the_same_image_for_each_platform(
    prepared: Callable[[str], UserProject], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    digests: dict[str, set[str]] = {"linux/amd64": set(), "linux/arm64": set()}
    for name in ("here", "elsewhere"):
        monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / f"cache-{name}"))
        project = prepared(name)
        add_arm64(project)
        for path in (project.root / "recipes").rglob("*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        assert {"image-packages-small", "image-packages-far"} <= project.build(images=True)
        for target in ("small", "far"):
            image = find_image(project.root / "build", f"digits/{target}-fp32")
            assert verify(image.folder / "image") == ()
            digests[str(image.stored().platform)].add(image.record.digest)
    assert [len(found) for found in digests.values()] == [1, 1]


def add_arm64(project: UserProject) -> None:
    """A second target, on a base of its own for arm64: with packages of that machine."""
    small_base(project.root / "far", platform="linux/arm64")
    shutil.rmtree(project.root / "far-layer-arm64")
    target = (project.root / "targets" / "small.yaml").read_text()
    target = target.replace("linux/amd64", "linux/arm64").replace(f"oci:{BASE}", "oci:far")
    (project.root / "targets" / "far.yaml").write_text(target)
    recipe = project.root / "recipes" / "digits.yaml"
    recipe.write_text(recipe.read_text().replace("targets: [small]", "targets: [small, far]"))


def test_what_a_change_composes_again(prepared: Callable[[str], UserProject]):
    project = prepared("project")
    project.build(images=True)
    first = find_image(project.root / "build", "digits/small-fp32").record
    assert project.build(images=True) == set()

    (project.root / "recipes" / "serving" / "hooks.py").write_text(HOOKS + "# changed\n")
    hooked_steps = {"evaluation", "check-small-fp32", "image-app-3.11"}  # hooks are checked, too
    assert project.build(images=True) == hooked_steps
    hooked = find_image(project.root / "build", "digits/small-fp32").record
    assert differing(first.layers, hooked.layers) == [2]

    target = project.root / "targets" / "small.yaml"
    target.write_text(target.read_text() + "labels: {zone: edge}\n")
    assert project.build(images=True) == {"image-model-small-fp32"}
    labelled = find_image(project.root / "build", "digits/small-fp32").record
    assert differing(hooked.layers, labelled.layers) == [3]


def differing(before: tuple[object, ...], after: tuple[object, ...]) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


def test_the_image_has_hooks_and_a_record_of_its_own(prepared: Callable[[str], UserProject]):
    project = prepared("project")
    project.build(images=True)
    image = find_image(project.root / "build", "digits/small-fp32")
    names = take_inventory(image.layout, image.stored().manifest.layers).names
    assert {
        "variant/hooks/hooks.py",
        "variant/variant.json",
        "variant/artifact/model.tflite",
    } <= names
    assert "opt/tf2aif/app/tf2aif/serve/__main__.py" in names
    builders = ("build.py", "graph.py", "cli.py", "oci/__init__.py", "steps/__init__.py")
    assert not names & {f"opt/tf2aif/app/tf2aif/{name}" for name in builders}
    model = image.layout.path(image.stored().manifest.layers[-1].digest).read_bytes()
    start = model.index(b'{\n  "accuracy"')
    record = json.JSONDecoder().raw_decode(model[start:].decode(errors="replace"))[0]
    assert record["hooks"] == "hooks/hooks.py"
    assert record["engine"] == {"name": "litert", "options": {}}
    assert record["artifact"] == image.variant.artifact
    assert "latency" not in record


def test_no_secret_enters_an_image(
    prepared: Callable[[str], UserProject], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("API_TOKEN", "do-not-ship-this")
    project = prepared("project")
    recipe = project.root / "recipes" / "digits.yaml"
    recipe.write_text(recipe.read_text() + "environment: [API_TOKEN]\n")
    project.build(images=True)
    folder = project.root / "build" / "digits" / "small-fp32" / "image"
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert b"do-not-ship-this" not in path.read_bytes()
    facts = {"environment.API_TOKEN": "x", "option.client_secret": "y", "option.batch": 1}
    assert withhold(facts)["option.batch"] == 1
    assert set(withhold(facts).values()) == {"(withheld)", 1}


def test_a_requirement_that_cannot_be_met_ends_before_any_download(
    prepared: Callable[[str], UserProject],
):
    project = prepared("project")
    recipe = project.root / "recipes" / "digits.yaml"
    wanted = 'service: {hooks: serving/hooks.py, requirements: ["numpy<1.0"]}'
    recipe.write_text(recipe.read_text().replace("service: {hooks: serving/hooks.py}", wanted))
    project.build(images=True)
    assert project.last is not None
    said = "\n".join(error.render() for error in project.last.failures.values())
    assert "the requirements cannot be met for linux/amd64, Python 3.11" in said
    assert "numpy" in said
    assert "image-packages-small" not in project.did("ran")


def test_a_lock_stands_while_its_requirements_do():
    wanted = Wanted(requirements=("h11>=0.14",), platform="linux/arm64", python="3.11")
    text = resolve(wanted)
    assert is_lock_of(text, wanted)
    assert [name for name, _ in pins(text)] == ["h11"]
    assert "--hash=sha256:" in text
    assert "://" not in text
    other = Wanted(requirements=("h11>=0.13",), platform="linux/arm64", python="3.11")
    assert not is_lock_of(text, other)
    old = text.replace(dict(pins(text))["h11"], "0.14.0")
    assert dict(pins(resolve(other, old)))["h11"] == "0.14.0"  # kept: it fits


def test_no_lock_names_what_pip_refuses():
    """LiteRT names a backport that has no release for Python 3.11; there it imports it not."""
    for path in (Path(path) for path in find_inputs(Path("nowhere"), {}).locks.values()):
        if path.suffix == ".txt":
            assert pins(text := path.read_text()), path.name
            assert "backports-strenum" not in dict(pins(text)), path.name
    wanted = Wanted(requirements=("ai-edge-litert>=2.1,<3",), platform="linux/amd64", python="3.11")
    assert "backports-strenum" not in dict(pins(resolve(wanted)))


def test_source_date_epoch(tmp_path: Path):
    assert find_inputs(tmp_path, {"SOURCE_DATE_EPOCH": "12"}).epoch == 12
    assert find_inputs(tmp_path, {}).epoch == 0
    with pytest.raises(FilesError, match="SOURCE_DATE_EPOCH"):
        find_inputs(tmp_path, {"SOURCE_DATE_EPOCH": "yesterday"})


def test_the_revision_is_what_was_asked_for_or_what_the_user_says(
    prepared: Callable[[str], UserProject], monkeypatch: pytest.MonkeyPatch
):
    project = prepared("project")

    def said() -> str:
        project.build(images=True)
        image = find_image(project.root / "build", "digits/small-fp32")
        return str(image.stored().config["config"]["Labels"]["org.opencontainers.image.revision"])

    own = said()
    recipe = project.root / "recipes" / "digits.yaml"
    recipe.write_text("# a comment\n" + recipe.read_text())
    assert said() == own
    monkeypatch.setenv("TF2AIF_REVISION", "f" * 40)
    assert said() == "f" * 40
    assert project.build(images=True) == set()
    with pytest.raises(FilesError, match="TF2AIF_REVISION"):
        find_inputs(project.root, {"TF2AIF_REVISION": "two words"})


def test_a_projects_locks_override_the_packaged_ones(tmp_path: Path):
    packaged = find_inputs(tmp_path, {}).locks
    (tmp_path / "locks").mkdir()
    name = "debian-bookworm-amd64.json"
    (tmp_path / "locks" / name).write_text("{}")
    assert find_inputs(tmp_path, {}).locks == {**packaged, name: str(tmp_path / "locks" / name)}


def test_a_base_without_the_python_that_is_asked_for(tmp_path: Path):
    layout = small_base(tmp_path / "base", python="3.12")
    (tmp_path / "out").mkdir()
    with pytest.raises(StepFailed, match=r"the base has no Python 3.11; it has 3.12"):
        adopt("oci", layout, layout.image(), "3.11", tmp_path / "out")


def test_a_damaged_base_is_not_taken(tmp_path: Path):
    from tf2aif.errors import Tf2aifError

    layout = small_base(tmp_path / "base")
    blob = layout.path(layout.image().manifest.layers[0].digest)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0\0")
    (tmp_path / "out").mkdir()
    with pytest.raises(Tf2aifError, match="damaged"):
        adopt("oci", layout, layout.image(), "3.11", tmp_path / "out")


def test_a_base_from_a_registry_is_named_by_digest(tmp_path: Path):
    from engine import docker_registry

    from tf2aif.oci.reference import Reference
    from tf2aif.oci.registry import Registry
    from tf2aif.oci.transfers import push

    layout = small_base(tmp_path / "base")
    image = layout.image().descriptor
    platform = Platform.parse("linux/amd64")
    with docker_registry(tmp_path / "registry") as address:
        push(Registry(Reference.parse(f"{address}/base")), layout, image, tags=["v1"])
        with pytest.raises(StepFailed, match="named by digest") as failed:
            write_pulled(f"{address}/base:v1", platform, "3.11", tmp_path, tmp_path)
        assert failed.value.faults[0].hint.endswith(f"base:v1@{image.digest}")
        (tmp_path / "out").mkdir()
        name = f"{address}/base@{image.digest}"
        base = write_pulled(name, platform, "3.11", tmp_path / "out", tmp_path)
    assert base.digest == image.digest
    assert base.python == "/usr/bin/python3.11"
    assert base.init == ("/usr/bin/tini", "--")
    assert Layout(tmp_path / "out").image().descriptor.digest == image.digest
