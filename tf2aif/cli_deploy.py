"""The words of the command line about Kubernetes: `deploy`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Fault, FilesError

if TYPE_CHECKING:
    from .deploy.asked import Chosen
    from .deploy.pod import Object
    from .deploy.workload import Workload

AddCommand = Callable[..., argparse.ArgumentParser]
Show = Callable[[Any], None]


def add_deploy_command(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `deploy` to the command line."""
    parser = command(commands, "deploy", None, "write Kubernetes manifests; applies nothing")
    parser.set_defaults(command=lambda arguments: _deploy(arguments, show_json))
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="or RECIPE: all of its own")
    parser.add_argument("--placement", metavar="FILE", help="of 'tf2aif place': what it has placed")
    parser.add_argument(
        "--dry-run", action="store_true", help="write manifests: required, as nothing else is done"
    )
    parser.add_argument("--registry", metavar="HOST/PATH", help="where the images were pushed to")
    parser.add_argument(
        "--offline", action="store_true", help="do not ask the registry whether they are there"
    )
    parser.add_argument(
        "--plain-http", action="store_true", default=None, help="a registry without TLS"
    )
    parser.add_argument("--namespace", default="", metavar="N", help="by default kubectl's")
    parser.add_argument(
        "--replicas", type=_count, metavar="N", help="of each variant; by default 1"
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="of each engine")
    parser.add_argument(
        "--resource", action="append", default=[], type=_resource, metavar="NAME=N",
        help="an extended resource as this cluster names it (repeatable)",
    )  # fmt: skip
    parser.add_argument("--pull-secret", default="", metavar="NAME", help="to pull the images with")
    parser.add_argument(
        "--kserve", action="store_true", help="ServingRuntime and InferenceService instead"
    )
    parser.add_argument("--catalogue", metavar="FILE", help="by default build/catalogue.json")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="a folder for them, with a kustomization.yaml"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 up")
    return int(text)


def _resource(text: str) -> tuple[str, int]:
    name, equals, count = text.partition("=")
    return name, _count(count) if equals else 1


def _deploy(arguments: argparse.Namespace, show_json: Show) -> int:
    from .deploy.kserve import kserve_objects
    from .deploy.manifest import render
    from .deploy.objects import plain_objects
    from .deploy.published import check_published

    _check_words(arguments)
    chosen = _choose(arguments)
    if not arguments.offline:
        check_published(chosen.workloads, plain_http=arguments.plain_http)
    write = kserve_objects if arguments.kserve else plain_objects
    where = {"namespace": arguments.namespace, "secret": arguments.pull_secret}

    def objects(workloads: Sequence[Workload]) -> list[Object]:
        return write(workloads, **where)

    files = _write_files(chosen.workloads, objects, arguments.output)
    if arguments.json:
        every = objects(chosen.workloads)
        show_json({"objects": every, "notes": list(chosen.notes), "files": files})
        return 0
    for note in chosen.notes:
        print(f"note: {note}", file=sys.stderr)
    if files:
        print(f"wrote {len(files)} files: kubectl apply -k {arguments.output}")
    else:
        print(render(objects(chosen.workloads)), end="")
    return 0


def _check_words(arguments: argparse.Namespace) -> None:
    from .deploy.names import is_name

    faults = []
    if not arguments.dry_run:
        hint = "add --dry-run, look at what it writes, and pipe it on: | kubectl apply -f -"
        faults.append(Fault("'tf2aif deploy' speaks to no cluster: it writes manifests", hint=hint))
    if not arguments.variants and not arguments.placement:
        hint = "tf2aif deploy kws/cpu-int8, or --placement build/placement.json"
        faults.append(Fault("nothing to deploy was named", hint=hint))
    if arguments.placement and (arguments.variants or arguments.replicas):
        message = "a placement says which variants run, and how often"
        faults.append(Fault(message, at="--placement", hint="leave VARIANT and --replicas out"))
    if not arguments.registry:
        hint = "--registry HOST/PATH, as it was given to 'tf2aif push --to'"
        faults.append(Fault("which registry holds the images was not said", hint=hint))
    for option, name in (
        ("namespace", arguments.namespace),
        ("pull-secret", arguments.pull_secret),
    ):
        if name and not is_name(name):
            hint = "small letters, digits and '-', at most 63"
            faults.append(Fault(f"'{name}' is no name for it", at=f"--{option}", hint=hint))
    if faults:
        raise FilesError(faults)


def _choose(arguments: argparse.Namespace) -> Chosen:
    from .choose.catalogue import FILE, read_catalogue
    from .deploy.asked import choose_named
    from .deploy.published import check_current
    from .deploy.workload import Wish
    from .spec.load import load_targets

    build = Path("build")
    catalogue = read_catalogue(Path(arguments.catalogue) if arguments.catalogue else build / FILE)
    wish = Wish(
        registry=arguments.registry,
        replicas=arguments.replicas or 1,
        threads=arguments.threads,
        resources=dict(arguments.resource),
    )
    chosen = choose_named(arguments.variants, catalogue, load_targets(Path.cwd()), wish)
    if not arguments.catalogue:
        check_current(chosen.workloads, build)
    return chosen


def _write_files(
    workloads: Sequence[Workload],
    objects: Callable[[Sequence[Workload]], list[Object]],
    output: str | None,
) -> list[str]:
    """A file for each service in that folder; their names."""
    from .deploy.manifest import write_folder
    from .deploy.names import object_name

    if output is None:
        return []
    by_service: dict[str, list[Workload]] = {}
    for one in workloads:
        by_service.setdefault(object_name(one.service), []).append(one)
    files = {name: objects(own) for name, own in by_service.items()}
    return [str(path) for path in write_folder(files, Path(output))]
