"""`tf2aif.yaml`: read strictly, absent or empty it changes nothing, and all faults come at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from wheels import pin, write_wheel

from tf2aif.errors import FilesError
from tf2aif.spec.config import Cache, Config, Remote, config_files, load_config
from tf2aif.toolchains.places import Place

DIGEST = "sha256:" + "0123456789abcdef" * 4


def write(project: Path, text: str) -> None:
    (project / "tf2aif.yaml").write_text(text, encoding="utf-8")


def faults_of(project: Path, text: str) -> list[str]:
    write(project, text)
    with pytest.raises(FilesError) as caught:
        load_config(project)
    return [fault.render() for fault in caught.value.faults]


@pytest.mark.parametrize("text", [None, "", "# nothing yet\n\n  # cache:\n"])
def test_without_settings_each_is_at_its_default(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        write(tmp_path, text)
    assert load_config(tmp_path) == Config()


def test_all_that_it_can_say(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "hls.txt"
    lock.parent.mkdir()
    lock.write_text(pin(write_wheel(tmp_path, "tiny", "1", {"tiny.py": ""})))
    write(
        tmp_path,
        f"""
toolchains:
  hls4ml: {{venv: locks/hls.txt, extends: false}}
  tensorflow: {{docker: "registry:5000/tf@{DIGEST}", gpus: all, run: [--ipc=host]}}
  litert: {{docker: "{DIGEST}", gpus: 2, python: /usr/bin/python3.12}}
  onnxruntime: {{ssh: me@jetson, python: /opt/py/bin/python3, options: [-p, "2222"]}}
cache:
  remotes: [{{url: "file:///shared"}}, {{url: "http://cache", write: true}}]
  trusted: [abc]
  timeout_s: 3
farm: http://farm:9000
""",
    )
    config = load_config(tmp_path)
    assert config == Config(
        toolchains={
            "hls4ml": Place(venv=str(lock), extends=False),
            "tensorflow": Place(
                docker=f"registry:5000/tf@{DIGEST}", gpus="all", run=("--ipc=host",)
            ),
            "litert": Place(docker=DIGEST, gpus=2, python="/usr/bin/python3.12"),
            "onnxruntime": Place(
                ssh="me@jetson", python="/opt/py/bin/python3", options=("-p", "2222")
            ),
        },
        cache=Cache(
            remotes=(Remote("file:///shared"), Remote("http://cache", write=True)),
            trusted=("abc",),
            timeout_s=3.0,
        ),
        farm="http://farm:9000",
    )
    assert [place.kind for place in config.toolchains.values()] == [
        "venv",
        "docker",
        "docker",
        "ssh",
    ]
    assert config_files(tmp_path, config) == (str(tmp_path / "tf2aif.yaml"), str(lock))


def test_unknown_names_name_the_nearest(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "toolchain: {}\ncache:\n  remote: []\n") == [
        "error: unknown key 'toolchain'\n   at: tf2aif.yaml:1: toolchain\n"
        " hint: did you mean 'toolchains'?",
        "error: unknown key 'remote'\n   at: tf2aif.yaml:3: cache.remote\n"
        " hint: did you mean 'remotes'?",
    ]
    (fault,) = faults_of(tmp_path, "toolchains:\n  tensorflw: {ssh: there}\n")
    assert fault == (
        "error: unknown toolchain 'tensorflw'\n   at: tf2aif.yaml:2: toolchains.tensorflw\n"
        " hint: did you mean 'tensorflow'?"
    )


PLACES = {
    "{}": "nothing says where it runs",
    "{venv: a.txt, ssh: there}": "venv and ssh at once",
    "{ssh: there, gpus: all}": "'gpus' belongs to docker, not to ssh",
    "{docker: 'tf:latest'}": "'tf:latest' is no image by its digest: a tag may change",
    "{docker: 'tf@sha256:12'}": "'tf@sha256:12' is no image by its digest",
    "{docker: '-v@" + DIGEST + "'}": "is no image by its digest",
    "{ssh: '-oProxyCommand=x'}": "'-oProxyCommand=x' is no host",
    "{ssh: 'a b'}": "'a b' is no host",
    "{ssh: there, options: -p}": "expected a list, got '-p'",
    "{docker: '" + DIGEST + "', gpus: some}": "expected a whole number or 'all', got 'some'",
    "{docker: '" + DIGEST + "', gpus: 0}": "0 is less than 1",
    "{venv: none.txt}": "no file 'none.txt'",
    "{venv: bad.txt}": "'numpy>=2' is not fixed to one version",
    "there": "expected a mapping, got 'there'",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_makes_no_sense(tmp_path: Path, place: str) -> None:
    (tmp_path / "bad.txt").write_text("numpy>=2\n")
    (fault,) = faults_of(tmp_path, f"toolchains:\n  tensorflow: {place}\n")
    assert fault.startswith("error: ")
    assert PLACES[place] in fault
    assert "bad.txt:1" in fault or "tf2aif.yaml:2: toolchains.tensorflow" in fault


def test_the_other_ending_is_not_overlooked(tmp_path: Path) -> None:
    (tmp_path / "tf2aif.yml").write_text("farm: x\n")
    with pytest.raises(FilesError, match="this file is not read") as caught:
        load_config(tmp_path)
    assert caught.value.faults[0].hint == "name it tf2aif.yaml"


def test_reading_settings_loads_nothing_heavy(tmp_path: Path) -> None:
    write(tmp_path, "toolchains: {tensorflow: {ssh: there}}\n")
    code = (
        "import sys; from pathlib import Path; from tf2aif.spec.config import load_config; "
        "load_config(Path(sys.argv[1])); "
        "print(sorted({'jsonschema', 'numpy', 'docker', 'subprocess'} & set(sys.modules)))"
    )
    done = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True)
    assert done == "[]\n"


def test_the_example_of_the_page_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "toolchains.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- config -->\n```yaml\n(.*?)```", page, re.DOTALL)
    assert found
    (tmp_path / "locks").mkdir()
    wheel = write_wheel(tmp_path, "tiny", "1", {"tiny.py": ""})
    (tmp_path / "locks" / "hls4ml.txt").write_text(pin(wheel))
    write(tmp_path, found[1])
    places = load_config(tmp_path).toolchains.values()
    assert [place.kind for place in places] == ["venv", "ssh", "docker"]
