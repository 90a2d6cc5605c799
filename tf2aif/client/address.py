"""Where a server is, and which model is meant: what a URL says."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from ..errors import Tf2aifError

PORTS = {"http": 80, "https": 443}
_MODEL = re.compile(
    r"^(?P<prefix>.*?)/v2(/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?)?$"
)


class Address(Struct, frozen=True, kw_only=True):
    """A server: host, port, and what stands before `/v2` in its paths; a model, if one is named."""

    url: str  # as it was written
    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    model: str | None = None
    version: str | None = None

    @property
    def authority(self) -> str:
        """Host and port as a request's `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def read_address(url: str) -> Address:
    """The address that a URL names. Raises Tf2aifError where it is none.

    >>> read_address("http://edge-7:8080/v2/models/kws/versions/cpu-int8").model
    'kws'
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    hint = "write http://HOST:PORT, or http://HOST:PORT/v2/models/MODEL"
    try:
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise Tf2aifError(f"not the address of a server: {error}", at=url, hint=hint) from error
    if parts.scheme not in PORTS or not parts.hostname or parts.query or parts.fragment:
        raise Tf2aifError("not the address of a server", at=url, hint=hint)
    path = parts.path.rstrip("/")
    found = _MODEL.match(path)
    named = found.groupdict() if found else {"prefix": path, "model": None, "version": None}
    return Address(
        url=url,
        host=parts.hostname,
        port=port,
        tls=parts.scheme == "https",
        prefix=named["prefix"] or "",
        model=named["model"] and unquote(named["model"]),
        version=named["version"] and unquote(named["version"]),
    )
