"""Toolchains say what they are, or what is lacking; workers see no variable by accident."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tf2aif import toolchains
from tf2aif.errors import Tf2aifError
from tf2aif.steps import STEPS
from tf2aif.toolchains import KINDS, TOOLCHAINS, Identity, Missing, identity
from tf2aif.toolchains import installed as here
from tf2aif.toolchains.installed import installed, loaded, normalize
from tf2aif.toolchains.lock import read_lock
from tf2aif.toolchains.variables import (
    FIXED,
    as_facts,
    child_environment,
    environment_facts,
    is_secret,
)
from tf2aif.workers import Request, Workers

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder on `sys.path`: a test puts distributions in it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    _forget()
    yield tmp_path
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for function in (here.installed, here._metadata, here._owners):
        function.cache_clear()


def distribution(site_dir: Path, name: str, version: str, files: tuple[str, ...] = ()) -> None:
    """Lay out an installed distribution as pip does."""
    info = site_dir / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in files))
    for file in files:
        (site_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (site_dir / file).write_text("")


def module(name: str, file: Path | None) -> ModuleType:
    made = ModuleType(name)
    if file:
        made.__file__ = str(file)
    return made


# -- contract: every toolchain in the table --


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_a_toolchain_is_here_or_says_what_is_lacking(name: str) -> None:
    tool = identity(name)
    if isinstance(tool, Missing):
        assert tool.what
        installable = TOOLCHAINS[name].kind in ("environment", "venv")
        assert tool.hint.startswith("pip install ") if installable else tool.hint
    else:
        assert tool.versions
        assert set(tool.facts()) == {"kind", "python", "platform", *tool.versions, *tool.further}
        assert all(tool.facts().values())


VENDORS = {"tensorrt", "tensorrt-cu12", "tensorrt-cu13"}  # no package index has them
ALONG = {"h5py": "tensorflow"}  # comes with


def brought_by(extra: str) -> str:
    """The requirements of an extra, those of the extras that it names included."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = " ".join([*project["dependencies"], *project["optional-dependencies"].get(extra, ())])
    for other in re.findall(r"tf2aif\[([a-z0-9,]+)\]", text):
        text += " ".join(brought_by(name) for name in other.split(",") if name != extra)
    return text


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_a_toolchain_names_what_pyproject_brings(name: str) -> None:
    tool = TOOLCHAINS[name]
    text = brought_by(tool.extra)
    if tool.lock:
        text += " ".join(read_lock(tool.lock).pins)
    for root in tool.roots:
        wanted = {ALONG.get(dist, dist) for dist in root.distributions}
        assert root.optional or VENDORS & wanted or any(dist in text for dist in wanted)
        assert all(normalize(dist) == dist for dist in root.distributions)
    assert tool.kind in KINDS


def test_an_unknown_toolchain_names_those_that_there_are() -> None:
    with pytest.raises(Tf2aifError) as caught:
        identity("tensorflwo")
    assert "tensorflow" in caught.value.faults[0].hint


def test_the_identity_of_this_environment() -> None:
    import numpy

    tool = identity("python")
    assert isinstance(tool, Identity)
    assert tool.kind == "environment"
    assert tool.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert tool.platform == f"linux-{os.uname().machine}"
    assert tool.versions == {"numpy": numpy.__version__}


def test_all_of_a_root_that_is_there_counts_and_optional_ones_may_lack(site_dir: Path) -> None:
    assert identity("tensorflow") == Missing("tensorflow", "pip install 'tf2aif[tensorflow]'")
    for name in ("tensorflow", "tensorflow_cpu"):
        distribution(site_dir, name, "2.21.0")
    _forget()
    assert identity("tensorflow") == Missing("keras", "pip install 'tf2aif[tensorflow]'")
    distribution(site_dir, "keras", "3.15.1")
    _forget()
    tool = identity("tensorflow")
    assert isinstance(tool, Identity)
    assert sorted(tool.versions) == ["keras", "tensorflow", "tensorflow-cpu"]
    assert toolchains.warm_modules("tensorflow") == ("tensorflow", "keras")
    assert toolchains.warm_modules("bench") == ("tensorflow",)


# -- what is installed --


def test_versions_agree_with_importlib() -> None:
    theirs: dict[str, str] = {}
    for dist in importlib.metadata.distributions():
        theirs.setdefault(normalize(dist.metadata["Name"]), dist.version)
    assert dict(installed()) == theirs


def test_top_level_modules_agree_with_importlib() -> None:
    theirs = importlib.metadata.packages_distributions()
    for name in ("numpy", "msgspec", "yaml", "google", "PIL", "sklearn", "xxhash", "_pytest"):
        if name in theirs:
            ours = here._owners()[name]
            assert set(ours) == {normalize(dist) for dist in theirs[name]}


def test_names_are_normalised(site_dir: Path) -> None:
    distribution(site_dir, "AI_Edge.LiteRT", "2.3.0+local.1")
    distribution(site_dir, "~umpy", "1.0")  # what a failed pip leaves
    _forget()
    assert installed() == {"ai-edge-litert": "2.3.0+local.1"}


def test_eggs_and_editable_installs_count(site_dir: Path) -> None:
    (site_dir / "old_style-1.2-py3.11.egg-info").mkdir()
    (site_dir / "developed.egg-info").mkdir()
    (site_dir / "developed.egg-info" / "PKG-INFO").write_text("Name: developed\nVersion: 0.3\n\n")
    (site_dir / "bare.egg-info").mkdir()
    distribution(site_dir, "edited", "4", ("_editable_impl_edited.pth",))
    _forget()
    assert installed() == {"old-style": "1.2", "developed": "0.3", "bare": "unknown", "edited": "4"}


def test_the_first_folder_counts(site_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = site_dir / "first", site_dir / "second"
    for folder, version in ((first, "1"), (second, "2")):
        folder.mkdir()
        distribution(folder, "numpy", version)
    monkeypatch.setattr(sys, "path", ["/no/such/folder", str(first), str(second)])
    _forget()
    assert installed() == {"numpy": "1"}


# -- what is loaded --


def test_loaded_modules_name_their_distributions(site_dir: Path) -> None:
    distribution(site_dir, "PyYAML", "6", ("yaml/__init__.py", "_yaml/__init__.py"))
    distribution(site_dir, "six", "1.17", ("six.py",))
    distribution(site_dir, "native", "1", ("_native.cpython-311-x86_64-linux-gnu.so",))
    distribution(site_dir, "other", "1", ("other/__init__.py",))
    _forget()
    modules = {name: module(name, None) for name in ("yaml.nodes", "six", "_native", "sys")}
    assert loaded(modules) == {"native": "1", "pyyaml": "6", "six": "1.17"}
    assert loaded(modules, own={"six"}) == {"native": "1", "pyyaml": "6"}


def test_a_shared_namespace_counts_by_the_files_that_are_loaded(site_dir: Path) -> None:
    distribution(site_dir, "protobuf", "7", ("google/protobuf/message.py",))
    distribution(site_dir, "google_auth", "2", ("google/auth/__init__.py",))
    _forget()
    modules: Mapping[str, ModuleType] = {
        "google": module("google", None),
        "google.protobuf.message": module("m", site_dir / "google/protobuf/message.py"),
    }
    assert loaded(modules) == {"protobuf": "7"}
    assert loaded({"google": module("google", None)}) == {"google-auth": "2", "protobuf": "7"}


# -- variables --


def test_a_variable_is_passed_on_listed_or_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STRAY", "LISTED", "TF_XLA_FLAGS", "TF_CPP_VMODULE", "DNNL_VERBOSE", "LC_ALL"):
        monkeypatch.setenv(name, "1")
    seen = child_environment(("LISTED", "UNSET"))
    assert {"LISTED", "TF_XLA_FLAGS", "TF_CPP_VMODULE", "DNNL_VERBOSE", "LC_ALL", "PATH"} <= set(
        seen
    )
    assert not {"STRAY", "UNSET"} & set(seen)
    facts = environment_facts(("LISTED", "UNSET"))
    assert {"LISTED", "TF_XLA_FLAGS"} <= set(facts)
    assert not {"STRAY", "TF_CPP_VMODULE", "DNNL_VERBOSE", "LC_ALL", "PATH"} & set(facts)


def test_whatever_a_worker_sees_of_a_vendors_variables_is_a_fact_or_fixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert child_environment()["KERAS_BACKEND"] == "tensorflow"
    assert "KERAS_BACKEND" not in environment_facts()
    assert environment_facts()["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    "name",
    ["TF_VAR_password", "TF_CLI_CONFIG_FILE", "TF_TOKEN_app_example", "TF_LOG", "NVIDIA_API_KEY"],
)
def test_terraforms_variables_and_secrets_are_unseen(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They would change keys for nothing, and stand in records that are shared."""
    monkeypatch.setenv(name, "s3cret")
    assert name not in child_environment()
    assert name not in environment_facts()
    wished = environment_facts((name,))  # the recipe says so
    assert wished[name] == "s3cret"
    assert child_environment((name,))[name] == "s3cret"
    (fact,) = as_facts({name: "s3cret"}).values()
    if is_secret(name):
        assert fact == f"sha256:{hashlib.sha256(b's3cret').hexdigest()}"
    else:
        assert fact == "s3cret"


def test_the_log_level_is_a_default_and_the_rest_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    assert child_environment()["TF_CPP_MIN_LOG_LEVEL"] == "2"
    assert FIXED.items() <= child_environment().items()
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    assert child_environment()["TF_CPP_MIN_LOG_LEVEL"] == "0"


# -- cost --


@pytest.mark.parametrize(
    ("kinds", "loaded"), [(("environment", "venv"), []), (tuple(KINDS), ["msgspec"])]
)
def test_asking_loads_nothing_heavy(kinds: tuple[str, ...], loaded: list[str]) -> None:
    code = f"""
import sys
from tf2aif.toolchains import TOOLCHAINS, identity
from tf2aif.toolchains.installed import environment_facts, installed
installed()
[identity(name) for name, tool in TOOLCHAINS.items() if tool.kind in {kinds}]
environment_facts()
heavy = {{"msgspec", "importlib.metadata", "numpy", "tensorflow", "keras", "openvino", "onnx"}}
print(sorted(heavy & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output(command, env=environment, text=True) == f"{loaded}\n"


def test_planning_a_step_imports_nothing_heavy() -> None:
    code = """
import sys
from tf2aif.steps import STEPS, step_module
[step_module(kind) for kind in STEPS]
print(sorted({"numpy", "tensorflow", "onnx", "onnxruntime", "h5py"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env=environment, text=True) == "[]\n"


def test_installed_is_read_once() -> None:
    assert installed() is installed()


# -- real toolchains, warm --

RANDOM_SET = {"inputs": {"": {"format": "random"}}, "samples": 8}
CHAIN: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("network", "tensorflow", {}, {}),
    ("import", "tensorflow", {}, {"source": "network/saved_model"}),
    ("calibration", "python", RANDOM_SET, {"model": "import"}),
    ("reference", "tensorflow", {}, {"model": "import", "evaluation": "calibration"}),
    (
        "tflite",
        "tensorflow",
        {"precision": "int8"},
        {"model": "import", "calibration": "calibration"},
    ),
    ("tflite", "tensorflow", {"precision": "fp16"}, {"model": "import"}),
    (
        "openvino",
        "openvino",
        {"precision": "int8"},
        {"model": "import", "calibration": "calibration"},
    ),
    ("openvino", "openvino", {"precision": "fp32"}, {"model": "import"}),
]


def test_real_steps_keep_their_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What steps load is loaded before the first one: no process retires."""
    for toolchain in {link[1] for link in CHAIN}:
        if isinstance(lacking := identity(toolchain), Missing):
            pytest.skip(f"toolchain {toolchain} lacks {lacking.what}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    observed: dict[str, set[str]] = {}
    processes: dict[str, set[int]] = {}
    with Workers() as workers:
        for kind, toolchain, options, inputs in CHAIN:
            out = tmp_path / kind
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            request = Request(
                step=f"net/{kind}",
                kind=kind,
                module=STEPS.get(kind, "conversions"),
                toolchain=toolchain,
                options=options,
                inputs={name: str(tmp_path / path) for name, path in inputs.items()},
                out=str(out),
            )
            outcome = workers.run(request, log=tmp_path / f"{kind}.txt", timeout_s=300)
            observed.setdefault(toolchain, set()).add(str(outcome.observed))
            processes.setdefault(toolchain, set()).update(_idle(workers, toolchain))
            roots = {name for root in TOOLCHAINS[toolchain].roots for name in root.distributions}
            assert roots & {name.removeprefix("dist.") for name in outcome.observed}
    assert {name: len(found) for name, found in processes.items()} == dict.fromkeys(processes, 1)
    assert {name: len(found) for name, found in observed.items()} == dict.fromkeys(observed, 1)


def _idle(workers: Workers, toolchain: str) -> set[int]:
    """The processes that wait for another step."""
    groups = (group for key, group in workers._idle.items() if key[0] == toolchain)
    return {process._popen.pid for group in groups for process in group}
