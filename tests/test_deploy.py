"""Kubernetes manifests: held to the official schemas, to what was measured, and to the server."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import msgspec
import pytest
import yaml
from engine import docker_registry
from hypothesis import given
from hypothesis import strategies as st
from kserve_api import check_kserve
from test_oci_layers import image_of, write
from toy_server import served, write_onnx

from tf2aif.choose.catalogue import (
    Catalogue,
    CatalogueImage,
    CatalogueVariant,
    MeasuredOn,
    Measurement,
    Percentiles,
    Requirements,
    encode_catalogue,
)
from tf2aif.choose.fleet import Fleet, Node, read_fleet
from tf2aif.choose.options import make_problem
from tf2aif.choose.place import place
from tf2aif.choose.placement import Placement, encode_placement
from tf2aif.choose.select import places_of
from tf2aif.choose.services import FleetService, Services
from tf2aif.cli import main
from tf2aif.deploy.asked import Chosen, choose_named
from tf2aif.deploy.kserve import kserve_objects
from tf2aif.deploy.manifest import HEADER, render, write_folder
from tf2aif.deploy.names import OBJECT, is_name, label_value, object_name
from tf2aif.deploy.objects import plain_objects
from tf2aif.deploy.placed import choose_placed
from tf2aif.deploy.pod import DRAIN_S, USER
from tf2aif.deploy.workload import Wish
from tf2aif.errors import FilesError
from tf2aif.oci.image import Settings
from tf2aif.oci.layers import Entry
from tf2aif.oci.record import ImageRecord
from tf2aif.record import SCHEMA, VariantRecord
from tf2aif.serve.arguments import read_arguments
from tf2aif.spec.load import load_targets
from tf2aif.spec.recipe import NAME
from tf2aif.spec.target import Container, EngineUse, Target

OLDEST, NEWEST = "1.25", "1.37"
REGISTRY = "registry.example:5000/team"
DIGEST = f"sha256:{'5' * 64}"
X86 = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
TARGETS = load_targets(Path("/nowhere"))  # those that ship with the package
MACHINE = MeasuredOn(platform="linux/amd64", cpu="Xeon", cores=8)
SERVED = Measurement(
    origin="bench",
    subject="server",
    scenario="single-stream",
    threads=2,
    machine=MACHINE,
    memory_mb=120.3,
    cold_start_s=0.4,
    stable=True,
)


def variant(name: str = "cpu-int8", recipe: str = "kws", **changes: Any) -> CatalogueVariant:
    """An entry of the catalogue, measured with two threads; with some fields changed."""
    target, _, precision = name.rpartition("-")
    entry = CatalogueVariant(
        id=f"{recipe}/{name}",
        recipe=recipe,
        variant=name,
        target=target,
        precision=precision,
        state="built",
        platform="linux/amd64",
        engine="litert",
        artifact="0" * 32,
        size_bytes=1,
        image=CatalogueImage(name=f"{recipe}:{name}", digest=DIGEST, size_bytes=1),
        requires=Requirements(labels=X86, memory_mb=120.3),
        measurements=(SERVED,),
    )
    return msgspec.structs.replace(entry, **changes)


GPU = variant(
    "gpu-fp16",
    requires=Requirements(
        labels={**X86, "nvidia.com/gpu.present": "true"},
        resources={"nvidia.com/gpu": 1},
        memory_mb=900.0,
    ),
)
ALVEO = variant(
    "alveo-u250-int8", requires=Requirements(labels=X86, resources={"amd.com/xilinx_u250_*": 1})
)
UNMEASURED = variant("cpu-fp32", requires=Requirements(labels=X86), measurements=())


def choose(*variants: CatalogueVariant, targets: Any = TARGETS, **wish: Any) -> Chosen:
    """All these variants, as the command line names them."""
    asked = Wish(**{"registry": REGISTRY, **wish})
    return choose_named([v.id for v in variants], Catalogue(variants=variants), targets, asked)


def plain(*variants: CatalogueVariant, **wish: Any) -> list[dict[str, Any]]:
    return plain_objects(choose(*variants, **wish).workloads)


def pod_of(*variants: CatalogueVariant, **wish: Any) -> dict[str, Any]:
    """The pod of the only Deployment."""
    (deployment,) = (o for o in plain(*variants, **wish) if o["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def server_of(*variants: CatalogueVariant, **wish: Any) -> dict[str, Any]:
    (server,) = pod_of(*variants, **wish)["containers"]
    return server  # type: ignore[no-any-return]


EVERY = (variant(), GPU, ALVEO, UNMEASURED, variant("arm-int8", recipe="digits"))
SHELL = {"amd.com/xilinx_u250_gen3x16_base_4-0": 1}


# The official schemas.


@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
def test_every_object_is_what_kubernetes_takes(kubernetes: str) -> None:
    workloads = choose(*EVERY, replicas=3, resources=SHELL).workloads
    objects = plain_objects(workloads, namespace="models", secret="registry")
    kinds = [each["kind"] for each in objects]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "Service": 2, "PodDisruptionBudget": 2, "Deployment": 5,
    }  # fmt: skip
    for each in objects:
        kubernetes_validate.validate(each, kubernetes, strict=True)
    for each in kserve_objects(workloads, namespace="models", secret="registry"):
        check_kserve(each, kubernetes)


def test_the_schemas_refuse_what_is_wrong() -> None:
    deployment = plain(variant())[-1]
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)
    runtime, service = kserve_objects(choose(variant()).workloads)
    runtime["spec"]["securityContext"] = {}
    service["spec"]["predictor"]["model"]["runtimes"] = "x"
    for wrong in (runtime, service):
        with pytest.raises(jsonschema.ValidationError):
            check_kserve(wrong, NEWEST)


# What a pod may, and what it asks for.


def test_a_pod_meets_the_restricted_standard() -> None:
    pod = pod_of(variant())
    (server,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {tuple(volume) for volume in pod["volumes"]} == {("name", "emptyDir")}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert Settings(entrypoint=("x",)).user == f"{USER}:{USER}"


def test_an_image_is_named_by_its_digest() -> None:
    server = server_of(variant(), registry=f"{REGISTRY}/")
    assert server["image"] == f"{REGISTRY}/kws@{DIGEST}"


def test_what_is_asked_for_is_what_was_measured() -> None:
    server = server_of(variant())
    assert server["resources"] == {
        # 120.3 MiB and a quarter, in steps of 16; and all that requests may hold at once.
        "requests": {"cpu": "2", "memory": "160Mi"},
        "limits": {"memory": "416Mi"},
    }
    assert read_arguments(["/variant", *server["args"]]).threads == 2


def test_a_target_states_limits_of_its_own() -> None:
    own = Target(
        platform="linux/amd64",
        engine=EngineUse(name="litert"),
        precisions={"int8": [{"step": "tflite"}]},
        container=Container(memory_mb=128, cpus=1.5, groups=["44"], environment={"B": "on"}),
    )
    chosen = choose(variant(), targets={"cpu": own})
    pod = plain_objects(chosen.workloads)[-1]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert server["resources"] == {
        "requests": {"cpu": "1500m", "memory": "128Mi"},
        "limits": {"cpu": "1500m", "memory": "128Mi"},
    }
    assert pod["securityContext"]["supplementalGroups"] == [44]
    assert server["env"] == [{"name": "B", "value": "on"}]
    unmeasured = choose(UNMEASURED, targets={"cpu": own})
    assert unmeasured.notes == ()
    (workload,) = unmeasured.workloads
    assert (workload.resources.memory_mb, workload.resources.cpus) == (128, 1.5)


def test_what_was_not_measured_is_left_out_and_told() -> None:
    chosen = choose(UNMEASURED)
    server = server_of(UNMEASURED)
    assert "resources" not in server
    assert "--threads" not in server["args"]
    assert [note.partition(",")[0] for note in chosen.notes] == [
        "kws/cpu-fp32: its memory was not measured",
        "kws/cpu-fp32: no figure says with how many threads",
    ]
    with_threads = server_of(UNMEASURED, threads=4)
    assert with_threads["resources"] == {"requests": {"cpu": "4"}}
    assert with_threads["args"][-2:] == ["--threads", "4"]


def test_the_figure_that_pods_are_given_is_of_the_server_stable_and_last() -> None:
    def threads(*figures: Measurement) -> int | None:
        (workload,) = choose(variant(measurements=figures)).workloads
        return workload.threads

    change = msgspec.structs.replace
    engine = change(SERVED, subject="engine", threads=1)
    noisy = change(SERVED, stable=False, threads=3)
    later = change(SERVED, threads=4, measured_at="2026-11-21T10:00:00Z")
    free = change(SERVED, threads=None)
    assert threads(engine, noisy, SERVED, free) == 2
    assert threads(later, engine, SERVED) == 4
    assert threads(noisy, engine) == 3
    assert threads(free) is None


def test_a_gpu_is_asked_for_and_tolerated_and_no_spare_one_is_needed() -> None:
    (service, deployment) = plain(GPU)
    pod = deployment["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    for kind in ("requests", "limits"):
        assert server["resources"][kind]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert service["kind"] == "Service"


def test_the_device_plug_in_says_which_gpus_a_container_sees() -> None:
    jetson = variant("agx-fp16", requires=GPU.requires)
    assert TARGETS["agx"].container.environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    names = [each["name"] for each in server_of(jetson)["env"]]
    assert names == ["NVIDIA_DRIVER_CAPABILITIES"]


def test_a_card_goes_by_the_name_that_the_cluster_has_for_it() -> None:
    server = server_of(ALVEO, resources=SHELL)
    assert server["resources"]["limits"] == {next(iter(SHELL)): "1"}
    with pytest.raises(FilesError, match="which each cluster names in its own way"):
        choose(ALVEO)
    with pytest.raises(FilesError, match="no variant here needs"):
        choose(variant(), resources=SHELL)
    board = variant("zynq-zcu104-int8", requires=Requirements(labels=X86))
    assert "from a device plug-in only" in choose(board).notes[-1]
    named = server_of(board, resources={"example.com/dpu": 1})
    assert named["resources"]["limits"]["example.com/dpu"] == "1"


def test_its_node_must_have_every_label_of_the_catalogue() -> None:
    node = pod_of(GPU)["affinity"]["nodeAffinity"]
    (term,) = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {each["operator"] for each in term["matchExpressions"]} == {"In"}
    found = {each["key"]: each["values"] for each in term["matchExpressions"]}
    assert found == {name: [value] for name, value in GPU.requires.labels.items()}


def test_our_server_takes_the_arguments_and_answers_the_probes(tmp_path: Path) -> None:
    pod = pod_of(variant())
    (server,) = pod["containers"]
    config = read_arguments(["/variant", *server["args"]])
    (port,) = server["ports"]
    assert config.port == port["containerPort"] == 8080
    assert config.limits.drain_s == DRAIN_S
    assert pod["terminationGracePeriodSeconds"] > config.limits.drain_s + config.limits.stop_s
    probes = [server[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["httpGet"]["port"] for probe in probes} == {port["name"]}
    with served(write_onnx(tmp_path), *server["args"], "--port", "0") as running:
        for probe in probes:
            assert running.ask(probe["httpGet"]["path"]).status == 200
        annotations = plain(variant())[-1]["spec"]["template"]["metadata"]["annotations"]
        assert running.ask(annotations["prometheus.io/path"]).status == 200


def test_a_slow_start_is_waited_for() -> None:
    def patience(cold_start_s: float) -> int:
        figure = msgspec.structs.replace(SERVED, cold_start_s=cold_start_s)
        probe = server_of(variant(measurements=(figure,)))["startupProbe"]
        return int(probe["periodSeconds"] * probe["failureThreshold"])

    assert patience(0.4) == 120
    assert patience(60.0) == 600


# Services.


def test_one_service_is_before_all_variants_of_a_recipe() -> None:
    service, budget, *deployments = plain(variant(), GPU, variant("cpu-fp32"))
    assert [each["metadata"]["name"] for each in deployments] == [
        "kws-cpu-fp32", "kws-cpu-int8", "kws-gpu-fp16",
    ]  # fmt: skip
    assert service["metadata"]["name"] == budget["metadata"]["name"] == "kws"
    selectors = [each["spec"]["selector"]["matchLabels"] for each in deployments]
    for deployment, own in zip(deployments, selectors, strict=True):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert [other for other in selectors if other.items() <= labels.items()] == [own]
    assert service["spec"]["ports"][0]["targetPort"] == "http"


def test_one_replica_has_no_disruption_budget_and_nothing_to_spread() -> None:
    assert [each["kind"] for each in plain(variant())] == ["Service", "Deployment"]
    assert "topologySpreadConstraints" not in pod_of(variant())
    assert pod_of(variant(), replicas=2)["topologySpreadConstraints"][0]["maxSkew"] == 1


def test_a_recipe_stands_for_its_variants_with_images_that_are_no_baseline() -> None:
    every = (
        variant(),
        variant("cpu-tf-fp32", baseline=True),
        variant("gpu-fp16", state="bundled", image=None),
        variant("cpu-fp32", image=None),
        variant("zynq-pynq-z2-hls-auto"),
        variant("cpu-int8", recipe="other"),
    )
    chosen = choose_named(["kws"], Catalogue(variants=every), TARGETS, Wish(registry=REGISTRY))
    assert [one.id for one in chosen.workloads] == ["kws/cpu-int8"]
    assert chosen.notes == (
        "kws/cpu-tf-fp32 is left out: it is a baseline",
        "kws/gpu-fp16 is left out: it is bundled",
        "kws/cpu-fp32 is left out: it has no image",
        "kws/zynq-pynq-z2-hls-auto is left out: its image simulates its device",
    )
    assert choose(every[1]).workloads[0].variant == "cpu-tf-fp32"  # named: it is meant


def test_the_same_variants_in_any_order_give_the_same_bytes() -> None:
    workloads = list(choose(*EVERY, replicas=2, resources=SHELL).workloads)
    first = render(plain_objects(workloads)), render(kserve_objects(workloads))
    random.Random(3).shuffle(workloads)
    assert (render(plain_objects(workloads)), render(kserve_objects(workloads))) == first


# Placements.


NODES = {
    "rack": Node(platform="linux/amd64", cores=8, memory_mb=4096, labels={"example.com/kind": "r"}),
    "boxes": Node(
        platform="linux/amd64", cores=4, count=4, cost_per_hour=0.1, gpu="NVIDIA L4",
        labels={"example.com/kind": "b"}, resources={"nvidia.com/gpu": 1},
    ),
}  # fmt: skip


def timed(one: CatalogueVariant, p99_ms: float, **machine: Any) -> CatalogueVariant:
    """With a measured latency, on a machine like the nodes above."""
    latency = Percentiles(p50_ms=p99_ms / 2, p99_ms=p99_ms)
    where = msgspec.structs.replace(MACHINE, cores=4, **machine)
    figure = msgspec.structs.replace(SERVED, latency=latency, machine=where)
    return msgspec.structs.replace(one, measurements=(figure,))


def placed(
    *variants: CatalogueVariant, rate: float, fleet: Fleet, p99: str = "p99<=50ms"
) -> tuple[Placement, Catalogue]:
    """A service `speech` of recipe kws and one that nothing answers, placed by a greedy policy."""
    catalogue = Catalogue(variants=variants)
    wanted = Services(
        services={
            "speech": FleetService(recipe="kws", rate=rate, objectives=(p99,)),
            "vision": FleetService(recipe="resnet", rate=1.0),
        }
    )
    problem = make_problem(catalogue, places_of(fleet), wanted)
    return place(problem, policies=("cheapest",)), catalogue


def test_a_placement_becomes_deployments_on_its_kinds_of_nodes() -> None:
    fleet = Fleet(nodes=NODES)
    placement, catalogue = placed(timed(variant(), 4.0), rate=2600.0, fleet=fleet)
    chosen = choose_placed(placement, catalogue, TARGETS, REGISTRY, fleet)
    service, budget, *deployments = plain_objects(chosen.workloads)
    kubernetes_validate.validate(deployments[0], NEWEST, strict=True)
    assert service["metadata"]["name"] == budget["metadata"]["name"] == "speech"
    assert service["metadata"]["labels"]["app.kubernetes.io/name"] == "kws"
    (speech, _) = placement.services
    assert {each["metadata"]["name"]: each["spec"]["replicas"] for each in deployments} == {
        f"speech-cpu-int8-{group.nodes}": group.replicas for group in speech.groups
    }
    assert len(deployments) == 2
    for deployment, workload in zip(deployments, chosen.workloads, strict=True):
        (group,) = (g for g in speech.groups if g.nodes == workload.group)
        pod = deployment["spec"]["template"]["spec"]
        (server,) = pod["containers"]
        assert server["resources"]["requests"] == {
            "cpu": str(group.cores),
            "memory": f"{group.memory_mb}Mi",
        }
        assert server["args"][-2:] == ["--threads", "2"]
        assert NODES[group.nodes].labels.items() <= workload.labels.items()
    assert [note.partition(":")[0] for note in chosen.notes] == ["vision is not placed"]


def test_a_placement_s_cards_have_the_names_of_its_nodes() -> None:
    alveo = timed(ALVEO, 4.0)
    shell = next(iter(SHELL))
    card = msgspec.structs.replace(NODES["rack"], resources=SHELL, labels=X86)
    fleet = Fleet(nodes={"cards": card})
    placement, catalogue = placed(alveo, rate=10.0, fleet=fleet)
    (workload,) = choose_placed(placement, catalogue, TARGETS, REGISTRY, fleet).workloads
    assert workload.resources.extended == {shell: 1}
    assert workload.name == "speech-alveo-u250-int8-cards"


def test_pods_that_a_plain_service_would_overload_are_told() -> None:
    fleet = Fleet(nodes=NODES)
    fast, slow = timed(GPU, 2.0, gpu="NVIDIA L4"), timed(variant(), 40.0)
    placement, catalogue = placed(fast, slow, rate=2170.0, fleet=fleet, p99="p99<=500ms")
    (speech, _) = placement.services
    assert {group.variant for group in speech.groups} == {"kws/gpu-fp16", "kws/cpu-int8"}
    notes = choose_placed(placement, catalogue, TARGETS, REGISTRY, fleet).notes
    (told,) = (note for note in notes if note.startswith("speech: a Service sends each"))
    assert "kws/cpu-int8" in told
    asked = choose_placed(placement, catalogue, TARGETS, REGISTRY, fleet, shares=True)
    assert not any(note.startswith("speech: a Service sends each") for note in asked.notes)


def test_a_route_gives_each_group_its_share() -> None:
    fleet = Fleet(nodes=NODES)
    fast, slow = timed(GPU, 2.0, gpu="NVIDIA L4"), timed(variant(), 40.0)
    placement, catalogue = placed(fast, slow, rate=2170.0, fleet=fleet, p99="p99<=500ms")
    chosen = choose_placed(placement, catalogue, TARGETS, REGISTRY, fleet, shares=True)
    objects = plain_objects(chosen.workloads, namespace="models", mesh=True)
    (route,) = (each for each in objects if each["kind"] == "HTTPRoute")
    services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in objects
        if each["kind"] == "Deployment"
    }
    (parent,) = route["spec"]["parentRefs"]
    (rule,) = route["spec"]["rules"]
    assert (parent["kind"], parent["name"], route["metadata"]["namespace"]) == (
        "Service", "speech", "models",
    )  # fmt: skip
    assert (
        set(services)
        == {"speech", *labels}
        == {"speech", *(r["name"] for r in rule["backendRefs"])}
    )
    shares = {one.name: one.share for one in chosen.workloads}
    whole = sum(each["weight"] for each in rule["backendRefs"])
    for each in rule["backendRefs"]:
        name = each["name"]
        assert each["weight"] / whole == pytest.approx(shares[name], abs=0.002)
        chosen_by = services[name]["selector"].items()
        assert [other for other, own in labels.items() if chosen_by <= own.items()] == [name]
        assert each["port"] == parent["port"] == services[name]["ports"][0]["port"]
    assert sum(shares.values()) == pytest.approx(1.0)
    alone = plain_objects(chosen.workloads[:1], mesh=True)
    assert "HTTPRoute" not in {each["kind"] for each in alone}


def test_kinds_of_nodes_that_labels_do_not_tell_apart_are_told() -> None:
    plain_nodes = {n: msgspec.structs.replace(node, labels={}) for n, node in NODES.items()}
    fleet = Fleet(nodes=plain_nodes)
    placement, catalogue = placed(timed(variant(), 4.0), rate=10.0, fleet=fleet)
    notes = choose_placed(placement, catalogue, TARGETS, REGISTRY, fleet).notes
    assert any("until labels in the fleet tell them apart" in note for note in notes)
    alike = Fleet(nodes={"a": plain_nodes["rack"], "b": plain_nodes["rack"]})
    placement, catalogue = placed(timed(variant(), 4.0), rate=10.0, fleet=alike)
    (note,) = choose_placed(placement, catalogue, TARGETS, REGISTRY, alike).notes
    assert note.startswith("vision is not placed")


def test_a_placement_of_another_fleet_or_catalogue_is_refused() -> None:
    fleet = Fleet(nodes=NODES)
    placement, catalogue = placed(timed(variant(), 4.0), rate=10.0, fleet=fleet)
    other = Fleet(nodes={"else": NODES["rack"]})
    with pytest.raises(FilesError, match="the fleet has no kind of nodes"):
        choose_placed(placement, catalogue, TARGETS, REGISTRY, other)
    with pytest.raises(FilesError, match="the catalogue has no kws/cpu-int8"):
        choose_placed(placement, Catalogue(), TARGETS, REGISTRY, fleet)
    gone = Catalogue(variants=(msgspec.structs.replace(variant(), image=None),))
    with pytest.raises(FilesError, match="kws/cpu-int8 has no image"):
        choose_placed(placement, gone, TARGETS, REGISTRY, fleet)
    nothing, catalogue = placed(timed(variant(), 4.0), rate=10.0, fleet=fleet, p99="p99<=1ms")
    with pytest.raises(FilesError, match="nothing was placed"):
        choose_placed(nothing, catalogue, TARGETS, REGISTRY, fleet)


def test_the_command_line_takes_a_placement(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["deploy", "--placement", "build/placement.json", *ASKED]
    assert main(words) == 2
    assert "'tf2aif place' writes it" in capsys.readouterr().err
    (project / "fleet.yaml").write_text("nodes: {rack: {platform: linux/amd64, cores: 8}}\n")
    fleet = read_fleet(project / "fleet.yaml")
    placement, _ = placed(timed(variant(), 4.0), rate=10.0, fleet=fleet)
    (project / "build" / "placement.json").write_bytes(encode_placement(placement))
    assert main(words) == 0
    said = capsys.readouterr()
    assert [each["kind"] for each in yaml.safe_load_all(said.out)] == ["Service", "Deployment"]
    assert "note: vision is not placed" in said.err
    assert main([*words, "--replicas", "2"]) == 2
    assert "a placement says which variants run" in capsys.readouterr().err
    assert main(["deploy", "kws/cpu-int8", "--nodes", "fleet.yaml", *ASKED]) == 2
    assert "a fleet is needed for a placement only" in capsys.readouterr().err


# KServe.


def test_kserve_runs_the_same_container() -> None:
    workloads = choose(GPU, replicas=3).workloads
    deployment = plain_objects(workloads)[-1]
    runtime, service = kserve_objects(workloads)
    (plain_one,) = deployment["spec"]["template"]["spec"]["containers"]
    (served,) = runtime["spec"]["containers"]
    assert served == {**plain_one, "name": "kserve-container"}
    predictor = service["spec"]["predictor"]
    assert predictor["minReplicas"] == predictor["maxReplicas"] == 3
    assert predictor["securityContext"]["runAsUser"] == USER
    assert predictor["affinity"] == deployment["spec"]["template"]["spec"]["affinity"]
    assert predictor["tolerations"][0]["key"] == "nvidia.com/gpu"
    model = predictor["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (offered,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"].items() <= offered.items()
    assert "storageUri" not in model


# Names and YAML.


@given(st.from_regex(NAME, fullmatch=True), st.from_regex(NAME, fullmatch=True))
def test_names_are_such_that_every_kind_of_object_takes_them(recipe: str, name: str) -> None:
    found = object_name(recipe[:63], name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert is_name(found)
    assert len(found) <= OBJECT
    value = label_value(f"{recipe[:63]}.{name}")
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", value)
    assert len(value) <= 63


def test_names_that_had_to_change_are_told_apart() -> None:
    assert object_name("kws", "cpu-int8") == "kws-cpu-int8"
    names = {
        object_name("kws", name) for name in ("a.b", "a_b", "a-b", "a.b-c", "a" * 60, "a" * 61)
    }
    assert len(names) == 6
    with pytest.raises(FilesError, match="two workloads would be called kws-cpu-a-int8"):
        choose(variant("a-int8", recipe="kws-cpu"), variant("cpu-a-int8", recipe="kws"))


AMBIGUOUS = (
    *("yes", "No", "on", "y", "null", "~", "", "1e3", "0x1f", "0o7", "1_000", "12:30", ".inf"),
    *("2026-11-21", "=", "<<", "true ", "5", "-1", "a: b", "a #b", "a:", "@x", "\u2028", "é"),
)


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_text_that_a_reader_could_take_for_something_else_is_quoted(text: str) -> None:
    document = render([{"value": text, text: 1}]).removeprefix(HEADER)
    assert document.startswith('value: "')
    assert yaml.safe_load(document) == {"value": text, text: 1}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back_as_it_was(text: str) -> None:
    assert yaml.safe_load(render([{"value": [text]}])) == {"value": [text]}


def test_kubectl_reads_a_folder_as_we_wrote_it(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not here: another reader of YAML, and of kustomization.yaml")
    objects = plain(variant(), GPU, replicas=2)
    data = {f"k{index}": text for index, text in enumerate(AMBIGUOUS)}
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data}
    write_folder({"kws": objects, "other": [settings]}, tmp_path / "out")
    done = subprocess.run(
        [kubectl, "kustomize", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )

    def texts(documents: str) -> dict[tuple[str, str], Any]:
        # As text: what kubectl writes without quotes PyYAML may take for something else.
        found = yaml.load_all(documents, yaml.BaseLoader)
        return {(each["kind"], each["metadata"]["name"]): each for each in found}

    assert texts(done.stdout) == texts(render([*objects, settings]))


# The command line.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with a catalogue of four variants."""
    (tmp_path / "build").mkdir()
    every = (variant(), variant("cpu-fp32", image=None), GPU, ALVEO)
    failed = variant("arm-int8", state="failed", reason="the gate", image=None)
    emulated = variant("zynq-zcu104-int8", state="emulated", image=None)
    simulated = variant("zynq-pynq-z2-hls-auto")
    named = variant("board-int8", recipe="boards")
    catalogue = Catalogue(variants=(*every, failed, emulated, simulated, named))
    (tmp_path / "build" / "catalogue.json").write_bytes(encode_catalogue(catalogue))
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "board.yaml").write_text(
        "platform: linux/amd64\nengine: {name: litert}\ncontainer: {groups: [video]}\n"
        "precisions: {int8: [{step: tflite, precision: int8}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


ASKED = ["--dry-run", "--registry", REGISTRY, "--offline"]


def test_manifests_go_to_standard_output_for_kubectl(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "kws/cpu-int8", "--namespace", "models", *ASKED]) == 0
    said = capsys.readouterr()
    service, deployment = yaml.safe_load_all(said.out)
    assert (service["kind"], deployment["kind"]) == ("Service", "Deployment")
    assert deployment["metadata"]["namespace"] == "models"
    assert said.err == ""
    assert main(["deploy", "kws/cpu-int8", "--json", "--kserve", *ASKED]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in told["objects"]] == ["ServingRuntime", "InferenceService"]
    assert (told["notes"], told["files"]) == ([], [])


def test_a_folder_holds_a_file_for_each_service_and_an_index(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "kws/cpu-int8", "boards/board-int8", *ASKED, "-o", "out"]) == 2
    (project / "targets" / "board.yaml").unlink()
    assert main(["deploy", "kws/cpu-int8", "boards/board-int8", *ASKED, "-o", "out"]) == 0
    assert "wrote 3 files: kubectl apply -k out" in capsys.readouterr().out
    index = yaml.safe_load((project / "out" / "kustomization.yaml").read_text())
    assert index["resources"] == ["boards.yaml", "kws.yaml"]
    assert main(["deploy", "kws/cpu-int8", *ASKED, "-o", "out"]) == 0
    assert sorted(path.name for path in (project / "out").iterdir()) == [
        "kustomization.yaml", "kws.yaml",
    ]  # fmt: skip
    (project / "out" / "patch.yaml").write_text("mine: true\n")
    before = (project / "out" / "kws.yaml").read_bytes()
    assert main(["deploy", "kws/cpu-int8", *ASKED, "-o", "out", "--replicas", "2"]) == 2
    assert "out/patch.yaml" in capsys.readouterr().err
    assert (project / "out" / "kws.yaml").read_bytes() == before


WRONG = {
    "deploy kws/cpu-int8 --registry r.example/t": "speaks to no cluster",
    "deploy kws/cpu-int8 --dry-run": "which registry holds the images was not said",
    "deploy --dry-run --registry r.example/t": "nothing to deploy was named",
    "deploy kws/cpu-int8 --dry-run --registry r.example/t:1 --offline": "no registry with a path",
    "deploy kws/cpu-int8 --dry-run --registry R/T --offline": "no registry with a path",
    "deploy kws/cpu-int --dry-run --registry r/t --offline": "did you mean 'kws/cpu-int8'?",
    "deploy kwss --dry-run --registry r/t --offline": "did you mean 'kws'?",
    "deploy kws/cpu-fp32 --dry-run --registry r/t --offline": "kws/cpu-fp32 has no image",
    "deploy kws/arm-int8 --dry-run --registry r/t --offline": "kws/arm-int8 is failed: the gate",
    "deploy kws/zynq-zcu104-int8 --dry-run --registry r/t --offline": "import-bundle the result",
    "deploy kws/zynq-pynq-z2-hls-auto --dry-run --registry r/t --offline": "simulates its device",
    "deploy kws/alveo-u250-int8 --dry-run --registry r/t --offline": "--resource NAME=1",
    "deploy boards --dry-run --registry r/t --offline": "group 'video' is a name",
    "deploy kws/cpu-int8 --dry-run --registry r/t --offline --namespace A": "--namespace",
    "deploy kws/cpu-int8 --dry-run --registry r/t --offline --pull-secret a_b": "--pull-secret",
    "deploy kws/cpu-int8 --dry-run --registry r/t --offline --resource gpu": "with its domain",
    "deploy kws/cpu-int8 --dry-run --registry r/t --offline --mesh": "those of a placement",
    "deploy kws --dry-run --registry r/t --offline --catalogue no.json": "there is no catalogue",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_deployed_is_one_clear_error(
    project: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert WRONG[words] in said.err
    assert said.out == ""


def test_a_build_since_the_catalogue_is_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built(project, digest=f"sha256:{'6' * 64}")
    assert main(["deploy", "kws/cpu-int8", *ASKED]) == 2
    assert "the catalogue has an older image of kws/cpu-int8" in capsys.readouterr().err
    other = project / "build" / "catalogue.json"
    assert main(["deploy", "kws/cpu-int8", *ASKED, "--catalogue", str(other)]) == 0


def built(project: Path, digest: str) -> None:
    """The record of a variant with an image, as a build leaves it."""
    image = ImageRecord(
        name="kws", tag="cpu-int8", digest=digest, platform="linux/amd64", size_bytes=1,
        base="debian", base_digest=DIGEST, layers=(),
    )  # fmt: skip
    record = VariantRecord(
        schema=SCHEMA, recipe="kws", variant="cpu-int8", target="cpu", precision="int8",
        platform="linux/amd64", state="built", engine={"name": "litert"}, artifact="0" * 32,
        image=image,
    )  # fmt: skip
    folder = project / "build" / "kws" / "cpu-int8"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "variant.json").write_bytes(msgspec.json.encode(record))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's registry, on this machine."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


def test_the_registry_is_asked_whether_it_has_the_image(
    project: Path, registry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project / "build" / "kws" / "cpu-int8"
    folder.mkdir(parents=True)
    layer = write(project / "layer", [Entry(path="app", source=b"#!")])
    digest = image_of(folder / "image", layer).image().descriptor.digest
    built(project, digest)
    pushable = variant(image=CatalogueImage(name="kws:cpu-int8", digest=digest, size_bytes=1))
    path = project / "build" / "catalogue.json"
    path.write_bytes(encode_catalogue(Catalogue(variants=(pushable,))))
    words = ["deploy", "kws/cpu-int8", "--dry-run", "--registry", f"{registry}/team"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{registry}/team/kws@{digest}" in said
    assert f"tf2aif push kws/cpu-int8 --to {registry}/team" in said
    assert main(["push", "kws/cpu-int8", "--to", f"{registry}/team"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    (server,) = list(yaml.safe_load_all(capsys.readouterr().out))[-1]["spec"]["template"]["spec"][
        "containers"
    ]
    assert server["image"] == f"{registry}/team/kws@{digest}"


def test_a_registry_that_does_not_answer_need_not_be_asked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "kws/cpu-int8", "--dry-run", "--registry", "127.0.0.1:9/t"]) == 1
    assert "--offline" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, tf2aif.deploy.asked, tf2aif.deploy.published, tf2aif.deploy.kserve\n"
        "print(sorted({'tensorflow', 'doit', 'ortools', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
