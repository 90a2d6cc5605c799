"""What README and docs say is so: their commands run, their examples load, their names exist.

A comment before a fenced block says what it is: `<!-- file: PATH -->` is written to that path,
`<!-- run -->` is run by the shell, `<!-- output -->` is what the last run printed,
`<!-- recipe -->` and `<!-- target: NAME -->` are read and planned, `<!-- python -->` is executed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tf2aif import errors
from tf2aif.cli import _parser
from tf2aif.graph import plan
from tf2aif.spec.load import load_project, packaged_targets
from tf2aif.spec.schema import KINDS, schema_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
X86 = platform.machine() == "x86_64"


class Block(NamedTuple):
    """A fenced block: what the comment before it says, its language, its text."""

    what: str
    argument: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The marked blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^<!-- (\w+)(?:: (\S+))? -->\n```(\w+)\n(.*?)^```$", text, re.M | re.S)
    assert found, f"{page} has no marked block"
    return [Block(*each) for each in found]


def fenced(text: str, language: str) -> list[str]:
    """Every block of a language, marked or not."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell command as a user of this environment types it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "TF2AIF_IMAGES": "no", **environment}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def shape(text: str) -> str:
    """Output without what differs from run to run: measured numbers, and the width of columns."""
    numbers = re.sub(r"[+-]?\d+\.\d+", "N", text)
    return "\n".join(re.sub(r"-{2,}", "-", " ".join(line.split())) for line in numbers.splitlines())


# Pages.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    own = r"`((?:tf2aif|tests|benchmarks|docs|schemas|\.ci)/[\w./-]+)`"
    for name in re.findall(own, text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
    if page.name == "tour.md":
        rooms = re.findall(r"`([\w/]+(?:\.py|/))`", text)
        assert len(rooms) > 30
        places = (ROOT, ROOT / "tf2aif")
        lacking = [n for n in rooms if not any((place / n).exists() for place in places)]
        assert set(lacking) <= {"build/", "build/<recipe>/<variant>/"}


def test_the_tour_visits_every_room() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    for folder in sorted((ROOT / "tf2aif").iterdir()):
        if (folder / "__init__.py").is_file():
            assert f"{folder.name}/" in tour, f"tour.md leaves {folder.name}/ out"


def test_every_page_can_be_reached_from_the_readme() -> None:
    todo, seen = [ROOT / "README.md"], {ROOT / "CHANGELOG.md"}
    while todo:
        page = todo.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8"))
        todo += {(page.parent / link).resolve() for link in links} - seen
    assert set(PAGES) <= seen


# The README.


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_readme_has_two_commands_that_set_all_up() -> None:
    demo, tests = fenced(README, "sh")
    start = ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert demo.strip().split(" && ") == [
        *start, "pip install '.[demo]' -c constraints.txt", "tf2aif build recipes/digits.yaml",
    ]  # fmt: skip
    assert tests.strip().split(" && ") == [
        *start, "pip install '.[test]' -c constraints.txt", "pytest -n logical",
    ]  # fmt: skip
    assert {"demo", "test"} <= set(PROJECT["optional-dependencies"])


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = re.search(r"^readme_test_command\(\) \{.*?^\}$", script, re.M | re.S)
    assert function
    said = run(f"{function[0]}\nreadme_test_command", ROOT).stdout.strip()
    assert fenced(README, "sh")[1].strip().endswith(f"activate && {said}")
    assert said.startswith("pip install")


def test_the_recipe_in_the_readme_is_the_demo() -> None:
    recipe, target = fenced(README, "yaml")
    demo = (ROOT / "recipes" / "digits.yaml").read_text(encoding="utf-8")
    assert recipe == re.sub(r"^#.*\n", "", demo, flags=re.M)
    packaged = yaml.safe_load((packaged_targets() / "cpu-openvino.yaml").read_text())
    shown = yaml.safe_load(target)
    assert shown["precisions"]["int8"] == packaged["precisions"]["int8"]
    assert (shown["platform"], shown["engine"]) == (packaged["platform"], packaged["engine"])


def rows(table: str) -> dict[str, list[str]]:
    """The lines of a table of variants, by variant."""
    lines = [line.split() for line in table.splitlines() if "/" in line.split(" ")[0]]
    return {words[0]: words[1:] for words in lines}


def test_the_demo_ends_with_the_table_of_the_readme(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copyfile(ROOT / "dodo.py", tmp_path / "dodo.py")
    done = run("tf2aif build recipes/digits.yaml", tmp_path, TF2AIF_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    wanted, found = rows(fenced(README, "text")[0]), rows(done.stdout)
    assert list(found) == list(wanted)
    for name, words in wanted.items():
        if X86:
            assert found[name][0] == words[0], name
        assert found[name][1] == words[1] == "top-1"
        for here, said in zip(found[name][2:5], words[2:5], strict=True):
            assert float(here) == pytest.approx(float(said), abs=0.02), name


# A user's own repository.


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, done step by step in an empty folder."""
    folder = tmp_path_factory.mktemp("repository")
    printed = ""
    for block in blocks("docs/your-repository.md"):
        if block.what == "file":
            (folder / block.argument).parent.mkdir(exist_ok=True)
            (folder / block.argument).write_text(block.text, encoding="utf-8")
        elif block.what == "run":
            done = run(block.text, folder, TF2AIF_CACHE=str(folder / ".cache"))
            assert done.returncode == 0, f"{block.text}{done.stdout}{done.stderr}"
            printed = done.stdout
        elif X86:
            assert block.what == "output"
            assert shape(printed) == shape(block.text)
    return folder


def test_the_page_of_a_users_repository_is_so(repository: Path) -> None:
    dodo = (repository / "dodo.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in dodo if line]) == 2
    record = json.loads((repository / "build" / "iris" / "cpu-int8" / "variant.json").read_text())
    assert record["accuracy"]["source"] >= 0.9


JSON = {
    "check": "check",
    "plan": "plan",
    "list": "list",
    "build": "build",
    "targets": "targets",
    "doctor": "doctor",
    "report": "report",
    "cache info": "cache",
    "cache verify": "cache",
    "cache gc --dry-run": "cache",
}


@pytest.mark.parametrize("words", JSON)
def test_json_has_the_keys_that_the_docs_name(repository: Path, words: str) -> None:
    command, _, rest = words.partition(" ")
    cache = str(repository / ".cache")
    done = run(f"tf2aif {command} --json {rest}", repository, TF2AIF_CACHE=cache)
    assert done.returncode == 0, done.stderr
    told = section(JSON[words]).rpartition("\nJSON")[2]
    assert told, f"docs/cli.md says nothing of the JSON of {command}"
    for name in json.loads(done.stdout):
        assert f"`{name}`" in told, f"docs/cli.md leaves out '{name}' of {command}"


def test_json_of_why_and_of_errors(repository: Path) -> None:
    done = run("tf2aif why --json iris/import", repository, TF2AIF_CACHE=str(repository / ".cache"))
    assert json.loads(done.stdout) == {"iris/import": {"state": "fresh", "reasons": []}}
    done = run("tf2aif build --json nothing.yaml", repository)
    said = json.loads(done.stdout)
    assert set(said) == {"error", "exit_code"}
    assert set(said["error"][0]) == {"message", "at", "hint"}
    assert done.returncode == said["exit_code"] == 2


# The command line.


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command of the parser, by name."""
    actions = _parser()._actions
    return dict(next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices)


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a command, and of its own commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from options(each)


def section(command: str) -> str:
    """What docs/cli.md says of a command."""
    found = re.search(rf"^## tf2aif {command}\n(.*?)(?=^## |\Z)", CLI, re.M | re.S)
    assert found, f"docs/cli.md has no section on {command}"
    return found[1]


def test_the_page_has_every_command_and_no_other() -> None:
    assert set(re.findall(r"^## tf2aif (\S+)$", CLI, re.M)) == set(commands())


@pytest.mark.parametrize("command", commands())
def test_the_page_has_every_option_and_no_other(command: str) -> None:
    said = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", section(command)))
    there = set(options(commands()[command])) - {"-h"}
    everywhere = {"--json", "--help"}
    assert there - everywhere <= said
    assert said - everywhere <= there


def test_exit_codes_are_those_of_the_errors() -> None:
    table = CLI.partition("## Exit codes")[2].partition("\n## ")[0]
    said = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and hasattr(k, "exit_code")]
    assert {0, *(kind.exit_code for kind in kinds)} <= said


# Recipes and targets.


def examples(what: str) -> list[tuple[str, str]]:
    """(page, text) of each example of a kind."""
    pages = ("docs/recipes.md", "docs/targets.md", "docs/nvidia.md")
    return [(page, block.text) for page in pages for block in blocks(page) if block.what == what]


@pytest.mark.parametrize(("page", "text"), examples("recipe"))
def test_an_example_of_a_recipe_is_read_and_planned(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "targets").mkdir()
    (tmp_path / "recipes" / "example.yaml").write_text(text, encoding="utf-8")
    for block in blocks(page):
        if block.what == "target":
            own = tmp_path / "targets" / f"{block.argument}.yaml"
            own.write_text(block.text, encoding="utf-8")
    project = load_project([tmp_path / "recipes"], tmp_path)
    graph = plan(project.recipes, project.targets, platform="linux/amd64")
    assert graph.variants
    assert all(variant.artifact in graph.steps for variant in graph.variants.values())


@pytest.mark.parametrize(("page", "text"), examples("python"))
def test_an_example_of_code_can_be_executed(page: str, text: str, tmp_path: Path) -> None:
    names: dict[str, object] = {"__file__": str(tmp_path / "example.py"), "__name__": "example"}
    exec(compile(text, page, "exec"), names)
    assert [n for n in re.findall(r"^def (\w+)", text, re.M) if callable(names[n])]


def test_the_reference_has_every_key_of_the_schemas() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for kind, struct in KINDS.items():
        whole = schema_of(struct)
        for part in (whole, *whole["$defs"].values()):
            found = re.search(rf"^##+ {part['title']}\n(.*?)(?=^##|\Z)", text, re.M | re.S)
            assert found, f"the reference leaves out {part['title']} of a {kind}"
            keys = set(re.findall(r"^\| `(\w+)` \|", found[1], re.M))
            assert keys == set(part["properties"]), part["title"]


# What is installed.


def requirements() -> dict[str, list[Requirement]]:
    """What pyproject asks for, by extra; the core is ''. What an extra takes from others is not."""
    lists = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {
        extra: [one for one in map(Requirement, texts) if one.name != "tf2aif"]
        for extra, texts in lists.items()
    }


def pins() -> dict[str, str]:
    """Distribution -> exact version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+", line) for line in kept)
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in kept}


def test_the_page_of_dependencies_has_each_of_them() -> None:
    text = (ROOT / "docs" / "why" / "dependencies.md").read_text(encoding="utf-8")
    core = re.findall(r"^\| `([\w-]+)` \| [^|]+ \|$", text, re.M)
    assert sorted(core) == sorted(one.name for one in requirements()[""])
    extra = re.findall(r"^\| `([\w-]+)` \| (\w+) \|", text, re.M)
    there = [(one.name, e) for e, ones in requirements().items() if e for one in ones]
    assert sorted(extra) == sorted(there)


def test_constraints_pin_what_is_asked_for_at_a_version_that_fits() -> None:
    pinned = pins()
    for one in (one for ones in requirements().values() for one in ones):
        version = pinned.get(canonicalize_name(one.name))
        assert version, f"constraints.txt lacks {one.name}"
        assert one.specifier.contains(version), f"{one.name} {version} is not {one.specifier}"


def test_constraints_pin_all_that_comes_along() -> None:
    pinned = pins()
    todo = [one for ones in requirements().values() for one in ones]
    seen: set[str] = set()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name in seen or (one.marker and not _applies(one)):
            continue
        seen.add(name)
        assert name in pinned, f"constraints.txt lacks {name}"
        try:
            further = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        asked = {"", *one.extras}
        todo += [r for r in map(Requirement, further) if _applies(r, asked)]
    assert len(seen) > 30


def _applies(one: Requirement, extras: set[str] | None = None) -> bool:
    return one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras or {""})
