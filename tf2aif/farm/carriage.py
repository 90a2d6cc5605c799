"""Files and records between a build and its farm: through the shared cache only, with patience.

What `remotes.shared` does for a build gives a cache up at its first failure, since the step can run
here. A step of the farm has nowhere else to go: so each request is tried again until the cache has
been away for longer than `patience_s`. What comes is verified as ever.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from ..records import ActionRecord, OutputFile, blob_name
from ..remotes.keys import SigningKey, Trusted
from ..remotes.remote import CHUNK, Blob, Remote, RemoteFailed, action_name
from ..remotes.transfer import fetch_blob, keep_content, upload_action
from ..remotes.trust import Believed, Bundle, Refused, decode_bundle, read_envelope
from ..store import CorruptBlob, Store
from ..workspace import write_atomically

PATIENCE_S = 60.0
_FIRST_S, _LONGEST_S = 0.2, 5.0
T = TypeVar("T")


class Carriage:
    """One shared cache as a farm uses it. Its methods may be called from several threads."""

    def __init__(
        self,
        remote: Remote,
        store: Store,
        *,
        timeout_s: float = 10.0,
        patience_s: float = PATIENCE_S,
        names: Path | None = None,
    ) -> None:
        """`names`: a file that keeps the SHA-256 of files that were sent, from build to build."""
        self.remote = remote
        self.store = store
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self._stopped = threading.Event()
        self._path = names
        self._names = _read_names(names)  # as the store calls a file -> its SHA-256
        self._present: set[str] = set()  # SHA-256 of what the cache is known to have

    def send(self, files: Iterable[tuple[OutputFile, Path]]) -> tuple[str, ...]:
        """Put files where the farm finds them; the SHA-256 of each.

        Raises RemoteFailed, OSError, and CorruptBlob where a file is not what it was.
        """
        return tuple(self._send(file, path) for file, path in files)

    def _send(self, file: OutputFile, path: Path) -> str:
        name = blob_name(file)
        sha256 = self._names.get(name)
        if sha256 is None:
            sha256 = self._names[name] = _sha256(path, file.size)
        if sha256 not in self._present:
            blob = Blob(sha256, file.size)
            if not self._patiently(lambda: self.remote.has_blob(blob)):
                self._patiently(lambda: self.remote.put_blob(blob, path))
            self._present.add(sha256)
        return sha256

    def forget(self) -> None:
        """Look again what the cache has: somebody made room in it."""
        self._present.clear()

    def fetch(self, file: OutputFile, sha256: str) -> None:
        """Bring a file into the store. Raises RemoteFailed, and CorruptBlob for other bytes."""
        if self.store.has(file):
            return
        blob = Blob(sha256, file.size)
        try:
            self._patiently(lambda: fetch_blob(self.remote, blob, file, self.store, self.timeout_s))
        except Refused as error:
            raise CorruptBlob(
                "the shared cache has other bytes under this name", at=sha256
            ) from error

    def give(self, record: ActionRecord, key: SigningKey, trusted: Trusted) -> None:
        """Have what was made written, signed. Raises RemoteFailed."""

        def once() -> None:
            present = self._bundle(record.key)
            upload_action(
                self.remote, record, self.store, key=key, trusted=trusted, present=present
            )

        self._patiently(once)

    def take(self, key: str, trusted: Trusted, fits: Callable[[Believed], bool]) -> Believed | None:
        """The newest record of an action that is believed and `fits`, its bytes in the store.

        None where there is none. Raises RemoteFailed; Refused and CorruptBlob for wrong bytes.
        """
        bundle = self._patiently(lambda: self._bundle(key))
        found = []
        for envelope in bundle.records if bundle else ():
            try:
                believed = read_envelope(envelope, trusted)
            except Refused:
                continue
            if believed.record.key == key and fits(believed):
                found.append(believed)
        best = max(found, key=lambda one: one.record.created, default=None)
        if best is None or bundle is None:
            return None
        for file, sha256 in zip(best.record.outputs, best.sha256, strict=True):
            self._bring(file, sha256, bundle)
        return best

    def _bring(self, file: OutputFile, sha256: str, bundle: Bundle) -> None:
        content = bundle.contents.get(sha256)
        if content is None:
            self.fetch(file, sha256)
            self._present.add(sha256)
        elif not self.store.has(file):
            keep_content(content, Blob(sha256, file.size), file, self.store)
        self._names[blob_name(file)] = sha256

    def stop(self) -> None:
        """Wait for no cache any more."""
        self._stopped.set()

    def save(self) -> None:
        """Keep what files are called."""
        if self._path is not None:
            write_atomically(self._path, msgspec.json.encode(dict(self._names)))

    def _bundle(self, key: str) -> Bundle | None:
        data = self.remote.get_action(action_name(key))
        try:
            return None if data is None else decode_bundle(data)
        except Refused:
            return None  # nothing of ours: it is written over

    def _patiently(self, call: Callable[[], T]) -> T:
        """Ask again while the cache is away."""
        until, pause = time.monotonic() + self.patience_s, _FIRST_S
        while True:
            try:
                return call()
            except RemoteFailed as error:
                if error.refused or error.absent or time.monotonic() + pause > until:
                    raise
                if self._stopped.wait(pause):
                    raise
            pause = min(pause * 2, _LONGEST_S)


def _read_names(path: Path | None) -> dict[str, str]:
    try:
        data = path.read_bytes() if path else b"{}"
        return msgspec.json.decode(data, type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _sha256(path: Path, size: int) -> str:
    """Of a file; what is sent under it is verified by who takes it."""
    state, seen = hashlib.sha256(), 0
    with path.open("rb") as file:
        for data in iter(partial(file.read, CHUNK), b""):
            state.update(data)
            seen += len(data)
    if seen != size:
        raise CorruptBlob("a file changed while it was read", at=str(path))
    return state.hexdigest()
