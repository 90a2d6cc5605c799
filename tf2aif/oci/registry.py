"""A registry over the OCI distribution protocol: blobs and manifests of one repository.

It signs in by Basic or Bearer with the credentials of Docker's configuration, tries again what
may pass, and goes on with an upload where it broke off. Source: distribution specification 1.1;
for tokens, the Docker registry's "Token Authentication Specification".
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

import requests

from ..errors import Tf2aifError
from .credentials import Credentials, find_credentials
from .documents import CHUNK, INDEXES, MANIFESTS, Descriptor, describe, sha256
from .reference import DOCKER_HUB, Reference
from .trust import distrust, trusting_session

TRIES = 5
UPLOAD_CHUNK = 32 << 20
_TIMEOUT_S = (10.0, 120.0)  # to connect, between two bytes
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_CHALLENGE = re.compile(r'([a-zA-Z_]+)="([^"]*)"')
_ACCEPT = ", ".join(sorted(MANIFESTS | INDEXES))

Sleep = Callable[[float], None]


class Registry:
    """One repository of a registry.

    `plain_http` is for registries without TLS; one on this machine is tried over both. Every
    method raises Tf2aifError with what the registry said.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        credentials: Credentials | None = None,
        plain_http: bool | None = None,
        sleep: Sleep = time.sleep,
        tries: int = TRIES,
        timeouts_s: tuple[float, float] = _TIMEOUT_S,
        actions: str = "pull,push",
    ) -> None:
        """`tries` of each request, with `sleep` between them; `timeouts_s` to connect and between
        two bytes; `actions`: what a token is asked for.
        """
        self.reference = reference
        self.credentials = credentials or find_credentials(reference.host)
        self._sleep = sleep
        self._limit = tries
        self._timeouts_s = timeouts_s
        host = "registry-1.docker.io" if reference.host == DOCKER_HUB else reference.host
        self._session = trusting_session(host)
        self._authorization = ""
        if plain_http is None:
            plain_http = _speaks_plain(reference, host, timeouts_s)
        self._root = f"{'http' if plain_http else 'https'}://{host}/v2/"
        self._scope = f"repository:{reference.repository}:{actions}"

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    # Manifests.

    def head_manifest(self, target: str = "") -> str | None:
        """The digest of a manifest by tag or digest; None where there is none."""
        target = target or self.reference.target
        answer = self._ask("HEAD", self._url(f"manifests/{target}"), headers={"Accept": _ACCEPT})
        if answer.status_code == 404:
            return None
        self._expect(answer, (200,), f"look for {target}")
        return answer.headers.get("Docker-Content-Digest") or self.pull_manifest(target)[0].digest

    def pull_manifest(self, target: str = "") -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest, verified where it is asked for by digest."""
        target = target or self.reference.target
        found = self.find_manifest(target)
        if found is None:
            raise Tf2aifError(f"the registry has no {target}", at=str(self.reference.at(target)))
        return found

    def find_manifest(self, target: str) -> tuple[Descriptor, bytes] | None:
        """The same; None where there is none."""
        answer = self._ask("GET", self._url(f"manifests/{target}"), headers={"Accept": _ACCEPT})
        if answer.status_code == 404:
            return None
        self._expect(answer, (200,), f"read {target}")
        media_type = answer.headers.get("Content-Type", "").partition(";")[0]
        descriptor = describe(answer.content, media_type)
        if target.startswith("sha256:") and descriptor.digest != target:
            raise Tf2aifError(
                f"the registry sent other bytes: {descriptor.digest}",
                at=str(self.reference.at(target)),
            )
        return descriptor, answer.content

    def push_manifest(self, data: bytes, media_type: str, target: str = "") -> None:
        """Store a manifest under a tag, or under its digest."""
        target = target or sha256(data)
        answer = self._ask(
            "PUT",
            self._url(f"manifests/{target}"),
            data=data,
            headers={"Content-Type": media_type},
        )
        self._expect(answer, (201,), f"store the manifest {target}")

    def delete_manifest(self, digest: str) -> None:
        """Remove a manifest and all its tags; one that is gone is no failure."""
        answer = self._ask("DELETE", self._url(f"manifests/{digest}"))
        if answer.status_code != 404:
            self._expect(answer, (200, 202), f"delete {digest}")

    def tags(self) -> Iterator[str]:
        """Every tag of the repository."""
        url = self._url("tags/list?n=1000")
        while url:
            answer = self._ask("GET", url)
            if answer.status_code == 404:  # nothing was ever pushed
                return
            self._expect(answer, (200,), "list the tags")
            try:
                yield from map(str, answer.json().get("tags") or ())
            except (ValueError, AttributeError) as error:
                raise self._broken("list the tags", "it answered no JSON") from error
            following = answer.links.get("next", {}).get("url")
            url = urljoin(answer.url, following) if following else ""

    # Blobs.

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has that blob."""
        answer = self._ask("HEAD", self._url(f"blobs/{digest}"))
        if answer.status_code != 404:
            self._expect(answer, (200,), f"look for {digest}")
        return answer.status_code == 200

    def pull_blob(self, descriptor: Descriptor, dest: Path) -> None:
        """Fetch a blob into a file, verified; after a broken connection the rest is asked for."""
        with dest.open("wb") as file:
            for attempt in self._tries():
                start = file.tell()
                with contextlib.suppress(requests.RequestException):
                    self._receive(descriptor, file, start)
                if file.tell() >= descriptor.size:
                    break
                if attempt == self._limit:
                    raise self._broken(f"read {descriptor.digest}", "the connection broke off")
        with dest.open("rb") as file:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if found != descriptor.digest:
            dest.unlink()
            raise self._broken(f"read {descriptor.digest}", f"its bytes have the digest {found}")

    @contextlib.contextmanager
    def open_blob(self, digest: str, start: int = 0) -> Iterator[Iterator[bytes] | None]:
        """The bytes of a blob from `start` on, as they come; None where there is no such blob.

        Nothing is verified, and a connection that breaks off is an error.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self._ask("GET", self._url(f"blobs/{digest}"), headers=headers, stream=True)
        with answer:
            if answer.status_code == 404:
                yield None
            elif answer.status_code == 416:  # there is nothing from there on
                yield iter(())
            else:
                self._expect(answer, (206,) if start else (200,), f"read {digest}")
                yield self._pieces(answer, digest)

    def _pieces(self, answer: requests.Response, digest: str) -> Iterator[bytes]:
        try:
            yield from answer.iter_content(CHUNK)
        except requests.RequestException as error:
            raise self._broken(f"read {digest}", _cause(error)) from error

    def mount_blob(self, digest: str, source: str) -> bool:
        """Take a blob from another repository of the same registry; False where it would not."""
        scope, self._scope = self._scope, f"{self._scope} repository:{source}:pull"
        try:
            self._authorization = (
                "" if self._authorization.startswith("Bearer") else (self._authorization)
            )
            answer = self._ask(
                "POST", self._url("blobs/uploads/"), params={"mount": digest, "from": source}
            )
        finally:
            self._scope = scope
        if answer.status_code == 202:  # an upload was begun instead: give it back
            self._ask("DELETE", self._location(answer))
        return answer.status_code == 201

    def push_blob(self, source: Path, digest: str) -> None:
        """Upload a blob in chunks. After a broken connection it goes on where the registry is."""
        size = source.stat().st_size
        with source.open("rb") as file:
            location = self._send(file, size, self._begin_upload(), digest)
        done = self._ask(
            "PUT", location, params={"digest": digest}, headers={"Content-Length": "0"}
        )
        self._expect(done, (201,), f"finish the upload of {digest}")

    def _begin_upload(self) -> str:
        answer = self._ask("POST", self._url("blobs/uploads/"), headers={"Content-Length": "0"})
        self._expect(answer, (202,), "begin an upload")
        return self._location(answer)

    def _send(self, file: IO[bytes], size: int, location: str, digest: str) -> str:
        """Send what the upload lacks; where it is finished."""
        sent = 0
        failures = 0
        while sent < size:
            length = min(UPLOAD_CHUNK, size - sent)
            file.seek(sent)
            answer = self._patch(location, _Part(file, length), sent, length)
            if answer is not None and answer.status_code in (202, 204):
                sent, location = sent + length, self._location(answer)
                continue
            failures += 1
            if failures == self._limit or (answer is not None and not _passes(answer, 404, 416)):
                self._expect_sent(answer, digest)
            self._sleep(_pause(failures, answer))
            sent, location = self._progress(location)
        return location

    def _patch(
        self, location: str, part: _Part, start: int, length: int
    ) -> requests.Response | None:
        """One chunk; None where the connection broke off."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{start + length - 1}",
            "Content-Length": str(length),
        }
        try:
            answer = self._once("PATCH", location, data=part, headers=headers)
            if answer.status_code == 401:  # the token ran out during a long upload
                self._sign_in(answer)
                part.rewind()
                answer = self._once("PATCH", location, data=part, headers=headers)
        except (requests.ConnectionError, requests.Timeout):
            return None
        return answer

    def _progress(self, location: str) -> tuple[int, str]:
        """How many bytes the registry has of an upload, and where it goes on.

        Docker's own registry gives up an upload whose connection broke within a chunk: that one
        begins again.
        """
        answer = self._ask("GET", location)
        if answer.status_code == 404:
            return 0, self._begin_upload()
        self._expect(answer, (204, 202), "go on with the upload")
        last = answer.headers.get("Range", "0-0").rpartition("-")[2]
        # `0-0` is said both of nothing and of one byte: no chunk is that small.
        return (int(last) + 1 if last.isdigit() and last != "0" else 0), self._location(answer)

    def _expect_sent(self, answer: requests.Response | None, digest: str) -> None:
        if answer is None:
            raise self._broken(f"upload {digest}", "the connection broke off each time")
        self._expect(answer, (202,), f"upload {digest}")

    def _receive(self, descriptor: Descriptor, file: IO[bytes], start: int) -> None:
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self._ask(
            "GET", self._url(f"blobs/{descriptor.digest}"), headers=headers, stream=True
        )
        with answer:
            self._expect(answer, (200, 206), f"read {descriptor.digest}")
            if answer.status_code == 200:
                file.seek(0)
                file.truncate()
            for data in answer.iter_content(CHUNK):
                file.write(data)

    # Requests.

    def _url(self, path: str) -> str:
        return f"{self._root}{self.reference.repository}/{path}"

    def _location(self, answer: requests.Response) -> str:
        return urljoin(answer.url, answer.headers.get("Location", ""))

    def _tries(self) -> Iterator[int]:
        for attempt in range(1, self._limit + 1):
            if attempt > 1:
                self._sleep(_pause(attempt - 1, None))
            yield attempt

    def _ask(self, method: str, url: str, **fields: Any) -> requests.Response:
        """A request, signed in where the registry wants it, tried again where that may help."""
        for attempt in range(1, self._limit + 1):
            try:
                answer = self._once(method, url, **fields)
                if answer.status_code == 401:
                    self._sign_in(answer)
                    answer = self._once(method, url, **fields)
            except (requests.ConnectionError, requests.Timeout) as error:
                self._fail_if_distrusted(error)
                if attempt == self._limit:
                    raise self._broken("reach the registry", _cause(error)) from error
                self._sleep(_pause(attempt, None))
                continue
            if answer.status_code not in _PASSING or attempt == self._limit:
                return answer
            self._sleep(_pause(attempt, answer))
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> requests.Response:
        own = {"Authorization": self._authorization} if self._is_ours(url) else {}
        sent = {name: value for name, value in own.items() if value}
        return self._session.request(
            method,
            url,
            headers={**sent, **(headers or {})},
            auth=_no_netrc,
            timeout=self._timeouts_s,
            **fields,
        )

    def _is_ours(self, url: str) -> bool:
        """Credentials go to the registry alone, not to where it sends uploads."""
        return url.startswith(self._root.removesuffix("v2/"))

    def _sign_in(self, answer: requests.Response) -> None:
        challenge = answer.headers.get("WWW-Authenticate", "")
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self.credentials:
            self._authorization = requests.auth._basic_auth_str(
                self.credentials.user, self.credentials.password
            )
        elif scheme.lower() == "bearer":
            self._authorization = f"Bearer {self._token(dict(_CHALLENGE.findall(rest)))}"
        else:
            self._expect(answer, (), "sign in")

    def _token(self, challenge: Mapping[str, str]) -> str:
        realm = challenge.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            raise self._broken("sign in", "it names no token server")
        service = challenge.get("service", "")
        who = self.credentials
        if who and who.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": who.identity_token}
            form |= {"service": service, "scope": self._scope, "client_id": "tf2aif"}
            answer = self._session.post(realm, data=form, timeout=self._timeouts_s, auth=_no_netrc)
        else:
            query = [("service", service), *(("scope", one) for one in self._scope.split())]
            auth = (who.user, who.password) if who else _no_netrc
            answer = self._session.get(realm, params=query, timeout=self._timeouts_s, auth=auth)
        self._expect(answer, (200,), "sign in")
        try:
            said = answer.json()
        except ValueError as error:
            raise self._broken("sign in", "the token server answered no JSON") from error
        return str(said.get("token") or said.get("access_token") or "")

    def _fail_if_distrusted(self, error: requests.RequestException) -> None:
        if found := distrust(error, self.reference.host):
            why, hint = found
            at = str(self.reference)
            raise Tf2aifError(f"cannot reach the registry: {why}", at=at, hint=hint) from error

    def _expect(self, answer: requests.Response, codes: tuple[int, ...], what: str) -> None:
        if answer.status_code not in codes:
            raise self._broken(what, f"it answered {answer.status_code} {_said(answer)}", answer)

    def _broken(self, what: str, why: str, answer: requests.Response | None = None) -> Tf2aifError:
        hint = ""
        if answer is not None and answer.status_code in (401, 403):
            who = self.credentials.user if self.credentials else ""
            known = f"the password of '{who}' was refused or" if who else "nobody is signed in, or"
            hint = f"{known} may not do this: docker login {self.reference.host}"
        elif answer is not None and answer.status_code >= 500:
            hint = "the registry itself failed (a full disk?): look at its log, then push again"
        return Tf2aifError(f"cannot {what}: {why}".rstrip(), at=str(self.reference), hint=hint)


class _Part:
    """A part of a file as the body of a request, read as it is sent."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file = file
        self._start = file.tell()
        self._length = length
        self.rewind()

    def rewind(self) -> None:
        self._file.seek(self._start)
        self._left = self._length

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(min(wanted, CHUNK) if size >= 0 else wanted)
        self._left -= len(data)
        return data


def _speaks_plain(reference: Reference, host: str, timeouts_s: tuple[float, float]) -> bool:
    """A registry on this machine may have no TLS: whether it answers HTTP."""
    if not reference.is_local:
        return False
    try:
        answer = requests.get(f"http://{host}/v2/", timeout=timeouts_s, allow_redirects=False)
    except requests.RequestException:
        return True  # nothing is there: the next request says so
    return answer.status_code in (200, 401, 404)


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps `requests` from sending what a .netrc says of the host."""
    return request


def _passes(answer: requests.Response, *more: int) -> bool:
    return answer.status_code in _PASSING or answer.status_code in more


def _pause(attempt: int, answer: requests.Response | None) -> float:
    """Seconds to wait: what the registry asks for up to a minute, else 0.5, 1, 2, 4."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    return min(float(asked), 60.0) if asked.isdigit() else 0.5 * 2.0 ** (attempt - 1)


def _said(answer: requests.Response) -> str:
    """The registry's own words: its first error, or the reason."""
    try:
        first = answer.json()["errors"][0]
        words = (first.get("code", ""), first.get("message", ""), first.get("detail") or "")
        return " ".join(str(word) for word in words if word)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return answer.reason or ""


def _cause(error: requests.RequestException) -> str:
    """The innermost reason of a chain of connection errors, in one line."""
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return str(seen).strip() or type(error).__name__
