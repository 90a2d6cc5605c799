"""A user's project through a farm of unlike machines: the same bytes as here, by the command line.

Three machines: one has TensorFlow, one LiteRT, one plain Python; no step may land elsewhere. And a
machine of another architecture, emulated, which checks what is meant for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine import emulated_arm64
from farms import TestFarm, plain_environment
from project import UserProject
from serving import TARGET

pytest.importorskip("distributed", reason="needs 'tf2aif[farm]'")

from tf2aif.build import Build
from tf2aif.farm.address import parse
from tf2aif.farm.farm import Farm
from tf2aif.workers import Workers

OTHER = "TF2AIF_FARM_PYTHON"
ARM64 = "TF2AIF_FARM_ARM64"
ZOO = "TF2AIF_FARM_ZOO"
ROOT = Path(__file__).parent.parent
HAS = {
    "tensor": ("tensorflow", "tf2onnx"),
    "lite": ("litert", "openvino", "onnxruntime", "onnx"),
    "plain": ("python",),
}
"""The three machines, and what each of them alone offers."""
ARM64_TOOLS = ("python", "tensorflow", "litert")


@pytest.fixture(scope="module", autouse=True)
def _plain_environment() -> Iterator[None]:
    with plain_environment():
        yield


@contextmanager
def three_machines(root: Path) -> Iterator[tuple[TestFarm, dict[str, str]]]:
    """A farm, and how the labels begin that a build asks for; `plain` may have another Python."""
    farm = TestFarm(root / "farm")
    try:
        for name, toolchains in HAS.items():
            offered = [word for toolchain in toolchains for word in ("--offer", toolchain)]
            python = os.environ.get(OTHER) if name == "plain" else ""
            farm.add(
                # scikit-learn sets KMP_ variables in this process, which count as code.
                name, "--slots", "1", "--allow-code", *offered,
                python=python or sys.executable, wait=False,
            )  # fmt: skip
        for name in HAS:
            farm.wait_for(name)
        yield farm, {tool: tool for tools in HAS.values() for tool in tools}
    finally:
        farm.close()


def use_farm(project: Path, farm: TestFarm, **settings: Any) -> dict[str, str]:
    """Write the farm into the project's settings; the environment for its command line."""
    cache = {"remotes": [{"url": farm.cache, "write": True}], "trusted": [farm.key.public]}
    text = yaml.safe_dump({"farm": {"address": farm.url, **settings}, "cache": cache})
    (project / "tf2aif.yaml").write_text(text)
    return {
        "TF2AIF_CACHE": str(project.parent / "store"),
        "TF2AIF_SIGNING_KEY": str(farm.root / "key"),
    }


def records(project: Path) -> dict[str, dict[str, Any]]:
    """What is known of each step that made something."""
    found = {
        f"{path.parent.parent.name}/{path.stem}": json.loads(path.read_text())
        for path in (project / "build").glob("*/.steps/*.json")
    }
    return {name: each for name, each in found.items() if "/@" not in name}  # not of variants


def compare(here: Path, there: Path) -> Counter[str]:
    """Hold a build by the farm against one without; how many steps each machine did."""
    ours, theirs = records(here), records(there)
    assert theirs.keys() == ours.keys()
    machine_of = {tool: name for name, tools in HAS.items() for tool in tools}
    steps = Build.load([there / "recipes"], there).graph.steps
    did: Counter[str] = Counter()
    for name, record in theirs.items():
        if steps[name].machine:  # a time holds for the machine that asked for it
            assert "made_by" not in record, name
            continue
        assert record["outputs"] == ours[name]["outputs"], name
        expected = machine_of.get(steps[name].toolchain)
        machine = record["made_by"]["machine.name"] if "made_by" in record else None
        assert machine == expected, name
        did[machine or "here"] += 1
    return did


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, exported: Path, warm: Workers
) -> Iterator[UserProject]:
    """The project, built here."""
    root = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(root / "cache"))
        project = UserProject.create(root / "project", exported, warm)
        project.write(project.recipe(targets={TARGET: {"precisions": ["fp32"]}}))
        project.build()
        yield project


def _copy(local: UserProject, root: Path) -> UserProject:
    """The same project, never built."""
    project = UserProject(root / "project", local.exported, local.workers)
    shutil.copytree(local.root / "recipes", project.root / "recipes")
    return project


def test_three_machines_make_what_this_one_makes(local: UserProject, tmp_path: Path) -> None:
    project = _copy(local, tmp_path)
    with three_machines(tmp_path) as (farm, chosen):
        mine = use_farm(project.root, farm, toolchains=chosen)
        done = project.cli("build", "--json", "-n", "2", **mine)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["missing"] == {}
        did = compare(local.root, project.root)
        assert did.keys() == HAS.keys()
        assert _states(project, mine) == {"fresh"}  # though nobody is asked
        (project.root / "build" / ".tf2aif" / "farm.json").unlink()
        if not os.environ.get(OTHER):
            assert _states(project, mine) == {"fresh"}  # the keys are those of this machine


def test_the_zoo_by_three_machines(tmp_path: Path) -> None:
    """Every recipe of this repository, with all its targets."""
    if os.environ.get(ZOO) != "yes":
        pytest.skip(f"trains and builds the zoo twice, for many minutes: {ZOO}=yes")
    found: dict[str, dict[str, Any]] = {}
    for name in ("here", "there"):
        shutil.copytree(ROOT / "recipes", tmp_path / name / "recipes")
        (tmp_path / name / "pyproject.toml").touch()
    if (shared := ROOT.parent / "shared").is_dir():
        (tmp_path / "shared").symlink_to(shared)
    with three_machines(tmp_path / "f") as (farm, chosen):
        environments = {
            "here": {"TF2AIF_CACHE": str(tmp_path / "store-here")},
            "there": use_farm(tmp_path / "there", farm, toolchains=chosen),
        }
        for name, environment in environments.items():
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "tf2aif", "build", "--json", "-n", "2"],
                cwd=tmp_path / name,
                env={**os.environ, **environment},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-5000:] + done.stderr
            found[name] = json.loads(done.stdout)
            print(f"{name}: {time.monotonic() - began:.0f} s, {found[name]['ran']} steps ran")
        did = compare(tmp_path / "here", tmp_path / "there")
    print(dict(did), len(found["there"]["variants"]), "variants")
    states = [{n: v["state"] for n, v in each["variants"].items()} for each in found.values()]
    assert states[0] == states[1]


def _states(project: UserProject, environment: dict[str, str]) -> set[str]:
    plan = json.loads(project.cli("plan", "--json", **environment).stdout)["steps"]
    return {step["state"] for step in plan.values()}


LIBRARIES = [
    "tensorflow", "tf-keras", "ai-edge-litert", "distributed", "numpy", "msgspec", "xxhash",
    "cryptography", "urllib3", "pyyaml", "jsonschema", "doit", "docker", "rich", "pillow",
]  # fmt: skip


@pytest.fixture
def arm64_root(tmp_path: Path) -> Iterator[Path]:
    """A file system of Debian for arm64 with Python, TensorFlow and LiteRT, which runs here."""
    if os.environ.get(ARM64) != "yes":
        pytest.skip(f"emulates for many minutes, and fetches packages: {ARM64}=yes")
    from tf2aif.oci.apt import fetch, read_lock
    from tf2aif.oci.deb import unpack
    from tf2aif.oci.planning import PACKAGED_LOCKS

    root = tmp_path / "arm64"
    lock = read_lock(PACKAGED_LOCKS / "debian-bookworm-arm64.json")
    for deb in fetch(lock, tmp_path / "debs").values():
        unpack(deb, root)
    for name in ("lib", "bin", "sbin"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    subprocess.run(
        [
            "uv", "pip", "install", "-q", "--target", str(root / "opt" / "lib"),
            "--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.11",
            "--only-binary", ":all:", "-c", str(ROOT / "constraints.txt"), *LIBRARIES,
        ],
        check=True,
    )  # fmt: skip
    code = root / "code" / "tf2aif"
    shutil.copytree(ROOT / "tf2aif", code)
    with emulated_arm64(tmp_path / "qemu"):
        mounts = [("--bind", "/dev"), ("-t proc", "/proc"), ("--bind", "/sys")]
        for how, what in mounts:
            (root / what[1:]).mkdir(exist_ok=True)
            words = ["mount", *how.split(), what if "bind" in how else "proc", f"{root}{what}"]
            subprocess.run(words, check=True)
        (root / "w").mkdir()
        subprocess.run(["mount", "--bind", str(tmp_path), str(root / "w")], check=True)
        try:
            yield root
        finally:
            for place in ("w", *(what[1:] for _, what in mounts)):
                subprocess.run(["umount", "-l", str(root / place)], check=True)


def test_a_machine_of_another_architecture_builds_and_checks_its_own_variants(
    local: UserProject, arm64_root: Path, tmp_path: Path
) -> None:
    farm = TestFarm(tmp_path / "farm")
    try:
        environment = {
            "PYTHONPATH": "/opt/lib:/code", "HOME": "/w", "TMPDIR": "/w", "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin", "TF2AIF_CACHE": "/w/store-board",
            "TF2AIF_SIGNING_KEY": "/w/farm/key",
        }  # fmt: skip
        offered = [word for tool in ARM64_TOOLS for word in ("--offer", tool)]
        with open(farm.root / "board.log", "wb") as output:
            farm.processes["board"] = subprocess.Popen(
                [
                    "/usr/sbin/chroot", str(arm64_root), "/usr/bin/python3.11", "-P", "-m",
                    "tf2aif", "worker", farm.url, "--name", "board", "--cache", "/w/farm/cache",
                    "--slots", "1", "--allow-code", *offered,
                ],
                env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        farm.wait_for("board")
        client = Farm(parse(farm.url))
        bids = client.offers()["board"].bids
        client.close()
        project = _copy(local, tmp_path)
        project.write(project.recipe(targets={"arm": {"precisions": ["fp32", "int8"]}}))
        mine = use_farm(project.root, farm, toolchains={t: bids[t].label for t in ARM64_TOOLS})
        done = project.cli("build", "--json", "-n", "2", within_s=3000, **mine)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        variants = json.loads(done.stdout)["variants"]
        assert len(variants) == 2
        for name, record in variants.items():
            assert record["state"] == "verified-on-device", name
            for step, each in record["steps"].items():
                if step.partition("/")[2].startswith("latency-"):
                    continue
                assert each["toolchain"]["machine.name"] == "board", step
                assert each["toolchain"]["toolchain.platform"] == "linux-aarch64", step
        there, here = records(project.root), records(local.root)
        for name in ("import", "evaluation", "tflite-fp32"):  # nothing is computed in floats
            assert there[f"digits/{name}"]["outputs"] == here[f"digits/{name}"]["outputs"], name
    finally:
        farm.close()
