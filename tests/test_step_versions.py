"""A step whose code changed says so in its VERSION, or somebody has judged that it need not.

The key of a step holds its VERSION, not its code: a comment must not run a night's quantisation
again. So this test holds the code of each step, and of all of ours that it imports, to what was
recorded beside its VERSION. Where it fails: raise VERSION if other bytes can come out, and in any
case record the new code with `python tests/test_step_versions.py`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tf2aif.steps import STEPS

PACKAGE = Path(__file__).parent.parent / "tf2aif"
GOLDEN = Path(__file__).parent / "step_versions.json"
# Shared by all steps, and nothing in them can change what a step makes.
PLUMBING = {"tf2aif", "tf2aif.errors", "tf2aif.facts", "tf2aif.steps", "tf2aif.usercode"}


def code_of(module: str) -> str:
    """The digest of a module's code and of all of ours that it imports, without comments."""
    seen: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = path_of(name)
        if name in seen or name in PLUMBING or path is None:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        seen[name] = ast.dump(without_docstrings(tree))
        pending += imports(tree, name, is_package=path.name == "__init__.py")
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:16]


def path_of(module: str) -> Path | None:
    """The file of one of our modules; None for what is not a module of ours."""
    if module.partition(".")[0] != "tf2aif":
        return None
    base = PACKAGE.joinpath(*module.split(".")[1:])
    found = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in found if path.is_file()), None)


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """The absolute names of what a module imports, modules and names in them alike."""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The same code, its docstrings left out."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


@cache
def present() -> dict[str, dict[str, int | str]]:
    """Each step's version and code as they are now, and the Python whose syntax trees these are."""
    versions: dict[str, dict[str, int | str]] = {
        "python": {"version": "{}.{}".format(*sys.version_info)}
    }
    return versions | {
        kind: {"version": importlib.import_module(module).VERSION, "code": code_of(module)}
        for kind, module in sorted(STEPS.items())
    }


@pytest.mark.parametrize("kind", sorted(STEPS))
def test_changed_code_has_a_new_version(kind: str) -> None:
    recorded, now = json.loads(GOLDEN.read_text()), present()
    if recorded["python"] != now["python"]:
        pytest.skip(f"syntax trees were recorded with Python {recorded['python']['version']}")
    assert kind in recorded, f"record it: python {Path(__file__).name}"
    assert now[kind] == recorded[kind], (
        f"the code of step '{kind}' changed: raise its VERSION if other bytes can come out, "
        "then record it: python tests/test_step_versions.py"
    )


def test_a_comment_changes_nothing_and_code_does() -> None:
    before = ast.dump(without_docstrings(ast.parse("def f():\n    '''Doc.'''\n    return 1\n")))
    same = ast.dump(without_docstrings(ast.parse("def f():  # why\n    return 1\n")))
    other = ast.dump(without_docstrings(ast.parse("def f():\n    return 2\n")))
    assert before == same != other


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(present(), indent=2) + "\n")
