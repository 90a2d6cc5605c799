"""The scheduler of a farm: dask's own, which dispatches; restricted, so that it runs no code."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import Tf2aifError
from .address import Address, need_distributed, security
from .pickles import SCHEDULER, keep_only, restrict

SETTINGS: dict[str, Any] = {
    # A step that ended two machines is not tried on a third.
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-ttl": "60s",  # a machine without power says no good-bye
    "distributed.scheduler.http.routes": [],
    "distributed.admin.log-length": 1000,
    "distributed.admin.low-level-log-length": 100,
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,  # steps run in processes of their own
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.comm.timeouts.connect": "10s",
}
"""Of dask, for the processes of a farm."""


def serve(address: Address, *, started: Callable[[str], None] = lambda _: None) -> None:
    """Be the scheduler, until it is asked to end; `started` is told the address that it listens at.

    Raises Tf2aifError where it cannot listen.
    """
    need_distributed()
    settle()
    try:
        asyncio.run(_serve(address, started))
    except OSError as error:
        raise Tf2aifError(f"cannot listen: {error}", at=address.url) from error


def settle(*, restricted: bool = True) -> None:
    """Make this process one of a farm."""
    import dask

    dask.config.set(SETTINGS)
    for name in ("distributed", "tornado"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if restricted:
        restrict()


def scheduler_class() -> type[Any]:
    """dask's scheduler, without its web server and without what would run code there."""
    from distributed import Scheduler

    class Restricted(Scheduler):
        def __init__(self, **fields: Any) -> None:
            super().__init__(**fields)
            keep_only(self, SCHEDULER)

        def start_http_server(self, *_: Any, **__: Any) -> None:
            """No port but the one that shows certificates."""

    return Restricted


async def _serve(address: Address, started: Callable[[str], None]) -> None:
    from distributed.stealing import WorkStealing

    scheduler = scheduler_class()(
        host=address.host,
        port=address.port,
        protocol="tls" if address.tls else "tcp",
        security=security(address.tls),
        dashboard=False,
        extensions={"stealing": WorkStealing},
    )
    stopped = stop_event()
    async with scheduler:
        started(scheduler.address)
        await first_of(scheduler.finished(), stopped.wait())


def stop_event() -> asyncio.Event:
    """Set when somebody asks this process to end, by SIGTERM or Ctrl-C."""
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


async def first_of(*waiting: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of them is over; raises what it raised."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for task in done:
        task.result()
