"""The CI recipe of the docs: its script runs as two runs of CI would, its workflows are valid."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from engine import docker_registry, need
from project import UserProject
from test_images_build import small_base
from test_oci_registry import HTPASSWD

ROOT = Path(__file__).parents[1]
CI = ROOT / "docs" / "ci"
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
SCRIPT = (CI / "build.sh").read_text(encoding="utf-8")
PASSWORD = "right horse"  # of HTPASSWD
STEPS = 8  # import, calibration, evaluation, reference, and two of tflite and of check
TARGET = """
platform: linux/arm64
base: oci:base
engine: {name: litert}
precisions:
  fp32: [{step: tflite, precision: fp32}]
  int8: [{step: tflite, precision: int8}]
"""

# Every Python that is started writes its command line down: converters are processes of their own.
WITNESS = """
import os, sys
with open(os.path.join(os.path.dirname(__file__), "started"), "a") as file:
    file.write(" ".join(sys.orig_argv) + "\\n")
"""


# The script.


class Run(NamedTuple):
    """What one run of CI did."""

    code: int
    printed: str
    report: Path
    started: list[str]
    """The command line of each Python process."""

    @property
    def workers(self) -> int:
        """How many processes were started to run steps."""
        return sum("tf2aif.worker" in words for words in self.started)


class Repository:
    """A user's repository with the script in it, and machines that run it in fresh clones."""

    def __init__(self, origin: Path, machines: Path) -> None:
        self.origin = origin
        self.machines = machines
        self.key = machines / "ci-signing-key"

    def run(self, name: str, **variables: str) -> Run:
        """A fresh clone at a path of its own, on a machine that has nothing yet."""
        home = self.machines / name
        home.mkdir()
        clone = home / "work" / name
        clone.parent.mkdir()
        git(self.machines, "clone", "-q", str(self.origin), str(clone))
        (home / "sitecustomize.py").write_text(WITNESS)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TF2AIF_")}
        environment = {
            **kept,
            "TF2AIF_CACHE": str(home / "cache"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(home),
            "CI": "true",
            **variables,
        }
        done = subprocess.run(
            ["ci/build.sh"],
            cwd=clone, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        started = (home / "started").read_text().splitlines()
        return Run(done.returncode, done.stdout + done.stderr, clone / "report", started)


def git(folder: Path, *words: str) -> None:
    """git, with nothing of this user's configuration."""
    names = {
        f"GIT_{who}_{what}": "ci" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = {**os.environ, **names, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *words], cwd=folder, env=environment, check=True, timeout=60)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Repository:
    """The page, done: recipes, the script, a key, and whom the repository trusts."""
    need("git", "uv")
    pytest.importorskip("cryptography")
    origin = tmp_path_factory.mktemp("origin")
    made = Repository(origin, tmp_path_factory.mktemp("machines"))
    project = UserProject.create(origin, exported, None)  # type: ignore[arg-type]
    project.write(project.recipe(targets={"small": None}))
    (origin / "targets").mkdir()
    (origin / "targets" / "small.yaml").write_text(TARGET)
    small_base(origin / "base", "linux/arm64")
    shutil.rmtree(origin / "base-layer-arm64")
    (origin / "ci").mkdir()
    shutil.copy(CI / "build.sh", origin / "ci" / "build.sh")
    (origin / ".gitignore").write_text("/build/\n/report/\n__pycache__/\n")
    keygen = project.cli("cache", "keygen", "--json", "-o", str(made.key))
    assert keygen.returncode == 0, keygen.stderr
    public = json.loads(keygen.stdout)["public"]
    (origin / "tf2aif.yaml").write_text(yaml.safe_dump({"cache": {"trusted": [public]}}))
    git(origin, "init", "-q")
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "a model")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that wants a name and a password."""
    with docker_registry(tmp_path_factory.mktemp("registry"), htpasswd=HTPASSWD) as address:
        yield address


@pytest.fixture(scope="module")
def main_branch(repository: Repository, server: str) -> Run:
    """The first run, which may write: it builds, gives, verifies and pushes."""
    return repository.run(
        "main",
        TF2AIF_REMOTE=(repository.machines / "remote").as_uri(),
        TF2AIF_REMOTE_WRITE="yes",
        TF2AIF_SIGNING_KEY=str(repository.key),
        VERIFY="digits/small-int8",
        PUSH_TO=f"{server}/team",
        PUSH="digits",
        REGISTRY_USER="user",
        REGISTRY_PASSWORD=PASSWORD,
    )


def test_the_first_run_builds_verifies_pushes_and_keeps_its_report(
    main_branch: Run, server: str
) -> None:
    assert main_branch.code == 0, main_branch.printed
    assert main_branch.workers > 0
    built = (main_branch.report / "build.txt").read_text()
    ran = re.search(r"^(\d+) steps ran, 0 restored", built, re.M)
    assert ran
    assert int(ran[1]) > STEPS  # and those of the images
    assert "digits/small-int8: the same" in (main_branch.report / "verify.txt").read_text()
    variants = json.loads((main_branch.report / "variants.json").read_text())["variants"]
    assert {name: record["state"] for name, record in variants.items()} == {
        "digits/small-fp32": "built",
        "digits/small-int8": "built",
    }
    pushed = (main_branch.report / "push.txt").read_text()
    assert f"{server}/team/digits" in pushed
    assert PASSWORD not in main_branch.printed


def test_the_second_run_starts_no_converter(main_branch: Run, repository: Repository) -> None:
    remote = (repository.machines / "remote").as_uri()
    run = repository.run("review", TF2AIF_REMOTE=remote, TF2AIF_REMOTE_WRITE="no")
    assert run.code == 0, run.printed
    assert f"0 steps ran, {STEPS} restored" in (run.report / "build.txt").read_text()
    assert run.started
    assert run.workers == 0
    for name in ("fp32", "int8"):
        model = f"build/digits/small-{name}/artifact/model.tflite"
        first, second = (each.report.parent / model for each in (main_branch, run))
        assert first.read_bytes() == second.read_bytes(), name


def test_a_run_that_fails_says_so_and_keeps_its_report(repository: Repository) -> None:
    """A recipe with a fault, in a repository of its own."""
    origin = repository.machines / "broken"
    shutil.copytree(repository.origin, origin)
    recipe = origin / "recipes" / "digits.yaml"
    recipe.write_text(recipe.read_text().replace("gate:", "gaet:"))
    git(origin, "commit", "-q", "-a", "-m", "a fault")
    run = Repository(origin, repository.machines).run("failing", VERIFY="digits")
    assert run.code == 1
    assert "FAILED: check" in run.printed
    assert "unknown key 'gaet'" in (run.report / "check.txt").read_text()
    assert run.workers == 0
    assert not (run.report / "build.txt").exists()
    assert not (run.report / "verify.txt").exists()


# The workflows.


def workflow(name: str) -> Any:
    """A workflow as data. YAML 1.1 reads `on` as true, which GitHub does not."""
    text = (CI / name).read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"^on:", '"on":', text, flags=re.M))


@pytest.mark.parametrize(
    ("name", "schema"),
    [("github-actions.yml", "github-workflows"), ("gitlab-ci.yml", "gitlab-ci")],
)
def test_the_workflow_is_valid(name: str, schema: str) -> None:
    """By the JSON Schemas of both systems, as check-jsonschema packs them."""
    import jsonschema

    try:
        package = metadata.distribution("check-jsonschema")
    except metadata.PackageNotFoundError:
        pytest.skip("needs check-jsonschema, which has the schemas: pip install '.[test]'")
    path = f"check_jsonschema/builtin_schemas/vendor/{schema}.json"
    rules = json.loads(Path(str(package.locate_file(path))).read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(rules)(rules)
    assert not [error.message for error in validator.iter_errors(workflow(name))]
    assert not validator.is_valid({**workflow(name), "jobs": 1, "stages": 1})


def github_job() -> Mapping[str, Any]:
    """The only job."""
    (job,) = workflow("github-actions.yml")["jobs"].values()
    found: Mapping[str, Any] = job
    return found


def gitlab_job() -> Mapping[str, Any]:
    """The only job."""
    found: Mapping[str, Any] = workflow("gitlab-ci.yml")["tf2aif"]
    return found


def test_both_run_the_script_and_always_keep_the_report() -> None:
    steps = github_job()["steps"]
    assert [step["run"] for step in steps if "run" in step] == [
        "pip install -r ci/requirements.txt", "ci/build.sh",
    ]  # fmt: skip
    assert steps[-1]["uses"].startswith("actions/upload-artifact@")
    assert (steps[-1]["if"], steps[-1]["with"]["path"]) == ("always()", "report/")
    assert gitlab_job()["script"] == ["pip install -r ci/requirements.txt", "ci/build.sh"]
    kept = gitlab_job()["artifacts"]
    assert (kept["when"], kept["paths"]) == ("always", ["report/"])


def test_only_the_main_branch_may_write_and_push() -> None:
    env = github_job()["env"]
    main = "github.ref == 'refs/heads/main'"
    assert env["TF2AIF_REMOTE_WRITE"] == f"${{{{ {main} && 'yes' || 'no' }}}}"
    assert env["PUSH_TO"] == f"${{{{ {main} && vars.PUSH_TO || '' }}}}"
    assert github_job()["environment"].startswith(f"${{{{ {main} && 'tf2aif-main'")
    assert workflow("github-actions.yml")["permissions"] == {"contents": "read"}
    rules = {rule["if"]: rule["variables"] for rule in gitlab_job()["rules"]}
    assert rules == {
        "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH": {"TF2AIF_REMOTE_WRITE": "yes"},
        '$CI_PIPELINE_SOURCE == "merge_request_event"': {
            "TF2AIF_REMOTE_WRITE": "no",
            "PUSH_TO": "",
        },
    }


def test_script_workflow_and_page_name_the_same_variables() -> None:
    head = SCRIPT.partition("set -uo")[0]
    told = set(re.findall(r"\b[A-Z][A-Z0-9]*_?[A-Z0-9_]+\b", head)) - {"HOST", "PATH", "CI"}
    used = set(re.findall(r"\$\{?([A-Z][A-Z_0-9]+)", SCRIPT))
    read_by_tf2aif = {"TF2AIF_REMOTE_WRITE", "TF2AIF_SIGNING_KEY"}
    assert told == (used - {"DOCKER_CONFIG"}) | read_by_tf2aif
    assert set(github_job()["env"]) == told - {"REPORT"}
    table = PAGE.partition("## Variables")[2].partition("\n## ")[0]
    assert told - {"REPORT"} <= set(re.findall(r"`([A-Z_0-9]+)`", table))


def test_no_address_of_a_registry_is_written_down() -> None:
    for path in CI.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:https?|oci|s3)://[a-z0-9]", text), path.name


def test_the_script_can_be_run_as_it_is() -> None:
    assert os.access(CI / "build.sh", os.X_OK)
    subprocess.run(["bash", "-n", str(CI / "build.sh")], check=True, timeout=60)
