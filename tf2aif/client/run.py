"""A run of the client from options to report: the one place where all parts meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from .. import __version__
from ..errors import Tf2aifError
from ..serve.datatypes import NUMPY
from .address import Address, read_address
from .answers import Accuracy, Kept, collect, judge
from .connection import Connection, ConnectionFailed
from .figures import figures_of
from .load import Load, Pace, Window
from .machine import this_machine
from .measure import LocalSubject, Step, generator_name, measure, warm_up_all
from .report import Report, Run, Served, ServerReport
from .samples import Samples, read_payloads, read_reference, read_samples
from .server import Messages, ModelInfo, PayloadMessages, Server, TensorMessages, error_text
from .stages import Stage, between, read_info, read_memory, read_stages

Array = NDArray[Any]

KEPT_BYTES = 32 * 2**20  # of answers under load, looked at after each window
COLLECT_ROWS = 32


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked of which servers, and what its answers are compared with."""

    urls: tuple[str, ...]
    samples: Annotated[
        Path | None, Meta(description="a set's folder, an .npz or an .npy; by default random")
    ] = None
    files: Annotated[
        tuple[Path, ...], Meta(description="raw files, for the server's hooks; not with samples")
    ] = ()
    reference: Annotated[
        Path | None, Meta(description="the source model's stored outputs, a folder")
    ] = None
    metric: Annotated[str | None, Meta(description="by default top-1, where there are labels")] = (
        None
    )
    output: Annotated[str | None, Meta(description="which output is scored")] = None
    encoding: Annotated[Literal["binary", "json"], Meta(description="of the tensors")] = "binary"
    loads: Annotated[tuple[Load, ...], Meta(description="scenarios, one after the other")] = (
        Load(),
    )
    timeout_s: Annotated[float, Meta(gt=0, description="of one request")] = 30.0
    ready_s: Annotated[float, Meta(ge=0, description="to wait for a server to be ready")] = 10.0


class Show(Protocol):
    """What a person who waits sees."""

    def stage(self, name: str) -> None:
        """Something else begins."""

    def __call__(self, step: Step) -> None:
        """One more window is measured."""


class Silent:
    """Shows nothing."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def __call__(self, step: Step) -> None:
        """Nothing."""


class ServerSubject(LocalSubject):
    """A model at an address, as something that is measured."""

    def __init__(
        self,
        server: Server,
        model: ModelInfo,
        version: str,
        messages: Messages,
    ) -> None:
        super().__init__(server.address.url, self._asker, messages.count, messages.rows)
        self.server = server
        self.model = model
        self.version = version
        self.messages = messages
        self._kept: Kept | None = None

    def run(self, load: Load, pace: Pace, number: int) -> Window:
        """Run one window, and look at its answers afterwards."""
        window = super().run(load, pace, number)
        wrong = self._kept.take_wrong() if self._kept is not None else {}
        return window if not wrong else _with_failures(window, wrong)

    def answers(self) -> dict[str, Array]:
        """The outputs for all samples, in their order; what comes under load is held to them.

        Raises Tf2aifError where a sample has no answer.
        """
        rows = COLLECT_ROWS if self.messages.rows is None else self.messages.rows
        outputs = collect(self.messages, self._connection, connections=2, rows=rows)
        self._kept = Kept(self.messages, outputs, KEPT_BYTES)
        return outputs

    def stages(self) -> dict[str, Any]:
        """The server's own histograms as they stand."""
        return read_stages(self.server.metrics() or "")

    def _connection(self) -> Connection:
        return Connection(self.server.address, self.server.timeout_s)

    def _asker(self) -> _Asker:
        return _Asker(self._connection(), self.messages, self._kept)


class _Asker:
    """One connection of a subject."""

    def __init__(self, connection: Connection, messages: Messages, kept: Kept | None) -> None:
        self._connection = connection
        self._message = messages.of
        self._kept = kept

    def ask(self, indices: Sequence[int]) -> str | None:
        """Ask for these samples; what went wrong, or None."""
        try:
            reply = self._connection.exchange(self._message(indices))
        except ConnectionFailed as error:
            return str(error)
        if reply.status != 200:
            return error_text(reply)
        if self._kept is not None:
            self._kept.keep(indices, reply)
        return None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def run(options: Options, show: Show | None = None) -> Report:
    """Check and measure every server. Raises Tf2aifError where one does not answer as it must.

    Servers are measured in turns, window by window.
    """
    show = show or Silent()
    if not options.urls:
        raise Tf2aifError("no server is named", hint="write http://HOST:PORT")
    if options.samples is not None and options.files:
        raise Tf2aifError("samples and files are both given", hint="one of the two is sent")
    reference = read_reference(options.reference) if options.reference else None
    samples = read_samples(options.samples) if options.samples else None
    subjects = {url: _subject(url, options, samples) for url in dict.fromkeys(options.urls)}
    try:
        show.stage("asking for every sample once")
        checked = {
            url: check(subject, options, samples, reference) for url, subject in subjects.items()
        }
        runs = {url: list[Run]() for url in subjects}
        for load in options.loads:
            show.stage(load.scenario)
            for url, found in measure_servers(subjects, load, show).items():
                runs[url].append(found)
    finally:
        for subject in subjects.values():
            subject.close()
    return Report(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        client=__version__,
        generator=", ".join(dict.fromkeys(generator_name(load) for load in options.loads)),
        encoding="raw" if options.files else options.encoding,
        machine=this_machine(),
        servers=tuple(
            _server_report(subject, checked[url], runs[url]) for url, subject in subjects.items()
        ),
    )


def open_server(
    address: Address, samples: Samples | None, *, binary: bool, timeout_s: float, ready_s: float
) -> ServerSubject:
    """A subject of the model at that address, once its server is ready. Raises Tf2aifError."""
    server = Server(address, timeout_s=timeout_s)
    server.wait_ready(ready_s)
    path = server.model_path()
    model = server.describe(path)
    samples = samples or random_samples(model)
    messages = TensorMessages(address, path, model, samples, binary=binary)
    return ServerSubject(server, model, _version(path, model), messages)


def check(
    subject: ServerSubject,
    options: Options,
    samples: Samples | None,
    reference: Mapping[str, Array] | None,
) -> Accuracy | None:
    """Ask for every sample once and judge the answers; None for raw files and random samples."""
    if options.files:
        return None
    outputs = subject.answers()
    if samples is None:
        return None
    return judge(
        outputs,
        reference=reference,
        labels=samples.labels,
        metric=options.metric,
        output=options.output,
    )


def measure_servers(
    subjects: Mapping[str, ServerSubject], load: Load, show: Callable[[Step], None]
) -> dict[str, Run]:
    """One scenario on all servers, in turns, and what each says of its own stages meanwhile."""
    paces = warm_up_all(subjects, load)
    before = {name: subject.stages() for name, subject in subjects.items()}
    windows = measure(subjects, load, paces, show)
    return {
        name: Run(
            load=load,
            figures=figures_of(load.scenario, windows[name]),
            stages=_between(before[name], subject),
        )
        for name, subject in subjects.items()
    }


def random_samples(model: ModelInfo, count: int = 64, seed: int = 0) -> Samples:
    """Samples for a model of which nothing else is known; a free axis is 1 long."""
    generator = np.random.default_rng(seed)
    inputs = {}
    for tensor in model.inputs:
        axes = [1 if axis == -1 else axis for axis in tensor.shape]
        batched = tensor.shape[:1] in ((-1,), (1,))
        shape = (count, *(axes[1:] if batched else axes))
        dtype = NUMPY[tensor.datatype]
        if dtype.kind == "f":
            inputs[tensor.name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iub":
            inputs[tensor.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            raise Tf2aifError(f"input '{tensor.name}' is {tensor.datatype}: give samples for it")
    return Samples(inputs=inputs, random=True)


def _subject(url: str, options: Options, samples: Samples | None) -> ServerSubject:
    address = read_address(url)
    if not options.files:
        return open_server(
            address,
            samples,
            binary=options.encoding == "binary",
            timeout_s=options.timeout_s,
            ready_s=options.ready_s,
        )
    server = Server(address, timeout_s=options.timeout_s)
    server.wait_ready(options.ready_s)
    path = server.model_path()
    model = server.describe(path)
    messages = PayloadMessages(address, read_payloads(options.files))
    return ServerSubject(server, model, _version(path, model), messages)


def _server_report(
    subject: ServerSubject, accuracy: Accuracy | None, runs: Sequence[Run]
) -> ServerReport:
    return ServerReport(
        url=subject.server.address.url,
        model=subject.model.name,
        version=subject.version,
        platform=subject.model.platform,
        served=read_served(subject.server.metrics() or ""),
        accuracy=accuracy,
        runs=tuple(runs),
    )


def read_served(metrics: str) -> Served | None:
    """What a server of ours says of itself in its metrics; None for others."""
    labels = read_info(metrics)
    if not {"name", "version", "engine"} <= labels.keys():
        return None
    threads = labels.get("threads", "")
    return Served(
        artifact=labels.get("artifact", ""),
        engine=labels["engine"],
        engine_version=labels.get("engine_version", ""),
        emulates=labels.get("emulates", ""),
        threads=int(threads) if threads.isdigit() else None,
        memory_bytes=read_memory(metrics),
    )


def _version(path: str, model: ModelInfo) -> str:
    """The version that is asked: the one in the path, or the only one."""
    _, named, version = path.partition("/versions/")
    if named:
        return version
    return model.versions[0] if len(model.versions) == 1 else ""


def _between(before: dict[str, Any], subject: ServerSubject) -> dict[str, Stage]:
    return between(before, subject.stages())


def _with_failures(window: Window, more: Mapping[str, int]) -> Window:
    failures = dict(window.failures)
    for what, count in more.items():
        failures[what] = failures.get(what, 0) + count
    return msgspec.structs.replace(window, failures=failures)
