"""The words of the command line about the report: `report`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .cli_words import AddCommand, Show
from .errors import Tf2aifError


def add_report_command(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `report` to the command line."""
    parser = command(commands, "report", None, "one HTML page of what is built, and its figures")
    parser.set_defaults(command=lambda arguments: _report(arguments, show_json))
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="build/report/index.html", help="the page"
    )
    parser.add_argument(
        "--since", metavar="FILE", help="a report.json to compare with; by default the last one"
    )


def _report(arguments: argparse.Namespace, show_json: Show) -> int:
    for module in ("matplotlib", "jinja2"):
        if find_spec(module) is None:
            raise Tf2aifError(f"{module} is not installed", hint="pip install 'tf2aif[report]'")
    from .report.files import write_report

    page = _page(arguments.output)
    since = Path(arguments.since) if arguments.since else None
    written = write_report(Path("build"), page, Path.cwd().name, since=since)
    found = written.report.changes.differences if written.report.changes else None
    if arguments.json:
        paths = {"page": written.page, "data": written.json, "csv": written.csv}
        shape = {name: str(path) for name, path in paths.items()}
        changed = None if found is None else len(found)
        show_json({**shape, "variants": len(written.report.variants), "changes": changed})
        return 0
    print(f"wrote {written.page}, and beside it {written.json.name} and {written.csv.name}")
    if found is not None:
        since_when = written.report.changes.since if written.report.changes else ""
        differences = f"{len(found)} difference{'s' * (len(found) != 1)}"
        print(f"{differences} since the report of {since_when}")
    for name in written.report.unread:
        print(f"left out: {name}: built by another version, or damaged")
    return 0


def _page(name: str) -> Path:
    """Where the page goes. Raises for names that would be overwritten by what lies beside it."""
    page = Path(name)
    if page.suffix not in (".html", ".htm"):
        hint = "such as -o public/index.html: report.json and report.csv are put beside it"
        raise Tf2aifError(f"'{name}' does not end in .html", hint=hint)
    return page
