"""What registries need for HTTPS and for tokens: authorities, certificates, a token server.

Certificates are openssl's; the server hands out real signed tokens, which Debian's docker-registry
checks. Source: "Token Authentication Specification" of Docker's registry; RFC 7515 and 7519.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from engine import need

SERVICE, ISSUER = "registry of the tests", "tests"


def make_authority(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs others, and its key."""
    need("openssl")
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "ca.crt", folder / "ca.key"
    _openssl(
        "req", "-x509", *_new_key(key), "-out", certificate, "-subj", "/CN=tests", "-days", "2",
        "-addext", "keyUsage=critical,keyCertSign,digitalSignature",
    )  # fmt: skip
    return certificate, key


def make_certificate(authority: tuple[Path, Path], folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, or for a client, that this authority signed; and its key."""
    certificate, key = folder / f"{name}.cert", folder / f"{name}.key"
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl("req", *_new_key(key), "-out", request, "-subj", f"/CN={name}")
    _openssl(
        "x509", "-req", "-in", request, "-CA", authority[0], "-CAkey", authority[1], "-days", "1",
        "-CAcreateserial", "-extfile", extensions, "-out", certificate,
    )  # fmt: skip
    return certificate, key


def _new_key(path: Path) -> list[object]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]


def _openssl(*words: object, data: bytes = b"") -> bytes:
    command = ["openssl", *map(str, words)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


class TokenServer:
    """Hands out tokens to those who know a password, for what they may do."""

    def __init__(self, authority: tuple[Path, Path]) -> None:
        self.authority = authority
        self.passwords: dict[str, str] = {}
        self.refresh: dict[str, str] = {}  # identity token -> user
        self.pushers: set[str] = set()  # others, and nobody, may only pull
        self.lifetime_s = 300.0
        self.asked: list[dict[str, list[str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                user, password = _basic(self.headers.get("Authorization", ""))
                known = not user or server.passwords.get(user) == password
                self._give(parse_qs(urlsplit(self.path).query), user if known else None)

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self._give(form, server.refresh.get(form.get("refresh_token", [""])[0]))

            def _give(self, query: dict[str, list[str]], user: str | None) -> None:
                server.asked.append(query)
                if user is None:
                    body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "who?"}]})
                else:
                    body = json.dumps({"token": server.token(user, query.get("scope", []))})
                self.send_response(200 if user is not None else 401)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.realm = f"http://127.0.0.1:{self._server.server_port}/token"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def auth(self) -> str:
        """The part of a registry's configuration that sends users here."""
        fields = {"realm": self.realm, "service": SERVICE, "issuer": ISSUER}
        return json.dumps({"token": {**fields, "rootcertbundle": str(self.authority[0])}})

    def token(self, user: str, scopes: list[str]) -> str:
        """A signed token for as much of these scopes as the user may have."""
        access = []
        for scope in (one for text in scopes for one in text.split()):
            kind, name, actions = scope.split(":")
            allowed = [a for a in actions.split(",") if a == "pull" or user in self.pushers]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = time.time()
        claims = {"iss": ISSUER, "aud": SERVICE, "sub": user, "jti": str(now), "access": access}
        claims |= {"iat": int(now), "nbf": int(now) - 300, "exp": int(now + self.lifetime_s)}
        chain = self.authority[0].read_text().split("-----")[2].replace("\n", "")
        header = {"typ": "JWT", "alg": "ES256", "x5c": [chain]}
        signed = f"{_url(json.dumps(header).encode())}.{_url(json.dumps(claims).encode())}"
        made = _openssl("dgst", "-sha256", "-sign", self.authority[1], data=signed.encode())
        return f"{signed}.{_url(_raw_signature(made))}"


def _raw_signature(der: bytes) -> bytes:
    """The two numbers of an ECDSA signature, 32 bytes each, from openssl's DER."""
    first = der[4 : 4 + der[3]]
    second = der[6 + der[3] :]
    return b"".join(n.lstrip(b"\0").rjust(32, b"\0") for n in (first, second))


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _basic(header: str) -> tuple[str, str]:
    user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
    return user, password


@contextlib.contextmanager
def token_server(folder: Path) -> Iterator[TokenServer]:
    """A token server with an authority of its own, whose files are below `folder`."""
    server = TokenServer(make_authority(folder))
    try:
        yield server
    finally:
        server.close()
