"""The words of the command line about caches: `cache`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show, add_action
from .errors import Tf2aifError

if TYPE_CHECKING:
    from .build import Build
    from .records import ActionRecord
    from .remotes.shared import Report, Shared
    from .workspace import Workspace


def add_remote_flag(parser: argparse.ArgumentParser) -> None:
    """`--remote`: the shared cache to use in place of those of `tf2aif.yaml`."""
    parser.add_argument(
        "--remote",
        default="",
        metavar="URL",
        help="this shared cache instead of those of tf2aif.yaml; by default $TF2AIF_REMOTE",
    )


def add_cache_command(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `cache` to the command line."""
    parser = command(commands, "cache", None, "the store on this machine, and shared caches")
    parser.set_defaults(command=lambda arguments: _ACTIONS[arguments.action](arguments, show_json))
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    add = partial(add_action, actions)
    add("info", "what the store on this machine holds")
    add("verify", "read all that is stored, and drop what is damaged")
    _add_gc(add("gc", "make room in the store, or with --remote in a shared cache"))
    _add_transfer(add("push", "give what was built here to a shared cache"), "give")
    _add_transfer(add("pull", "take what others built into the store on this machine"), "take")
    keygen = add("keygen", "make a key that signs what is pushed")
    keygen.add_argument("-o", "--output", metavar="FILE", help="by default this user's own")


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-size", type=_bytes, help="keep at most this much, such as 10G")
    parser.add_argument("--older-than", type=_days, help="drop what was unused so long: 30d, 12h")
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    parser.add_argument("--remote", default="", metavar="URL", help="a shared cache")


def _add_transfer(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default recipes/")
    parser.add_argument(
        "--target", action="append", default=[], metavar="T", help="only this target (repeatable)"
    )
    from .cli_images import add_image_flag

    add_image_flag(parser)
    add_remote_flag(parser)
    parser.add_argument("--dry-run", action="store_true", help=f"say what it would {what}")
    if what == "give":
        parser.add_argument("--all", action="store_true", help="all that the store has")


def _bytes(text: str) -> int:
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in units else ""
    try:
        return int(_positive(number.removesuffix(unit) if unit else number) * units[unit])
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 500M or 10G") from None


def _days(text: str) -> float:
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    try:
        return _positive(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"'{text}' is no time such as 30d or 12h") from None


def _positive(text: str) -> float:
    """Raises ValueError for what is less than 0, endless, or no number."""
    number = float(text)
    if not 0 <= number < 1e18:
        raise ValueError(text)
    return number


# The commands.


def _info(arguments: argparse.Namespace, show_json: Show) -> int:
    from .store import Store

    return _tell(arguments, show_json, _plain(Store().info()))


def _verify(arguments: argparse.Namespace, show_json: Show) -> int:
    from .store import Store

    return _tell(arguments, show_json, _plain(Store().verify()))


def _gc(arguments: argparse.Namespace, show_json: Show) -> int:
    limits = {
        "max_size_bytes": arguments.max_size,
        "older_than_s": arguments.older_than,
        "dry_run": arguments.dry_run,
    }
    if not arguments.remote:
        from .store import Store
        from .toolchains.venv import collect as collect_environments

        if arguments.older_than is not None:
            collect_environments(arguments.older_than, dry_run=arguments.dry_run)
        return _tell(arguments, show_json, _plain(Store().gc(**limits)))
    from .remotes import open_remote, wanted
    from .remotes.collect import collect
    from .spec.config import load_config

    (use,) = wanted(Path.cwd(), arguments.remote)
    remote = open_remote(use.url, load_config(Path.cwd()).cache.timeout_s)
    try:
        found = collect(remote, **limits)
    finally:
        remote.close()
    return _tell(arguments, show_json, _plain(found))


def _push(arguments: argparse.Namespace, show_json: Show) -> int:
    shared = _open(arguments, write=True)
    if not any(line.writes for line in shared.lines):
        raise Tf2aifError(
            "there is no shared cache that may be written",
            hint="name one with --remote, or say 'write: true' in tf2aif.yaml",
        )
    if shared.key is None:
        raise Tf2aifError("there is no signing key", hint="make one: tf2aif cache keygen")
    if arguments.all:
        from .workspace import Workspace

        return _give(arguments, show_json, shared, None, Workspace(Path.cwd()))
    build = _load(arguments)
    try:
        return _give(arguments, show_json, shared, build, build.workspace)
    finally:
        build.close()


def _give(
    arguments: argparse.Namespace,
    show_json: Show,
    shared: Shared,
    build: Build | None,
    workspace: Workspace,
) -> int:
    records = _records_of(build) if build else workspace.store.all_records()
    lacking = 0
    for record in records:
        if arguments.dry_run:
            lacking += shared.lacks(record)
        else:
            shared.give(record, workspace.store)
    report = shared.finish()
    if arguments.dry_run:
        return _end(arguments, show_json, report, {"would_give": lacking})
    return _end(arguments, show_json, report, {})


def _records_of(build: Build) -> Iterator[ActionRecord]:
    """What is known of the recipes' steps as they are now, and is in the store."""
    from .freshness import survey

    store = build.workspace.store
    for verdict in survey(build.graph, build.workspace).values():
        record = verdict.record if verdict.state in ("fresh", "stored") else None
        if record is not None and all(map(store.has, record.outputs)):
            yield record


def _pull(arguments: argparse.Namespace, show_json: Show) -> int:
    from .noop import forget
    from .remotes.ahead import fetch_ahead

    shared = _open(arguments)
    build = _load(arguments)
    build.workspace.shared = shared
    try:
        steps = fetch_ahead(build.graph, build.workspace, dry_run=arguments.dry_run)
    finally:
        report = shared.finish()
        build.close()
    if steps and not arguments.dry_run:
        forget(str(build.workspace.private))  # what could not be made here may have come
    word = "would_take" if arguments.dry_run else "steps"
    return _end(arguments, show_json, report, {word: list(steps)})


def _keygen(arguments: argparse.Namespace, show_json: Show) -> int:
    from .remotes.keys import default_path, generate

    path = Path(arguments.output) if arguments.output else default_path()
    public = generate(path)
    if _wants_json(arguments):
        show_json({"path": str(path), "public": public})
    else:
        print(f"wrote {path}: keep it to yourself\n{public}")
        print("put that line into tf2aif.yaml, under cache: trusted:", file=sys.stderr)
    return 0


_ACTIONS: Mapping[str, Callable[[argparse.Namespace, Show], int]] = {
    "info": _info,
    "verify": _verify,
    "gc": _gc,
    "push": _push,
    "pull": _pull,
    "keygen": _keygen,
}


def _open(arguments: argparse.Namespace, *, write: bool = False) -> Shared:
    from .remotes import open_for

    shared = open_for(Path.cwd(), arguments.remote, write=write)
    if shared is None:
        raise Tf2aifError(
            "there is no shared cache",
            hint="name one with --remote URL, in TF2AIF_REMOTE, or in tf2aif.yaml",
        )
    return shared


def _load(arguments: argparse.Namespace) -> Build:
    from .build import Build

    recipes = [Path(name).absolute() for name in arguments.recipes or ["recipes"]]
    return Build.load(recipes, Path.cwd(), targets=arguments.target, images=arguments.images)


def _end(
    arguments: argparse.Namespace, show_json: Show, report: Report, more: Mapping[str, Any]
) -> int:
    """Say what was done; 1 where a remote failed, or nothing of it was believed: here that is what
    was asked for."""
    from msgspec.structs import replace

    if _wants_json(arguments):
        show_json({**_plain(report), **more})
    else:
        for name, value in more.items():
            shown = value if isinstance(value, int) else " ".join([str(len(value)), *value])
            print(f"{name.replace('_', ' '):<18} {shown}")
        if arguments.dry_run:  # what would be taken is said above
            report = replace(report, taken=0, given=0)
        if (line := report.render()) or not arguments.dry_run:
            print(line or "shared cache: nothing to do")
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    in_vain = report.refused and not report.taken and not report.given
    return 1 if report.warnings or in_vain else 0


def _tell(arguments: argparse.Namespace, show_json: Show, shape: Mapping[str, Any]) -> int:
    if _wants_json(arguments):
        show_json(shape)
    else:
        for name, value in shape.items():
            print(f"{name.replace('_', ' '):<18} {value}")
    return 0


def _wants_json(arguments: argparse.Namespace) -> bool:
    return bool(getattr(arguments, "json", False))


def _plain(value: Any) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(value)
    return found
