"""The catalogue, fleets, objectives, and the choice between variants."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from choosing import (
    DIGEST,
    XEON,
    accuracy,
    bench_record,
    build_latency,
    image_record,
    measured,
    variant,
    write_bench,
    write_variant,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tf2aif.choose import catalogue as catalogue_module
from tf2aif.choose.answer import Answer, answer
from tf2aif.choose.catalogue import (
    SCHEMA,
    Catalogue,
    CatalogueVariant,
    MeasuredOn,
    Percentiles,
    Requirements,
    decode_catalogue,
    encode_catalogue,
    read_catalogue,
)
from tf2aif.choose.collect import collect, refresh
from tf2aif.choose.fleet import Fleet, Given, Node, convert_fleet
from tf2aif.choose.match import Conditions, Figure, find_figure, misfit, mismatch
from tf2aif.choose.objective import QUANTITIES, Goal, Objective, parse_goal, parse_objective
from tf2aif.choose.requires import CARDS, FPGA, requirements
from tf2aif.choose.select import (
    TIES,
    Asked,
    Candidate,
    Place,
    measured_places,
    pareto,
    places_of,
    survey,
    with_subject,
)
from tf2aif.choose.show import render
from tf2aif.cli import _parser, main
from tf2aif.cli_choose import SCENARIOS, _wanted
from tf2aif.client import load
from tf2aif.engines.requirement import Requirement, write_requirement
from tf2aif.errors import FilesError
from tf2aif.spec.document import parse
from tf2aif.spec.load import load_targets
from tf2aif.spec.target import Container, EngineUse, Target

ROOT = Path(__file__).parents[1]


def faults_of(error: FilesError) -> list[tuple[str, str, str]]:
    return [(one.message, one.at, one.hint) for one in error.faults]


# The catalogue.


def test_a_catalogue_holds_what_was_measured_with_its_conditions(tmp_path: Path) -> None:
    record = write_variant(tmp_path, image=image_record())
    write_bench(tmp_path, record, bench_record(record, 1.0))
    (found,) = refresh(tmp_path).variants
    assert found.id == "net/cpu-fp32"
    assert found.image is not None
    assert (found.image.name, found.image.digest) == ("net:cpu-fp32", DIGEST)
    assert found.requires.memory_mb == 64
    by = {(m.origin, m.subject, m.scenario): m for m in found.measurements}
    assert set(by) == {
        ("build", "engine", "single-stream"),
        *(
            ("bench", subject, scenario)
            for subject in ("engine", "server")
            for scenario in ("single-stream", "offline")
        ),
    }
    build = by["build", "engine", "single-stream"]
    assert build.latency == Percentiles(p10_ms=0.45, p50_ms=0.5, p90_ms=0.6)
    assert (build.throughput, build.stable, build.measured_at) == (None, None, None)
    assert build.machine == MeasuredOn(platform="linux/amd64", cpu=XEON, cores=4)
    server = by["bench", "server", "single-stream"]
    assert (server.latency.p99_ms, server.latency.p99_9_ms) == (2.0, None)
    assert (server.threads, server.batch, server.stable) == (4, 1, True)
    assert (server.energy_j, server.memory_mb, server.cold_start_s) == (0.002, 64.0, 0.6)
    assert server.machine is not None
    assert (server.machine.governor, server.machine.load_1m) == ("performance", 0.1)
    engine = by["bench", "engine", "single-stream"]
    assert (engine.memory_mb, engine.cold_start_s, engine.energy_j) == (None, None, 0.001)


def test_the_same_records_give_the_same_bytes_and_satisfy_the_schema(tmp_path: Path) -> None:
    for name in ("net/cpu-int8", "net/cpu-fp32", "aaa/arm-fp32"):
        record = write_variant(tmp_path, name)
        write_bench(tmp_path, record, bench_record(record), bench_record(record, load_1m=9.0))
    first = encode_catalogue(refresh(tmp_path))
    path = tmp_path / "catalogue.json"
    assert path.read_bytes() == first == encode_catalogue(collect(tmp_path))
    written = path.stat().st_mtime_ns
    assert [one.id for one in refresh(tmp_path).variants] == [
        "aaa/arm-fp32",
        "net/cpu-fp32",
        "net/cpu-int8",
    ]
    assert path.stat().st_mtime_ns == written  # nothing changed, so nothing is written
    schema = json.loads((ROOT / "schemas" / "catalogue.json").read_text())
    jsonschema.validate(json.loads(first), schema, jsonschema.Draft202012Validator)
    assert read_catalogue(path) == collect(tmp_path)
    assert not list(tmp_path.glob(".catalogue*"))


def test_of_runs_under_the_same_conditions_the_newest_sound_one_counts(tmp_path: Path) -> None:
    record = write_variant(tmp_path, latency=None)
    days: list[tuple[float, dict[str, Any]]] = [
        (1.0, {}),
        (2.0, {}),
        (3.0, {"stable": False}),
        (4.0, {"load_1m": 9.0}),
        (5.0, {"threads": 1}),
    ]
    runs = [
        bench_record(record, p50, measured_at=f"2026-11-{day:02}T00:00:00Z", **changes)
        for day, (p50, changes) in enumerate(days, 1)
    ]
    write_bench(tmp_path, record, *runs)
    (found,) = collect(tmp_path).variants
    kept = {
        (m.threads, m.latency.p50_ms, m.doubts)
        for m in found.measurements
        if (m.subject, m.scenario) == ("server", "single-stream")
    }
    assert kept == {(4, 2.0, ()), (1, 5.0, ())}


def test_doubts_go_with_the_figures_that_they_are_of(tmp_path: Path) -> None:
    record = write_variant(tmp_path, latency=None)
    write_bench(tmp_path, record, bench_record(record, stable=False, load_1m=9.0))
    (found,) = collect(tmp_path).variants
    doubts = {(m.subject, m.scenario): m.doubts for m in found.measurements}
    busy = "the machine was busy: load 9.00 before the run, on 4 cores"
    assert doubts["engine", "offline"] == (busy,)
    assert set(doubts["server", "single-stream"]) > {busy}
    assert not next(m for m in found.measurements if m.stable is False).stable


def test_figures_of_another_artifact_are_left_out(tmp_path: Path) -> None:
    record = write_variant(tmp_path, latency=None)
    write_bench(tmp_path, record, bench_record(record))
    write_variant(tmp_path, latency=None, artifact="6" * 32)
    (found,) = collect(tmp_path).variants
    assert found.measurements == ()


def test_imported_and_emulated_figures_say_so(tmp_path: Path) -> None:
    record = write_variant(tmp_path, emulates="alveo-u250")
    write_bench(tmp_path, record, bench_record(record, imported_from="edge.jsonl"))
    (found,) = collect(tmp_path).variants
    origins = {(m.origin, m.source, m.emulates) for m in found.measurements}
    assert origins == {("build", None, "alveo-u250"), ("imported", "edge.jsonl", "alveo-u250")}


def test_a_variant_that_failed_or_is_a_bundle_is_in_the_catalogue(tmp_path: Path) -> None:
    write_variant(
        tmp_path,
        state="bundled",
        reason="TensorRT is not here",
        artifact="",
        size_bytes=0,
        accuracy=None,
        latency=None,
    )
    (found,) = collect(tmp_path).variants
    assert (found.state, found.artifact, found.size_bytes) == ("bundled", None, None)
    assert found.accuracy is None


def test_folders_that_are_being_written_and_records_of_another_version(tmp_path: Path) -> None:
    write_variant(tmp_path, "net/.cpu-fp32.1-2.tf2aif-tmp")
    write_variant(tmp_path, ".tf2aif/cpu-fp32")
    folder = tmp_path / "net" / "old"
    folder.mkdir()
    (folder / "variant.json").write_text('{"schema": 0}')
    assert collect(tmp_path).variants == ()


FAULTY = [
    (b"{", "not JSON"),
    (b"[]", "it names no schema"),
    (b'{"schema": "1"}', "it names no schema"),
    (b'{"schema": 99, "variants": []}', "schema 99; this tf2aif reads schema 1"),
    (b'{"schema": 0, "variants": []}', "schema 0; this tf2aif reads schema 1"),
    (b'{"schema": 1, "variants": [{"id": 3}]}', "variants[0].id"),
]


@pytest.mark.parametrize(("raw", "words"), FAULTY, ids=[words for _, words in FAULTY])
def test_what_is_no_catalogue_of_this_version(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "catalogue.json"
    path.write_bytes(raw)
    with pytest.raises(FilesError) as caught:
        read_catalogue(path)
    ((message, at, hint),) = faults_of(caught.value)
    assert words in message
    assert at == str(path)
    newer = b"99" in raw
    assert ("newer tf2aif" in hint) == newer
    assert ("tf2aif catalogue" in hint) != newer


def test_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="there is no catalogue"):
        read_catalogue(tmp_path / "catalogue.json")


def test_a_catalogue_is_read_as_it_was_written() -> None:
    one = Catalogue(variants=(variant("a", measured(), measured(2.0, machine=None)),))
    assert decode_catalogue(encode_catalogue(one), "x") == one
    assert one.schema == SCHEMA


def test_scenarios_are_those_of_the_client() -> None:
    assert get_args(catalogue_module.Scenario) == get_args(load.Scenario) == SCENARIOS


# What a node must have.


def test_packaged_targets_ask_for_what_their_devices_are(tmp_path: Path) -> None:
    found = {
        name: requirements(target.labels, target, tmp_path, None).resources
        for name, target in load_targets(ROOT).items()
    }
    assert found["gpu"] == found["gpu-ort"] == found["agx"] == {"nvidia.com/gpu": 1}
    assert found["alveo-u250"] == found["alveo-u250-hls"] == {"amd.com/xilinx_u250_*": 1}
    assert found["cpu"] == found["arm"] == found["zynq-zcu102"] == {}
    cards = {t.labels[FPGA] for t in load_targets(ROOT).values() if FPGA in t.labels}
    assert {card for card in cards if card.startswith("alveo")} <= set(CARDS)


def test_a_target_of_ones_own_may_ask_for_more_gpus(tmp_path: Path) -> None:
    target = Target(
        platform="linux/amd64",
        engine=EngineUse(name="tensorrt"),
        precisions={"fp32": [{"step": "onnx"}]},
        container=Container(gpus=2),
    )
    assert requirements({}, target, tmp_path, None).resources == {"nvidia.com/gpu": 2}


ENGINES = [
    ({"gpu": "NVIDIA H200"}, {"nvidia.com/gpu.product": "NVIDIA-H200"}),
    ({"hardware_compatibility": "same-compute-capability"}, {}),
    ({"hardware_compatibility": "ampere-plus"}, None),
    ({"compute_capabilities": ("8.6", "8.9"), "hardware_compatibility": "none"}, None),
]


@pytest.mark.parametrize(("engine", "more"), ENGINES)
def test_an_engine_for_one_gpu_asks_for_it(
    tmp_path: Path, engine: dict[str, Any], more: dict[str, str] | None
) -> None:
    one: dict[str, Any] = {"compute_capabilities": ("9.0",), **engine}
    write_requirement(
        tmp_path,
        Requirement(library="tensorrt", version="10.16.1.11", platform="linux-x86_64", **one),
    )
    labels = requirements({"a": "b"}, None, tmp_path, None).labels
    capability = {"nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0"}
    assert labels == {"a": "b", **({**capability, **more} if more is not None else {})}


# Fleets.

FLEET = """
nodes:
  edge:
    platform: linux/arm64
    count: 4
    cost_per_hour: 0.1
  server:
    platform: linux/amd64
    resources: {nvidia.com/gpu: 2}
    gpu: NVIDIA H200
    memory_mb: 64000
    cost_per_hour: 2
    figures:
      - {variant: net/b, p50_ms: 3, source: a data sheet}
"""


def fleet(text: str = FLEET) -> Fleet:
    return convert_fleet(parse(text, "fleet.yaml"))


def test_a_node_has_the_labels_that_its_cluster_gives_it() -> None:
    nodes = fleet().nodes
    assert nodes["edge"].all_labels == {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}
    labels = nodes["server"].all_labels
    assert labels["nvidia.com/gpu.present"] == "true"
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-H200"
    assert Node(platform="linux/arm/v7").all_labels["kubernetes.io/arch"] == "arm"


BAD_FLEETS = {
    "negative memory": (
        "memory_mb: 64000",
        "memory_mb: -1",
        "fleet.yaml:11: nodes.server.memory_mb",
        "-1 is less than 1",
        "",
    ),
    "no platform": (
        "    platform: linux/arm64\n",
        "",
        "fleet.yaml:3: nodes.edge",
        "missing key 'platform'",
        "operating system and architecture",
    ),
    "unknown platform": (
        "linux/arm64",
        "linux/arm46",
        "fleet.yaml:4: nodes.edge.platform",
        "'linux/arm46' is not",
        "did you mean 'linux/arm64'?",
    ),
    "unknown key": (
        "count:",
        "coutn:",
        "fleet.yaml:5: nodes.edge.coutn",
        "unknown key 'coutn'",
        "did you mean 'count'?",
    ),
    "no node": ("count: 4", "count: 0", "fleet.yaml:5: nodes.edge.count", "0 is less than 1", ""),
    "half a node": (
        "count: 4",
        "count: 1.5",
        "fleet.yaml:5: nodes.edge.count",
        "expected a whole number",
        "",
    ),
    "a resource in words": (
        "gpu: 2}",
        "gpu: two}",
        "fleet.yaml:9: nodes.server.resources.nvidia.com/gpu",
        "expected a whole number",
        "",
    ),
    "negative cost": (
        "cost_per_hour: 2",
        "cost_per_hour: -2",
        "fleet.yaml:12: nodes.server.cost_per_hour",
        "-2 is less than 0",
        "",
    ),
    "another architecture": (
        "    count: 4",
        "    labels: {kubernetes.io/arch: amd64}",
        "fleet.yaml:5: nodes.edge.labels.kubernetes.io/arch",
        "the platform linux/arm64 says 'arm64'",
        "leave the label out",
    ),
    "less busy than idle": (
        "    count: 4",
        "    power: {idle_w: 5, busy_w: 4}",
        "fleet.yaml:5: nodes.edge.power.busy_w",
        "less than idle",
        "",
    ),
    "a figure of nothing": (
        "variant: net/b, ",
        "",
        "fleet.yaml:14: nodes.server.figures[0]",
        "missing key 'variant'",
        "recipe/variant",
    ),
    "a figure of 0": (
        "p50_ms: 3",
        "p50_ms: 0",
        "fleet.yaml:14: nodes.server.figures[0].p50_ms",
        "0 is not more than 0",
        "",
    ),
}


@pytest.mark.parametrize("name", list(BAD_FLEETS))
def test_a_fault_of_a_fleet_has_its_line(name: str) -> None:
    old, new, at, words, hint = BAD_FLEETS[name]
    assert old in FLEET
    with pytest.raises(FilesError) as caught:
        fleet(FLEET.replace(old, new, 1))
    ((message, where, said),) = faults_of(caught.value)
    assert where == at
    assert words in message
    assert hint in said


def test_all_faults_of_a_fleet_are_told_at_once() -> None:
    with pytest.raises(FilesError) as caught:
        fleet(FLEET.replace("count: 4", "count: 0").replace("memory_mb: 64000", "memory: 1"))
    assert len(caught.value.faults) == 2


def test_a_fleet_of_nothing() -> None:
    with pytest.raises(FilesError, match="a mapping of 1 or more keys"):
        fleet("nodes: {}")


def test_the_page_says_what_is_so() -> None:
    page = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
    text = page.partition("<!-- file: fleet.yaml -->\n```yaml\n")[2].partition("```")[0]
    assert set(fleet(text).nodes) == {"server", "edge"}
    commands = [line for line in page.splitlines() if line.startswith("tf2aif select")]
    assert len(commands) == 3
    for line in commands:
        _wanted(_parser().parse_args(shlex.split(line)[1:]))
    table = page.partition("| quantity |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    said = {
        name: better.strip() for names, better in rows for name in re.findall(r"`(.+?)`", names)
    }
    assert said == {name: one.better for name, one in QUANTITIES.items()}


# Objectives.

OBJECTIVES = [
    ("p99<=10ms", "p99", 10.0, False),
    ("p99 <= 0.01s", "p99", 10.0, False),
    ("p99.9 ≤ 500us", "p99.9", 0.5, False),
    ("p50<2", "p50", 2.0, True),
    ("accuracy>=91%", "accuracy", 0.91, False),
    ("accuracy > .9", "accuracy", 0.9, True),
    ("throughput>=1e3rps", "throughput", 1000.0, False),
    ("energy<=5mJ", "energy", 0.005, False),
    ("image<=100MiB", "image", 100 * 2**20, False),
    ("size <= 1MB", "size", 1e6, False),
    ("cold-start<=500ms", "cold-start", 0.5, False),
    ("cost<=0.5/h", "cost", 0.5, False),
]


@pytest.mark.parametrize(("text", "quantity", "limit", "strict"), OBJECTIVES)
def test_an_objective_is_read(text: str, quantity: str, limit: float, strict: bool) -> None:
    found = parse_objective(text)
    assert (found.quantity, found.strict) == (quantity, strict)
    assert found.limit == pytest.approx(limit)
    assert found.holds(limit) != strict


BAD_OBJECTIVES = [
    ("p9<=10ms", "unknown quantity 'p9'", "did you mean 'p99'?"),
    ("acuracy>=0.9", "unknown quantity 'acuracy'", "did you mean 'accuracy'?"),
    ("P99_9<=10ms", "unknown quantity 'P99_9'", "did you mean 'p99.9'?"),
    ("latency<=10ms", "which share", "p99"),
    ("p99>=10ms", "a smaller p99 is better", "'p99<=10ms'"),
    ("accuracy<=0.9", "a larger accuracy is better", "'accuracy>=0.9'"),
    ("p99=10ms", "'=' is no limit", "'p99<=10ms'"),
    ("p99", "has no limit", "in quotes: the shell takes < and > for itself"),
    ("", "is not an objective", "in quotes"),
    ("p99<=10mss", "unknown unit 'mss'", "did you mean 'ms'?"),
    ("p99<=", "'p99<=' is not a number", "10ms"),
    ("p99<=-1ms", "'-1ms' is negative", "10ms"),
    ("size<=10", "of what unit?", "10MiB"),
    ("throughput>=1e999", "too large", "100/s"),
]


@pytest.mark.parametrize(("text", "words", "hint"), BAD_OBJECTIVES)
def test_a_wrong_objective_says_what_is_meant(text: str, words: str, hint: str) -> None:
    with pytest.raises(FilesError) as caught:
        parse_objective(text, "--objective")
    ((message, at, said),) = faults_of(caught.value)
    assert words in message
    assert hint in said
    assert at == "--objective"


def test_a_goal_the_wrong_way() -> None:
    with pytest.raises(FilesError) as caught:
        parse_goal("accuracy", "less")
    assert faults_of(caught.value) == [("a larger accuracy is better", "", "--maximise accuracy")]
    assert parse_goal("accuracy", "more") == "accuracy"


@settings(deadline=None)
@given(st.sampled_from(sorted(QUANTITIES)), st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_a_miss_is_a_miss(name: str, limit: float, value: float) -> None:
    objective = Objective(quantity=name, limit=limit)
    assert (objective.missed_by(value) == 0) == objective.holds(value)
    better = Goal(quantity=name).loss(value) <= Goal(quantity=name).loss(limit)
    assert objective.holds(value) == better


# What goes together.

MISFITS = [
    ({}, {}, ""),
    ({"platform": "linux/arm64"}, {}, "is linux/amd64, not linux/arm64"),
    ({"resources": {"nvidia.com/gpu": 1}}, {}, "lacks nvidia.com/gpu"),
    (
        {"resources": {"nvidia.com/gpu": 2}},
        {"resources": {"nvidia.com/gpu": 1}},
        "has 1 of nvidia.com/gpu, not 2",
    ),
    (
        {"resources": {"amd.com/xilinx_u250_*": 1}},
        {"resources": {"amd.com/xilinx_u250_gen3x16_xdma_shell_4_1-0": 1}},
        "",
    ),
    (
        {"resources": {"amd.com/xilinx_u250_*": 1}},
        {"resources": {"amd.com/xilinx_u50_gen3x16_xdma_base_5-0": 1}},
        "lacks amd.com/xilinx_u250_*",
    ),
    ({"labels": {"a": "b"}}, {}, "lacks the label a=b"),
    ({"labels": {"a": "b"}}, {"labels": {"a": "c"}}, "has the label a=c, not b"),
    ({"labels": {"nvidia.com/gpu.present": "true"}}, {"resources": {"nvidia.com/gpu": 1}}, ""),
    ({"memory_mb": 100.0}, {"memory_mb": 64}, "has 64 MiB of memory, not 100"),
    ({"memory_mb": 100.0}, {}, ""),
]


@pytest.mark.parametrize(("wanted", "held", "words"), MISFITS)
def test_what_a_node_lacks(wanted: dict[str, Any], held: dict[str, Any], words: str) -> None:
    platform = wanted.pop("platform", "linux/amd64")
    one = variant(platform=platform, requires=Requirements(**wanted))
    assert misfit(one, Node(platform="linux/amd64", **held)) == words


GPU = {"requires": Requirements(resources={"nvidia.com/gpu": 1})}
H100 = MeasuredOn(platform="linux/amd64", cpu=XEON, cores=4, gpu="NVIDIA H100 80GB HBM3")
MISMATCHES = [
    ({}, {}, {}, ""),
    ({"platform": "linux/arm64"}, {}, {}, "measured on linux/amd64"),
    ({"cpu": "intel xeon gold 6338"}, {}, {}, ""),
    ({"cpu": "AMD EPYC 7B13"}, {}, {}, f"measured on {XEON}"),
    ({"cores": 2}, {}, {}, "measured with 4 cores, the node has 2"),
    ({"cores": 2}, {"threads": 1}, {}, ""),
    ({"cores": 64}, {}, {}, ""),
    ({"gpu": "NVIDIA L4"}, {"machine": H100}, {}, ""),  # it does not use the GPU
    ({"gpu": "NVIDIA L4"}, {"machine": H100}, GPU, "measured on NVIDIA H100 80GB HBM3"),
    ({"labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}, {"machine": H100}, GPU, ""),
    ({}, {}, GPU, "measured without a GPU"),
    ({}, {"emulates": "vart"}, {}, "measured in an emulation of vart"),
]


@pytest.mark.parametrize(("held", "changes", "of", "words"), MISMATCHES)
def test_a_measurement_counts_where_its_conditions_are_the_nodes(
    held: dict[str, Any], changes: dict[str, Any], of: dict[str, Any], words: str
) -> None:
    node = Node(**{"platform": "linux/amd64", **held})
    assert mismatch(measured(**changes), variant(**of), node) == words


def value(name: str, one: CatalogueVariant, node: Node, **conditions: Any) -> float | str:
    found = find_figure(name, one, node, Conditions(**conditions))
    return found.value if isinstance(found, Figure) else found


def test_the_figure_that_is_taken() -> None:
    node = Node(platform="linux/amd64")
    old, new = measured(1.0), measured(2.0, measured_at="2026-11-21T00:00:00Z")
    shaky = measured(3.0, measured_at="2026-11-22T00:00:00Z", stable=False)
    assert value("p50", variant("a", old, new, shaky), node) == 2.0
    assert value("p99", variant("a", shaky), node) == 6.0
    assert value("p99", variant("a", shaky), node, stable=True) == "no p99 of such a node: unstable"
    assert value("p90", variant("a", old), node) == (
        "its p90 was not measured; too few queries for it"
    )
    assert value("p50", variant("a", old), node, subject="engine") == (
        "its p50 was not measured (there is: server, single-stream)"
    )
    offline = measured(1.0, scenario="offline", throughput=50.0, latency=Percentiles())
    assert value("throughput", variant("a", old, offline), node) == 50.0
    assert value("memory", variant("a", measured(memory_mb=2.0)), node) == 2 * 2**20
    assert value("cost", variant("a"), Node(platform="linux/amd64")) == (
        "the node does not say its cost"
    )


def test_a_given_figure_stands_in_only_for_one_that_was_not_measured() -> None:
    node = Node(platform="linux/amd64", figures=(Given(variant="net/a", p50_ms=7.0, energy_j=1.0),))
    assert value("p50", variant("a"), node) == 7.0
    assert value("p50", variant("b"), node) == "its p50 was not measured"
    assert value("p50", variant("a", measured(1.0)), node) == 1.0
    found = find_figure("energy", variant("a", measured(1.0)), node, Conditions())
    assert isinstance(found, Figure)
    assert found.given


# The choice.

NAMES = ("p50", "accuracy", "size", "cost", "throughput")


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[CatalogueVariant], tuple[Place, ...], Asked]:
    """A few variants, some measured, a few kinds of nodes, and what is asked of them."""
    small = st.integers(1, 4)
    variants = []
    for index in range(draw(st.integers(1, 6))):
        figures = []
        if draw(st.booleans()):
            figures.append(measured(float(draw(small))))
        if draw(st.booleans()):
            rate = float(draw(small))
            figures.append(measured(scenario="offline", throughput=rate, latency=Percentiles()))
        variants.append(
            variant(
                f"v{index}",
                *figures,
                platform=draw(st.sampled_from(["linux/amd64", "linux/arm64"])),
                state=draw(st.sampled_from(["built", "verified-on-device", "bundled", "failed"])),
                accuracy=draw(st.sampled_from([None, 0.8, 0.9, 0.95])),
                size_bytes=draw(small),
            )
        )
    nodes = {
        f"n{index}": Node(
            platform=draw(st.sampled_from(["linux/amd64", "linux/arm64"])),
            cost_per_hour=draw(st.none() | small.map(float)),
            cpu=draw(st.sampled_from([None, XEON, "another"])),
            figures=tuple(
                Given(variant=one.id, p50_ms=draw(small)) for one in variants if draw(st.booleans())
            ),
        )
        for index in range(draw(st.integers(1, 3)))
    }
    names = st.lists(st.sampled_from(NAMES), unique=True, max_size=3)
    limits = [(name, draw(st.sampled_from([0.8, 1.0, 2.0, 3.0]))) for name in draw(names)]
    goals = draw(names.filter(len))
    asked = Asked(
        objectives=tuple(
            Objective(quantity=name, limit=limit, strict=draw(st.booleans()))
            for name, limit in limits
        ),
        goals=tuple(Goal(quantity=name) for name in goals),
        pareto=draw(st.booleans()),
    )
    return variants, places_of(Fleet(nodes=nodes)), asked


def by_hand(
    variants: Sequence[CatalogueVariant], places: Sequence[Place], asked: Asked
) -> list[tuple[str, str, tuple[float, ...]]]:
    """Every (variant, node, losses) that is allowed, worked out from the raw data."""
    found = []
    for one in variants:
        for place in places:
            node = place.node
            if one.state in ("bundled", "failed") or one.platform != node.platform:
                continue
            counts = node.platform == "linux/amd64" and node.cpu in (None, XEON)
            figures: dict[str, float | None] = {"size": one.size_bytes, "cost": node.cost_per_hour}
            figures["accuracy"] = one.accuracy.value if one.accuracy else None
            ours = one.measurements if counts else ()
            figures["p50"] = next((m.latency.p50_ms for m in ours if m.latency.p50_ms), None) or (
                next((g.p50_ms for g in node.figures if g.variant == one.id), None)
            )
            figures["throughput"] = next((m.throughput for m in ours if m.throughput), None)
            losses = []
            for objective in asked.objectives:
                known = figures[objective.quantity]
                if known is None or not objective.holds(known):
                    break
            else:
                for goal in asked.goals:
                    known = figures[goal.quantity]
                    if known is None:
                        break
                    losses.append(goal.loss(known))
                else:
                    found.append((one.id, place.name, tuple(losses)))
    return found


@settings(deadline=None)
@given(situations())
def test_what_is_chosen_holds_and_nothing_better_does(
    situation: tuple[list[CatalogueVariant], tuple[Place, ...], Asked],
) -> None:
    variants, places, asked = situation
    said = answer("net", survey(variants, places, asked), asked)
    allowed = by_hand(variants, places, asked)
    chosen = {(one.variant, node) for one in said.chosen for node in one.nodes}
    losses = {(name, node): loss for name, node, loss in allowed}
    if asked.pareto:
        front = {
            (name, node)
            for name, node, loss in allowed
            if not any(
                all(a <= b for a, b in zip(other, loss, strict=True)) and other != loss
                for _, _, other in allowed
            )
        }
        assert chosen == front
    else:
        assert bool(chosen) == bool(allowed)
        assert chosen <= set(losses)
        assert {losses[one] for one in chosen} <= {min(losses.values(), default=())}
    # Every variant is answered for, once; and what holds nowhere is said to miss something.
    told = [one.variant for one in said.others]
    assert sorted({*told, *(one.variant for one in said.chosen)}) == [one.id for one in variants]
    assert len(told) == len(set(told))
    assert all(one.why for one in said.others)
    assert said.chosen or said.closest is None or said.closest.misses
    render(said)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12))
def test_the_pareto_set_is_that_of_brute_force(points: list[tuple[int, int, int]]) -> None:
    goals = tuple(Goal(quantity=name) for name in ("p50", "accuracy", "size"))
    candidates = [
        Candidate(
            variant=variant(f"v{index}"),
            place=None,
            figures={
                goal.quantity: Figure(quantity=goal.quantity, value=goal.loss(loss))
                for goal, loss in zip(goals, point, strict=True)
            },
        )
        for index, point in enumerate(points)
    ]
    front = {one.variant.id for one in pareto(candidates, goals)}
    expected = {
        f"net/v{index}"
        for index, point in enumerate(points)
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point
            for other in points
        )
    }
    assert front == expected


def choose(
    variants: Sequence[CatalogueVariant],
    nodes: dict[str, Node] | None = None,
    *limits: str,
    goals: Sequence[str] = ("p50",),
    pareto: bool = False,
) -> Answer:
    asked = Asked(
        objectives=tuple(parse_objective(text) for text in limits),
        goals=tuple(Goal(quantity=name) for name in goals),
        pareto=pareto,
    )
    places = places_of(Fleet(nodes=nodes)) if nodes else measured_places(variants)
    asked = with_subject(variants, places, asked)
    return answer("net", survey(variants, places, asked), asked)


def why(said: Answer) -> dict[str, str]:
    return {one.variant.partition("/")[2]: one.why for one in said.others}


SERVER = Node(platform="linux/amd64", cost_per_hour=2.0)


def test_each_variant_is_told_why_it_is_not_chosen() -> None:
    gpu = Requirements(resources={"nvidia.com/gpu": 1})
    arm = MeasuredOn(platform="linux/arm64", cpu="Cortex-A72", cores=4)
    variants = [
        variant("best", measured(1.0)),
        variant("slow", measured(6.0)),
        variant("slower", measured(3.0)),
        variant("shaky", measured(8.0, stable=False)),
        variant("bundle", state="bundled", reason="TensorRT is not here"),
        variant("broken", state="failed", reason="top-1 lost 0.1"),
        variant("emulated", state="emulated"),
        variant("arm", platform="linux/arm64"),
        variant("gpu", requires=gpu),
        variant("unmeasured"),
        variant("elsewhere", measured(machine=arm)),
        variant("poor", measured(1.0), accuracy=0.5),
        variant("twin", measured(1.0), size_bytes=2000),
    ]
    said = choose(variants, {"s": SERVER}, "p99<=10ms", "accuracy>=0.9")
    assert [one.variant for one in said.chosen] == ["net/best"]
    assert why(said) == {
        "slow": "p99 12 ms > 10 ms",
        "slower": "p50 3 ms; net/best has 1 ms",
        "shaky": "p99 16 ms (unstable) > 10 ms",
        "bundle": "bundled: TensorRT is not here",
        "broken": "failed: top-1 lost 0.1",
        "emulated": "emulated: what it ships is not made yet, only its arithmetic was run",
        "arm": "no node is linux/arm64",
        "gpu": "s lacks nvidia.com/gpu",
        "unmeasured": "its p99 was not measured",
        "elsewhere": "no p99 of such a node: measured on linux/arm64",
        "poor": "accuracy 0.5000 < 0.9000",
        "twin": "as good in p50, but size 2.0 KiB; net/best has 1000 B",
    }


def test_a_dominated_one_is_told_by_which_and_in_what() -> None:
    variants = [
        variant("fast", measured(1.0), accuracy=0.8),
        variant("good", measured(2.0), accuracy=0.95),
        variant("worse", measured(3.0), accuracy=0.8),
        variant("same", measured(2.0), accuracy=0.95),
    ]
    said = choose(variants, {"s": SERVER}, goals=("p50", "accuracy"), pareto=True)
    assert [one.variant for one in said.chosen] == ["net/fast", "net/good", "net/same"]
    assert why(said) == {"worse": "dominated by net/fast in p50"}
    text = render(said)
    assert "the Pareto set of 4 variants, by least p50 and most accuracy" in text
    assert text.count("server, single-stream, batch 1; on Intel") == 1


def test_the_cheapest_node_that_holds_the_objective() -> None:
    edge = Node(platform="linux/amd64", cpu="Atom", cost_per_hour=0.1)
    atom = MeasuredOn(platform="linux/amd64", cpu="Atom", cores=4)
    xeon = MeasuredOn(platform="linux/amd64", cpu=XEON, cores=4)
    one = variant("a", measured(9.0, machine=atom), measured(1.0, machine=xeon))
    nodes = {"server": Node(platform="linux/amd64", cpu=XEON, cost_per_hour=2.0), "edge": edge}
    cheap = choose([one], nodes, "p50<=10ms", goals=("cost",))
    quick = choose([one], nodes, "p50<=5ms", goals=("cost",))
    assert [c.nodes for c in cheap.chosen] == [("edge",)]
    assert [c.nodes for c in quick.chosen] == [("server",)]
    assert quick.chosen[0].figures["cost"].value == 2.0


def test_where_nothing_holds_the_closest_is_named() -> None:
    variants = [
        variant("near", measured(6.25), accuracy=0.95),
        variant("far", measured(50.0), accuracy=0.95),
        variant("poor", measured(1.0), accuracy=0.5),
    ]
    said = choose(variants, {"s": SERVER}, "p99<=10ms", "accuracy>=0.9")
    assert said.chosen == ()
    assert said.closest is not None
    assert (said.closest.variant, said.closest.node) == ("net/near", "s")
    (miss,) = said.closest.misses
    assert (miss.value, miss.limit, miss.share) == (12.5, 10.0, 0.25)
    text = render(said)
    assert text.startswith("net: none of 3 variants holds p99 <= 10 ms, accuracy >= 0.9000\n")
    assert "the closest is net/near on s:\n    p99 12.5 ms: 25.0% over the limit of 10 ms" in text


def test_where_nothing_is_known() -> None:
    said = choose([variant("a"), variant("b")], {"s": SERVER}, "p99<=10ms")
    assert (said.chosen, said.closest) == ((), None)
    assert "no variant has all the figures" in render(said)


def test_the_server_is_compared_unless_more_are_known_of_the_engine() -> None:
    engine = measured(1.0, subject="engine", origin="build", latency=Percentiles(p50_ms=1.0))
    both, one = variant("a", engine, measured(5.0)), variant("b", engine)
    assert choose([both, one]).conditions.subject == "engine"
    assert choose([both]).conditions.subject == "server"
    assert choose([both, one], None, "p99<=50ms").conditions.subject == "server"


def test_without_a_fleet_the_machines_are_the_nodes() -> None:
    arm = MeasuredOn(platform="linux/arm64", cpu="Cortex-A72", cores=4)
    variants = [
        variant("x", measured(1.0), accuracy=0.9),
        variant("y", measured(2.0, machine=arm), platform="linux/arm64", accuracy=0.95),
        variant("z", platform="linux/arm/v7"),
    ]
    said = choose(variants)
    assert [one.nodes for one in said.chosen] == [(f"{XEON}, 4 cores",)]
    assert why(said)["z"] == "nothing was measured on linux/arm/v7"
    # What hangs on no machine needs none.
    said = choose(variants, None, "accuracy>=0.95", goals=("size",))
    assert [(one.variant, one.nodes) for one in said.chosen] == [("net/y", ())]


def test_ties_are_broken_the_same_way_whatever_the_order() -> None:
    variants = [variant(name, measured(1.0)) for name in "bca"]
    assert choose(variants).chosen[0].variant == "net/a"
    assert why(choose(variants))["b"] == "the same figures as net/a, which is the first by name"
    assert [goal.quantity for goal in TIES] == ["accuracy", "size"]


# The command line.


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two variants of `net`, one of them measured, and its catalogue."""
    monkeypatch.chdir(tmp_path)
    build = tmp_path / "build"
    record = write_variant(build, "net/cpu-fp32", image=image_record())
    write_bench(build, record, bench_record(record, 1.0))
    write_variant(build, "net/cpu-int8", latency=build_latency(0.25), size_bytes=400)
    assert main(["catalogue"]) == 0
    return tmp_path


def test_catalogue_says_what_it_wrote(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["catalogue"]) == 0
    text = capsys.readouterr().out
    assert text == "wrote build/catalogue.json: 2 variants, 2 measured\n"
    assert main(["catalogue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        (built / "build" / "catalogue.json").read_text()
    )


def test_catalogue_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert main(["catalogue"]) == 2
    assert "no variant is built here" in capsys.readouterr().err
    assert not (tmp_path / "build").exists()


def test_select_prints_the_choice_and_the_reasons(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["select", "net", "--objective", "p99<=10ms", "--objective", "accuracy>=0.9"]
    assert main([*words, "--minimise", "size"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "net: the best of 2 variants with p99 <= 10 ms, accuracy >= 0.9000, by least size"
    )
    assert lines[1:3] == ["measured: the server, single-stream", ""]
    assert lines[3] == f"  net/cpu-fp32 on {XEON}, 4 cores"
    assert f"net:cpu-fp32@{DIGEST}" in "\n".join(lines)
    assert lines[-1].split("  ")[-1] == (
        "its p99 was not measured (there is: engine, single-stream)"
    )


def test_select_in_json_has_the_documented_shape(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["select", "net", "--pareto", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {
        "recipe", "objectives", "goals", "conditions", "pareto", "nodes", "chosen", "others",
        "closest", "notes",
    }  # fmt: skip
    assert set(said["chosen"][0]) == {"variant", "image", "nodes", "figures"}
    assert said["chosen"][0]["variant"] == "net/cpu-int8"
    assert said["conditions"]["subject"] == "engine"
    assert said["chosen"][0]["figures"]["p50"]["measurement"]["origin"] == "build"


def test_an_objective_nobody_meets_is_exit_code_1(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["select", "net", "--objective", "p99<=0.1ms"]) == 1
    text = capsys.readouterr().out
    assert "none of 2 variants holds p99 <= 0.1 ms" in text
    assert "p99 2 ms: 20 times the limit of 0.1 ms" in text
    assert main(["select", "net", "--objective", "p99<=0.1ms", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["closest"]["variant"] == "net/cpu-fp32"


def test_figures_that_a_user_gives_are_labelled(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / "fleet.yaml").write_text(
        "nodes:\n  edge: {platform: linux/amd64, cpu: Atom, cost_per_hour: 0.1}\n"
    )
    capsys.readouterr()
    words = ["select", "net", "--nodes", "fleet.yaml", "--objective", "p99<=10ms"]
    assert main([*words, "--minimise", "cost"]) == 1
    assert f"no p99 of such a node: measured on {XEON}" in capsys.readouterr().out
    assume = ["--assume", "net/cpu-int8@edge:p99=4ms"]
    assert main([*words, "--minimise", "cost", *assume]) == 0
    text = capsys.readouterr().out
    assert "net/cpu-int8 on edge" in text
    assert "given, not measured: --assume" in text


def test_what_was_measured_is_taken_before_what_is_given(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["select", "net", "--objective", "p99<=10ms", "--assume", "net/cpu-fp32:p99=1us"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "the given p99 of net/cpu-fp32 is not used: it was measured" in text


BAD_WORDS = {
    "unknown recipe": (["nett"], "no recipe 'nett'", "did you mean 'net'?"),
    "a variant": (["net/cpu-int8"], "no recipe 'net/cpu-int8'", "name the recipe alone: net"),
    "two wrong objectives": (
        ["net", "--objective", "p9<=1", "--minimise", "accuracy"],
        "unknown quantity 'p9'",
        "--maximise accuracy",
    ),
    "cost of nothing": (["net", "--minimise", "cost"], "no node says what it costs", "fleet"),
    "no such file": (["net", "--nodes", "x.yaml"], "no such file", ""),
    "no such catalogue": (["net", "--catalogue", "x.json"], "there is no catalogue", "build"),
    "latency offline": (["net", "--scenario", "offline"], "has no latency", "leave --scenario out"),
    "assuming of nothing": (
        ["net", "--assume", "net/cpu-int9:p50=1"],
        "unknown variant",
        "did you mean 'net/cpu-int8'?",
    ),
    "assuming somewhere": (
        ["net", "--assume", "net/cpu-int8@edge:p50=1"],
        "unknown kind of node 'edge'",
        "--nodes FILE",
    ),
    "assuming what": (
        ["net", "--assume", "net/cpu-int8:p51=1"],
        "unknown figure 'p51'",
        "did you mean 'p",
    ),
    "assuming no value": (["net", "--assume", "net/cpu-int8:p50"], "gives no value", "p99=12ms"),
    "assuming nothing": (["net", "--assume", "p50=1"], "no figure of a variant", "VARIANT"),
    "assuming 0": (["net", "--assume", "net/cpu-int8:p50=0ms"], "a p50 of 0ms?", "more than 0"),
    "a figure of another variant": (
        ["net", "--nodes", "typo.yaml"],
        "no variant 'net/cpu-int9' is in the catalogue",
        "did you mean 'net/cpu-int8'?",
    ),
}


@pytest.mark.parametrize("name", list(BAD_WORDS))
def test_wrong_words_are_exit_code_2(
    built: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (built / "typo.yaml").write_text(
        "nodes:\n  a:\n    platform: linux/amd64\n    figures:\n"
        "      - {variant: net/cpu-int9, p50_ms: 1}\n"
        "      - {variant: other/cpu-int8, p50_ms: 1}\n"
    )
    words, message, hint = BAD_WORDS[name]
    capsys.readouterr()
    assert main(["select", *words]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert message in caught.err
    assert hint in caught.err
    assert "typo.yaml:5: nodes.a.figures[0].variant" in caught.err or "typo" not in " ".join(words)


def test_the_accuracy_of_a_metric_of_which_less_is_better(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = accuracy(0.3, metric="mse", source=0.2, drop=0.1)
    path = built / "mse.json"
    own = msgspec.structs.replace(variant("a"), accuracy=worse)
    path.write_bytes(encode_catalogue(Catalogue(variants=(own,))))
    words = ["select", "net", "--catalogue", str(path), "--minimise", "size", "--objective"]
    assert main([*words, "accuracy>=0.1"]) == 2
    assert "measured by mse, of which less is better" in capsys.readouterr().err
    assert main([*words, "drop<=0.2"]) == 0


def test_choosing_loads_no_vendor_library(built: Path) -> None:
    code = (
        "import sys; from tf2aif.cli import main\n"
        "assert main(['select', 'net', '--pareto']) == 0\n"
        "slow = {'tensorflow', 'numpy', 'doit', 'jsonschema', 'rich'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=built, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
