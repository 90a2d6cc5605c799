"""A remote over plain HTTP: GET, PUT and HEAD of `/ac/<name>` and `/cas/<sha256>`.

It is the layout of Bazel's HTTP cache ("HTTP Caching Protocol" in Bazel's remote caching pages),
so that servers made for that serve us too, and any web server that takes PUT. What is to be
listed and removed needs WebDAV (RFC 4918: PROPFIND, DELETE).

Credentials come from `~/.netrc` (or `$NETRC`), or from `TF2AIF_REMOTE_TOKEN` as a Bearer token.
"""

from __future__ import annotations

import base64
import netrc
import os
import ssl
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, urlsplit

from ..errors import Tf2aifError
from .remote import CHUNK, MAX_BUNDLE, Blob, Entry, RemoteFailed, Table, is_name

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

TOKEN = "TF2AIF_REMOTE_TOKEN"
_CONNECTIONS = 32
_DRAIN = 1 << 16
_PROPERTIES = (
    b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop>'
    b"<getcontentlength/><getlastmodified/><resourcetype/></prop></propfind>"
)


class HttpRemote:
    """One server, below one path."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Raises Tf2aifError for an address that is none."""
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment:
            raise Tf2aifError("not the address of a shared cache", at=url)
        self.url = url.rstrip("/")
        self._pool = _pool(url, timeout_s)
        self._headers = _credentials(parts.hostname)

    def get_action(self, name: str) -> bytes | None:
        """The entry of `ac/`."""
        with self._ask("GET", f"ac/{name}") as answer:
            if answer.status == 404:
                return None
            self._expect(answer, (200,), "read")
            return self._read(answer, MAX_BUNDLE + 1)

    def put_action(self, name: str, data: bytes, blobs: Sequence[Blob]) -> None:  # noqa: ARG002
        """Write an entry of `ac/`."""
        with self._ask("PUT", f"ac/{name}", body=data) as answer:
            self._expect(answer, (200, 201, 202, 204), "write")

    @contextmanager
    def get_blob(self, blob: Blob, start: int) -> Iterator[Iterator[bytes]]:
        """The bytes from `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._ask("GET", f"cas/{blob.sha256}", headers=headers) as answer:
            if answer.status == 404:
                raise RemoteFailed("a blob is gone", at=self.url, absent=True)
            if answer.status == 416:  # there is nothing from there on
                yield iter(())
                return
            self._expect(answer, (200, 206), "read")
            pieces = self._pieces(answer)
            # A server that knows no ranges sends what we have once more.
            yield _without(pieces, start) if start and answer.status == 200 else pieces

    def has_blob(self, blob: Blob) -> bool:
        """Whether it is there, by name and size."""
        with self._ask("HEAD", f"cas/{blob.sha256}") as answer:
            if answer.status == 404:
                return False
            self._expect(answer, (200,), "read")
            size = answer.headers.get("Content-Length")
            return size is None or size == str(blob.size)

    def put_blob(self, blob: Blob, source: Path) -> None:
        """Write an entry of `cas/`."""
        with source.open("rb") as file:
            headers = {"Content-Length": str(blob.size)}
            with self._ask("PUT", f"cas/{blob.sha256}", body=file, headers=headers) as answer:
                self._expect(answer, (200, 201, 202, 204), "write")

    def entries(self) -> Iterator[Entry]:
        """All files of both tables, by PROPFIND."""
        tables: tuple[Table, ...] = ("ac", "cas")
        for table in tables:
            headers = {"Depth": "1", "Content-Type": "application/xml"}
            with self._ask("PROPFIND", f"{table}/", body=_PROPERTIES, headers=headers) as answer:
                if answer.status == 404:
                    continue
                if answer.status != 207:
                    raise RemoteFailed(
                        f"the server cannot list what it keeps: {answer.status} {answer.reason}",
                        at=self.url,
                        hint="it needs WebDAV's PROPFIND; else remove what is old on the server",
                        refused=True,
                    )
                listing = self._read(answer, 1 << 30)
            yield from self._listed(table, listing)

    def _listed(self, table: Table, listing: bytes) -> Iterator[Entry]:
        from xml.etree import ElementTree

        try:
            tree = ElementTree.fromstring(listing)
        except ElementTree.ParseError as error:
            raise RemoteFailed("the server's listing is no XML", at=self.url) from error
        for one in tree.iter("{DAV:}response"):
            name = unquote(one.findtext("{DAV:}href") or "").rstrip("/").rpartition("/")[2]
            if is_name(name):
                size = next((e.text for e in one.iter("{DAV:}getcontentlength")), None) or "0"
                when = next((e.text for e in one.iter("{DAV:}getlastmodified")), None)
                modified = parsedate_to_datetime(when).timestamp() if when else 0.0
                yield Entry(table, name, int(size), modified)

    def delete(self, entry: Entry) -> None:
        """Remove one."""
        with self._ask("DELETE", f"{entry.table}/{entry.name}") as answer:
            if answer.status != 404:
                self._expect(answer, (200, 202, 204), "delete")

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    # Requests.

    @contextmanager
    def _ask(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[BaseHTTPResponse]:
        """One request; its answer's body is still to be read."""
        answer = self._send(
            method, f"{self.url}/{path}", body, {**self._headers, **(headers or {})}
        )
        whole = False
        try:
            yield answer
            whole = int(answer.headers.get("Content-Length") or 0) <= _DRAIN
            if whole:
                self._drain(answer)  # so that the connection can be used again
        finally:
            if not whole:
                answer.close()
            answer.release_conn()

    def _send(self, method: str, url: str, body: Any, headers: dict[str, str]) -> BaseHTTPResponse:
        """Ask once more where a connection that was kept is closed as we use it again."""
        import urllib3

        for last in (False, True):
            if last and hasattr(body, "seek"):
                body.seek(0)
            try:
                answer: BaseHTTPResponse = self._pool.urlopen(
                    method,
                    url,
                    body=body,
                    headers=headers,
                    preload_content=False,
                    decode_content=False,
                )
                return answer
            except urllib3.exceptions.ProtocolError as error:
                if last:
                    self._broken(error)
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                self._broken(error)
        raise AssertionError("the second time returns or raises")

    def _drain(self, answer: BaseHTTPResponse) -> None:
        import urllib3

        with suppress(urllib3.exceptions.HTTPError, OSError):
            answer.drain_conn()

    def _read(self, answer: BaseHTTPResponse, limit: int) -> bytes:
        parts, size = [], 0
        for piece in self._pieces(answer):
            parts.append(piece)
            size += len(piece)
            if size >= limit:
                break
        return b"".join(parts)

    def _pieces(self, answer: BaseHTTPResponse) -> Iterator[bytes]:
        import urllib3

        try:
            while data := answer.read(CHUNK):
                yield data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._broken(error)

    def _expect(self, answer: BaseHTTPResponse, codes: tuple[int, ...], what: str) -> None:
        if answer.status in codes:
            return
        hint = ""
        if answer.status in (401, 403):
            hint = f"credentials are taken from ~/.netrc, or a token from {TOKEN}"
        elif answer.status == 507 or (what == "write" and answer.status >= 500):
            hint = "is the server's disk full?"
        raise RemoteFailed(
            f"cannot {what}: the server answered {answer.status} {answer.reason or ''}".rstrip(),
            at=self.url,
            hint=hint,
            refused=what != "read",
        )

    def _broken(self, error: BaseException) -> NoReturn:
        cause = error
        while (inner := getattr(cause, "reason", None)) and isinstance(inner, BaseException):
            cause = inner
        text = str(cause).rpartition("): ")[2] or type(cause).__name__
        raise RemoteFailed(f"cannot reach the remote: {text}", at=self.url) from error


def _without(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    """What comes after the first `count` bytes."""
    for piece in pieces:
        if rest := piece[count:]:
            yield rest
        count = max(0, count - len(piece))


def _pool(url: str, timeout_s: float) -> Any:
    """Connections that are kept, through the proxy that the environment names."""
    import urllib3

    settings: dict[str, Any] = {
        "num_pools": 4,
        "maxsize": _CONNECTIONS,
        "block": False,
        "timeout": urllib3.Timeout(connect=timeout_s, read=timeout_s),
        "retries": urllib3.Retry(total=3, connect=0, read=0, status=0, other=0, redirect=3),
    }
    parts = urlsplit(url)
    if parts.scheme == "https":
        settings["ssl_context"] = ssl.create_default_context()
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **settings)
    return urllib3.PoolManager(**settings)


def _credentials(host: str) -> dict[str, str]:
    if token := os.environ.get(TOKEN):
        return {"Authorization": f"Bearer {token}"}
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(str(path)).authenticators(host)
    except FileNotFoundError:
        return {}
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        raise Tf2aifError(f"credentials cannot be read: {error}", at=str(path)) from error
    if found is None:
        return {}
    pair = f"{found[0]}:{found[2]}".encode()
    return {"Authorization": "Basic " + base64.b64encode(pair).decode()}
