"""A folder that appears whole or not at all: made beside its place, then renamed into it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MARK = ".tf2aif-tmp"
_ABANDONED_S = 60.0  # how long a temporary folder may be between its making and its lock


@contextmanager
def fresh_folder(dest: Path) -> Iterator[Path]:
    """An empty folder beside `dest`, which takes its place if the block ends well.

    What was at `dest`, folder or file, is removed after that. Between two renames there is nothing
    at `dest`; never a mixture. What killed processes left beside it is removed too. Raises OSError.
    """
    dest = Path(os.path.abspath(dest))
    dest.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(dest)
    with _locked_folder(dest) as work:
        new = work / "new"
        new.mkdir()
        yield new
        _swap(new, dest, work)


def _swap(new: Path, dest: Path, work: Path) -> None:
    for number in itertools.count():
        old = work / f"old{number}"
        with suppress(FileNotFoundError):
            os.rename(dest, old)
        try:
            os.rename(new, dest)
            return
        except OSError as error:
            # Another process put its own there since we looked: ours replaces that as well.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                continue
            with suppress(OSError):
                os.rename(old, dest)
            raise


@contextmanager
def _locked_folder(dest: Path) -> Iterator[Path]:
    """A temporary folder whose lock says that its maker is alive, whatever its process id."""
    work = dest.with_name(f".{dest.name}.{os.getpid()}-{os.urandom(4).hex()}{_MARK}")
    work.mkdir()
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _remove_abandoned(dest: Path) -> None:
    with os.scandir(dest.parent) as entries:
        left = [
            entry.path
            for entry in entries
            if entry.name.startswith(f".{dest.name}.") and entry.name.endswith(_MARK)
        ]
    for path in left:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # gone meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old = time.time() - os.fstat(descriptor).st_mtime > _ABANDONED_S
            if old or not _is_alive(path):
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:  # its maker lives
            pass
        finally:
            os.close(descriptor)


def _is_alive(path: str) -> bool:
    """Whether the process that made a temporary folder may still be there, by the folder's name."""
    number = path.removesuffix(_MARK).rpartition(".")[2].partition("-")[0]
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's
        return True
    return True
