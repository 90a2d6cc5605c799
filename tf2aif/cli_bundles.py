"""The words of the command line about bundles: `import-bundle`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_words import AddCommand, Show


def add_bundle_command(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `import-bundle` to the command line."""
    parser = command(commands, "import-bundle", None, "take what a bundle made on another machine")
    parser.set_defaults(command=lambda arguments: _import(arguments, show_json))
    parser.add_argument("folder", metavar="FOLDER", help="what the bundle's run.sh has written")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default recipes/")


def _import(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .build import Build
    from .choose.collect import refresh
    from .imports import take_bundle
    from .table import variants_table
    from .tasks import run

    recipes = [Path(name).absolute() for name in arguments.recipes or ["recipes"]]
    planned = Build.load(recipes, Path.cwd())
    try:
        variant = take_bundle(Path(arguments.folder), planned)
        only = planned.graph.only([variant])
        build = Build(only, planned.workspace, planned.recipes, planned.workers)
        run(build)
    finally:
        planned.close()
    refresh(build.workspace.build)
    records = build.records()
    if arguments.json:
        show_json({"variants": msgspec.to_builtins(records)})
    else:
        print(variants_table(records.items()))
    for error in build.failures.values():
        raise error
    return build.exit_code()
