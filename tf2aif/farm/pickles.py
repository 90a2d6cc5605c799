"""What a farm's machines unpickle: our one function and the envelope that dask puts around it.

dask sends functions as pickles, and whoever may submit one could have anything run. So every
pickle that comes to a worker or scheduler is read by an unpickler that knows the few names below;
and of what dask's servers would do on request, only what a farm needs is left.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ..errors import Tf2aifError

NAMES = frozenset(
    {
        ("tf2aif.farm.attempt", "run_remote"),
        ("builtins", "bytes"),
        ("builtins", "str"),
        ("dask._expr", "Expr._reconstruct"),
        ("dask._expr", "LLGExpr"),
        ("dask._task_spec", "Task"),
    }
)
"""Module and name of what is taken; with dask 2026.8 a submitted call needs no more."""

KILLED = ("distributed.scheduler", "KilledWorker")

SCHEDULER = frozenset(
    {
        "connection_stream", "gather", "get_metadata", "heartbeat_worker", "identity",
        "register-client", "register-worker", "set_metadata", "unregister",
    }
)  # fmt: skip
"""What a scheduler does on request; see also `CALLS`."""

WORKER = frozenset({"connection_stream", "free_keys", "get_data", "identity", "ping", "terminate"})

CALLS = frozenset(
    {
        "add-keys", "cancel-compute", "cancel-keys", "client-desires-keys", "client-releases-keys",
        "close", "close-client", "compute-task", "free-keys", "heartbeat-client", "keep-alive",
        "log-event", "release-worker-data", "remove-replicas", "remove-worker", "report-key",
        "request-refresh-who-has", "refresh-who-has", "reschedule", "steal-request",
        "steal-response", "subscribe-topic", "task-erred", "task-finished", "unsubscribe-topic",
        "update-graph", "worker-status-change", "acquire-replicas", "close-stream",
    }
)  # fmt: skip
"""What may come over an open stream, of both kinds of server."""


class Unpickler(pickle.Unpickler):
    """Knows the names of `NAMES` only."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises pickle.UnpicklingError for any other name."""
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not run on a farm")
        return super().find_class(module, name)


class Unknown(Exception):
    """What stands in a build for whatever else a farm's machines may send: it does nothing."""

    def __init__(self, *words: object, **_: object) -> None:
        super().__init__(*map(str, words))

    def __setstate__(self, state: object) -> None:
        """Whatever it was to be."""


class AnswerUnpickler(Unpickler):
    """A build's: it is told why a task failed, in exceptions of any kind."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, or `Unknown` in its place."""
        if (module, name) == KILLED:
            return pickle.Unpickler.find_class(self, module, name)
        try:
            return super().find_class(module, name)
        except pickle.UnpicklingError:
            return Unknown


def restrict(unpickler: type[pickle.Unpickler] = Unpickler) -> None:
    """From now on this process unpickles nothing else that comes over dask's connections.

    Raises Tf2aifError where this version of dask reads pickles in a way that is not known here.
    """
    theirs: Any = importlib.import_module("distributed.protocol.pickle")

    def loads(data: bytes, *, buffers: Iterable[Any] = ()) -> Any:
        return unpickler(io.BytesIO(data), buffers=buffers).load()

    theirs.pickle = SimpleNamespace(  # what `loads` there looks its own `loads` up in
        loads=loads,
        dumps=pickle.dumps,
        Pickler=pickle.Pickler,
        HIGHEST_PROTOCOL=pickle.HIGHEST_PROTOCOL,
    )
    try:
        if theirs.loads(pickle.dumps(io.StringIO)) is Unknown:
            return
    except pickle.UnpicklingError:
        return
    raise Tf2aifError(
        "this version of 'distributed' cannot be restricted", hint="pip install 'tf2aif[farm]'"
    )


def keep_only(server: Any, wanted: Iterable[str]) -> None:
    """Take from a server of dask every request that is not wanted: `run` a function, plugins."""
    for name in set(server.handlers) - set(wanted):
        del server.handlers[name]
    for name in set(server.stream_handlers) - CALLS:
        del server.stream_handlers[name]
