"""Real servers for tests: a Docker engine, a registry, and a connection that can be cut.

Each is started from Debian's packages (docker.io, iptables, docker-registry) on this machine, and
ended with the test session. Where they are not installed, or we are not root, tests skip and say
so.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DOCKERD = "/usr/sbin/dockerd"
INSTALL = "apt-get install --no-install-recommends docker.io iptables docker-registry skopeo"


def need(*programs: str, root: bool = False) -> None:
    """Skip the test where one of these is not there."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: {INSTALL}")
    if root and os.geteuid() != 0:
        pytest.skip("needs root, to start a Docker engine")


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    """Until it is ready, at most 30 s."""
    until = time.monotonic() + 30
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"{what} did not start: it ended with {process.poll()}")
        time.sleep(0.05)


@contextlib.contextmanager
def docker_engine(folder: Path) -> Iterator[str]:
    """A Docker engine with its own storage below `folder`; its address."""
    need(DOCKERD, "iptables", root=True)
    # A socket's path has at most 108 characters; pytest's folders are longer.
    runtime = Path("/run") / f"tf2aif-test-{os.getpid()}-{os.urandom(3).hex()}"
    runtime.mkdir()
    address = runtime / "docker.sock"
    command = [
        DOCKERD,
        f"--data-root={folder / 'data'}",
        f"--exec-root={runtime / 'exec'}",
        f"--pidfile={folder / 'pid'}",
        f"--host=unix://{address}",
        "--storage-driver=overlay2",
        "--iptables=false",
        "--ip6tables=false",
        "--bridge=none",
        "--ip-forward=false",
    ]
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: address.exists() and _pings(address), "dockerd", process)
        yield f"unix://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)
        unmount_below(folder)
        unmount_below(runtime)
        shutil.rmtree(runtime, ignore_errors=True)
        shutil.rmtree(folder / "data", ignore_errors=True)


def unmount_below(folder: Path) -> None:
    """Take away what dockerd leaves mounted, so that the folder can be removed."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mount], check=True)


def _pings(address: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(address))
        client.sendall(b"GET /_ping HTTP/1.0\r\nHost: x\r\n\r\n")
        return b" 200 " in client.recv(64)
    return False


CONFIG = """version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: 127.0.0.1:{port}, secret: test{tls}}}
"""


@contextlib.contextmanager
def docker_registry(
    folder: Path,
    *,
    htpasswd: str = "",
    auth: str = "",
    tls: str = "",
    root: Path | None = None,
) -> Iterator[str]:
    """A registry with its files below `folder` (or at `root`); its host and port.

    `auth` and `tls` are those parts of its configuration.
    """
    need("docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    secure = f", tls: {tls}" if tls else ""
    text = CONFIG.format(root=root or folder / "files", port=port, tls=secure)
    text += f"auth: {auth}\n" if auth else ""
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd)
        text += f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    (folder / "config.yml").write_text(text)
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        wait_for(lambda: _answers(port), "docker-registry", process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status in (200, 400, 401)  # 400: it speaks TLS
    except OSError:
        return False
    finally:
        connection.close()


class Cutter:
    """A TCP proxy that cuts connections; `cuts` counts down.

    It cuts once so many bytes went up on a connection (`after_bytes`), or before the request with
    that number, counted from 0, among those that begin so (`before`).
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.partition(":")
        self.upstream = (host, int(port))
        self.after_bytes: int | None = None
        self.before: tuple[bytes, int] | None = None
        self.cuts = 0
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nothing more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.upstream)
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data[:4] in (b"POST", b"PUT ", b"PATC", b"GET ", b"HEAD"):
                    self.requests.append(data.split(b"\r\n", 1)[0])
                seen += len(data)
                if self.cuts and self._is_due(data, seen):
                    self.cuts -= 1
                    break
                server.sendall(data)
        _close(client, server)

    def _is_due(self, data: bytes, seen: int) -> bool:
        if self.before is not None and data.startswith(self.before[0]):
            return sum(one.startswith(self.before[0]) for one in self.requests) > self.before[1]
        return self.after_bytes is not None and seen > self.after_bytes

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        _close(client, server)


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


# The head of an ELF file for aarch64, and which bits of it count.
_ELF = "7f454c460201010000000000000000000200b700"
_MASK = "ffffffffffffff00fffffffffffffffffeffffff"
BINFMT = Path("/proc/sys/fs/binfmt_misc")


@contextlib.contextmanager
def emulated_arm64(folder: Path) -> Iterator[None]:
    """This machine runs arm64 programs, through Debian 13's qemu: 12's hangs with LiteRT.

    The handler is the kernel's, for all of the machine; it is taken away again.
    """
    from tf2aif.oci.apt import fetch, lock_packages
    from tf2aif.oci.deb import unpack

    need("apt-get", "mount", root=True)
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if not sources.is_file():
        pytest.skip("needs Debian's sources, for its qemu-user")
    etc = folder / "etc" / "sources.list.d"
    etc.mkdir(parents=True)
    (etc / "debian.sources").write_text(sources.read_text().replace("bookworm", "trixie"))
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    lock = lock_packages(["qemu-user"], "trixie", architecture, etc.parent)
    unpack(fetch(lock, folder / "debs", etc.parent)["qemu-user"], folder / "root")
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", str(BINFMT)], check=True)
    name = f"tf2aif-test-{os.getpid()}"
    magic, mask = (
        "".join(f"\\x{text[i : i + 2]}" for i in range(0, len(text), 2)) for text in (_ELF, _MASK)
    )
    emulator = folder / "root" / "usr" / "bin" / "qemu-aarch64"
    # F: opened now, so that containers need no file of it.
    (BINFMT / "register").write_text(f":{name}:M::{magic}:{mask}:{emulator}:FO")
    try:
        yield
    finally:
        (BINFMT / name).write_text("-1")
