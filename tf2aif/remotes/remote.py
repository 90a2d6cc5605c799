"""What a remote is: a place that keeps two tables of bytes, for every machine that asks.

    ac/<64 hex>    what is known of an action: signed records, and small outputs (`bundle`)
    cas/<64 hex>   larger outputs, named by their SHA-256

A remote is not trusted with anything: what it says is verified by `trust` and by digests. Each
kind of remote is one module that offers this protocol; `remotes.open_remote` knows them by the
scheme of their address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from ..errors import Tf2aifError

CHUNK = 1 << 18
MAX_BUNDLE = 8 << 20
"""Bytes of an entry of `ac/` at most; a longer answer is none of ours."""

Table = Literal["ac", "cas"]


class RemoteFailed(Tf2aifError):
    """A remote that is down, slow, full, read-only, or does not speak as it should.

    It ends no build: the remote is left alone from then on. `refused`: the remote is well, but
    takes no such request from us. `absent`: it is well, and has no such blob.
    """

    def __init__(
        self,
        message: str,
        *,
        at: str = "",
        hint: str = "",
        refused: bool = False,
        absent: bool = False,
    ) -> None:
        super().__init__(message, at=at, hint=hint)
        self.refused = refused
        self.absent = absent


class Blob(NamedTuple):
    """Bytes in `cas/`."""

    sha256: str
    """64 hexadecimal digits."""
    size: int


class Entry(NamedTuple):
    """One thing that a remote keeps, as a listing of it tells."""

    table: Table
    name: str
    size: int
    """Bytes; of an action in a registry, those of its larger outputs too."""
    modified: float
    """Seconds since the epoch."""


class Remote(Protocol):
    """One remote. Its methods are called from many threads, and raise RemoteFailed."""

    url: str
    """As people know it, without credentials."""

    def get_action(self, name: str) -> bytes | None:
        """The entry of `ac/`; None where there is none."""

    def put_action(self, name: str, data: bytes, blobs: Sequence[Blob]) -> None:
        """Write an entry of `ac/`, whole or not at all. `blobs`: what it needs of `cas/`."""

    def get_blob(self, blob: Blob, start: int) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes from `start` on, as they come; none where it has no more.

        The caller counts: an answer that breaks off raises, and the caller may ask for the rest.
        """

    def has_blob(self, blob: Blob) -> bool:
        """Whether `cas/` has it."""

    def put_blob(self, blob: Blob, source: Path) -> None:
        """Write an entry of `cas/` from a file, whole or not at all."""

    def entries(self) -> Iterator[Entry]:
        """All that it keeps; for `gc`."""

    def delete(self, entry: Entry) -> None:
        """Remove one; one that is gone is no failure."""

    def close(self) -> None:
        """Close its connections."""


def action_name(key: str) -> str:
    """What `ac/` calls an action: servers with Bazel's layout want 64 hexadecimal digits."""
    return hashlib.sha256(b"tf2aif-action-1\n" + key.encode()).hexdigest()


def is_name(text: str) -> bool:
    """Whether it can be the name of an entry."""
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
