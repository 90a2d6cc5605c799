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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine import emulated_arm64
from farms import TestFarm
from project import UserProject
from serving import TARGET

pytest.importorskip("distributed", reason="needs 'tf2aif[farm]'")

from tf2aif.build import Build
from tf2aif.toolchains.variables import VENDOR_PREFIXES
from tf2aif.workers import Workers

OTHER = "TF2AIF_FARM_PYTHON"
ARM64 = "TF2AIF_FARM_ARM64"
FULL = "TF2AIF_FARM_FULL"
"""`yes`: build here too, and compare bytes. Else only keys: those of a build without a farm."""
HAS = {"tensor": "tensorflow", "lite": "litert", "plain": "python"}


@pytest.fixture(scope="module", autouse=True)
def _plain_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith((*VENDOR_PREFIXES, "TF2AIF_FARM_TLS", "TF2AIF_REMOTE")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, exported: Path, warm: Workers
) -> Iterator[UserProject]:
    """The project; with FULL built here."""
    root = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(root / "cache"))
        project = UserProject.create(root / "project", exported, warm)
        project.write(project.recipe(targets={TARGET: {"precisions": ["fp32"]}}))
        if os.environ.get(FULL) == "yes":
            project.build()
        yield project


def _copy(local: UserProject, root: Path, farm: TestFarm, **settings: Any) -> UserProject:
    """The same project, never built, with the farm in its settings."""
    project = UserProject(root / "project", local.exported, local.workers)
    shutil.copytree(local.root / "recipes", project.root / "recipes")
    cache = {"remotes": [{"url": farm.cache, "write": True}], "trusted": [farm.key.public]}
    text = yaml.safe_dump({"farm": {"address": farm.url, **settings}, "cache": cache})
    (project.root / "tf2aif.yaml").write_text(text)
    return project


def _records(project: UserProject) -> dict[str, dict[str, Any]]:
    folder = project.root / "build" / "digits" / ".steps"
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {name: each for name, each in found.items() if name[0] != "@"}  # of variants


def test_three_machines_make_what_this_one_makes(local: UserProject, tmp_path: Path) -> None:
    farm = TestFarm(tmp_path / "farm")
    try:
        chosen = {}
        for name, toolchain in HAS.items():
            python = os.environ.get(OTHER) or sys.executable
            farm.add(
                # scikit-learn sets KMP_ variables in this process, which count as code.
                name, "--slots", "1", "--offer", toolchain, "--allow-code", wait=False,
                python=python if toolchain == "python" else sys.executable,
            )  # fmt: skip
            chosen[toolchain] = toolchain
        for name in HAS:
            farm.wait_for(name)
        project = _copy(local, tmp_path, farm, toolchains=chosen)
        mine = {
            "TF2AIF_CACHE": str(tmp_path / "store"),
            "TF2AIF_SIGNING_KEY": str(farm.root / "key"),
        }
        done = project.cli("build", "--json", "-n", "2", **mine)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["missing"] == {}
        there, here = _records(project), _records(local)
        measured = {name for name in there if name.startswith("latency-")}
        machines = {tool: name for name, tool in HAS.items()}
        steps = Build.load([project.root / "recipes"], project.root).graph.steps
        assert {f"digits/{name}" for name in there} == steps.keys()
        for name in there.keys() - measured:
            made_by = there[name]["made_by"]
            assert made_by["machine.name"] == machines[steps[f"digits/{name}"].toolchain], name
            if os.environ.get(FULL) == "yes":
                assert there[name]["outputs"] == here[name]["outputs"], name
        assert all("made_by" not in there[name] for name in measured)  # time is this machine's
        assert _states(project, mine) == {"fresh"}  # though nobody is asked
        (project.root / "build" / ".tf2aif" / "farm.json").unlink()
        if not os.environ.get(OTHER):
            assert _states(project, mine) == {"fresh"}  # the keys are those of this machine
    finally:
        farm.close()


def _states(project: UserProject, environment: dict[str, str]) -> set[str]:
    plan = json.loads(project.cli("plan", "--json", **environment).stdout)["steps"]
    return {step["state"] for step in plan.values()}


LIBRARIES = [
    "ai-edge-litert", "distributed==2026.8.0", "numpy", "msgspec", "xxhash", "cryptography",
    "urllib3", "pyyaml", "jsonschema", "doit", "docker", "rich",
]  # fmt: skip


@pytest.fixture
def arm64_root(tmp_path: Path) -> Iterator[Path]:
    """A file system of Debian for arm64 with Python and LiteRT, of which programs can run here."""
    if os.environ.get(ARM64) != "yes":
        pytest.skip(f"emulates for minutes, and fetches packages: {ARM64}=yes")
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
    constraints = Path(__file__).parent.parent / "constraints.txt"
    subprocess.run(
        [
            "uv", "pip", "install", "-q", "--target", str(root / "opt" / "lib"),
            "--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.11",
            "--only-binary", ":all:", "-c", str(constraints), *LIBRARIES,
        ],
        check=True,
    )  # fmt: skip
    code = root / "code" / "tf2aif"
    shutil.copytree(Path(__file__).parent.parent / "tf2aif", code)
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


def test_a_machine_of_another_architecture_checks_its_own_variants(
    local: UserProject, arm64_root: Path, tmp_path: Path
) -> None:
    farm = TestFarm(tmp_path / "farm")
    try:
        environment = {
            "PYTHONPATH": "/opt/lib:/code", "HOME": "/w", "TMPDIR": "/w", "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin", "TF2AIF_CACHE": "/w/store-board",
            "TF2AIF_SIGNING_KEY": "/w/farm/key",
        }  # fmt: skip
        with open(farm.root / "board.log", "wb") as output:
            farm.processes["board"] = subprocess.Popen(
                [
                    "/usr/sbin/chroot", str(arm64_root), "/usr/bin/python3.11", "-P", "-m",
                    "tf2aif", "worker", farm.url, "--name", "board", "--cache", "/w/farm/cache",
                    "--offer", "litert", "--slots", "1", "--allow-code",
                ],
                env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        farm.wait_for("board")
        project = _copy(local, tmp_path, farm)
        project.write(project.recipe(targets={"arm": {"precisions": ["fp32", "int8"]}}))
        mine = {
            "TF2AIF_CACHE": str(tmp_path / "store"),
            "TF2AIF_SIGNING_KEY": str(farm.root / "key"),
        }
        done = project.cli("build", "--json", "-n", "2", **mine)
        assert done.returncode == 0, done.stderr
        for name, record in json.loads(done.stdout)["variants"].items():
            assert record["state"] == "verified-on-device", name
            check = record["steps"][f"digits/check-{name.partition('/')[2]}"]["toolchain"]
            assert check["machine.name"] == "board"
            assert check["toolchain.platform"] == "linux-aarch64"
    finally:
        farm.close()
