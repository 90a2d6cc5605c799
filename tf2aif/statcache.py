"""Digests of files, remembered by stat: a file whose stat did not change is not read again.

Like Git's index: device, inode, size, mtime and ctime stand for the content, with the racy rule of
`tf2aif.snapshot`. Only digests that are safe to reuse are kept, so looking one up is a comparison.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import msgspec
import xxhash

from tf2aif.errors import Tf2aifError
from tf2aif.snapshot import Signature, settled, signature_of, wait_until_settled

CHUNK = 256 * 1024
"""Bytes a read: the fastest here. Not mmap: a file cut short meanwhile would kill the process."""
LARGE = 1024 * 1024
"""From this size on a file is worth a thread, and worth a wait to be read only once."""
ATTEMPTS = 3

_MAGIC = b"tf2aif-stat-1\n"
_Known = tuple[int, int, int, int, int, str]
_decoder = msgspec.msgpack.Decoder(dict[str, _Known])
_encoder = msgspec.msgpack.Encoder()
_buffers = threading.local()


class ChangedWhileReading(Tf2aifError):
    """A file changed under the reader, every time that it was read."""


def hash_file(path: str | os.PathLike[str]) -> tuple[str, Signature]:
    """The xxh3_128 of a file's bytes, and the stat under which exactly those bytes were read.

    Raises FileNotFoundError where nothing is, `Tf2aifError` for what is not a regular file or may
    not be read, and `ChangedWhileReading` for one that never held still.
    """
    for _ in range(ATTEMPTS):
        # Not blocking: a pipe put there since the caller looked would wait for a writer for ever.
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError as error:
            raise not_readable(path) from error
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise not_a_file(path)
            digest = _hash_descriptor(descriptor, before.st_size)
            signature = signature_of(before)
            if signature == signature_of(os.fstat(descriptor)):
                return digest, signature
        finally:
            os.close(descriptor)
    raise ChangedWhileReading(
        "the file changed while it was read",
        at=os.fspath(path),
        hint="wait until what writes it has finished, then run again",
    )


def not_a_file(path: str | os.PathLike[str]) -> Tf2aifError:
    """The error for a pipe, a socket or a device where data was expected, or a folder."""
    folder = os.path.isdir(path)
    message = "a folder where a file was expected" if folder else "neither a file nor a folder"
    return Tf2aifError(message, at=os.fspath(path))


def not_readable(path: str | os.PathLike[str]) -> Tf2aifError:
    """The error for what we may not read."""
    return Tf2aifError("permission to read it is missing", at=os.fspath(path))


def _hash_descriptor(descriptor: int, size: int) -> str:
    if size <= CHUNK:
        data = os.read(descriptor, CHUNK + 1)
        if len(data) == size:
            return xxhash.xxh3_128_hexdigest(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    buffer = getattr(_buffers, "view", None)
    if buffer is None:
        buffer = _buffers.view = memoryview(bytearray(CHUNK))
    state = xxhash.xxh3_128()
    while count := os.readv(descriptor, [buffer]):
        state.update(buffer[:count])
    return state.hexdigest()


class StatCache:
    """Path -> digest, for files that are as they were when they were hashed. Safe under threads.

    >>> cache = StatCache()
    >>> cache.digest(__file__) == cache.digest(__file__) == hash_file(__file__)[0]
    True
    """

    def __init__(self, path: Path | None = None) -> None:
        """An empty cache; `path` is where `save` writes it (None: nowhere)."""
        self.path = path
        self.hashed_bytes = 0  # what was really read: for tests and for the build's summary
        self._entries: dict[str, _Known] = {}
        self._fresh: set[str] = set()
        self._guard = threading.Lock()
        # One file asked for by several threads at once is read by one of them.
        self._reading = tuple(threading.Lock() for _ in range(64))

    @classmethod
    def load(cls, path: Path) -> StatCache:
        """The cache kept in a file; empty where that is missing, damaged, or of another version."""
        cache = cls(path)
        cache._entries = _read(path)
        return cache

    def digest(self, path: str | os.PathLike[str], status: os.stat_result | None = None) -> str:
        """The xxh3_128 of a file (links are followed), from memory where its stat allows.

        `status` is a stat of it that the caller took a moment ago. Raises as `hash_file` does.
        """
        return self.look(path, status)[0]

    def look(
        self, path: str | os.PathLike[str], status: os.stat_result | None = None
    ) -> tuple[str, int]:
        """`digest`, and the size in bytes that goes with it."""
        name = os.path.abspath(path)
        signature = signature_of(os.stat(name) if status is None else status)
        known = self._entries.get(name)
        if known is not None and known[:5] == signature:
            return known[5], known[2]
        with self._reading[hash(name) % len(self._reading)]:
            known = self._entries.get(name)
            if known is not None and known[:5] == signature:
                return known[5], known[2]
            return self._hash(name, signature)

    def _hash(self, name: str, signature: Signature) -> tuple[str, int]:
        if signature[2] > LARGE:
            # Read now it would have to be read again; a tenth of a second later it counts.
            wait_until_settled(signature)
        began_ns = time.time_ns()
        digest, signature = hash_file(name)
        with self._guard:
            self.hashed_bytes += signature[2]
            if settled(signature, began_ns):
                self._entries[name] = (*signature, digest)
                self._fresh.add(name)
            else:
                self._entries.pop(name, None)
        return digest, signature[2]

    def save(self) -> None:
        """Write what is new beside what other processes wrote meanwhile; drop vanished files.

        A reader sees the old file or the new one. Of two that save at once one may win: the other's
        files are hashed once more, nothing else. Raises `Tf2aifError` where it cannot be written.
        """
        if self.path is None or not self._fresh:
            return
        with self._guard:
            fresh = {name: self._entries[name] for name in self._fresh if name in self._entries}
        kept = {name: known for name, known in _read(self.path).items() if name not in fresh}
        kept = {name: known for name, known in kept.items() if os.path.lexists(name)}
        try:
            _write(self.path, kept | fresh)
        except OSError as error:
            raise Tf2aifError(
                f"the cache of file digests cannot be written: {error.strerror}", at=str(self.path)
            ) from error
        with self._guard:
            self._fresh.difference_update(
                name for name, known in fresh.items() if self._entries.get(name) == known
            )


def _read(path: Path) -> dict[str, _Known]:
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    start = len(_MAGIC) + 16
    body = memoryview(data)[start:]
    if data[:start] != _MAGIC + xxhash.xxh3_128_digest(body):
        return {}
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError:
        return {}


def _write(path: Path, entries: dict[str, _Known]) -> None:
    # No fsync: after a power cut a half-written file fails its digest, and costs one hashing.
    # A name that is not UTF-8 cannot be written; such a file is hashed each time.
    body = _encoder.encode({name: known for name, known in entries.items() if _is_text(name)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(_MAGIC + xxhash.xxh3_128_digest(body) + body)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_text(name: str) -> bool:
    return name.isascii() or "\\udc" not in ascii(name)
