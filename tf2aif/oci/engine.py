"""A Docker engine through its API: load, build, run. Podman's service works but for its health.

Everything here raises Tf2aifError with what the engine said.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from ..errors import StepFailed, Tf2aifError, ToolchainMissing
from .archive import write_archive
from .image import PORT
from .layout import Layout, StoredImage

TIMEOUT_S = 600
_LOG_LINES = 15


class Needs(Struct, frozen=True, kw_only=True):
    """What a container of a target needs of its host."""

    devices: tuple[str, ...] = ()  # such as /dev/dri/renderD128
    gpus: int = 0  # NVIDIA's, -1: all
    groups: tuple[str, ...] = ()  # supplementary, for the devices
    memory_mb: int | None = None
    cpus: float | None = None
    environment: dict[str, str] = {}


class Running(Struct, frozen=True, kw_only=True):
    """A container that answers."""

    id: str
    name: str
    address: str  # such as http://127.0.0.1:8080
    ready_s: float  # from its start until it was healthy


class Engine:
    """One engine; `address` as in DOCKER_HOST, by default that or the usual socket."""

    def __init__(self, address: str = "") -> None:
        import docker

        _look_for_socket(address or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
        with _spoken("reach the Docker engine"):
            self.client: Any = (
                docker.DockerClient(base_url=address, timeout=TIMEOUT_S)
                if address
                else docker.from_env(timeout=TIMEOUT_S)
            )
            try:
                self.client.ping()
            except BaseException:
                self.client.close()
                raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def load(self, layout: Layout, image: StoredImage, name: str, tag: str) -> str:
        """Load an image of a layout as `name:tag`; nothing is written between. Its id."""
        with _spoken(f"load {name}:{tag}"):
            with _archive_stream(layout, image, name, tag) as stream:
                for _ in self.client.api.load_image(stream):
                    pass  # until the engine has read and unpacked it all
            return str(self.client.images.get(f"{name}:{tag}").id)

    def has(self, tag: str, image: StoredImage) -> bool:
        """Whether that tag is this image: by its configuration, or by its manifest."""
        from docker.errors import ImageNotFound

        with _spoken(f"look for {tag}"):
            try:
                found = str(self.client.images.get(tag).id)
            except ImageNotFound:
                return False
        return found in (image.manifest.config.digest, image.descriptor.digest)

    def build(
        self, context: IO[bytes], tag: str, *, dockerfile: str = "Dockerfile", platform: str = ""
    ) -> str:
        """Build a Dockerfile of a context (a tar) and tag it. Its id.

        Raises StepFailed with the last lines of the build's log.
        """
        lines: list[str] = []
        with _spoken(f"build {tag}"):
            log = self.client.api.build(
                fileobj=context,
                custom_context=True,
                dockerfile=dockerfile,
                tag=tag,
                platform=platform or None,
                rm=True,
                forcerm=True,
                decode=True,
                network_mode="host",
            )
            for part in log:
                lines += str(part.get("stream", "")).splitlines()
                if "error" in part:
                    tail = "\n".join(line for line in lines if line.strip())[-1500:]
                    raise StepFailed(f"docker build: {part['error'].strip()}\n{tail}", at=tag)
            return str(self.client.images.get(tag).id)

    @contextmanager
    def saved(self, tag: str) -> Iterator[IO[bytes]]:
        """What `docker save` writes of an image, as a stream."""
        with _spoken(f"save {tag}"):
            yield _Chunks(self.client.images.get(tag).save(named=True))  # type: ignore[misc]

    def run(
        self,
        image: str,
        needs: Needs | None = None,
        *,
        name: str = "",
        port: int = 0,
        network: str = "",
        command: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> Running:
        """Start a container, read-only and without capabilities, and wait until it is healthy.

        `port` is on 127.0.0.1 (0: any free one). With `network="host"`, for engines without a
        bridge, the server listens at that port itself. Raises StepFailed with the container's last
        lines where it ends or stays unhealthy; it is removed then.
        """
        host = network == "host"
        port = port or (free_port() if host else 0)
        options = container_options(needs or Needs(), port=port, host=host)
        if host:
            command = command or ("--port", str(port))
            options["healthcheck"] = self._health_at(image, port)
        with _spoken(f"run {image}"):
            container = self.client.containers.create(
                image, command=list(command) or None, name=name or None, **options
            )
        start = time.monotonic()
        try:
            with _spoken(f"run {image}"):
                container.start()
            with _spoken("look at the container"):
                address = f"http://127.0.0.1:{port if host else _published(container)}"
            self._wait(container, address, timeout_s)
        except BaseException:
            container.remove(force=True)
            raise
        taken = time.monotonic() - start
        return Running(id=container.id, name=container.name, address=address, ready_s=taken)

    def stop(self, container: str, timeout_s: int = 30) -> None:
        """Stop a container gracefully and remove it."""
        with _spoken(f"stop {container}"):
            found = self.client.containers.get(container)
            found.stop(timeout=timeout_s)
            found.remove(force=True)

    def _wait(self, container: Any, address: str, timeout_s: float) -> None:
        """Until the engine finds it healthy, or it says so itself: an engine asks every 5 s."""
        until = time.monotonic() + timeout_s
        while True:
            with _spoken("look at the container"):
                container.reload()
                state = container.attrs["State"]
            if not state["Running"]:
                raise _failed(container, f"the container ended with {state.get('ExitCode')}")
            health = (state.get("Health") or {}).get("Status", "none")
            if health == "healthy" or is_ready(address):
                return
            if health == "unhealthy":
                raise _failed(container, "the container is unhealthy")
            if time.monotonic() > until:
                raise _failed(container, f"the container is not healthy after {timeout_s:.0f} s")
            time.sleep(0.1)

    def _health_at(self, image: str, port: int) -> dict[str, Any] | None:
        """The image's own health check, at another port."""
        with _spoken(f"look at {image}"):
            check = self.client.images.get(image).attrs["Config"].get("Healthcheck")
        if not check:
            return None
        return {
            "test": [word.replace(f",{PORT})", f",{port})") for word in check["Test"]],
            "interval": check["Interval"],
            "timeout": check["Timeout"],
            "start_period": check["StartPeriod"],
            "retries": check["Retries"],
        }


def is_ready(address: str) -> bool:
    """Whether a server says that it is ready."""
    import requests

    try:
        return requests.get(f"{address}/v2/health/ready", timeout=2.0).status_code == 200
    except requests.RequestException:
        return False


def container_options(needs: Needs, *, port: int, host: bool) -> dict[str, Any]:
    """How `docker run` is asked to start it, in the SDK's words."""
    from docker.types import DeviceRequest, Ulimit

    options: dict[str, Any] = {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "tmpfs": {"/tmp": "rw,noexec,nosuid,size=64m"},
        "pids_limit": 512,
        "environment": dict(needs.environment),
        "devices": [f"{path}:{path}:rwm" for path in needs.devices],
        "group_add": list(needs.groups),
        "ulimits": [Ulimit(name="core", soft=0, hard=0)],
    }
    if needs.memory_mb:
        options |= {"mem_limit": f"{needs.memory_mb}m", "memswap_limit": f"{needs.memory_mb}m"}
    if needs.cpus:
        options["nano_cpus"] = int(needs.cpus * 1e9)
    if needs.gpus:
        options["device_requests"] = [DeviceRequest(count=needs.gpus, capabilities=[["gpu"]])]
    if host:
        options["network_mode"] = "host"
    else:
        options["ports"] = {f"{PORT}/tcp": ("127.0.0.1", port or None)}
    return options


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listened at a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _published(container: Any) -> int:
    container.reload()
    ports: Mapping[str, Any] = container.attrs["NetworkSettings"]["Ports"]
    return int(ports[f"{PORT}/tcp"][0]["HostPort"])


def _failed(container: Any, what: str) -> StepFailed:
    log = container.logs(tail=_LOG_LINES).decode(errors="replace").strip()
    return StepFailed(f"{what}; it said:\n{log}" if log else what, at=str(container.name))


@contextmanager
def _archive_stream(layout: Layout, image: StoredImage, name: str, tag: str) -> Iterator[IO[bytes]]:
    """The archive as it is written, through a pipe, so that no copy of it is on disk."""
    reading, writing = os.pipe()
    failures: list[OSError | Tf2aifError] = []

    def write() -> None:
        try:
            with open(writing, "wb") as file:
                write_archive(layout, image, file, name, tag)
        except (OSError, Tf2aifError) as error:
            failures.append(error)

    thread = threading.Thread(target=write, daemon=True)
    with open(reading, "rb") as stream:
        thread.start()
        yield stream
    thread.join()
    for failure in failures:
        if not isinstance(failure, BrokenPipeError):
            raise failure


class _Chunks:
    """An iterator of bytes as a file to read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        parts, length = [self._rest], len(self._rest)
        for chunk in self._chunks:
            parts.append(chunk)
            length += len(chunk)
            if 0 <= size <= length:
                break
        data = b"".join(parts)
        cut = len(data) if size < 0 else size
        self._rest = data[cut:]
        return data[:cut]


@contextmanager
def _spoken(what: str) -> Iterator[None]:
    """The engine's errors as ours."""
    import requests
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        said = str(error.explanation or error)
        if "could not select device driver" in said:
            raise Tf2aifError(
                f"cannot {what}: this Docker engine can give no GPU to a container",
                hint="install NVIDIA's driver and its Container Toolkit where the engine runs, and "
                "restart the engine",
            ) from error
        hint = "'devices' of the target's 'container:'" if "custom device" in said else ""
        raise Tf2aifError(f"cannot {what}: {said}", hint=hint) from error
    except (DockerException, requests.RequestException) as error:
        raise ToolchainMissing(
            f"cannot {what}: {_first_line(error)}",
            hint="is an engine running? DOCKER_HOST says where; images are composed without one",
        ) from error


def _look_for_socket(address: str) -> None:
    """Without one the SDK fails, too, and leaves a socket open."""
    path = Path(address.removeprefix("unix://"))
    if address.startswith("unix://") and not path.exists():
        raise ToolchainMissing(
            "cannot reach the Docker engine: there is no such socket",
            hint=f"{path}: is an engine running? DOCKER_HOST says where; images are composed "
            "without one",
        )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]


def context_of(folder: Path) -> IO[bytes]:
    """A folder as the context of a build, without what its .dockerignore names."""
    from docker.utils import build

    patterns: list[str] = []
    ignore = folder / ".dockerignore"
    if ignore.is_file():
        lines = (line.strip() for line in ignore.read_text().splitlines())
        patterns = [line for line in lines if line and not line.startswith("#")]
    found: IO[bytes] = build.tar(str(folder), exclude=patterns, gzip=False)
    return found
