"""The words of the command line about reproducibility: `verify`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show
from .errors import Tf2aifError, ToolchainMissing

if TYPE_CHECKING:
    from .file_differences import FileDifference
    from .verification import ImageCheck, StepCheck, Verification


def add_verify_command(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `verify` to the command line."""
    parser = command(commands, "verify", None, "build again without any cache, and compare")
    parser.set_defaults(command=lambda arguments: _verify(arguments, show_json))
    parser.add_argument(
        "variants", nargs="+", metavar="VARIANT", help="or RECIPE: all variants of its own"
    )
    parser.add_argument(
        "--recipe", action="append", metavar="FILE", help="by default recipes/ (repeatable)"
    )
    parser.add_argument("--keep", metavar="DIR", help="keep the second build in this new folder")
    parser.add_argument(
        "--in-place", action="store_true", help="read the sources where they are, not from a copy"
    )
    parser.add_argument(
        "--strict", action="store_true", help="what cannot be looked at here is a failure"
    )


def _verify(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .verifiable import choose
    from .verify import verify

    recipes = [Path(name).absolute() for name in arguments.recipe or ["recipes"]]
    build = choose(arguments.variants, recipes, Path.cwd())
    total, seen = len(build.graph.steps), 0

    def tell(name: str, check: StepCheck) -> None:
        nonlocal seen
        seen += 1
        if not arguments.json:
            print(f"[{seen}/{total}] {name}: {check.state}", file=sys.stderr, flush=True)

    with _folder(arguments.keep) as folder:
        try:
            found = verify(build, folder, in_place=arguments.in_place, listen=tell)
        finally:
            build.close()
    if arguments.json:
        show_json({**msgspec.to_builtins(found), "same": found.same, "kept": arguments.keep})
    else:
        print("\n".join(_lines(found)))
        if arguments.keep:
            print(f"\nthe second build is in {arguments.keep}")
        elif any(check.state == "failed" for check in found.steps.values()):
            print("\nto keep the second build with its logs: --keep DIR")
    if not found.same:
        return Tf2aifError.exit_code
    return ToolchainMissing.exit_code if arguments.strict and found.partial else 0


@contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    """An empty folder: the one that was named, or one that goes in the end."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="tf2aif-verify-") as name:
            yield Path(name)
        return
    folder = Path(keep)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Tf2aifError("the folder is not empty", at=keep, hint="name a new one with --keep")
    yield folder


# What people read.


def _lines(found: Verification) -> Iterator[str]:
    for name, variant in found.variants.items():
        yield f"{name}: {_VARIANT[variant.state]}"
        if variant.first:
            check = found.steps[variant.first]
            yield f"  first: {variant.first}: {_words(check)}"
            yield from _files(check.files)
        for step in variant.steps:
            check = found.steps[step]
            if step != variant.first and check.state != "same":
                yield f"  {step}: {_words(check)}"
            if step in found.damaged:
                yield f"  {step}: what stands in build/ was changed after it was made"
                yield from _files(found.damaged[step])
        if variant.message:
            yield f"  not written again: {variant.message}"
        if variant.damaged:
            yield f"  build/{name}/ was changed after it was built"
            yield from _files(variant.damaged)
        if variant.image and variant.image.state != "same":
            yield from _image(variant.image)


_VARIANT = {
    "same": "the same",
    "partly": "the same, as far as this machine can tell",
    "differs": "differs",
}


def _words(check: StepCheck) -> str:
    from .verification import WORDS

    because = f": {', '.join(check.after)}" if check.after else ""
    message = f" ({check.message})" if check.message else ""
    return f"{WORDS[check.state]}{because}{message}"


def _files(files: tuple[FileDifference, ...]) -> Iterator[str]:
    for file in files:
        if file.what in ("added", "removed"):
            size = file.second_bytes if file.what == "added" else file.first_bytes
            yield f"    {file.path}: {file.what}, {size} bytes"
        elif file.what == "mode":
            yield f"    {file.path}: the same bytes, but only one may be executed"
        else:
            at = "" if file.offset is None else f", from byte {file.offset} on"
            yield f"    {file.path}: {file.first_bytes} bytes, then {file.second_bytes}{at}"


def _image(image: ImageCheck) -> Iterator[str]:
    why = "after a step that differs" if image.state == "follows" else "from the same steps"
    yield f"  image: differs {why}: it was {image.first}, it is {image.second}"
    for layer in image.layers:
        yield f"    {layer.created_by}: {layer.first or '(none)'}, then {layer.second or '(none)'}"
