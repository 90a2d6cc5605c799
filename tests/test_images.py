"""The images of real variants, in a real Docker engine, asked by the client's own image."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from engine import docker_engine, docker_registry, emulated_arm64, need

from tf2aif import __version__, tasks
from tf2aif.build import Build
from tf2aif.cli import main
from tf2aif.engines import litert
from tf2aif.errors import StepFailed, Tf2aifError, ToolchainMissing
from tf2aif.oci.client_image import client_layout, find_client, push_client, write_client_image
from tf2aif.oci.docker_build import build_variant
from tf2aif.oci.documents import Index, Platform
from tf2aif.oci.engine import Engine, Needs, container_options, is_ready
from tf2aif.oci.image import referrers_tag
from tf2aif.oci.layout import Layout
from tf2aif.oci.outputs import find_image, load_image, push_images, run_image, save_image
from tf2aif.oci.planning import find_inputs
from tf2aif.oci.provenance import MEDIA_TYPE as PROVENANCE
from tf2aif.oci.sbom import MEDIA_TYPE as SBOM
from tf2aif.oci.validate import verify
from tf2aif.oci.variant_image import Identity, Parts, attached_to
from tf2aif.spec.target import Container
from tf2aif.workers import Workers

RECIPE = """
model: {{path: {kws}/model, batch: 1}}
calibration: {{data: "{kws}/samples.npz#x", samples: 200}}
evaluation: {{data: "{kws}/samples.npz#x", labels: "{kws}/samples.npz#y"}}
targets:
  cpu: {{precisions: [int8]}}
  arm: {{precisions: [int8]}}
  cpu-openvino: {{precisions: [fp32]}}
"""
MAX_MB = {"kws/cpu-int8": 75, "kws/arm-int8": 75, "kws/cpu-openvino-fp32": 130}

pytestmark = pytest.mark.kws


@pytest.fixture(scope="module")
def built(kws: Path, warm: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose KWS variants for amd64 and arm64 have images; its `build/`."""
    need("apt-get")
    root = tmp_path_factory.mktemp("kws")
    (root / "recipes").mkdir()
    (root / "recipes" / "kws.yaml").write_text(RECIPE.format(kws=kws))
    build = Build.load([root / "recipes"], root, workers=warm, images=True)
    tasks.run(build)
    assert not build.failures, {n: e.render() for n, e in build.failures.items()}
    write_client_image(build.workspace, warm, find_inputs(root))
    return root / "build"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A Docker engine of the tests' own."""
    with docker_engine(tmp_path_factory.mktemp("docker")) as address, Engine(address) as engine:
        engine.address = address  # type: ignore[attr-defined]
        yield engine


def test_images_are_sound_and_small(built: Path):
    for variant, most_mb in MAX_MB.items():
        image = find_image(built, variant)
        assert verify(image.folder / "image") == ()
        assert image.record.size_bytes < most_mb * 1e6
        assert image.record.base_digest.startswith("sha256:")
    assert verify(client_layout(built)) == ()


def test_layers_are_shared_and_the_model_is_raw(built: Path):
    cpu = find_image(built, "kws/cpu-int8")
    layers = cpu.stored().manifest.layers
    assert [layer.media_type.endswith("gzip") for layer in layers] == [True, True, True, False]
    arm = find_image(built, "kws/arm-int8").stored().manifest.layers
    assert layers[2].digest == arm[2].digest  # our own code
    model = cpu.layout.path(layers[3].digest).read_bytes()
    assert (cpu.folder / "artifact" / "model.tflite").read_bytes() in model


def test_what_the_image_says(built: Path):
    image = find_image(built, "kws/cpu-int8")
    config = image.stored().config["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"][:2] == ["/usr/bin/tini", "--"]
    assert config["Labels"]["org.opencontainers.image.base.digest"] == image.record.base_digest
    assert config["Labels"]["org.opencontainers.image.revision"]
    text = json.dumps(image.stored().config) + image.layout.read(image.record.digest).decode()
    assert str(built.parent) not in text


def test_sbom_and_provenance(built: Path):
    image = find_image(built, "kws/cpu-int8")
    sbom = attached(image.layout, image.record.sbom)
    assert schema_faults(sbom) is None
    names = {component["name"] for component in sbom["components"]}
    assert {"libc6", "python3.11-minimal", "numpy", "ai-edge-litert", "kws/model.tflite"} <= names
    assert len({c["bom-ref"] for c in sbom["components"]}) == len(sbom["components"])
    sbom["components"][0]["type"] = "nonsense"
    assert schema_faults(sbom) is not None
    statement = attached(image.layout, image.record.provenance)
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subject = statement["subject"][0]["digest"]["sha256"]
    assert image.record.digest == f"sha256:{subject}"
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    steps = {d["uri"].rpartition("/")[2] for d in dependencies}
    assert {"import", "tflite-int8", "check-cpu-int8", "image-model-cpu-int8"} <= steps
    assert not any(name.startswith("latency") for name in steps)
    assert str(built.parent) not in json.dumps(statement)


def schema_faults(sbom: Any) -> Any:
    """What CycloneDX's own JSON schema, in its strict form, finds."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(sbom))


def test_the_clients_images_say_what_is_in_them(built: Path):
    layout = find_client(built)
    images = layout.images()
    assert [str(image.platform) for image in images] == ["linux/amd64", "linux/arm64"]
    for image in images:
        found = [m.digest for m in attached_to(layout, image.descriptor)]
        sbom, statement = (attached(layout, digest) for digest in found)
        assert schema_faults(sbom) is None
        assert {"libc6", "numpy", "tf2aif"} <= {c["name"] for c in sbom["components"]}
        assert sbom["metadata"]["component"]["bom-ref"] == image.descriptor.digest
        subject = statement["subject"][0]["digest"]["sha256"]
        assert image.descriptor.digest == f"sha256:{subject}"
        dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert len(dependencies) == 4
        assert all(d["digest"]["xxh3_128"] for d in dependencies)


def attached(layout: Layout, digest: str) -> Any:
    manifest = msgspec.json.decode(layout.read(digest))
    return msgspec.json.decode(layout.read(manifest["layers"][0]["digest"]))


@pytest.mark.parametrize("variant", ["kws/cpu-int8", "kws/cpu-openvino-fp32"])
def test_the_engine_answers_as_the_check_did(built: Path, engine: Engine, variant: str):
    """Loaded, read-only, not root, no capabilities, healthy; asked by the client's image."""
    image = find_image(built, variant)
    load_image(image.loadable, address_of(engine))
    container = Container(memory_mb=512)
    running = run_image(image, container, address=address_of(engine), network="host")
    try:
        found = engine.client.containers.get(running.id)
        settings = found.attrs["HostConfig"]
        assert settings["ReadonlyRootfs"]
        assert settings["CapDrop"] == ["ALL"]
        server = Path("/proc", str(found.attrs["State"]["Pid"]))
        status = dict(line.split(":\t") for line in (server / "status").read_text().splitlines())
        assert status["Uid"].split() == ["65532"] * 4
        assert int(status["CapEff"], 16) == 0
        with pytest.raises(OSError, match="Read-only file system"):
            (server / "root" / "written").touch()
        assert becomes_healthy(found)
        report = ask(built, engine, running.address)
    finally:
        engine.stop(running.id)
    served = report["servers"][0]["accuracy"]
    checked = image.variant.accuracy
    assert checked is not None
    assert (served["samples"], served["served"]) == (1000, checked.variant)


def address_of(engine: Engine) -> str:
    return str(engine.address)  # type: ignore[attr-defined]


def becomes_healthy(container: Any) -> bool:
    """Whether the engine's own health check finds so, within 30 s."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        container.reload()
        if container.attrs["State"]["Health"]["Status"] == "healthy":
            return True
        time.sleep(0.2)
    return False


def ask(built: Path, engine: Engine, address: str) -> Any:
    """What the client's image says of a server: all samples of the evaluation set."""
    layout = Layout(client_layout(built))
    stored = layout.image(Platform.parse("linux/amd64"))
    engine.load(layout, stored, "client", "test")
    steps = built / "kws" / ".steps"
    output = engine.client.containers.run(
        "client:test",
        [address, "--samples", "/samples", "--reference", "/reference", "--no-load", "--quiet",
         "--format", "json"],
        network_mode="host",
        read_only=True,
        cap_drop=["ALL"],
        remove=True,
        volumes={
            str(steps / "evaluation"): {"bind": "/samples", "mode": "ro"},
            str(steps / "reference"): {"bind": "/reference", "mode": "ro"},
        },
    )  # fmt: skip
    return json.loads(output)


def test_arm64_answers_under_emulation(
    built: Path, engine: Engine, tmp_path_factory: pytest.TempPathFactory
):
    image = find_image(built, "kws/arm-int8")
    with emulated_arm64(tmp_path_factory.mktemp("qemu")):
        running = run_image(
            image, Container(), address=address_of(engine), network="host", timeout_s=180
        )
        try:
            got = ask_samples(running.address, built, 20)
        finally:
            engine.stop(running.id)
    samples = np.load(built / "kws" / ".steps" / "evaluation" / "x0.npy")[:20]
    here = litert.load(image.folder / "artifact")
    name, answer = here.inputs[0].name, here.outputs[0].name
    wanted = [here.run({name: sample[None]})[answer] for sample in samples]
    here.close()
    np.testing.assert_array_equal(got.argmax(-1), np.concatenate(wanted).argmax(-1))


def ask_samples(address: str, built: Path, count: int) -> Any:
    """The answers of a server to the first samples, over JSON."""
    import requests

    samples = np.load(built / "kws" / ".steps" / "evaluation" / "x0.npy")[:count]
    about = requests.get(f"{address}/v2/models/kws", timeout=60).json()
    answers = []
    for sample in samples:
        tensor = {
            "name": about["inputs"][0]["name"],
            "shape": [1, *sample.shape],
            "datatype": "FP32",
            "data": sample.ravel().tolist(),
        }
        url = f"{address}/v2/models/kws/infer"
        answer = requests.post(url, json={"inputs": [tensor]}, timeout=60).json()
        answers.append(answer["outputs"][0]["data"])
    return np.asarray(answers)


def test_pushed_joined_and_pulled(built: Path, engine: Engine, tmp_path: Path):
    images = [find_image(built, f"kws/{name}") for name in ("cpu-int8", "arm-int8")]
    with docker_registry(tmp_path / "registry") as registry:
        first = push_images(images, f"{registry}/team")
        again = push_images(images, f"{registry}/team")
        assert sum(one.result.sent for one in again if one.result) == 0
        assert [one.digest for one in first] == [one.digest for one in again]
        index = first[-1]
        assert index.name == f"{registry}/team/kws:litert-int8"
        assert index.platforms == ("linux/amd64", "linux/arm64")
        pulled = engine.client.images.pull(f"{registry}/team/kws", tag="litert-int8")
        assert pulled.id == images[0].stored().manifest.config.digest
        running = engine.run(index.name, Needs(), network="host")
        try:
            assert ask_samples(running.address, built, 1).shape == (1, 12)
        finally:
            engine.stop(running.id)
        members = index_of(f"http://{registry}/v2/team/kws/manifests/litert-int8").manifests
        assert [m.digest for m in members] == [i.record.digest for i in images]
        (client,) = push_client(built, f"{registry}/team")
        assert client.name == f"{registry}/team/client:{__version__}"
        assert client.platforms == ("linux/amd64", "linux/arm64")
        assert push_client(built, f"{registry}/team") == (client,)
        index = index_of(f"http://{registry}/v2/team/client/manifests/{__version__}")
        for member in index.manifests:
            tag = referrers_tag(member.digest)
            listed = index_of(f"http://{registry}/v2/team/client/manifests/{tag}").manifests
            assert {one.artifact_type for one in listed} == {SBOM, PROVENANCE}


def index_of(url: str) -> Index:
    import requests

    answer = requests.get(url, headers={"Accept": "application/vnd.oci.image.index.v1+json"})
    return msgspec.json.decode(answer.content, type=Index)


def test_an_archive_loads(built: Path, engine: Engine, tmp_path: Path):
    image = find_image(built, "kws/cpu-int8")
    save_image(image.loadable, tmp_path / "kws.tar")
    assert verify(tmp_path / "kws.tar") == ()
    with (tmp_path / "kws.tar").open("rb") as file:
        loaded = engine.client.images.load(file)
    assert [one.id for one in loaded] == [image.stored().manifest.config.digest]
    assert "kws:cpu-int8" in loaded[0].tags


def test_the_words_of_the_command_line(
    built: Path,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """`image save`, `load`, `verify`, `push` and `run`, of a variant and of the client."""
    monkeypatch.chdir(built.parent)

    def told(*words: str) -> Any:
        assert main([*words]) == 0
        return json.loads(capsys.readouterr().out)

    address = address_of(engine)
    assert told("image", "--json", "verify", "client", "kws/cpu-int8") == {"faults": []}
    saved = told("image", "--json", "save", "client", "-o", str(tmp_path / "client.tar"))
    assert saved["size_bytes"] == (tmp_path / "client.tar").stat().st_size
    assert verify(tmp_path / "client.tar") == ()
    loaded = told("image", "--json", "load", "--engine", address, "client")
    assert loaded["name"] == f"client:{__version__}"
    assert engine.client.images.get(loaded["name"]).id == loaded["id"]
    with docker_registry(tmp_path / "registry") as registry:
        pushed = told("push", "--json", "kws", "client", "--to", f"{registry}/team")["images"]
    names = [image["name"].removeprefix(f"{registry}/team/") for image in pushed]
    tags = ("arm-int8", "cpu-int8", "cpu-openvino-fp32", "litert-int8")
    assert names == [*(f"kws:{tag}" for tag in tags), f"client:{__version__}"]
    words = ("run", "--json", "kws/cpu-int8", "--engine", address, "--network", "host")
    running = told(*words)
    assert is_ready(running["address"])
    engine.stop(running["id"])
    assert main(["image", "save", "kws/none"]) == 1
    assert "there is no image of kws/none" in capsys.readouterr().err


def test_the_docker_builder_makes_an_image_that_serves(built: Path, engine: Engine):
    image = find_image(built, "kws/cpu-int8")
    steps = built / "kws" / ".steps"
    names = ("image-packages-cpu", "image-app-3.11", "image-model-cpu-int8")
    parts = Parts(base=steps / "image-base-cpu", layers=tuple(steps / name for name in names))
    identity = Identity(recipe="kws", variant="cpu-int8", platform="linux/amd64", revision="test")
    record = msgspec.structs.replace(image.record, name="by-docker")
    assert build_variant(parts, identity, record, address_of(engine)).builder == "docker"
    running = engine.run("by-docker:cpu-int8", Needs(), network="host")
    try:
        assert ask_samples(running.address, built, 1).shape == (1, 12)
    finally:
        engine.stop(running.id)


def test_a_container_that_ends_is_said_with_its_last_words(built: Path, engine: Engine):
    load_image(find_image(built, "kws/cpu-int8").loadable, address_of(engine))
    with pytest.raises(StepFailed, match=r"(?s)container ended with 2.*--nonsense"):
        engine.run("kws:cpu-int8", Needs(), network="host", command=["--nonsense"])
    names = [one.name for one in engine.client.containers.list(all=True)]
    assert names == []


def test_gpus_are_asked_for_and_an_engine_without_says_so(built: Path, engine: Engine):
    """No machine of the tests has a GPU: what goes to the engine, and what it answers without."""
    load_image(find_image(built, "kws/cpu-int8").loadable, address_of(engine))
    options = container_options(Needs(gpus=-1), port=0, host=True)
    container = engine.client.containers.create("kws:cpu-int8", **options)
    (request,) = container.attrs["HostConfig"]["DeviceRequests"]
    container.remove()
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])
    with pytest.raises(Tf2aifError, match="can give no GPU to a container") as failed:
        engine.run("kws:cpu-int8", Needs(gpus=1), network="host")
    assert "Container Toolkit" in failed.value.faults[0].hint
    with pytest.raises(Tf2aifError, match="/dev/no-such-device"):
        engine.run("kws:cpu-int8", Needs(devices=("/dev/no-such-device",)), network="host")
    assert engine.client.containers.list(all=True) == []


def test_no_engine_and_no_image(built: Path, tmp_path: Path):
    with pytest.raises(ToolchainMissing, match="cannot reach the Docker engine"):
        Engine(f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(Tf2aifError, match="there is no image of kws/none"):
        find_image(built, "kws/none")
    with pytest.raises(Tf2aifError, match="there is no image of the client"):
        find_client(tmp_path)


def test_unchanged_nothing_runs(built: Path, warm: Workers):
    before = find_image(built, "kws/cpu-int8").record
    build = Build.load([built.parent / "recipes"], built.parent, workers=warm, images=True)
    tasks.run(build)
    assert {result.done for result in build.results.values()} == {"fresh"}
    assert find_image(built, "kws/cpu-int8").record == before
