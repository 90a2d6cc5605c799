"""A remote in a folder: a network drive, or what a CI system keeps between its runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .remote import CHUNK, MAX_BUNDLE, Blob, Entry, RemoteFailed, Table, is_name


class FolderRemote:
    """`<root>/ac/<aa>/<name>` and `<root>/cas/<aa>/<name>`; files appear whole, by renaming."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root.expanduser()))
        self.url = self.root.as_uri()

    def get_action(self, name: str) -> bytes | None:
        """The entry of `ac/`."""
        try:
            with self._path("ac", name).open("rb") as file:
                return file.read(MAX_BUNDLE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", error) from error

    def put_action(self, name: str, data: bytes, blobs: Sequence[Blob]) -> None:  # noqa: ARG002
        """Write an entry of `ac/`."""
        self._write("ac", name, iter((data,)))

    @contextmanager
    def get_blob(self, blob: Blob, start: int) -> Iterator[Iterator[bytes]]:
        """The bytes from `start` on."""
        try:
            file = self._path("cas", blob.sha256).open("rb")
        except FileNotFoundError as error:
            raise RemoteFailed("a blob is gone", at=self.url, absent=True) from error
        except OSError as error:
            raise self._failed("read", error) from error
        with file:
            file.seek(start)
            yield self._pieces(file)

    def _pieces(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            while data := file.read(CHUNK):
                yield data
        except OSError as error:
            raise self._failed("read", error) from error

    def has_blob(self, blob: Blob) -> bool:
        """Whether it is there, by name and size; a use, for `gc`."""
        path = self._path("cas", blob.sha256)
        try:
            if path.stat().st_size != blob.size:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._failed("write", error) from error
        return True

    def put_blob(self, blob: Blob, source: Path) -> None:
        """Write an entry of `cas/`."""
        with source.open("rb") as file:
            self._write("cas", blob.sha256, self._pieces(file))

    def entries(self) -> Iterator[Entry]:
        """All files of both tables."""
        if not self.root.is_dir():  # more likely a wrong path than an empty cache
            raise RemoteFailed("there is no such folder", at=self.url)
        tables: tuple[Table, ...] = ("ac", "cas")
        for table in tables:
            for parent, folders, names in os.walk(self.root / table):
                folders.sort()
                for name in filter(is_name, sorted(names)):
                    with suppress(FileNotFoundError):
                        status = Path(parent, name).stat()
                        yield Entry(table, name, status.st_size, status.st_mtime)

    def delete(self, entry: Entry) -> None:
        """Remove one."""
        try:
            self._path(entry.table, entry.name).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("write", error) from error

    def close(self) -> None:
        """Nothing is open."""

    def _path(self, table: str, name: str) -> Path:
        return self.root / table / name[:2] / name

    def _write(self, table: str, name: str, content: Iterator[bytes]) -> None:
        path = self._path(table, name)
        temporary = path.with_name(f".{name[:8]}-{os.getpid()}-{os.urandom(6).hex()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb", buffering=CHUNK) as file:
                    file.writelines(content)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._failed("write", error) from error

    def _failed(self, what: str, error: OSError) -> RemoteFailed:
        reason = error.strerror or str(error)
        return RemoteFailed(
            f"cannot {what} the remote: {reason}", at=self.url, refused=what == "write"
        )
