"""Serving a variant from start to stop: the one place where all parts meet."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ..engines.versions import engine_version
from ..errors import Tf2aifError
from .config import Config
from .energy import find_sources
from .hooks import Hooks, load_hooks
from .model import Model

LOG = logging.getLogger("tf2aif.serve")
SWITCH_S = 0.0005  # the engine's thread gets the interpreter back 10 times sooner than by default


def run(config: Config, announce: Callable[[str], None] | None = None) -> None:
    """Serve that variant until SIGTERM or SIGINT, then finish what was accepted.

    `announce` is told one line when the server is ready: its address and the model's. Signals
    are handled only on the main thread. Raises Tf2aifError where the variant, its hooks or the
    address cannot be used.
    """
    _need("uvicorn", "httptools", "prometheus_client")
    model = Model(config.variant)
    hooks_file = config.hooks or model.hooks_file
    hooks = load_hooks(hooks_file) if hooks_file else Hooks()
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, model, hooks, announce or LOG.info))


async def _serve(
    config: Config, model: Model, hooks: Hooks, announce: Callable[[str], None]
) -> None:
    # After `_need`: these import what it looks for.
    from .dataplane import DataPlane
    from .http import HttpDoor
    from .listener import listen, make_server
    from .metrics import Metrics

    record = model.record
    metrics = Metrics(
        model.name,
        model.version,
        record.engine.name,
        emulates=record.emulates or "",
        artifact=record.artifact,
        engine_version=engine_version(record.engine.name) or "",
        threads="" if config.threads is None else str(config.threads),
    )
    sources = find_sources() if config.energy else []
    plane = DataPlane(model, hooks, config, metrics, sources)
    try:
        listener = listen(config.host, config.port)
    except OSError as error:
        raise Tf2aifError(
            f"cannot listen: {error.strerror or error}", at=f"{config.host}:{config.port}"
        ) from error
    server = make_server(HttpDoor(plane, config.limits), config, plane.drain)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(plane.start())
    try:
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():  # else: told to stop while it loads
            starting.result()
            # What is alive now stays: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            host, port = listener.getsockname()[:2]
            announce(f"ready http://{host}:{port} {model.name}/{model.version}")
    except Tf2aifError:
        server.should_exit = True
        raise
    finally:
        await serving
        starting.cancel()
        plane.stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one for this machine; asyncio's own otherwise."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Any = uvloop.new_event_loop
    return factory  # type: ignore[no-any-return]


def _need(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise Tf2aifError(
            f"the server needs {', '.join(missing)}", hint="pip install 'tf2aif[serve]'"
        )
