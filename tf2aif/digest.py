"""Digests of values, files and folders: xxh3_128 as 32 hexadecimal digits.

xxh3 notices change on one's own machine, at memory speed. It is no defence against somebody who
wants two contents with one digest: what is shared or signed is named by SHA-256.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import xxhash

from tf2aif.errors import Tf2aifError
from tf2aif.facts import Value, key
from tf2aif.statcache import (
    LARGE,
    ChangedWhileReading,
    StatCache,
    hash_file,
    not_a_file,
    not_readable,
)

__all__ = [
    "ChangedWhileReading",
    "FileEntry",
    "StatCache",
    "digest_bytes",
    "digest_file",
    "digest_tree",
    "digest_value",
    "list_tree",
]

AnyPath = str | os.PathLike[str]
_TREE = b"tf2aif-tree-1\n"


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a folder."""

    path: str
    """Relative to the folder, with `/`."""
    size: int
    """Bytes."""
    digest: str
    executable: bool
    """Whether its owner may run it."""


class Node(NamedTuple):
    """One thing in a folder, as the walk finds it: links to files are files."""

    kind: str
    """`file`, `folder`, or `link`: to a folder of the same tree, which is not walked twice."""
    name: bytes
    """Path relative to the root, with `/`, as the file system spells it."""
    path: str
    status: os.stat_result
    target: bytes = b""
    """Of a `link`: the folder that it leads to, relative to the root."""


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """The digest of bytes.

    >>> digest_bytes(b"")
    '99aa06d3014798d86001c324468d497f'
    """
    return xxhash.xxh3_128_hexdigest(data)


def digest_value(value: Value) -> str:
    """The digest of any JSON value, by its encoding with names and types (`facts.key`).

    >>> digest_value([1]) == digest_value(["1"])
    False
    """
    return key({"value": value})


def digest_file(path: AnyPath, cache: StatCache | None = None) -> str:
    """The digest of one file's bytes; a link is followed.

    Raises FileNotFoundError, `Tf2aifError` for a folder, pipe, socket or device, and
    `ChangedWhileReading`.
    """
    return hash_file(path)[0] if cache is None else cache.digest(path)


def digest_tree(path: AnyPath, cache: StatCache | None = None) -> str:
    """The digest of a file (its bytes alone) or of a folder.

    A folder's covers the names, bytes and executable bits of its files, and its folders, empty
    ones too; no times, owners or order of listing. A link to a file counts as that file. A link to
    a folder counts as the folder unless that is in the same tree: then as a link. So a copy of the
    tree elsewhere has the same digest, and what a link leads to cannot change unseen.

    Raises FileNotFoundError where the path, or what a link in it leads to, is missing, and
    `Tf2aifError` for pipes, sockets, devices and links that run in a circle.
    """
    root = os.path.abspath(path)
    if not stat.S_ISDIR(os.stat(root).st_mode):
        return digest_file(root, cache)
    nodes = sorted(walk(root), key=lambda node: node.name)
    found = _digest_files(nodes, cache)
    state = xxhash.xxh3_128(_TREE)
    for node in nodes:
        payload = bytes.fromhex(found[node.path][0]) if node.kind == "file" else node.target
        kind = "executable" if _is_executable(node) else node.kind
        # Lengths before names: no two trees give the same bytes.
        state.update(f"{kind} {len(node.name)} {len(payload)}\n".encode() + node.name + payload)
    return state.hexdigest()


def list_tree(path: AnyPath, cache: StatCache | None = None) -> tuple[FileEntry, ...]:
    """Every file below a folder, sorted by path; of a file itself, one entry with its name.

    Names are text: bytes that are not UTF-8 come as Python's surrogates. A link to a folder of the
    same tree is left out. Raises as `digest_tree` does.
    """
    root = os.path.abspath(path)
    status = os.stat(root)
    if stat.S_ISDIR(status.st_mode):
        nodes = sorted(walk(root), key=lambda node: node.name)
    else:
        nodes = [Node("file", os.fsencode(os.path.basename(root)), root, status)]
    found = _digest_files(nodes, cache)
    entries = []
    for node in nodes:
        if node.kind == "file":
            digest, size = found[node.path]
            entries.append(FileEntry(os.fsdecode(node.name), size, digest, _is_executable(node)))
    return tuple(entries)


def walk(root: str) -> Iterator[Node]:
    """Everything below a folder, in no order, links resolved as `digest_tree` says."""
    real = os.path.realpath(root)
    pending = [(root, b"", frozenset((real,)))]
    while pending:
        folder, prefix, above = pending.pop()
        for entry in _entries(folder):
            name = prefix + os.fsencode(entry.name)
            node = _node(entry, name, real)
            yield node
            if node.kind == "folder":
                linked = entry.is_symlink()
                inside = above | {_unseen(entry.path, above)} if linked else above
                pending.append((entry.path, name + b"/", inside))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError as error:
        raise not_readable(folder) from error


def _node(entry: os.DirEntry[str], name: bytes, real: str) -> Node:
    status = entry.stat()  # follows links; FileNotFoundError where one leads nowhere
    if stat.S_ISREG(status.st_mode):
        return Node("file", name, entry.path, status)
    if not stat.S_ISDIR(status.st_mode):
        raise not_a_file(entry.path)
    if entry.is_symlink():
        target = os.path.relpath(os.path.realpath(entry.path), real)
        if target != ".." and not target.startswith("../"):
            return Node("link", name, entry.path, status, os.fsencode(target))
    return Node("folder", name, entry.path, status)


def _unseen(path: str, above: frozenset[str]) -> str:
    real = os.path.realpath(path)
    if any(folder == real or folder.startswith(real + "/") for folder in above):
        raise Tf2aifError("the link leads to a folder that it is in", at=path)
    return real


def _is_executable(node: Node) -> bool:
    return node.kind == "file" and bool(node.status.st_mode & stat.S_IXUSR)


def _look_once(path: str, _: os.stat_result) -> tuple[str, int]:
    """Digest and size of a file that no cache remembers."""
    digest, signature = hash_file(path)
    return digest, signature[2]


def _digest_files(nodes: list[Node], cache: StatCache | None) -> dict[str, tuple[str, int]]:
    """Path -> digest and size. Threads for large files only: small ones take 4 times as long."""
    look = _look_once if cache is None else cache.look
    files = [node for node in nodes if node.kind == "file"]
    large = [node for node in files if node.status.st_size > LARGE]
    if len(large) < 2:
        return {node.path: look(node.path, node.status) for node in files}
    from concurrent.futures import ThreadPoolExecutor  # slow to import: it brings logging

    small = [node for node in files if node.status.st_size <= LARGE]
    found = {node.path: look(node.path, node.status) for node in small}
    with ThreadPoolExecutor(min(len(large), os.cpu_count() or 1)) as pool:
        pairs = pool.map(lambda node: look(node.path, node.status), large)
        found.update(zip((node.path for node in large), pairs, strict=True))
    return found
