"""The files of docs/farm/ are what they say: Kubernetes takes the pods, tf2aif the words."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tf2aif.cli import _parser
from tf2aif.farm.pickles import NAMES

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "farm"
KUBERNETES = "1.33"


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod of the cluster's file, by its group."""
    found = []
    text = (FOLDER / "kubernetes" / "farm.yaml").read_text(encoding="utf-8")
    for each in yaml.safe_load_all(text):
        assert each["apiVersion"] == "kubernetes.dask.org/v1"
        spec, name = each["spec"], each["metadata"]["name"]
        found += [(f"{name}-{k}", spec[k]["spec"]) for k in ("scheduler", "worker") if k in spec]
    return found


@pytest.mark.parametrize(("name", "pod"), pods(), ids=[name for name, _ in pods()])
def test_pods_are_what_kubernetes_takes(name: str, pod: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
    kubernetes_validate.validate(whole, KUBERNETES, strict=True)
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    program, *words = container["args"]
    assert program == "tf2aif"
    arguments = _parser().parse_args(words)
    if name.endswith("scheduler"):
        assert arguments.host == "0.0.0.0"
    else:
        assert arguments.address == "farm-scheduler.tf2aif:8786"
        assert not arguments.allow_code
    folders = {mount["mountPath"] for mount in container["volumeMounts"]}
    for variable in container["env"]:
        assert any(variable["value"].startswith(folder) for folder in folders)


def test_there_are_machines_of_each_kind() -> None:
    names = [name for name, _ in pods()]
    assert names == ["farm-scheduler", "farm-worker", "farm-arm64-worker", "farm-h100-worker"]


@pytest.mark.parametrize("name", ["scheduler", "worker"])
def test_units_start_what_there_is(name: str) -> None:
    path = FOLDER / "ssh" / f"tf2aif-{name}.service"
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text(encoding="utf-8"))
    line = unit["Service"]["ExecStart"].replace("${FARM}", "farm:1").replace("$FURTHER", "")
    program, *words = shlex.split(line)
    assert program == "/opt/tf2aif/bin/tf2aif"
    assert _parser().parse_args(words)


@pytest.mark.parametrize("name", ["scheduler", "worker"])
def test_units_are_what_systemd_takes(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    text = (FOLDER / "ssh" / f"tf2aif-{name}.service").read_text(encoding="utf-8")
    unit = tmp_path / f"tf2aif-{name}.service"
    unit.write_text(text.replace("/opt/tf2aif/bin/tf2aif", "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert str(unit) not in done.stderr, done.stderr


def test_the_script_does_as_it_says(tmp_path: Path) -> None:
    """With programs in the place of ssh and tf2aif that note how they were called."""
    for name in ("ssh", "tf2aif"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n'
            + ('[ "$2" = keygen ] && mkdir -p "$3/$4" && touch "$3/$4/ca.pem" "$3/$4/cert.pem" '
               '"$3/$4/key.pem"\nexit 0\n' if name == "tf2aif" else "cat >/dev/null\n")
        )  # fmt: skip
        program.chmod(0o755)
    done = subprocess.run(
        ["sh", str(FOLDER / "ssh" / "farm.sh"), "head", "jetson"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "KEYS": str(tmp_path / "keys"), "CACHE": "x"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    for name in ("scheduler", "jetson", "client"):
        assert f"tf2aif farm keygen {tmp_path}/keys {name}" in calls
    assert "ca-key.pem" not in calls  # the authority's own key goes nowhere
    assert "tf2aif farm status head:8786" in calls
    assert calls.count("systemctl restart") == 2
    words = [line.split()[1:] for line in calls.splitlines() if line.startswith("tf2aif ")]
    assert all(_parser().parse_args(each) for each in words)


def test_the_page_counts_right() -> None:
    text = (FOLDER.parent / "why" / "farm.md").read_text(encoding="utf-8")
    number = re.search(r"an unpickler that knows (\w+) names", text.replace("\n", " "))
    assert number is not None
    assert ["zero", "one", "two", "three", "four", "five", "six", "seven"].index(number[1]) == len(
        NAMES
    )
