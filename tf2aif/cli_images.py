"""The words of the command line about images: `image`, `push`, `run`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show, above_zero, port
from .errors import Fault, FilesError, Tf2aifError

if TYPE_CHECKING:
    from .oci.outputs import BuiltImage, Loadable

SWITCH = "TF2AIF_IMAGES"
CLIENT = "client"  # in place of a variant: the client's image


def add_image_flag(parser: argparse.ArgumentParser) -> None:
    """`--images` and `--no-images`: whether each variant ends in a container image."""
    parser.add_argument(
        "--images",
        action=argparse.BooleanOptionalAction,
        default=os.environ.get(SWITCH, "no").lower() in ("yes", "1", "on", "true"),
        help=f"end each variant in a container image; by default where {SWITCH}=yes",
    )


def add_image_commands(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `image`, `push` and `run` to the command line."""
    _add_image(commands, command, show_json)
    _add_push(commands, command, show_json)
    _add_run(commands, command, show_json)


def _add_image(commands: Any, command: AddCommand, show_json: Show) -> None:
    parser = command(commands, "image", None, "save, load, verify container images; renew locks")
    parser.set_defaults(command=lambda arguments: _IMAGE[arguments.action](arguments, show_json))
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    save = actions.add_parser("save", help="write an archive that 'docker load' takes")
    save.add_argument("variant", metavar="VARIANT", help="such as kws/cpu-int8; or: client")
    save.add_argument("-o", "--output", metavar="FILE", help="by default RECIPE-VARIANT.tar")
    load = actions.add_parser("load", help="load an image into a Docker engine")
    load.add_argument("variant", metavar="VARIANT", help="such as kws/cpu-int8; or: client")
    _add_engine(load)
    verify = actions.add_parser("verify", help="recompute every digest and size")
    verify.add_argument("what", metavar="WHAT", nargs="+", help="a variant, a layout, an archive")
    lock = actions.add_parser("lock", help="take the present versions into locks/")
    lock.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default recipes/")
    lock.add_argument("--target", action="append", default=[], metavar="T", help="only this one")
    lock.add_argument("--keep", action="store_true", help="change only what does not fit any more")
    client = actions.add_parser("client", help="compose the client's image, for every platform")
    client.add_argument("--platform", action="append", metavar="P", help="such as linux/arm64")


def _add_push(commands: Any, command: AddCommand, show_json: Show) -> None:
    parser = command(commands, "push", None, "push images to a registry")
    parser.set_defaults(command=lambda arguments: _push(arguments, show_json))
    parser.add_argument(
        "variants", nargs="+", metavar="VARIANT", help="or RECIPE: all its own; or: client"
    )
    parser.add_argument("--to", required=True, metavar="HOST/PATH", help="the recipe is added")
    parser.add_argument(
        "--plain-http", action="store_true", default=None, help="a registry without TLS"
    )


def _add_run(commands: Any, command: AddCommand, show_json: Show) -> None:
    parser = command(commands, "run", None, "start a container of a variant, and wait for health")
    parser.set_defaults(command=lambda arguments: _run(arguments, show_json))
    parser.add_argument("variant", metavar="VARIANT", help="such as kws/cpu-int8")
    parser.add_argument("--port", type=port, default=0, help="on 127.0.0.1; by default a free one")
    parser.add_argument("--network", choices=("", "host"), default="", help="'host': no bridge")
    parser.add_argument(
        "--timeout", type=above_zero, default=120.0, metavar="S", help="until healthy"
    )
    _add_engine(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="", metavar="ADDRESS", help="by default DOCKER_HOST's")


def _save(arguments: argparse.Namespace, show_json: Show) -> int:
    from .oci.outputs import save_image

    one = _loadable(arguments.variant)
    dest = Path(arguments.output or arguments.variant.replace("/", "-") + ".tar")
    digest = save_image(one, dest).descriptor.digest
    shape = {"archive": str(dest), "digest": digest, "size_bytes": dest.stat().st_size}
    return _tell(arguments, show_json, shape, f"wrote {dest}: docker load -i {dest}")


def _load(arguments: argparse.Namespace, show_json: Show) -> int:
    from .oci.outputs import load_image

    one = _loadable(arguments.variant)
    found = load_image(one, arguments.engine)
    name = f"{one.name}:{one.tag}"
    return _tell(arguments, show_json, {"name": name, "id": found}, f"loaded {name}  {found}")


def _verify(arguments: argparse.Namespace, show_json: Show) -> int:
    from .oci.validate import verify

    faults: list[Fault] = []
    for what in arguments.what:
        given = Path(what)
        faults += verify(given if given.exists() else _loadable(what).layout.folder)
    if faults:
        raise FilesError(faults)
    return _tell(arguments, show_json, {"faults": []}, "no faults")


def _lock(arguments: argparse.Namespace, show_json: Show) -> int:
    from .oci.locks import renew
    from .oci.planning import LOCKS
    from .spec.load import load_project

    project = Path.cwd()
    loaded = load_project([Path(name) for name in arguments.recipes or ["recipes"]], project)
    recipes = {r.name: (r.recipe, tuple(r.recipe.targets)) for r in loaded.recipes}
    wanted = {name for _, names in recipes.values() for name in names}
    only = set(arguments.target)
    targets = {n: t for n, t in loaded.targets.items() if n in wanted and (not only or n in only)}
    done = []
    for one in renew(project / LOCKS, targets, recipes, upgrade=not arguments.keep):
        done.append({"path": one.path, "changed": one.changed})
        if not arguments.json:
            print(f"{'changed' if one.changed else 'as before'}  {one.path}", flush=True)
    if arguments.json:
        show_json({"locks": done})
    return 0


def _client(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .oci.client_image import client_layout, write_client_image
    from .oci.planning import find_inputs
    from .oci.shipped import CLIENT_PLATFORMS
    from .workers import Workers
    from .workspace import Workspace

    workspace, workers = Workspace(Path.cwd()), Workers()
    try:
        platforms = arguments.platform or CLIENT_PLATFORMS
        records = write_client_image(workspace, workers, find_inputs(Path.cwd()), platforms)
    finally:
        workers.close()
    shape = {"layout": str(client_layout(workspace.build)), "images": msgspec.to_builtins(records)}
    lines = [f"{r.platform}  {r.digest}  {r.size_bytes / 1e6:.1f} MB" for r in records]
    return _tell(arguments, show_json, shape, "\n".join(lines))


def _push(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .oci.outputs import push_images

    names = [name for name in arguments.variants if name != CLIENT]
    images = [image for name in names for image in _of(name)]

    def report(what: str, digest: str, size: int) -> None:
        if what == "sent" and not arguments.json:
            print(f"sent {digest[:19]}  {size / 1e6:.1f} MB", file=sys.stderr, flush=True)

    how: dict[str, Any] = {"plain_http": arguments.plain_http, "report": report}
    done = push_images(images, arguments.to, **how)
    if CLIENT in arguments.variants:
        from .oci.client_image import push_client

        done += push_client(Path.cwd() / "build", arguments.to, **how)
    lines = [f"{one.name}@{one.digest}  {' '.join(one.platforms)}" for one in done]
    shape = {"images": msgspec.to_builtins(done)}
    return _tell(arguments, show_json, shape, "\n".join(lines))


def _run(arguments: argparse.Namespace, show_json: Show) -> int:
    import msgspec

    from .oci.outputs import run_image
    from .spec.load import load_targets
    from .spec.target import Container

    image = _find(arguments.variant)
    target = load_targets(Path.cwd()).get(image.variant.target)
    found = run_image(
        image,
        target.container if target else Container(),
        address=arguments.engine,
        port=arguments.port,
        network=arguments.network,
        timeout_s=arguments.timeout,
    )
    text = f"{found.address}  healthy after {found.ready_s:.1f} s"
    text += f"\nstop it: docker rm -f {found.name}"
    return _tell(arguments, show_json, msgspec.to_builtins(found), text)


_IMAGE: Mapping[str, Callable[[argparse.Namespace, Show], int]] = {
    "save": _save,
    "load": _load,
    "verify": _verify,
    "lock": _lock,
    "client": _client,
}


def _loadable(name: str) -> Loadable:
    """A variant's image, or the client's for this machine."""
    if name != CLIENT:
        return _find(name).loadable
    from . import __version__
    from .machine import this_platform
    from .oci.client_image import find_client
    from .oci.documents import Platform
    from .oci.outputs import Loadable

    layout = find_client(Path.cwd() / "build")
    platform = Platform.parse(this_platform())
    return Loadable(layout=layout, platform=platform, name=CLIENT, tag=__version__)


def _find(variant: str) -> BuiltImage:
    from .oci.outputs import find_image

    return find_image(Path.cwd() / "build", variant)


def _of(name: str) -> list[BuiltImage]:
    """The images of a variant, or all that a recipe has."""
    if "/" in name:
        return [_find(name)]
    folder = Path.cwd() / "build" / name
    found = sorted(path.parent.parent for path in folder.glob("*/image/index.json"))
    if not found:
        raise Tf2aifError(f"no variant of {name} has an image", hint="tf2aif build")
    return [_find(f"{name}/{path.name}") for path in found]


def _tell(arguments: argparse.Namespace, show_json: Show, shape: Any, text: str) -> int:
    if arguments.json:
        show_json(shape)
    else:
        print(text)
    return 0
