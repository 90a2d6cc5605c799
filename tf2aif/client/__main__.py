"""`python -m tf2aif.client URL ...`: check and measure servers. This is what an image runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from ..errors import Tf2aifError
from .load import Load
from .progress import Bar
from .report import Report, to_csv, to_json, to_table
from .run import Options, run

EPILOG = """scenarios: single-stream, multi-stream, server, offline (of MLPerf LoadGen)
exit codes: 0 measured; 1 a server does not answer as it must; 2 the command line is wrong;
5 a request failed or a figure is unstable, with --strict"""
UNSTABLE = 5
FORMATS: dict[str, Callable[[Report], str]] = {
    "table": to_table,
    "json": lambda report: to_json(report).decode(),
    "csv": to_csv,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        options = read_options(vars(given))
    except msgspec.ValidationError as error:
        parser.error(str(error))
    bar = Bar(sys.stderr, quiet=given.quiet)
    try:
        report = run(options, bar)
    except Tf2aifError as error:
        bar.close()
        print(error.render(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        bar.close()
        return 130
    bar.close()
    _write(report, given)
    return UNSTABLE if given.strict and not is_clean(report) else 0


def is_clean(report: Report) -> bool:
    """Whether every figure is stable and no request failed."""
    return all(run.figures.stable for server in report.servers for run in server.runs)


def read_options(given: dict[str, Any]) -> Options:
    """Options from a command line's values. Raises msgspec.ValidationError."""
    names = [name for name in Load.__struct_fields__ if name != "scenario"]
    common = {name: given[name] for name in names if given.get(name) is not None}
    scenarios = [] if given["no_load"] else given["scenario"] or ["single-stream"]
    values = {name: given[name] for name in Options.__struct_fields__ if given.get(name)}
    values["loads"] = [{**common, "scenario": scenario} for scenario in scenarios]
    return msgspec.convert(values, Options, strict=False, dec_hook=_path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tf2aif.client",
        description="Check what servers answer, and measure how fast.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "urls", nargs="+", metavar="URL", help="http://HOST:PORT[/v2/models/MODEL], one or many"
    )
    for name in ("samples", "reference", "metric", "output", "encoding", "timeout_s", "ready_s"):
        _add(parser, Options, name)
    parser.add_argument(
        "--files", nargs="+", default=[], metavar="FILE", help="raw files, for the server's hooks"
    )
    parser.add_argument("--scenario", action="append", metavar="NAME", help="repeatable")
    parser.add_argument("--no-load", action="store_true", help="only check the answers")
    for name in Load.__struct_fields__:
        if name != "scenario":
            _add(parser, Load, name)
    parser.add_argument("--format", choices=tuple(FORMATS), default="table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--strict", action="store_true", help="unstable figures are a failure")
    return parser


def _add(parser: argparse.ArgumentParser, kind: type[msgspec.Struct], name: str) -> None:
    """An option made from a field: its meaning and default are stated there."""
    hint = get_type_hints(kind, include_extras=True)[name]
    text = next((m.description for m in getattr(hint, "__metadata__", ()) if m.description), "")
    default = next(f.default for f in msgspec.structs.fields(kind) if f.name == name)
    if default is not None:
        text += f" (default: {default})"
    parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="VALUE", help=text)


def _write(report: Report, given: argparse.Namespace) -> None:
    if given.json:
        given.json.write_bytes(to_json(report))
    if given.csv:
        given.csv.write_text(to_csv(report), encoding="utf-8")
    print(FORMATS[given.format](report).rstrip("\n"))


def _path(kind: type[Any], value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)


if __name__ == "__main__":
    sys.exit(main())
