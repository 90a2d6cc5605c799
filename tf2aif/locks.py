"""Locks that hold over processes and threads, and that the kernel lets go of when the holder dies.

`flock(2)` belongs to an open file, and each holder opens its own: so two threads exclude each other
as two processes do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(
    path: Path, *, shared: bool = False, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock file, made where it is missing; not to be taken twice by one holder.

    `shared` holders exclude only the others. `waiting` is called once if somebody else has it.
    Raises OSError where the file is missing and cannot be made.
    """
    descriptor = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, waiting)
    try:
        yield
    finally:
        # Closing alone would leave it to a process that was forked meanwhile.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def try_remove(path: Path) -> bool:
    """Remove a lock file that nobody holds; whether it did."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only who holds it removes it: what is at the path now stays there while we look.
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return False
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True


def _acquire(path: Path, how: int, waiting: Callable[[], None] | None) -> int:
    while True:
        descriptor = _open(path)
        try:
            _flock(descriptor, how, waiting)
            # Whoever had it may have removed the file: then ours is a lock on nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not for writing: flock needs no more, so a file of another user, or of a store that we may
    # only read, will do.
    return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _flock(descriptor: int, how: int, waiting: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is not None:
            waiting()
        fcntl.flock(descriptor, how)
