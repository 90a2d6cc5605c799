"""Shared caches: what a colleague's machine, CI or the build farm made, taken from a remote.

remote     what a remote is; `folder`, `http`, `oci` and `s3` are the kinds of it
keys       Ed25519 keys: who signs, whose signature counts
trust      the signed record, and what of it is believed; `outputs`: which files a step has
transfer   bytes to and from a remote, verified on their way
shared     what a build has of its remotes; `ahead` brings all that a graph will need
collect    making room on a remote
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from ..errors import Tf2aifError

if TYPE_CHECKING:
    from .remote import Remote
    from .shared import Shared

ADDRESS = "TF2AIF_REMOTE"
WRITE = "TF2AIF_REMOTE_WRITE"
TIMEOUT_S = 10.0

KINDS = {
    "http": ("http", "HttpRemote"),
    "https": ("http", "HttpRemote"),
    "oci": ("oci", "OciRemote"),
    "s3": ("s3", "S3Remote"),
}

CREDENTIALS = {
    "http": "put them into ~/.netrc, or a token into TF2AIF_REMOTE_TOKEN",
    "https": "put them into ~/.netrc, or a token into TF2AIF_REMOTE_TOKEN",
    "oci": "give them to 'docker login HOST'",
    "s3": "put them where the AWS tools look: variables or profiles",
}
_WITH_CREDENTIALS = re.compile(
    r"([a-z][a-z0-9+.-]*)://"
    r"(?:[^/?#]*@"
    r"|[^/@:]*:(?!\d+/)[^@]*@)",  # a password with a slash in it; no port before an @ in the path
    re.IGNORECASE,
)


class RemoteUse(msgspec.Struct, frozen=True):
    """A remote, and whether this user may write to it."""

    url: str
    """`https://HOST/PATH`, `oci://HOST/REPOSITORY`, `s3://BUCKET/PREFIX`, or a folder."""
    write: bool = False


def open_remote(url: str, timeout_s: float = TIMEOUT_S) -> Remote:
    """The remote of an address; nothing is asked of it yet.

    Raises Tf2aifError for an address of no known kind, for one that holds credentials, and where a
    package for it is missing.
    """
    parts = _split(url)
    if parts.scheme in ("", "file"):
        from .folder import FolderRemote

        return FolderRemote(_folder(url, parts))
    if parts.scheme not in KINDS:
        raise Tf2aifError(
            f"no shared cache is of the kind '{parts.scheme}'",
            at=url,
            hint=f"write {', '.join(f'{kind}://…' for kind in KINDS)}, or the path of a folder",
        )
    if not parts.netloc:
        raise _no_address(url, f"write {parts.scheme}://HOST/…")
    module, name = KINDS[parts.scheme]
    kind = getattr(importlib.import_module(f".{module}", __name__), name)
    remote: Remote = kind(url, timeout_s)
    return remote


def _split(url: str) -> SplitResult:
    """The parts of an address. Raises Tf2aifError, which shows no credentials."""
    if found := _WITH_CREDENTIALS.match(url):
        raise Tf2aifError(
            "credentials do not belong into the address of a shared cache",
            at=re.sub(r"//.*@", "//", url),
            hint=CREDENTIALS.get(found[1].lower(), ""),
        )
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is looked at here
    except ValueError as error:
        raise _no_address(url, f"{error}") from error
    return parts


def _folder(url: str, parts: SplitResult) -> Path:
    """The folder of a path, or of `file:///…`: what comes after two slashes would be a host."""
    if not parts.scheme:
        if not url.strip():
            raise _no_address(repr(url))
        return _expanded(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _no_address(url, "write file:///…, or the path alone")
    return Path(unquote(parts.path))


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise _no_address(path, "there is no such user") from error


def _no_address(url: str, hint: str = "") -> Tf2aifError:
    return Tf2aifError("not the address of a shared cache", at=url, hint=hint)


def uses(
    configured: Iterable[RemoteUse], chosen: str = "", environ: Mapping[str, str] | None = None
) -> tuple[RemoteUse, ...]:
    """Which remotes a build uses: `chosen` or `$TF2AIF_REMOTE` alone, else those configured.

    `TF2AIF_REMOTE_WRITE=yes` gives the right to write to them all: CI sets it.
    """
    env = os.environ if environ is None else environ
    address = chosen or env.get(ADDRESS, "")
    found = (RemoteUse(address),) if address else tuple(configured)
    if env.get(WRITE, "").lower() in ("yes", "1", "on", "true"):
        found = tuple(RemoteUse(one.url, write=True) for one in found)
    return found


def open_for(project: Path, chosen: str = "", *, write: bool = False) -> Shared | None:
    """The shared caches of a project, as its `tf2aif.yaml` and the environment say.

    `chosen` is the address of the one to use instead, with the right to `write` to it. Folders are
    relative to the project. Raises FilesError for a wrong configuration, Tf2aifError for a wrong
    address or key.
    """
    from ..spec.config import load_config

    cache = load_config(project).cache
    found = wanted(project, chosen)
    if chosen and write:
        found = tuple(RemoteUse(one.url, write=True) for one in found)
    return open_shared(found, trusted=cache.trusted, timeout_s=cache.timeout_s)


def wanted(project: Path, chosen: str = "") -> tuple[RemoteUse, ...]:
    """Which remotes a project uses; folders by their whole path. Raises FilesError."""
    from ..spec.config import load_config

    configured = (RemoteUse(one.url, one.write) for one in load_config(project).cache.remotes)
    return tuple(
        RemoteUse(_placed(one.url, project), one.write) for one in uses(configured, chosen)
    )


def _placed(url: str, project: Path) -> str:
    return str(project / _expanded(url)) if url.strip() and not _split(url).scheme else url


def open_shared(
    remotes: Iterable[RemoteUse], *, trusted: Iterable[str] = (), timeout_s: float = TIMEOUT_S
) -> Shared | None:
    """What a build has of its remotes; None where it has none. Its own key counts as trusted.

    Raises Tf2aifError for a wrong address or key.
    """
    used = tuple(remotes)
    if not used:
        return None
    from .keys import Trusted, find_signing_key
    from .shared import Shared

    key = find_signing_key()
    opened = [(open_remote(one.url, timeout_s), one.write) for one in used]
    return Shared(
        opened,
        trusted=Trusted([*trusted, *([key.public] if key else [])]),
        key=key,
        timeout_s=timeout_s,
        warnings=[f"there is no folder {path}" for path in _absent_folders(opened)],
    )


def _absent_folders(opened: Iterable[tuple[Remote, bool]]) -> Iterator[Path]:
    """Folders to be read and never written that are not there: a wrong path, or no drive."""
    from .folder import FolderRemote

    for remote, write in opened:
        if isinstance(remote, FolderRemote) and not write and not remote.root.is_dir():
            yield remote.root
