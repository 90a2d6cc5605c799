"""The command line: the only module that prints or exits.

At its top it imports nothing but the standard library, so that `--help` and a build with nothing
to do are over at once; each command imports what it needs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .cli_bundles import add_bundle_command
from .cli_cache import add_cache_command, add_remote_flag
from .cli_choose import add_choose_commands
from .cli_deploy import add_deploy_command
from .cli_farm import add_farm_commands, add_farm_flag, last_farm, opened_farm, tell_farm
from .cli_images import add_image_commands, add_image_flag
from .cli_place import add_place_commands
from .cli_report import add_report_command
from .cli_serving import PASSED_ON, add_serving_commands, pass_on
from .cli_verify import add_verify_command
from .errors import Fault, FilesError, Tf2aifError

if TYPE_CHECKING:
    from .build import Build
    from .farm.plan import FarmPlan
    from .remotes.shared import Report
    from .workspace import Workspace

EPILOG = """exit codes: 0 all as asked; 1 a step failed; 2 the files are wrong;
3 a toolchain is missing with --strict; 4 an accuracy gate failed; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    start = 2 if words[:1] == ["-C"] else 0
    if words[start : start + 1] and words[start] in PASSED_ON:
        # What follows belongs to the server's or the client's own command line.
        command = partial(pass_on, words[start], words[start + 1 :])
        arguments = argparse.Namespace(project=words[1] if start else None, command=command)
    else:
        arguments = _parser().parse_args(words)
        command = partial(arguments.command, arguments)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        if arguments.project:
            os.chdir(arguments.project)
        return int(command())
    except Tf2aifError as error:
        _print_error(error, arguments)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: finished steps are kept, nothing half-made is left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"error: {error.strerror or error}\n   at: {error.filename or ''}", file=sys.stderr)
        return 1


def _on_sigterm(number: int, frame: object) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


def _print_error(error: Tf2aifError, arguments: argparse.Namespace) -> None:
    if getattr(arguments, "json", False):
        faults = [{"message": f.message, "at": f.at, "hint": f.hint} for f in error.faults]
        _print_json({"error": faults, "exit_code": error.exit_code})
    else:
        print(error.render(), file=sys.stderr)


# The words of the command line.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tf2aif",
        description="One recipe beside a TensorFlow model: a verified variant for every machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tf2aif {__version__}")
    parser.add_argument("-C", dest="project", metavar="DIR", help="run as if started in DIR")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_init,
        _add_check,
        _add_plan,
        _add_build,
        _add_why,
        _add_list,
        _add_targets,
        _add_doctor,
    ):
        add(commands)
    add_cache_command(commands, _command, _print_json)
    add_serving_commands(commands, _command, _print_json)
    add_image_commands(commands, _command, _print_json)
    add_bundle_command(commands, _command, _print_json)
    add_verify_command(commands, _command, _print_json)
    add_report_command(commands, _command, _print_json)
    add_farm_commands(commands, _command, _print_json)
    add_choose_commands(commands, _command, _print_json)
    add_place_commands(commands, _command, _print_json)
    add_deploy_command(commands, _command, _print_json)
    return parser


Commands = Any  # argparse names the type of `add_subparsers` in private


def _command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int] | None, summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="write JSON; see docs/cli.md")
    parser.set_defaults(command=run)
    return parser


def _with_recipes(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help="a file or a folder; by default recipes/"
    )
    parser.add_argument(
        "--target", action="append", default=[], metavar="T", help="only this target (repeatable)"
    )
    add_image_flag(parser)
    return parser


def _add_init(commands: Commands) -> None:
    parser = _command(commands, "init", _init, "write a recipe for a model")
    parser.add_argument("model", metavar="MODEL", help="a SavedModel folder, .keras or .h5 file")
    parser.add_argument(
        "-o", "--output", help="the recipe to write; by default recipes/<model>.yaml"
    )


def _add_check(commands: Commands) -> None:
    parser = _command(commands, "check", _check, "all faults of recipes and targets")
    parser.add_argument("files", nargs="*", metavar="FILE", help="by default recipes/ and targets/")


def _add_plan(commands: Commands) -> None:
    _with_recipes(_command(commands, "plan", _plan, "what would run, and why; runs nothing"))


def _add_build(commands: Commands) -> None:
    parser = _with_recipes(_command(commands, "build", _build, "bring all variants up to date"))
    parser.add_argument(
        "-n", "--jobs", type=_jobs, default=1, help="cores to keep busy, or 'auto': all of them"
    )
    parser.add_argument(
        "--timeline", metavar="FILE", help="write what ran when, as a trace that Perfetto opens"
    )
    parser.add_argument("--strict", action="store_true", help="a missing toolchain is a failure")
    add_remote_flag(parser)
    add_farm_flag(parser)


def _add_why(commands: Commands) -> None:
    parser = _command(commands, "why", _why, "which fact changed since a step last ran")
    parser.add_argument("step", metavar="STEP", help="a step or a variant, such as kws/cpu-int8")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default recipes/")
    add_image_flag(parser)


def _add_list(commands: Commands) -> None:
    _with_recipes(_command(commands, "list", _list, "variants with state, accuracy, size, latency"))


def _add_targets(commands: Commands) -> None:
    _command(commands, "targets", _targets, "what targets there are")


def _add_doctor(commands: Commands) -> None:
    _command(commands, "doctor", _doctor, "which toolchains are here, and what each target lacks")


def _jobs(text: str) -> int:
    if text == "auto":
        from .capacity import cores

        return cores()
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number from 1 up nor 'auto'")
    return int(text)


# The commands.


def _build(arguments: argparse.Namespace) -> int:
    from .noop import nothing_to_do

    project = os.getcwd()
    recipes = _recipes(arguments)
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
        _print_json({key: value for key, value in report.items() if key != "table"})
    else:
        print(report["table"])
        print(_counted(report))
        _tell_left_out(report["left_out"])
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
        "left_out": _left_out(build),
        "ran": build.count("ran"),
        "restored": build.count("restored"),
        "fresh": build.count("fresh"),
        "seconds": round(sum(result.wall_s for result in build.results.values()), 3),
        "table": variants_table(records.items()),
    }


def _left_out(build: Build) -> dict[str, list[str]]:
    """What each recipe lacks that was left out."""
    return {one.name: list(one.lacking()) for one in build.left_out}


def _tell_left_out(left_out: Mapping[str, Sequence[str]]) -> None:
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


def _plan(arguments: argparse.Namespace) -> int:
    from .freshness import survey

    build = _load(arguments)
    verdicts = survey(build.graph, build.workspace)
    build.close()
    if arguments.json:
        shape = {
            n: {"state": v.state, "reasons": v.reasons, "key": v.key} for n, v in verdicts.items()
        }
        _print_json({"steps": shape})
        return 0
    words = {
        "fresh": "up to date",
        "stored": "restore",
        "stale": "run",
        "waiting": "perhaps",
        "missing": "bundle",
    }
    for name, verdict in verdicts.items():
        why = "" if verdict.state == "fresh" else "; ".join(verdict.reasons)
        print(f"{words[verdict.state]:<10}  {name:<40}  {why}".rstrip())
    _tell_left_out(_left_out(build))
    return 0


def _why(arguments: argparse.Namespace) -> int:
    from .freshness import survey
    from .spec.words import nearest

    build = _load(arguments)
    names = {**{s: [s] for s in build.graph.steps}}
    names |= {n: list(build.graph.needs(v.steps)) for n, v in build.graph.variants.items()}
    if arguments.step not in names:
        hint = nearest(arguments.step, names)
        raise FilesError([Fault(f"no step or variant is called '{arguments.step}'", hint=hint)])
    verdicts = survey(build.graph, build.workspace)
    build.close()
    chosen = {name: verdicts[name] for name in names[arguments.step]}
    if arguments.json:
        _print_json({n: {"state": v.state, "reasons": v.reasons} for n, v in chosen.items()})
        return 0
    for name, verdict in chosen.items():
        print(f"{name}: {verdict.state}")
        for reason in verdict.reasons if verdict.state != "fresh" else ():
            print(f"  {reason}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from .table import bench_medians, variants_table

    build = _load(arguments)
    records = build.records()
    stale = [
        n for n, r in records.items() if r and r.state != "failed" and not _is_current(build, n)
    ]
    build.close()
    if arguments.json:
        import msgspec

        _print_json({"variants": msgspec.to_builtins(records), "stale": stale})
    else:
        medians = bench_medians(records, build.workspace.variant)
        print(variants_table(records.items(), stale, medians))
        _tell_left_out(_left_out(build))
    return 0


def _is_current(build: Build, name: str) -> bool:
    steps = build.graph.needs(build.graph.variants[name].steps)
    here = [step for step in steps if step not in build.missing]
    return all(build.is_fresh(step) for step in here) and build.is_current(name)


def _init(arguments: argparse.Namespace) -> int:
    from .spec.init import write_recipe_for

    model = Path(arguments.model)
    dest = Path(arguments.output or f"recipes/{model.stem}.yaml")
    if dest.exists():
        raise Tf2aifError(f"{dest} is there already", hint="name another file with -o")
    text = write_recipe_for(model, dest, Path.cwd())
    dest.parent.mkdir(parents=True, exist_ok=True)
    dest.write_text(text, encoding="utf-8")
    if arguments.json:
        _print_json({"recipe": str(dest)})
    else:
        print(f"wrote {dest}: read it, then 'tf2aif check' and 'tf2aif build'")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from .spec.check import check

    faults = check([Path(name) for name in arguments.files], Path.cwd())
    if faults:
        raise FilesError(faults)
    if arguments.json:
        _print_json({"faults": []})
    else:
        print("no faults")
    return 0


def _targets(arguments: argparse.Namespace) -> int:
    from .spec.load import load_targets
    from .table import align

    targets = load_targets(Path.cwd())
    if arguments.json:
        import msgspec

        _print_json({"targets": msgspec.to_builtins(targets)})
        return 0
    rows = [
        (name, target.platform, target.engine.name, " ".join(target.precisions), target.description)
        for name, target in targets.items()
    ]
    print(align(("target", "platform", "engine", "precisions", "what"), rows))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import examine

    findings = examine(Path.cwd())
    if arguments.json:
        _print_json(findings)
        return 0
    for title, lines in findings.items():
        print(f"{title}:")
        for name, words in lines.items():
            print(f"  {name:<14} {words}")
    return 0


def _load(arguments: argparse.Namespace) -> Build:
    from .build import Build

    recipes = [Path(name) for name in _recipes(arguments)]
    return Build.load(
        recipes,
        Path.cwd(),
        targets=getattr(arguments, "target", ()),
        images=getattr(arguments, "images", False),
        farm=last_farm(Path.cwd()),
    )


def _recipes(arguments: argparse.Namespace) -> list[str]:
    return [os.path.abspath(name) for name in arguments.recipes or ["recipes"]]


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, default=list))
