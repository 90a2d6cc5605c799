"""Which certificates are believed of a registry: the system's, and those that users gave Docker.

Source: Docker's "Verify repository client with certificates": in `certs.d/HOST:PORT/` each
`*.crt` is an authority, and `NAME.cert` with `NAME.key` is who we are to the registry.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from ..errors import Tf2aifError

# Of Docker, of Docker without root, and of podman; `~` is the user's own.
_FOLDERS = (
    "/etc/docker/certs.d",
    "~/.config/docker/certs.d",
    "/etc/containers/certs.d",
    "~/.config/containers/certs.d",
)
_PLAIN_ANSWER = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
_REFUSED = ("CERTIFICATE", "UNKNOWN_CA")


def trusting_session(host: str) -> requests.Session:
    """A session for that registry, as `HOST:PORT`.

    Beside the system's authorities (SSL_CERT_FILE and SSL_CERT_DIR name others) and those of
    REQUESTS_CA_BUNDLE, it believes what `certs.d` has for the host. Raises Tf2aifError for a file
    there that is none.
    """
    session = requests.Session()
    session.mount("https://", _Adapter(_context(host)))
    return session


def distrust(error: requests.RequestException, host: str) -> tuple[str, str] | None:
    """Why a certificate is not believed, and what to do; None for every other error.

    To try again is of no use then.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            place = f"{_FOLDERS[0]}/{host}/ca.crt"
            return (
                f"its certificate is not trusted: {cause.verify_message}",
                f"put the certificate of its authority at {place}, or name it in SSL_CERT_FILE",
            )
        reason = cause.reason or "" if isinstance(cause, ssl.SSLError) else ""
        if reason in _PLAIN_ANSWER:
            return ("it does not speak TLS", "a registry without it needs --plain-http")
        if "ALERT" in reason and any(word in reason for word in _REFUSED):
            place = f"{_FOLDERS[0]}/{host}"
            return (
                f"it wants a certificate of ours: {reason.lower().replace('_', ' ')}",
                f"put NAME.cert and NAME.key that its owners made for you into {place}",
            )
    return None


class _Adapter(HTTPAdapter):
    """Connections that believe what a context says, beside what `requests` brings."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **fields: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **fields)

    def proxy_manager_for(self, *arguments: Any, **fields: Any) -> Any:
        return super().proxy_manager_for(*arguments, ssl_context=self._context, **fields)


def _context(host: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path in _files(host):
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            else:
                context.load_cert_chain(path, path.with_suffix(".key"))
        except OSError as error:
            raise Tf2aifError(
                f"no certificate can be read there: {error.strerror or error}",
                at=str(path),
                hint=f"it is used for the registry {host}",
            ) from error
    return context


def _files(host: str) -> Iterator[Path]:
    for name in _FOLDERS:
        folder = Path(name).expanduser() / host
        if folder.is_dir():
            yield from sorted(folder.glob("*.crt"))
            yield from sorted(folder.glob("*.cert"))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was raised from or carries, as urllib3 wraps them."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        yield one
        inner = [a for a in one.args if isinstance(a, BaseException)]
        reason = getattr(one, "reason", None)
        inner += [reason] if isinstance(reason, BaseException) else []
        pending += [*inner, one.__cause__, one.__context__]
