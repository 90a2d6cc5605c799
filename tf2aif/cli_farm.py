"""The words of the command line about farms: `worker`, `farm`, `--farm`. A part of `tf2aif.cli`.

As there, nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_words import AddCommand, Show, add_action, count, port
from .errors import Tf2aifError

if TYPE_CHECKING:
    from .farm.address import Address
    from .farm.offer import Offer
    from .farm.plan import FarmPlan
    from .workspace import Workspace


def add_farm_flag(parser: argparse.ArgumentParser) -> None:
    """`--farm`: the machines that run steps."""
    parser.add_argument(
        "--farm",
        default="",
        metavar="ADDRESS",
        help="have steps run by this farm: HOST:PORT, or 'local'; by default that of tf2aif.yaml "
        "or $TF2AIF_FARM; 'none': no farm",
    )
    _add_tls(parser)


def add_farm_commands(commands: Any, command: AddCommand, show_json: Show) -> None:
    """Add `worker` and `farm` to the command line."""
    worker = command(commands, "worker", None, "run steps for the builds of a farm")
    worker.set_defaults(command=lambda arguments: _worker(arguments, show_json))
    _fill_worker(worker)
    farm = command(commands, "farm", None, "a build farm: its scheduler, machines, certificates")
    farm.set_defaults(command=lambda arguments: _ACTIONS[arguments.action](arguments, show_json))
    actions = farm.add_subparsers(dest="action", metavar="ACTION", required=True)

    add = partial(add_action, actions)
    scheduler = add("scheduler", "dispatch steps to machines, until interrupted")
    scheduler.add_argument(
        "--host", default="127.0.0.1", help="where it listens; by default on this machine only"
    )
    scheduler.add_argument("--port", type=port, default=8786, help="by default 8786; 0: any")
    _add_tls(scheduler)
    status = add("status", "which machines there are, and what they offer")
    status.add_argument("address", metavar="SCHEDULER", nargs="?", default="")
    _add_tls(status)
    keygen = add("keygen", "make the certificates of a farm")
    keygen.add_argument("folder", metavar="DIR", help="where; the authority's own key stays there")
    keygen.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="of machines or people; by default scheduler, worker and client",
    )
    keygen.add_argument("--days", type=count, default=365, help="how long they hold")


def _fill_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="SCHEDULER", help="HOST or HOST:PORT")
    parser.add_argument("--name", help="of this machine in the farm; by default its host name")
    parser.add_argument(
        "--cache", default="", metavar="URL", help="the shared cache; by default $TF2AIF_REMOTE"
    )
    parser.add_argument(
        "--slots", type=count, help="steps at a time; by default as cores and memory bear"
    )
    parser.add_argument(
        "--offer",
        action="append",
        default=[],
        metavar="TOOLCHAIN",
        help="only this toolchain (repeatable); by default all that are here",
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run recipes' own code too: loaders, hooks, model functions",
    )
    parser.add_argument("--host", help="where this machine listens; with a certificate only")
    parser.add_argument("--scratch", metavar="DIR", help="where steps work; by default $TMPDIR")
    parser.add_argument(
        "--patience", type=count, default=60, metavar="S", help="how long a cache may be away"
    )
    _add_tls(parser)


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tls",
        metavar="DIR",
        help="this machine's certificate, of 'tf2aif farm keygen'; by default $TF2AIF_FARM_TLS",
    )


# What `build` calls.


@contextlib.contextmanager
def opened_farm(
    arguments: argparse.Namespace, project: Path
) -> Iterator[Callable[[Workspace], FarmPlan] | None]:
    """What lets a build join its farm; None, and nothing is imported, where it has none."""
    from .spec.config import load_config

    if not (arguments.farm or os.environ.get("TF2AIF_FARM") or load_config(project).farm):
        _remembered(project).unlink(missing_ok=True)  # later plans are without a farm, too
        yield None
        return
    from .farm.open import open_farm

    with open_farm(project, arguments.farm, tls=arguments.tls, remote=arguments.remote) as join:
        yield join


def last_farm(project: Path) -> Callable[[Workspace], FarmPlan] | None:
    """What shows a plan the farm of the last build; None where it had none."""
    if not _remembered(project).exists():
        return None
    from .farm.plan import remembered

    return remembered


def _remembered(project: Path) -> Path:
    return project / "build" / ".tf2aif" / "farm.json"


def tell_farm(space: Workspace) -> None:
    """Which machines of the farm did how many steps, in a line."""
    if space.farm is None:
        return
    if did := space.farm.report():
        words = ", ".join(f"{machine} {count}" for machine, count in did.items())
        print(f"farm: {sum(did.values())} steps: {words}", file=sys.stderr)
    elif not space.farm.seats.offers and not space.farm.seats.strangers:
        print("warning: no machine has joined the farm", file=sys.stderr)
    for offer in space.farm.seats.strangers:
        from .farm.source import version

        print(
            f"warning: nothing was sent to {offer.machine}: it has tf2aif {offer.version}, "
            f"here is {version()}",
            file=sys.stderr,
        )
    if kept := ", ".join(sorted(space.farm.seats.kept)):
        print(
            f"farm: steps that run with {kept} stay here: no machine that has their toolchain was "
            "started with --allow-code",
            file=sys.stderr,
        )


# The commands.


def _worker(arguments: argparse.Namespace, show_json: Show) -> int:
    from .farm.address import need_distributed, parse
    from .farm.offer import make_offer
    from .farm.worker import make_host, serve

    address = parse(arguments.address, arguments.tls)
    need_distributed()
    cache = arguments.cache or os.environ.get("TF2AIF_REMOTE", "")
    if not cache:
        raise Tf2aifError(
            "a worker needs a shared cache: inputs and outputs travel through it",
            hint="name it with --cache, or in TF2AIF_REMOTE",
        )
    from .remotes import RemoteUse
    from .spec.config import load_config

    offer = make_offer(
        name=arguments.name,
        slots=arguments.slots,
        only=arguments.offer,
        code=arguments.allow_code,
        cache=cache,
    )
    host = make_host(
        offer,
        RemoteUse(cache, write=True),
        trusted=load_config(Path.cwd()).cache.trusted,
        scratch=Path(arguments.scratch).absolute() if arguments.scratch else None,
        patience_s=arguments.patience,
    )
    _show_offer(offer, arguments, show_json)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)

    def joined(url: str) -> None:
        print(f"{offer.machine} waits for steps of {url}", file=sys.stderr, flush=True)

    serve(address, host, listen=arguments.host, joined=joined)
    return 0


def _show_offer(offer: Offer, arguments: argparse.Namespace, show_json: Show) -> None:
    if arguments.json:
        show_json(_plain(offer))
    else:
        print("\n".join(_offer_lines(offer)), flush=True)


def _scheduler(arguments: argparse.Namespace, show_json: Show) -> int:
    from .farm.address import need_distributed, parse
    from .farm.scheduler import serve

    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = parse(f"{host}:{arguments.port}", arguments.tls)
    need_distributed()

    def started(url: str) -> None:
        if arguments.json:
            show_json({"address": url})
        else:
            print(f"the scheduler listens at {url}", flush=True)

    serve(address, started=started)
    return 0


def _status(arguments: argparse.Namespace, show_json: Show) -> int:
    from .farm.farm import Farm

    farm = Farm(_address(arguments))
    try:
        offers = farm.offers()
    finally:
        farm.close()
    if arguments.json:
        show_json({"machines": {name: _plain(offer) for name, offer in sorted(offers.items())}})
    elif not offers:
        print("no machine has joined")
    else:
        print("\n".join(line for _, one in sorted(offers.items()) for line in _offer_lines(one)))
    return 0


def _address(arguments: argparse.Namespace) -> Address:
    from .farm.address import parse
    from .farm.open import settings
    from .spec.config import load_config

    found = settings(load_config(Path.cwd()), arguments.address)
    if found is None or found.address == "local":
        raise Tf2aifError("no farm is named", hint="tf2aif farm status HOST:PORT")
    return parse(found.address, arguments.tls or found.tls)


def _keygen(arguments: argparse.Namespace, show_json: Show) -> int:
    from .farm.keys import NAMES, make_keys

    folder = Path(arguments.folder)
    made = make_keys(folder, arguments.names or NAMES, days=arguments.days)
    if arguments.json:
        show_json({"certificates": [str(path) for path in made]})
        return 0
    for path in made:
        print(f"wrote {path}/: bring it to that machine, and name it with --tls")
    print(f"the authority's own key is {folder}/ca-key.pem: keep it, and bring it nowhere")
    return 0


_ACTIONS: dict[str, Callable[[argparse.Namespace, Show], int]] = {
    "scheduler": _scheduler,
    "status": _status,
    "keygen": _keygen,
}


def _plain(offer: Offer) -> Any:
    import msgspec

    return msgspec.to_builtins(offer)


def _offer_lines(offer: Offer) -> Iterator[str]:
    gpus = f", {offer.gpus} GPU" if offer.gpus else ""
    code = ", runs recipes' own code" if offer.code else ""
    yield (
        f"{offer.machine}: tf2aif {offer.version}, {offer.platform}, Python {offer.python}, "
        f"{offer.slots} slots, "
        f"{offer.memory_mb} MiB{gpus}{code}"
    )
    for label in offer.labels:
        yield f"  {label}"
