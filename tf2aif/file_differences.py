"""How the files of two folders differ: which, their sizes, and where their bytes part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from .digest import FileEntry

CHUNK = 1 << 20

Find = Callable[[FileEntry], Path | None]
"""Where the bytes of a file can be read; None where they are gone."""


class FileDifference(Struct, frozen=True, kw_only=True):
    """One file that is not the same in two folders."""

    path: str
    what: Literal["changed", "removed", "added", "mode"]
    """`mode`: the same bytes, but only one of them is executable."""
    first_bytes: int | None = None
    second_bytes: int | None = None
    offset: int | None = None
    """Of the first byte that differs, from 0; None where not both can be read."""


def compare_files(
    first: Iterable[FileEntry], second: Iterable[FileEntry], find_first: Find, find_second: Find
) -> tuple[FileDifference, ...]:
    """Every file that differs, by path; nothing where the folders hold the same files."""
    before = {file.path: file for file in first}
    after = {file.path: file for file in second}
    found = []
    for path in sorted({*before, *after}):
        one, other = before.get(path), after.get(path)
        if one != other:
            found.append(_difference(path, one, other, find_first, find_second))
    return tuple(found)


def _difference(
    path: str,
    one: FileEntry | None,
    other: FileEntry | None,
    find_first: Find,
    find_second: Find,
) -> FileDifference:
    if one is None or other is None:
        return FileDifference(
            path=path,
            what="added" if one is None else "removed",
            first_bytes=one.size if one else None,
            second_bytes=other.size if other else None,
        )
    if (one.size, one.digest) == (other.size, other.digest):
        return FileDifference(path=path, what="mode", first_bytes=one.size, second_bytes=other.size)
    left, right = find_first(one), find_second(other)
    return FileDifference(
        path=path,
        what="changed",
        first_bytes=one.size,
        second_bytes=other.size,
        offset=first_difference(left, right) if left and right else None,
    )


def first_difference(first: Path, second: Path) -> int | None:
    """The offset of the first byte that differs; None where the bytes are the same.

    A file that begins as the other one and goes on differs where the shorter one ends.
    """
    offset = 0
    with first.open("rb") as left, second.open("rb") as right:
        while True:
            one, other = left.read(CHUNK), right.read(CHUNK)
            if one != other:
                same = zip(one, other, strict=False)
                apart = next((i for i, (a, b) in enumerate(same) if a != b), None)
                return offset + (min(len(one), len(other)) if apart is None else apart)
            if not one:
                return None
            offset += len(one)
