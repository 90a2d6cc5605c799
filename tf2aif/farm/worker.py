"""A machine of a farm as a process: it joins the scheduler, again when that comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from ..errors import Tf2aifError
from ..remotes import RemoteUse, open_remote
from ..remotes.keys import Trusted, find_signing_key
from ..store import Store
from .address import Address, is_loopback, need_distributed, security
from .carriage import Carriage
from .host import Host
from .offer import Offer
from .pickles import WORKER, keep_only
from .scheduler import first_of, settle, stop_event
from .source import has_changed
from .word import TOPIC, News

METADATA = "tf2aif"
"""Where the scheduler keeps what the machines offer, by name."""
AGAIN_S = 2.0
LOOK_S = 5.0
logger = logging.getLogger(__name__)


def make_host(
    offer: Offer,
    remote: RemoteUse,
    *,
    trusted: Iterable[str] = (),
    scratch: Path | None = None,
    timeout_s: float = 10.0,
    patience_s: float = 60.0,
) -> Host:
    """This machine with its store, shared cache and key. Raises Tf2aifError where one lacks."""
    key = find_signing_key()
    if key is None:
        raise Tf2aifError(
            "this machine has no key to sign what it makes",
            hint="tf2aif cache keygen; then add the public key to 'cache.trusted' of the projects",
        )
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    store = Store()
    carriage = Carriage(
        open_remote(remote.url, timeout_s), store, timeout_s=timeout_s, patience_s=patience_s
    )
    return Host(
        offer, carriage, store, key=key, trusted=Trusted([*trusted, key.public]), scratch=scratch
    )


def serve(
    address: Address,
    host: Host,
    *,
    listen: str | None = None,
    joined: Callable[[str], None] = lambda _: None,
) -> None:
    """Do errands until asked to end; `joined` is told each time the scheduler has taken us in.

    Raises Tf2aifError where others could reach this machine without a certificate, and where the
    scheduler does not want it.
    """
    need_distributed()
    if listen is None and is_loopback(address.host):
        listen = "127.0.0.1"
    if address.tls is None and not (listen and is_loopback(listen)):
        raise Tf2aifError(
            "without certificates a worker listens on 127.0.0.1 only",
            at=listen or "",
            hint="tf2aif farm keygen DIR, and --tls",
        )
    settle()
    try:
        asyncio.run(_serve(address, host, listen, joined))
    finally:
        host.close()


async def _serve(
    address: Address, host: Host, listen: str | None, joined: Callable[[str], None]
) -> None:
    told, stopped = False, stop_event()
    while not stopped.is_set():
        try:
            async with _worker(address, host, listen) as worker:
                await worker.scheduler.set_metadata(
                    keys=[METADATA, host.offer.machine], value=msgspec.to_builtins(host.offer)
                )
                joined(address.url)
                told = False
                await first_of(worker.finished(), stopped.wait(), _changed())
                if stopped.is_set() or has_changed():
                    host.close()  # before its threads are waited for
                    break
            logger.warning("the scheduler at %s has gone", address.url)
        except ValueError as error:  # dask's: the name is taken
            raise Tf2aifError(
                f"the scheduler does not take this machine: {error}",
                at=address.url,
                hint="give it another name with --name",
            ) from error
        except (OSError, TimeoutError) as error:
            if not told:
                logger.warning("no scheduler answers at %s: %s", address.url, error)
            told = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), AGAIN_S)
    if not stopped.is_set():
        raise Tf2aifError(
            "tf2aif was changed on this machine: it has left the farm",
            hint="start the worker again; systemd and Kubernetes do so",
        )


async def _changed() -> None:
    """Wait until another tf2aif lies where ours did."""
    while not has_changed():
        await asyncio.sleep(LOOK_S)


def _worker(address: Address, host: Host, listen: str | None) -> Any:
    """dask's worker, which knows one function."""
    offer = host.offer
    worker = worker_class()(
        address.url,
        name=offer.machine,
        nthreads=offer.slots,
        resources=offer.resources(),
        host=listen,
        security=security(address.tls),
        memory_limit=0,
        dashboard=False,
        extensions={},
        death_timeout=60,
        local_directory=str(host.scratch) if host.scratch else None,
    )
    attach(worker, host)
    return worker


def attach(worker: Any, host: Host) -> None:
    """Let a worker of dask do the errands of a machine."""

    def tell(news: News) -> None:
        worker.log_event(TOPIC, msgspec.to_builtins(news))

    host.tell = tell
    worker.tf2aif_host = host
    worker.plugins["tf2aif-cancel"] = _Cancel(host)


def worker_class() -> type[Any]:
    """dask's worker, without its web server and without what would run other code."""
    from distributed import Worker

    class Restricted(Worker):
        tf2aif_host: Host

        def __init__(self, *words: Any, **fields: Any) -> None:
            super().__init__(*words, **fields)
            keep_only(self, WORKER)

        def start_http_server(self, *_: Any, **__: Any) -> None:
            """No port but the one that shows certificates."""

        async def close(self, *words: Any, **fields: Any) -> Any:
            """Also when the scheduler has gone: nobody waits for what runs, and we would for it."""
            self.tf2aif_host.abandon_all()
            return await super().close(*words, **fields)

        async def plugin_add(self, *_: Any, **__: Any) -> Any:
            """A scheduler sends plug-ins when one joins: none is taken."""
            return {"status": "OK"}

    return Restricted


class _Cancel:
    """A plug-in of dask's worker: a step that nobody waits for is ended."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def setup(self, worker: Any) -> None:
        """Called by dask."""

    def teardown(self, worker: Any) -> None:
        """Called by dask."""

    def transition(self, key: object, start: str, finish: str, **_: Any) -> None:
        """Called by dask at each change of a task's state."""
        if start in ("executing", "long-running") and finish in ("released", "cancelled"):
            self._host.abandon(str(key))
