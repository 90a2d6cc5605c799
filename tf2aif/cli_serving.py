"""The words of the command line about serving: `serve`, `client`, `bench`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show, above_zero, count
from .errors import Fault, FilesError, Tf2aifError

if TYPE_CHECKING:
    from .bench import BenchOptions

PASSED_ON = {
    "serve": "serve a variant on this machine, no container",
    "client": "check and measure servers",
}
"""Commands whose words go to a command line of their own, which images run too."""
SCENARIOS = ("single-stream", "multi-stream", "server", "offline")


def add_serving_commands(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `serve`, `client` and `bench` to the command line."""
    for name, summary in PASSED_ON.items():  # for `--help`; see `pass_on`
        commands.add_parser(name, help=summary)
    bench = command(commands, "bench", None, "measure engine, server and baseline in turns")
    bench.set_defaults(command=lambda arguments: _bench(arguments, show_json))
    bench.add_argument("variants", nargs="*", metavar="VARIANT", help="or RECIPE: all of its own")
    bench.add_argument(
        "--import",
        nargs="+",
        default=[],
        dest="imports",
        metavar="FILE",
        type=Path,
        help="or DIR: take records from devices elsewhere; measures nothing",
    )
    bench.add_argument(
        "--scenario", action="append", choices=SCENARIOS, default=[], help="repeatable"
    )
    bench.add_argument("--window", type=above_zero, default=0.5, metavar="S", help="of measuring")
    bench.add_argument(
        "--max-windows", type=count, default=8, metavar="N", help="until figures agree"
    )
    bench.add_argument("--threads", type=count, metavar="N", help="of each engine")
    bench.add_argument(
        "--starts", type=count, default=3, metavar="N", help="of each server, for its cold start"
    )


def variant_folder(name: str, build: Path = Path("build")) -> Path:
    """Where a variant lies, by its name or its folder. Raises where it cannot be used."""
    from .record import read_record

    folder = next((f for f in (build / name, Path(name)) if (f / "variant.json").is_file()), None)
    if folder is None:
        raise FilesError([_unknown(name, build)])
    record = read_record(folder)
    if record is not None and record.state in ("failed", "bundled"):
        raise Tf2aifError(f"{name} is {record.state}: {record.reason}", at=str(folder))
    return folder


def _unknown(name: str, build: Path) -> Fault:
    from .record import variant_folders
    from .spec.words import nearest

    known = [str(folder.relative_to(build)) for folder in variant_folders(build)]
    hint = nearest(name, known) if known else "build it first: tf2aif build"
    return Fault(f"no variant '{name}' is built here", at=str(build), hint=hint)


def pass_on(command: str, words: list[str]) -> int:
    """Run the server's or the client's command line; a variant may be called by its name."""
    if command == "client":
        _need("httptools", "bench")
        from .client.__main__ import main as ask

        return ask(words)
    _need("uvicorn", "serve")
    from .serve.__main__ import main as serve

    if words and not words[0].startswith("-"):
        words = [str(variant_folder(words[0])), *words[1:]]
    return serve(words)


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise Tf2aifError(f"{module} is not installed", hint=f"pip install 'tf2aif[{extra}]'")


def _bench(arguments: argparse.Namespace, show_json: Show) -> int:
    if bool(arguments.imports) == bool(arguments.variants):
        what = "both are named" if arguments.imports else "neither is named"
        hint = "tf2aif bench VARIANT ... measures, tf2aif bench --import FILE ... takes records"
        raise FilesError([Fault(f"variants to measure or files to import: {what}", hint=hint)])
    _need("httptools", "bench")
    return (_import if arguments.imports else _measure)(arguments, show_json)


def _measure(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .bench import BenchOptions, bench, bench_table
    from .choose.collect import refresh
    from .client.progress import Bar

    options = _convert_options(BenchOptions, arguments)
    folders = [folder for name in arguments.variants for folder in _measurable(name)]
    bar = Bar(sys.stderr, quiet=arguments.json)
    try:
        records = bench(folders, options, bar)
    finally:
        bar.close()
    refresh(Path("build"))
    if arguments.json:
        show_json({"records": msgspec.to_builtins(records)})
    else:
        print(bench_table(records.values()))
    return 0


def _convert_options(kind: type[BenchOptions], arguments: argparse.Namespace) -> BenchOptions:
    """What the command line asks for. Raises FilesError."""
    import msgspec

    window = {"window_s": arguments.window, "max_windows": arguments.max_windows}
    scenarios = arguments.scenario or ["single-stream", "offline"]
    asked = {
        "loads": [{"scenario": scenario, **window} for scenario in scenarios],
        "threads": arguments.threads,
        "starts": arguments.starts,
    }
    try:
        return msgspec.convert(asked, kind)
    except msgspec.ValidationError as error:
        hint = (
            "--window is more than 0 seconds; --max-windows is 3 or more, since three must agree; "
            "--threads and --starts are 1 or more"
        )
        raise FilesError([Fault(f"it cannot be measured so: {error}", hint=hint)]) from error


def _import(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .bench import bench_table, import_records
    from .choose.collect import refresh

    found = import_records(arguments.imports)
    refresh(Path("build"))
    if arguments.json:
        show_json(msgspec.to_builtins(found))
        return 0
    print(bench_table(found.records))
    known = len(found.records) - found.added
    print(f"\n{found.added} taken" + (f", {known} here already" if known else ""))
    return 0


def _measurable(name: str, build: Path = Path("build")) -> list[Path]:
    """The folder of a variant, or of all variants of a recipe that run on this machine."""
    from .machine import this_platform
    from .record import read_record, variant_folders

    if "/" in name or not (build / name).is_dir():
        return [variant_folder(name)]
    folders = [folder for folder in variant_folders(build) if folder.parent.name == name]
    records = {folder: read_record(folder) for folder in folders}
    here = [
        folder
        for folder, record in records.items()
        if record
        and record.platform == this_platform()
        and record.state not in ("failed", "bundled")
    ]
    if not here:
        raise Tf2aifError(f"no variant of '{name}' runs on this machine", at=str(build / name))
    return here
