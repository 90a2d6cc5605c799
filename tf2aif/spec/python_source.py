"""What can be seen of a user's Python file without running it: syntax, functions, arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import Fault
from .words import nearest


def source_faults(
    path: Path, function: str, at: str, arguments: Mapping[str, Any] | None = None
) -> list[Fault]:
    """What is wrong with `function` in a Python file that is there, as far as its text shows.

    `arguments` are the keyword arguments it is called with; None: they are not looked at.
    """
    tree = parse(path, at)
    if isinstance(tree, Fault):
        return [tree]
    names = dict(bound_names(tree))
    if function not in names:
        if "*" in names or "__getattr__" in names:  # it may come from elsewhere
            return []
        known = [name for name, node in names.items() if _callable(node)]
        message = f"{path.name} has no function '{function}' at its top level"
        return [Fault(message, at, nearest(function, known))]
    node = names[function]
    if isinstance(node, ast.AsyncFunctionDef):
        return [Fault(f"{path.name}:{function} is async, and it is called plainly", at)]
    if arguments is None or not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return []
    return list(_argument_faults(node, arguments, f"{path.name}:{function}", at))


def parse(path: Path, at: str) -> ast.Module | Fault:
    """The tree of a Python file, or what keeps it from being one."""
    try:
        return ast.parse(path.read_bytes(), path.name)
    except SyntaxError as error:
        return Fault(f"{path.name}:{error.lineno}: {error.msg}", at)
    except (ValueError, RecursionError, OSError) as error:
        return Fault(f"{path.name}: {error}", at)


def bound_names(body: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The names that a module binds at its top level, `if` and `try` included, each with its node.

    `*` stands for names that come from another module by `import *`.
    """
    for node in ast.iter_child_nodes(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield (alias.asname or alias.name).partition(".")[0], node
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (inner for target in targets for inner in ast.walk(target)):
                if isinstance(name, ast.Name):
                    yield name.id, node
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            yield from bound_names(node)


def _callable(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign)


def _argument_faults(
    node: ast.FunctionDef, given: Mapping[str, Any], shown: str, at: str
) -> Iterator[Fault]:
    spec = node.args
    plain = [one.arg for one in spec.args]
    required = plain[: len(plain) - len(spec.defaults)]
    keyword = [one.arg for one in spec.kwonlyargs]
    required += [n for n, d in zip(keyword, spec.kw_defaults, strict=True) if d is None]
    if spec.posonlyargs and len(spec.defaults) < len(spec.posonlyargs) + len(plain):
        yield Fault(f"{shown} has positional-only arguments, and it is called by keyword", at)
    for name in required:
        if name not in given:
            yield Fault(f"{shown} needs argument '{name}'", at, "add it under `arguments:`")
    for name in given:
        if spec.kwarg is None and name not in plain + keyword:
            hint = nearest(name, plain + keyword) or "it takes none"
            yield Fault(f"{shown} has no argument '{name}'", at, hint)
