"""Real servers of shared caches, on this machine: nginx with WebDAV, and OpenStack Swift's S3.

(`engine.docker_registry` is the third.) And `Faults`: a connection between us and them on which
anything can go wrong. What is not installed makes tests skip, and say what they need.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import free_port, wait_for

DAV = Path("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so")
SWIFT = "TF2AIF_SWIFT_PYTHON"
NGINX_CONFIG = """{modules}
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000;
  {server}
}}
"""
_SERVER = """server {{
    listen 127.0.0.1:{port} sndbuf=64k;
    root {files};
    create_full_put_path on;
    dav_methods {methods};
    {more}
  }}"""


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


class Nginx:
    """A web server that takes PUT and DELETE below one folder; it can be killed and started."""

    def __init__(
        self,
        folder: Path,
        files: Path | None = None,
        *,
        write: bool = True,
        dav: bool = True,
        server: str = "",
    ) -> None:
        dav = dav and DAV.exists()
        if shutil.which("nginx") is None:
            pytest.skip("needs nginx: apt-get install nginx-light")
        self.folder = folder
        self.files = files or folder / "files"
        for path in (folder, self.files):
            path.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        own = _SERVER.format(
            files=self.files,
            port=self.port,
            methods="PUT DELETE" if write else "off",
            more="dav_ext_methods PROPFIND OPTIONS;" if dav else "",
        )
        for here, there in (("PORT", str(self.port)), ("FILES", str(self.files))):
            server = server.replace(here, there)
        modules = f"load_module {DAV};" if dav else ""
        text = NGINX_CONFIG.format(modules=modules, folder=folder, server=server or own)
        (folder / "nginx.conf").write_text(text)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """The address as a remote has it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = ["nginx", "-c", str(self.folder / "nginx.conf"), "-p", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: listens(self.port), "nginx", self.process)

    def kill(self) -> None:
        """As a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=30)
            self.process = None


@contextlib.contextmanager
def nginx(folder: Path, files: Path | None = None, **more: Any) -> Iterator[Nginx]:
    """A web server with its files below `folder`, or in `files`; it takes PUT, and can list.

    Without Debian's libnginx-mod-http-dav-ext it cannot. `server`: its block of the configuration,
    with PORT and FILES to be filled in, in place of ours.
    """
    started = Nginx(folder, files, **more)
    try:
        yield started
    finally:
        started.kill()


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """A file system of that size."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small disk")
    folder.mkdir(parents=True)
    options = f"size={size_kb}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# OpenStack Swift: a proxy with its S3 API and users of its own, and one server for each table.

USER, SECRET = "test:tester", "testing"
_HEAD = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
log_address = {folder}/nothing
disable_fallocate = true
user = {user}
"""
_STORAGE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
access_log_name = /dev/null
[filter:cache]
use = egg:swift#memcache
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""
_SWIFT_CONF = """[swift-hash]
swift_hash_path_suffix = test
swift_hash_path_prefix = test
[storage-policy:0]
name = only
default = yes
"""


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[str]:
    """OpenStack Swift with its S3 API; the address for `AWS_ENDPOINT_URL`.

    It is a real implementation of SigV4, buckets, ranges and listings. `TF2AIF_SWIFT_PYTHON` names
    the Python of an environment that has it (`pip install swift`).
    """
    python = os.environ.get(SWIFT)
    if not python:
        pytest.skip(f"needs OpenStack Swift: pip install swift elsewhere, {SWIFT}=its python")
    programs = Path(python).parent
    (folder / "devices" / "d").mkdir(parents=True)
    (folder / "swift.conf").write_text(_SWIFT_CONF)
    ports = {kind: free_port() for kind in ("proxy", "account", "container", "object")}
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    for kind, port in ports.items():
        body = _PROXY if kind == "proxy" else _STORAGE.format(kind=kind)
        head = _HEAD.format(port=port, folder=folder, user=user)
        (folder / f"{kind}.conf").write_text(head + body)
    words = [str(word) for kind, port in ports.items() if kind != "proxy" for word in (kind, port)]
    subprocess.run([python, "-c", _RINGS, *words], cwd=folder, check=True)
    processes = []
    try:
        for kind in ports:
            with (folder / f"{kind}.log").open("wb") as log:
                command = [programs / f"swift-{kind}-server", folder / f"{kind}.conf"]
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
        for (kind, port), process in zip(ports.items(), processes, strict=True):
            wait_for(lambda port=port: listens(port), f"swift's {kind} server", process)
        yield f"http://127.0.0.1:{ports['proxy']}"
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


# Swift's tables of who keeps what: all is kept once, on the one device.
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for kind, port in zip(sys.argv[1::2], sys.argv[2::2]):
    builder = RingBuilder(4, 1, 0)
    where = {"ip": "127.0.0.1", "port": int(port)}
    replication = {f"replication_{name}": value for name, value in where.items()}
    device = {"region": 1, "zone": 1, "device": "d", "weight": 1.0, "meta": ""}
    builder.add_dev({**device, **where, **replication})
    builder.rebalance()
    builder.get_ring().save(f"{kind}.ring.gz")
"""


class Faults:
    """A TCP connection to a server on which things go wrong, one kind at a time.

    `down` is called with each piece that comes from the server and its place in that connection's
    stream; what it returns is sent on, and None cuts the connection. `up` the same for what goes
    to the server. `answer` is sent in place of asking the server at all.
    """

    Change = Callable[[bytes, int], bytes | None]

    def __init__(self, port: int) -> None:
        self.port = port
        self.down: Faults.Change | None = None
        self.up: Faults.Change | None = None
        self.answer: bytes | None = None
        self.stall_s = 0.0
        self.asked = 0
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
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self.asked += 1
        with contextlib.suppress(OSError), client:
            if self.stall_s:
                time.sleep(self.stall_s)
                return
            if self.answer is not None:
                client.recv(1 << 16)
                client.sendall(self.answer)
                return
            with socket.socket() as server:
                # What a killed server had sent already would come all the same.
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                server.connect(("127.0.0.1", self.port))
                back = threading.Thread(target=self._pump, args=(server, client, False))
                back.daemon = True
                back.start()
                self._pump(client, server, True)
                back.join(timeout=60)

    def _pump(self, source: socket.socket, dest: socket.socket, up: bool) -> None:
        place = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 15):
                change = self.up if up else self.down
                sent = change(data, place) if change else data
                place += len(data)
                if sent is None:
                    break
                dest.sendall(sent)
        for one in (source, dest):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
