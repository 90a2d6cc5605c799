"""Images for GPUs and FPGAs: on a vendor's base from a registry, of what the device has not run.

A real engine of TensorRT for RTX, real wheels and Debian's registry. The base stands in for the
vendor's: two small files, and the variables that NVIDIA's container runtime looks for.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from engine import docker_registry, need
from project import UserProject
from test_oci_layers import write

from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.graph import Graph, plan
from tf2aif.oci.base_check import base_faults
from tf2aif.oci.documents import Platform
from tf2aif.oci.image import Settings, compose
from tf2aif.oci.inventory import take_inventory
from tf2aif.oci.layers import Entry
from tf2aif.oci.layout import Layout, write_layout
from tf2aif.oci.lockfile import Wanted, is_lock_of
from tf2aif.oci.outputs import BuiltImage, find_image, push_images
from tf2aif.oci.planning import (
    ImageInputs,
    find_inputs,
    image_platform,
    packages_lock,
    requirements,
)
from tf2aif.oci.record import write_image
from tf2aif.oci.reference import Reference
from tf2aif.oci.registry import Registry
from tf2aif.oci.transfers import pull, push
from tf2aif.oci.validate import verify
from tf2aif.record import VariantRecord, read_record
from tf2aif.spec.load import load_project, load_targets
from tf2aif.steps import Job, image_model

CHECKED = {"metric": "top-1", "source": 0.95, "variant": 0.94, "samples": 200, "labels": True}
FOR_GPUS = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


# What is planned.


@pytest.mark.parametrize("here", ["linux/amd64", "linux/arm64"])
def test_every_target_that_comes_with_us_has_a_lock(tmp_path: Path, here: str) -> None:
    locks = find_inputs(tmp_path, {}).locks
    for name, target in load_targets(tmp_path).items():
        platform = image_platform(target, here)
        lock = packages_lock(target.engine.name, platform, target.python)
        wanted = Wanted(requirements=requirements(target), platform=platform, python=target.python)
        assert lock in locks, name
        text = Path(locks[lock]).read_text()
        assert is_lock_of(text, wanted), f"{name}: 'tf2aif image lock' renews {lock}"
        assert "://" not in text, lock


def planned(folder: Path, target: str, platform: str, precision: str) -> Graph:
    """The plan of one variant's image; nothing is read but the recipe."""
    recipe = folder / "digits.yaml"
    recipe.write_text(
        "model: {path: model}\ncalibration: random\n"
        f"targets: {{{target}: {{precisions: [{precision}]}}}}\n"
    )
    loaded = load_project([recipe], folder)
    inputs = ImageInputs(project=str(folder), locks=find_inputs(folder, {}).locks)
    return plan(loaded.recipes, loaded.targets, platform=platform, images=inputs)


@pytest.mark.parametrize("target", ["gpu", "gpu-rtx", "agx", "zynq-zcu102"])
def test_the_emulations_check_stands_in_an_image(tmp_path: Path, target: str) -> None:
    graph = planned(tmp_path, target, "linux/amd64", "int8")
    (variant,) = graph.variants.values()
    assert variant.image
    assert variant.emulation
    model = graph.steps[variant.image.model]
    assert model.inputs == {"artifact": variant.artifact, "check": variant.emulation.check}
    assert model.options["checked_by"] == variant.emulation.engine
    assert "emulates" not in model.options
    assert variant.check not in graph.needs(variant.image.steps)


def test_what_was_planned_before_there_were_emulations_stays(tmp_path: Path) -> None:
    graph = planned(tmp_path, "cpu", "linux/amd64", "int8")
    (variant,) = graph.variants.values()
    assert variant.image
    model = graph.steps[variant.image.model]
    assert model.inputs["check"] == variant.check
    assert not {"checked_by", "container", "emulates"} & set(model.options)


@pytest.mark.parametrize("here", ["linux/amd64", "linux/arm64"])
def test_a_simulation_is_put_into_an_image_for_the_machine_that_compiled_it(
    tmp_path: Path, here: str
) -> None:
    """A Zynq-7000 has neither a Debian base nor wheels, and needs none."""
    graph = planned(tmp_path, "zynq-pynq-z2-hls", here, "fixed16")
    (variant,) = graph.variants.values()
    assert variant.image
    assert variant.emulation
    assert (variant.platform, variant.image.platform) == ("linux/arm/v7", here)
    model = graph.steps[variant.image.model]
    assert model.inputs["artifact"] == variant.emulation.artifact
    assert model.options["emulates"] == "zynq-pynq-z2-hls"
    for step in (variant.image.base, variant.image.packages, variant.image.model):
        assert graph.steps[step].options["platform"] == here


def test_who_wants_an_emulation_in_an_image_names_its_engine(tmp_path: Path) -> None:
    """A target of one's own: for the machine that it is to run on, not for the board."""
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "dpu-twin.yaml").write_text(
        "platform: linux/amd64\nengine: {name: pof2}\n"
        "precisions: {int8: [{step: layers}, {step: pof2}]}\n"
    )
    graph = planned(tmp_path, "dpu-twin", "linux/amd64", "int8")
    (variant,) = graph.variants.values()
    assert variant.image
    lock = graph.steps[graph.steps[variant.image.packages].inputs["lock"]]
    assert Path(lock.files["lock"]).name == "pof2-linux-amd64-py3.11.txt"
    wanted = Wanted(
        requirements=tuple(lock.options["requirements"]), platform="linux/amd64", python="3.11"
    )
    assert is_lock_of(Path(lock.files["lock"]).read_text(), wanted)


def test_its_base_is_looked_for_on_this_machines_platform(tmp_path: Path) -> None:
    assert base_faults(load_targets(tmp_path)["zynq-pynq-z2-hls"], tmp_path, "here") == []


# The layer of the model.


@pytest.fixture
def layer(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that runs `image-model` on files; the record that went into the layer."""

    def run(files: dict[str, Any], **options: Any) -> dict[str, Any]:
        for name in ("artifact", "check", "out"):
            (tmp_path / name).mkdir()
        for name, content in files.items():
            (tmp_path / "artifact" / name).write_bytes(msgspec.json.encode(content))
        (tmp_path / "check" / "check.json").write_bytes(msgspec.json.encode(CHECKED))
        said = {"recipe": "digits", "variant": "x-int8", "target": "x", "precision": "int8",
                "platform": "linux/amd64", "engine": {"name": "hls", "options": {}}}  # fmt: skip
        given = {name: tmp_path / name for name in ("artifact", "check")}
        job = Job(
            step="digits/image-model-x-int8",
            kind="image-model",
            options={**said, **options},
            inputs=given,
            out=tmp_path / "out",
        )
        image_model.run(job)
        with tarfile.open(tmp_path / "out" / "blob") as tar:
            member = tar.extractfile("variant/variant.json")
            assert member
            found: dict[str, Any] = json.loads(member.read())
            return found

    return run


def test_who_measured_is_said_where_it_was_an_emulation(layer: Callable[..., Any]) -> None:
    record = layer({"model.onnx": 0}, checked_by="onnxruntime", container={"gpus": 1})
    assert record["accuracy"] == {**CHECKED, "engine": "onnxruntime"}
    assert record["container"] == {"gpus": 1}
    assert "checked_by" not in record
    assert "emulates" not in record


def test_a_usual_record_says_no_more_than_it_did(layer: Callable[..., Any]) -> None:
    record = layer({"model.tflite": 0})
    assert record["accuracy"] == CHECKED
    assert not {"container", "emulates", "checked_by"} & set(record)


SIMULATION = {"simulation.so": 0, "hls.json": {"machine": "aarch64", "inputs": [], "outputs": []}}
ENGINE = {
    "engine.json": {"library": "tensorrt", "version": "11.4.0.106", "platform": "linux-aarch64"}
}


@pytest.mark.parametrize("files", [SIMULATION, ENGINE], ids=["simulation", "engine"])
def test_machine_code_goes_into_images_for_its_machine_only(
    layer: Callable[..., Any], files: dict[str, Any]
) -> None:
    with pytest.raises(StepFailed, match="machine code for linux/arm64; the image is for linux/am"):
        layer(files)


@pytest.mark.parametrize("files", [SIMULATION, ENGINE], ids=["simulation", "engine"])
def test_and_there_it_goes(layer: Callable[..., Any], files: dict[str, Any]) -> None:
    record = layer(files, platform="linux/arm64", emulates="zynq-zcu102-hls")
    assert record["platform"] == "linux/arm64"
    assert record["emulates"] == "zynq-zcu102-hls"


# Whole builds.


@pytest.mark.parametrize("state", ["emulated", "bundled"])
def test_without_an_artifact_for_the_device_there_is_no_image(tmp_path: Path, state: Any) -> None:
    record = VariantRecord(
        schema=1, recipe="kws", variant="zynq-zcu102-int8", target="zynq-zcu102", precision="int8",
        platform="linux/arm64", state=state, engine={"name": "pof2", "options": {}},
    )  # fmt: skip
    folder = tmp_path / "kws" / "zynq-zcu102-int8"
    folder.mkdir(parents=True)
    (folder / "variant.json").write_bytes(msgspec.json.encode(record))
    with pytest.raises(Tf2aifError, match=f"it is {state}, and what an image holds") as failed:
        find_image(tmp_path, "kws/zynq-zcu102-int8")
    assert "import-bundle" in failed.value.faults[0].hint


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A registry with a base that stands in for the vendor's: its address, the base's name."""
    files = [Entry(path="usr/bin/python3.11", source=b"#!", mode=0o755)]
    settings = Settings(entrypoint=("/usr/bin/python3.11",), environment=FOR_GPUS)
    layer = write(tmp_path / "vendor-layer", files)
    image = compose(Platform.parse("linux/amd64"), [layer], settings)
    layout = write_layout(tmp_path / "vendor", [image.named("cuda", "13")], image.blobs)
    with docker_registry(tmp_path / "registry") as address:
        push(Registry(Reference.parse(f"{address}/cuda")), layout, image.descriptor, tags=["13"])
        yield address, f"{address}/cuda@{image.descriptor.digest}"


def set_target(project: UserProject, name: str, **content: Any) -> None:
    """A target of the project's own, which may override one of ours."""
    folder = project.root / "targets"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def compose_image(project: UserProject, variant: str, out: Path) -> BuiltImage:
    """The image of what the last build's steps made."""
    build = project.last
    assert build
    planned_one = build.graph.variants[variant]
    record = read_record(build.workspace.variant(variant))
    assert planned_one.image
    assert record
    out.mkdir()
    image = write_image(planned_one, planned_one.image, build.graph, build.workspace, out / "image")
    return BuiltImage(folder=out, variant=record, record=image)


def test_an_engine_is_shipped_on_a_vendors_base_from_a_registry(
    make_project: Callable[..., UserProject], vendor: tuple[str, str], tmp_path: Path
) -> None:
    """No daemon, no GPU: built, composed, checked, pushed, and pulled again."""
    need("uv")
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra 'rtx' is not installed")
    address, base = vendor
    project = make_project()
    set_target(
        project,
        "gpu-rtx",
        platform="linux/amd64",
        base=f"registry:{base}",
        engine={"name": "tensorrt-rtx"},
        emulation={"name": "onnxruntime"},
        container={"gpus": 1},
        precisions={
            "fp16": [
                {"step": "onnx"},
                {"step": "onnx-cast", "precision": "fp16"},
                {"step": "tensorrt-rtx", "compute_capabilities": ["8.9"]},
            ]
        },
    )
    project.write(project.recipe(targets=["gpu-rtx"]))
    project.build(images=True)
    assert project.last
    assert not project.last.failures
    assert project.build(images=True) == set()

    built = compose_image(project, "digits/gpu-rtx-fp16", tmp_path / "composed")
    assert built.variant.state == "built"
    assert find_image(project.root / "build", "digits/gpu-rtx-fp16").record == built.record
    assert verify(built.folder / "image") == ()
    assert built.record.base_digest == base.partition("@")[2]
    environment = built.stored().config["config"]["Env"]
    assert {f"{name}={value}" for name, value in FOR_GPUS.items()} <= set(environment)
    names = take_inventory(built.layout, built.stored().manifest.layers).names
    assert {"variant/artifact/engine.plan", "variant/artifact/engine.json"} <= names
    assert any("libtensorrt_rtx.so" in name for name in names)
    record = read_variant_json(built.layout)
    assert record["accuracy"]["engine"] == "onnxruntime"
    assert built.variant.accuracy
    assert record["accuracy"]["variant"] == built.variant.accuracy.variant
    assert record["container"] == {"gpus": 1}
    assert "emulates" not in record

    (pushed,) = push_images([built], f"{address}/team")
    assert pushed.name == f"{address}/team/digits:gpu-rtx-fp16"
    registry = Registry(Reference.parse(f"{address}/team/digits@{pushed.digest}"))
    again = pull(registry, tmp_path / "pulled", Platform.parse("linux/amd64"))
    assert verify(again.folder) == ()
    assert again.image().descriptor.digest == built.record.digest


def read_variant_json(layout: Layout) -> dict[str, Any]:
    """The record in the last layer of an image, which is stored raw."""
    with tarfile.open(layout.path(layout.image().manifest.layers[-1].digest)) as tar:
        member = tar.extractfile("variant/variant.json")
        assert member
        found: dict[str, Any] = json.loads(member.read())
        return found
