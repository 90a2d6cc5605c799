"""The table of bytes: digest and size -> a read-only file. What is read is verified.

cas/<aa>/<digest>-<size>
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from tf2aif.digest import FileEntry
from tf2aif.errors import Tf2aifError
from tf2aif.records import blob_name
from tf2aif.statcache import CHUNK, ChangedWhileReading

_FICLONE = 0x40049409  # ioctl_ficlone(2): share the extents, on Btrfs, XFS, bcachefs, ZFS


class CorruptBlob(Tf2aifError):
    """Stored bytes are gone or are not what they were; the store has dropped them."""


class Blobs:
    """The folder `cas/`. Writers hold the store's shared lock, so that no collection runs."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self.root = root
        self.temporary = temporary

    def path(self, name: str) -> Path:
        """Where the blob of this name (`<digest>-<size>`) stands."""
        return self.root / name[:2] / name

    def has(self, file: FileEntry) -> bool:
        """Whether the bytes are there, judged by name and size."""
        try:
            return self.path(blob_name(file)).stat().st_size == file.size
        except OSError:
            return False

    def put(self, source: Path, file: FileEntry) -> None:
        """Store a file's bytes, unless they are there.

        Raises `ChangedWhileReading` where `source` is no longer what `file` says, and OSError.
        """
        dest = self.path(blob_name(file))
        if self.has(file):
            os.utime(dest)
            return
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.temporary / f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            if copy(source, temporary, 0o444, sync=True) != (file.digest, file.size):
                raise ChangedWhileReading("the file changed while it was stored", at=str(source))
            os.replace(temporary, dest)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @contextmanager
    def receive(self, file: FileEntry) -> Iterator[Callable[[bytes], None]]:
        """A function that takes a file's bytes as they come; stored where they are the right ones.

        Raises `CorruptBlob` at the end for others, and OSError. They are not forced to the disk:
        what a crash of the machine takes of them is noticed, and can be had again.
        """
        dest = self.path(blob_name(file))
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.temporary / f"{os.getpid()}-{os.urandom(8).hex()}"
        state, size = xxhash.xxh3_128(), 0
        try:
            with open(temporary, "xb", buffering=0) as output:

                def write(data: bytes) -> None:
                    nonlocal size
                    state.update(data)
                    size += len(data)
                    view = memoryview(data)
                    while view:
                        view = view[output.write(view) :]

                yield write
                os.fchmod(output.fileno(), 0o444)
            if (state.hexdigest(), size) != (file.digest, file.size):
                raise CorruptBlob("these are other bytes than the record's", at=file.path)
            os.replace(temporary, dest)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def get(self, file: FileEntry, dest: Path) -> None:
        """Copy stored bytes to a new file. Raises `CorruptBlob`; then `dest` is of no use."""
        source = self.path(blob_name(file))
        try:
            found = copy(source, dest, 0o777 if file.executable else 0o666)
        except FileNotFoundError as error:
            if source.exists():
                raise
            raise CorruptBlob("stored bytes are gone", at=str(source)) from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise CorruptBlob("stored bytes cannot be read", at=str(source)) from error
        if found != (file.digest, file.size):
            raise CorruptBlob("stored bytes are not what they were", at=str(source))

    def stored(self) -> Iterator[tuple[Path, int]]:
        """Every file of the table and its bytes."""
        for parent, folders, names in os.walk(self.root):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                with suppress(FileNotFoundError):
                    yield path, path.stat().st_size


def copy(source: Path, dest: Path, mode: int, *, sync: bool = False) -> tuple[str, int]:
    """Copy to a new file by one's own reading; the digest and size of what was written.

    Never a hard link: what a tool does to the one would be done to the other. Where the file system
    can share extents, nothing is written, and the new file is what is read.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(dest, flags, mode)
        try:
            cloned = _clone(reading, writing)
            found = _pump(writing, None) if cloned else _pump(reading, writing)
            if sync:
                os.fsync(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return found


def _clone(reading: int, writing: int) -> bool:
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError:  # another file system, or one that cannot
        return False
    return True


def _pump(reading: int, writing: int | None) -> tuple[str, int]:
    state, size = xxhash.xxh3_128(), 0
    buffer = memoryview(bytearray(CHUNK))
    while count := os.readv(reading, [buffer]):
        state.update(buffer[:count])
        size += count
        written = 0
        while writing is not None and written < count:
            written += os.write(writing, buffer[written:count])
    return state.hexdigest(), size
