"""The words of the command line about `build`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top: a build with nothing to do is
over at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_cache import add_remote_flag
from .cli_farm import add_farm_flag, opened_farm, tell_farm
from .cli_images import add_image_flag
from .cli_words import AddCommand, Show
from .errors import Fault, FilesError

if TYPE_CHECKING:
    from .build import Build
    from .farm.plan import FarmPlan
    from .remotes.shared import Report
    from .workspace import Workspace


def with_recipes(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what says which recipes and targets a command is about."""
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help="a file or a folder; by default recipes/"
    )
    parser.add_argument(
        "--target", action="append", default=[], metavar="T", help="only this target (repeatable)"
    )
    add_image_flag(parser)
    return parser


def recipe_paths(arguments: argparse.Namespace) -> list[str]:
    """The recipes that a command is about: files and folders."""
    return [os.path.abspath(name) for name in arguments.recipes or ["recipes"]]


def add_build_command(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `build` to the command line."""
    parser = with_recipes(command(commands, "build", None, "bring all variants up to date"))
    parser.set_defaults(command=lambda arguments: _build(arguments, show_json))
    parser.add_argument(
        "-n", "--jobs", type=_jobs, default=1, help="cores to keep busy, or 'auto': all of them"
    )
    parser.add_argument(
        "--timeline", metavar="FILE", help="write what ran when, as a trace that Perfetto opens"
    )
    parser.add_argument("--strict", action="store_true", help="a missing toolchain is a failure")
    add_remote_flag(parser)
    add_farm_flag(parser)


def _jobs(text: str) -> int:
    if text == "auto":
        from .capacity import cores

        return cores()
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number from 1 up nor 'auto'")
    return int(text)


def _build(arguments: argparse.Namespace, show_json: Show) -> int:
    from .noop import nothing_to_do

    project = os.getcwd()
    recipes = recipe_paths(arguments)
    words = [*sorted(recipes), "--target", *sorted(arguments.target)]
    words += ["--images"] if arguments.images else []
    words += ["--remote", arguments.remote] if arguments.remote else []
    words += ["--farm", arguments.farm] if arguments.farm else []
    if arguments.timeline:
        _look_at_folder(arguments.timeline)
    report = nothing_to_do(os.path.join(project, "build", ".tf2aif"), words)
    if report is None or arguments.timeline or (arguments.strict and report["missing"]):
        report, code = _really_build(arguments, project, recipes, words)
    else:
        code = 0
    if arguments.json:
        show_json({key: value for key, value in report.items() if key != "table"})
    else:
        print(report["table"])
        print(_counted(report))
        tell_left_out(report["left_out"])
    return code


def _look_at_folder(timeline: str) -> None:
    """Before hours of building, and not after them."""
    folder = Path(timeline).absolute().parent
    if not folder.is_dir() or Path(timeline).is_dir():
        what = f"'{timeline}' cannot be written"
        hint = "it is a folder: name a file in it" if folder.is_dir() else f"make {folder} first"
        raise FilesError([Fault(what, "--timeline", hint)])


def _really_build(
    arguments: argparse.Namespace, project: str, recipes: list[str], words: list[str]
) -> tuple[dict[str, Any], int]:
    with opened_farm(arguments, Path(project)) as join:
        return _build_with(join, arguments, project, recipes, words)


def _build_with(
    join: Callable[[Workspace], FarmPlan] | None,
    arguments: argparse.Namespace,
    project: str,
    recipes: list[str],
    words: list[str],
) -> tuple[dict[str, Any], int]:
    """`join` lets the build's workspace join its farm, where it has one."""
    from .build import Build
    from .choose.collect import refresh
    from .noop import write_stamp
    from .progress import follow
    from .remotes import open_for
    from .tasks import run
    from .timeline import write_trace

    build = Build.load(
        [Path(r) for r in recipes],
        Path(project),
        targets=arguments.target,
        images=arguments.images,
        farm=join,
    )
    try:
        space = build.workspace
        shared = space.shared or open_for(Path(project), arguments.remote)
        space.shared = shared
        if shared:
            from .remotes.ahead import fetch_ahead

            fetch_ahead(build.graph, build.workspace)
        build.check()
        with follow(build, quiet=arguments.json):
            run(build, jobs=arguments.jobs)
        if shared:
            _tell_shared(shared.finish(), quiet=arguments.json)
        if not arguments.json:
            _tell_use(build)
            tell_farm(space)
        if arguments.timeline and build.chronicle:
            write_trace(Path(arguments.timeline), build.chronicle)
        refresh(space.build)
        report, code = _report(build), build.exit_code(strict=arguments.strict)
        if not build.failures and not (space.farm and space.farm.has_others(build.graph)):
            nothing = {
                **report,
                "ran": 0,
                "restored": 0,
                "fresh": len(build.runnable),
                "seconds": 0.0,
            }
            write_stamp(build, words, recipes, nothing)
    finally:
        build.close()
    for error in build.failures.values():
        if not arguments.json:
            print(f"{error.render()}\n", file=sys.stderr)
    if arguments.strict and build.missing and not arguments.json:
        print("error: a toolchain is missing, and --strict was given", file=sys.stderr)
    return report, code


def _tell_use(build: Build) -> None:
    """What a build that did something took of the machine, in a line."""
    last = build.chronicle.last() if build.chronicle else None
    if last and last.steps:
        busy = last.cpu_s / last.seconds if last.seconds else 0.0
        hits = last.restored + last.fresh
        print(
            f"{last.seconds:.1f} s, {busy:.1f} of {last.jobs} cores busy, "
            f"{hits} of {hits + last.ran + last.failed} steps were there already",
            file=sys.stderr,
        )


def _tell_shared(report: Report, *, quiet: bool) -> None:
    """What came of the shared caches, in a line; and which of them was left alone."""
    lines = [report.render(), *(f"warning: {warning}" for warning in report.warnings)]
    for line in filter(None, lines if not quiet else lines[1:]):
        print(line, file=sys.stderr)


def _report(build: Build) -> dict[str, Any]:
    import msgspec

    from .table import variants_table

    records = build.records()
    return {
        "variants": msgspec.to_builtins(records),
        "failures": {name: error.render() for name, error in build.failures.items()},
        "missing": {name: tool.what for name, tool in build.missing.items()},
        "left_out": left_out(build),
        "ran": build.count("ran"),
        "restored": build.count("restored"),
        "fresh": build.count("fresh"),
        "seconds": round(sum(result.wall_s for result in build.results.values()), 3),
        "table": variants_table(records.items()),
    }


def left_out(build: Build) -> dict[str, list[str]]:
    """What each recipe lacks that was left out."""
    return {one.name: list(one.lacking()) for one in build.left_out}


def tell_left_out(left_out: Mapping[str, Sequence[str]]) -> None:
    """Say which recipes are left out, and what they lack."""
    for name, lacking in left_out.items():
        print(f"{name} is left out: it needs {', '.join(lacking)}, not there", file=sys.stderr)


def _counted(report: Mapping[str, Any]) -> str:
    failed = len(report["failures"])
    parts = [
        f"{report['ran']} steps ran",
        f"{report['restored']} restored",
        f"{report['fresh']} up to date",
    ]
    return "\n" + ", ".join([*parts, *([f"{failed} failed"] if failed else [])])
