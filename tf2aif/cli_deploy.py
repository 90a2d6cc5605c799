"""The words of the command line about Kubernetes: `deploy`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show, count
from .errors import Fault, FilesError

if TYPE_CHECKING:
    from .choose.catalogue import Catalogue
    from .deploy.asked import Chosen
    from .deploy.pod import Object
    from .deploy.workload import Workload
    from .spec.target import Target


def add_deploy_command(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `deploy` to the command line."""
    parser = command(commands, "deploy", None, "write Kubernetes manifests; applies nothing")
    parser.set_defaults(command=lambda arguments: _deploy(arguments, show_json))
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="or RECIPE: all of its own")
    parser.add_argument("--placement", metavar="FILE", help="of 'tf2aif place': what it has placed")
    parser.add_argument(
        "--nodes", metavar="FILE", help="the fleet of the placement; by default fleet.yaml"
    )
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
    parser.add_argument("--replicas", type=count, metavar="N", help="of each variant; by default 1")
    parser.add_argument("--threads", type=count, metavar="N", help="of each engine")
    parser.add_argument(
        "--resource", action="append", default=[], type=_resource, metavar="NAME=N",
        help="an extended resource as this cluster names it (repeatable)",
    )  # fmt: skip
    parser.add_argument("--pull-secret", default="", metavar="NAME", help="to pull the images with")
    parser.add_argument(
        "--kserve", action="store_true", help="ServingRuntime and InferenceService instead"
    )
    parser.add_argument(
        "--mesh", action="store_true", help="a route that gives each its share of a placement"
    )
    parser.add_argument("--catalogue", metavar="FILE", help="by default build/catalogue.json")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="a folder for them, with a kustomization.yaml"
    )


def _resource(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    return name, count(number) if equals else 1


def _deploy(arguments: argparse.Namespace, show_json: Show) -> int:
    from .deploy.manifest import render
    from .deploy.published import check_published

    if faults := [*_word_faults(arguments), *_clashes(arguments)]:
        raise FilesError(faults)
    chosen = _choose(arguments)
    if not arguments.offline:
        check_published(chosen.workloads, plain_http=arguments.plain_http)
    files = _write_files(arguments, chosen.workloads) if arguments.output else []
    objects = _objects(arguments, chosen.workloads)
    if arguments.json:
        show_json({"objects": objects, "notes": list(chosen.notes), "files": files})
        return 0
    for note in chosen.notes:
        print(f"note: {note}", file=sys.stderr)
    if files:
        print(f"wrote {len(files)} files: kubectl apply -k {arguments.output}")
    else:
        print(render(objects), end="")
    return 0


def _word_faults(arguments: argparse.Namespace) -> Iterator[Fault]:
    """What must be said and was not, or is no name."""
    from .deploy.names import is_name

    if not arguments.dry_run:
        hint = "add --dry-run, look at what it writes, and pipe it on: | kubectl apply -f -"
        yield Fault("'tf2aif deploy' speaks to no cluster: it writes manifests", hint=hint)
    if not arguments.variants and not arguments.placement:
        hint = "tf2aif deploy kws/cpu-int8, or --placement build/placement.json"
        yield Fault("nothing to deploy was named", hint=hint)
    if not arguments.registry:
        hint = "--registry HOST/PATH, as it was given to 'tf2aif push --to'"
        yield Fault("which registry holds the images was not said", hint=hint)
    for option in ("namespace", "pull_secret"):
        name = getattr(arguments, option)
        if name and not is_name(name):
            at = f"--{option.replace('_', '-')}"
            hint = "small letters, digits and '-', at most 63"
            yield Fault(f"'{name}' is no name for it", at=at, hint=hint)


def _clashes(arguments: argparse.Namespace) -> Iterator[Fault]:
    """Options that do not go together."""
    said = arguments.variants or arguments.replicas or arguments.threads or arguments.resource
    if arguments.placement and said:
        message = "a placement says which variants run, how often and with what"
        hint = "leave VARIANT, --replicas, --threads and --resource out"
        yield Fault(message, at="--placement", hint=hint)
    if arguments.nodes and not arguments.placement:
        hint = "leave it out: a variant runs on any node that has what the catalogue requires"
        yield Fault("a fleet is needed for a placement only", at="--nodes", hint=hint)
    if arguments.mesh and (arguments.kserve or not arguments.placement):
        hint = "leave it out: without it each pod is sent as many requests"
        yield Fault("shares are those of a placement, and not KServe's", at="--mesh", hint=hint)


def _choose(arguments: argparse.Namespace) -> Chosen:
    from .choose.catalogue import FILE, read_catalogue
    from .deploy.asked import choose_named
    from .deploy.published import check_current
    from .deploy.workload import Wish
    from .spec.load import load_targets

    build, targets = Path("build"), load_targets(Path.cwd())
    catalogue = read_catalogue(Path(arguments.catalogue) if arguments.catalogue else build / FILE)
    if arguments.placement:
        chosen = _choose_placed(arguments, catalogue, targets)
    else:
        wish = Wish(
            registry=arguments.registry,
            replicas=arguments.replicas or 1,
            threads=arguments.threads,
            resources=dict(arguments.resource),
        )
        chosen = choose_named(arguments.variants, catalogue, targets, wish)
    if not arguments.catalogue:
        check_current(chosen.workloads, build)
    return chosen


def _choose_placed(
    arguments: argparse.Namespace, catalogue: Catalogue, targets: dict[str, Target]
) -> Chosen:
    from .choose.fleet import read_fleet
    from .choose.placement import read_placement
    from .deploy.placed import choose_placed

    placement = read_placement(Path(arguments.placement))
    fleet = read_fleet(Path(arguments.nodes or "fleet.yaml"))
    return choose_placed(
        placement,
        catalogue,
        targets,
        arguments.registry,
        fleet,
        shares=arguments.mesh or arguments.kserve,
    )


def _objects(arguments: argparse.Namespace, workloads: Sequence[Workload]) -> list[Object]:
    from .deploy.kserve import kserve_objects
    from .deploy.objects import plain_objects

    where = {"namespace": arguments.namespace, "secret": arguments.pull_secret}
    if arguments.kserve:
        return kserve_objects(workloads, **where)
    return plain_objects(workloads, **where, mesh=arguments.mesh)


def _write_files(arguments: argparse.Namespace, workloads: Sequence[Workload]) -> list[str]:
    """A file for each service in the output folder; their names."""
    from .deploy.manifest import write_folder
    from .deploy.names import object_name

    by_service: dict[str, list[Workload]] = {}
    for one in workloads:
        by_service.setdefault(object_name(one.service), []).append(one)
    files = {name: _objects(arguments, own) for name, own in by_service.items()}
    return [str(path) for path in write_folder(files, Path(arguments.output))]
