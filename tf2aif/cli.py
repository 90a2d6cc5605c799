"""The command line: the only module that prints or exits.

At its top it imports nothing but the standard library, so that `--help` and a build with nothing
to do are over at once; each command imports what it needs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .cli_build import add_build_command, left_out, recipe_paths, tell_left_out, with_recipes
from .cli_bundles import add_bundle_command
from .cli_cache import add_cache_command
from .cli_choose import add_choose_commands
from .cli_deploy import add_deploy_command
from .cli_farm import add_farm_commands, last_farm
from .cli_images import add_image_commands, add_image_flag
from .cli_place import add_place_commands
from .cli_report import add_report_command
from .cli_serving import PASSED_ON, add_serving_commands, pass_on
from .cli_verify import add_verify_command
from .errors import Fault, FilesError, Tf2aifError

if TYPE_CHECKING:
    from .build import Build

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
        _add_why,
        _add_list,
        _add_targets,
        _add_doctor,
    ):
        add(commands)
    add_build_command(commands, _command, _print_json)
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
    with_recipes(_command(commands, "plan", _plan, "what would run, and why; runs nothing"))


def _add_why(commands: Commands) -> None:
    parser = _command(commands, "why", _why, "which fact changed since a step last ran")
    parser.add_argument("step", metavar="STEP", help="a step or a variant, such as kws/cpu-int8")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default recipes/")
    add_image_flag(parser)


def _add_list(commands: Commands) -> None:
    with_recipes(_command(commands, "list", _list, "variants with state, accuracy, size, latency"))


def _add_targets(commands: Commands) -> None:
    _command(commands, "targets", _targets, "what targets there are")


def _add_doctor(commands: Commands) -> None:
    _command(commands, "doctor", _doctor, "which toolchains are here, and what each target lacks")


# The commands.


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
    tell_left_out(left_out(build))
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
        tell_left_out(left_out(build))
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

    recipes = [Path(name) for name in recipe_paths(arguments)]
    return Build.load(
        recipes,
        Path.cwd(),
        targets=getattr(arguments, "target", ()),
        images=getattr(arguments, "images", False),
        farm=last_farm(Path.cwd()),
    )


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, default=list))
