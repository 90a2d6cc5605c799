"""Digests, the stat cache and snapshots: never the digest of what is no longer there."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tf2aif.digest import (
    ChangedWhileReading,
    StatCache,
    digest_bytes,
    digest_file,
    digest_tree,
    digest_value,
    list_tree,
)
from tf2aif.errors import Tf2aifError
from tf2aif.snapshot import COARSE_NS, FINE_NS, settled, snapshot, unchanged

SETTLE_S = 2 * FINE_NS / 1e9

# A tree as a value: path -> bytes and whether executable, or None for a folder.
Tree = dict[tuple[str, ...], tuple[bytes, bool] | None]
_names = st.text("ab/\n .é0", min_size=1, max_size=3).filter(
    lambda name: "/" not in name and name not in (".", "..")
)
_paths = st.lists(_names, min_size=1, max_size=3).map(tuple)
_trees = st.dictionaries(
    _paths, st.none() | st.tuples(st.binary(max_size=4), st.booleans()), max_size=6
).map(lambda tree: _consistent(tree))


def _consistent(tree: Tree) -> Tree:
    """What of it can be on a disk: nothing is below a file; parents are there."""
    files = {path for path, content in tree.items() if content is not None}
    good: Tree = {}
    for path, content in tree.items():
        parents = [path[:end] for end in range(1, len(path))]
        if not files.intersection(parents):
            good.update(dict.fromkeys((p for p in parents if p not in tree), None))
            good[path] = content
    return good


def _write(tree: Tree, root: Path, order: Callable[[Tree], list[tuple[str, ...]]] = sorted) -> Path:
    root.mkdir()
    for path in order(tree):
        content, file = tree[path], root.joinpath(*path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.mkdir(exist_ok=True)
        else:
            file.write_bytes(content[0])
            file.chmod(0o755 if content[1] else 0o644)
    return root


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@settings(max_examples=150, deadline=None)
@given(_trees, _trees)
def test_two_trees_have_one_digest_exactly_when_they_are_equal(one: Tree, other: Tree) -> None:
    with _temporary() as folder:
        first = digest_tree(_write(one, folder / "one"))
        second = digest_tree(_write(other, folder / "other"))
        assert (first == second) == (one == other)


@settings(max_examples=60, deadline=None)
@given(_trees, st.randoms(use_true_random=False))
def test_place_times_and_order_of_writing_do_not_count(tree: Tree, random: object) -> None:
    def shuffled(items: Tree) -> list[tuple[str, ...]]:
        paths = list(items)
        random.shuffle(paths)  # type: ignore[attr-defined]
        return paths

    with _temporary() as folder:
        here = _write(tree, folder / "here")
        there = _write(tree, folder / "there", shuffled)
        for path in there.rglob("*"):
            os.utime(path, (1, 1))
        cache = StatCache()
        assert digest_tree(here) == digest_tree(there, cache) == digest_tree(there, cache)


@settings(max_examples=60, deadline=None)
@given(_trees)
def test_the_list_of_a_tree_is_its_files_in_order(tree: Tree) -> None:
    with _temporary() as folder:
        entries = list_tree(_write(tree, folder / "tree"))
        expected = {"/".join(p): c for p, c in tree.items() if c is not None}
        assert {e.path: (e.size, e.executable) for e in entries} == {
            path: (len(data), executable) for path, (data, executable) in expected.items()
        }
        assert all(e.digest == digest_bytes(expected[e.path][0]) for e in entries)
        assert [e.path.encode() for e in entries] == sorted(e.path.encode() for e in entries)


@pytest.mark.parametrize("size", [0, 1, 262143, 262144, 262145, 3_000_000])
def test_a_file_is_digested_as_its_bytes(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert digest_file(path) == digest_bytes(data) == xxhash.xxh3_128_hexdigest(data)
    assert digest_file(path, StatCache()) == digest_tree(path) == digest_bytes(data)
    assert [(e.path, e.size) for e in list_tree(path)] == [("file", size)]


def test_a_folder_is_not_a_file_and_values_keep_their_types(tmp_path: Path) -> None:
    with pytest.raises(Tf2aifError, match="a folder where a file"):
        digest_file(tmp_path)
    assert digest_value([1]) != digest_value(["1"]) != digest_value("1")
    assert digest_value({"a": 1, "b": 2}) == digest_value({"b": 2, "a": 1})


def test_what_is_missing_is_an_error_never_a_digest(tmp_path: Path) -> None:
    for call in (digest_file, digest_tree, list_tree):
        for cache in (None, StatCache()):
            with pytest.raises(FileNotFoundError):
                call(tmp_path / "nothing", cache)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        digest_tree(tmp_path)


def test_pipes_and_sockets_are_errors_and_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for call in (digest_file, digest_tree):
        with pytest.raises(Tf2aifError, match="neither a file nor a folder"):
            call(tmp_path / "pipe")
    with pytest.raises(Tf2aifError, match="neither a file nor a folder"):
        digest_tree(tmp_path)
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s"))
        with pytest.raises(Tf2aifError, match="neither a file nor a folder"):
            digest_tree(tmp_path)


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"one")
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    linked.mkdir()
    copied.mkdir()
    (linked / "image").symlink_to(tmp_path / "blob")
    (copied / "image").write_bytes(b"one")
    assert digest_tree(linked) == digest_tree(copied)
    (tmp_path / "blob").write_bytes(b"two")
    assert digest_tree(linked) != digest_tree(copied)


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to("data")
    assert digest_tree(tmp_path / "link") == digest_tree(tmp_path / "data")


def test_a_link_to_a_folder_elsewhere_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "data")
    before = digest_tree(tmp_path / "set")
    (tmp_path / "data" / "new").write_bytes(b"")
    assert digest_tree(tmp_path / "set") != before


def test_a_link_within_the_tree_is_a_link_wherever_the_tree_is(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "v1").mkdir(parents=True)
    (first / "v2").mkdir()
    (first / "v1" / "w").write_bytes(b"w")
    (first / "latest").symlink_to(first / "v1")  # absolute, and still no part of the digest
    (first / "v1" / "up").symlink_to("..")
    (tmp_path / "second").mkdir()
    second = shutil.copytree(first, tmp_path / "second" / "tree", symlinks=True)
    (second / "latest").unlink()
    (second / "latest").symlink_to("v1")
    assert digest_tree(first) == digest_tree(second)
    (second / "latest").unlink()
    (second / "latest").symlink_to("v2")
    assert digest_tree(first) != digest_tree(second)


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "loop").symlink_to(tmp_path / "outer")
    with pytest.raises(Tf2aifError, match="a folder that it is in"):
        digest_tree(inner)


def test_names_that_are_not_text_are_digested(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    for name in (b"\xff", b"\xfe"):
        with open(os.path.join(raw, name), "wb") as file:
            file.write(b"x")
    cache = StatCache(tmp_path.parent / "stats")
    assert digest_tree(tmp_path) == digest_tree(tmp_path, cache)
    time.sleep(SETTLE_S)
    digest_tree(tmp_path, cache)
    cache.save()
    assert digest_tree(tmp_path, StatCache.load(cache.path)) == digest_tree(tmp_path)


# The stat cache


def _settled_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    time.sleep(SETTLE_S)
    return path


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(50):
        (tree / f"{number}").write_bytes(b"%d" % number)
    time.sleep(SETTLE_S)
    cache = StatCache.load(tmp_path / "stats")
    before = digest_tree(tree, cache)
    assert cache.hashed_bytes == 90
    cache.save()
    again = StatCache.load(tmp_path / "stats")
    assert digest_tree(tree, again) == before
    assert again.hashed_bytes == 0


def test_a_touch_reads_again_and_gives_the_same(tmp_path: Path) -> None:
    path = _settled_file(tmp_path / "file", b"12345")
    cache = StatCache()
    before = cache.digest(path)
    path.touch()
    assert cache.digest(path) == before
    assert cache.hashed_bytes == 10


def test_an_edit_with_the_old_size_and_mtime_is_noticed(tmp_path: Path) -> None:
    path = _settled_file(tmp_path / "file", b"one")
    cache = StatCache()
    before, status = cache.digest(path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert cache.digest(path) == digest_bytes(b"two") != before


def test_another_file_moved_in_place_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(b"two")
    _settled_file(path, b"one")
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    time.sleep(SETTLE_S)
    cache = StatCache()
    cache.digest(path)
    os.replace(other, path)
    assert cache.digest(path) == digest_bytes(b"two")


@pytest.fixture(params=["here", "ramfs"])
def ticking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder here, and one whose time stamps go by the kernel's tick (since Linux 6.13 many file
    systems give a file that was looked at a stamp of its own; ramfs does not)."""
    if request.param == "here":
        yield tmp_path
        return
    folder = tmp_path / "ramfs"
    folder.mkdir()
    command = ["mount", "-t", "ramfs", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a ramfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_edits_in_the_same_tick_are_noticed(ticking: Path) -> None:
    path, cache, same = ticking / "file", StatCache(), 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"0000")
        for number in range(2000):
            before = os.fstat(descriptor).st_ctime_ns
            os.pwrite(descriptor, b"%04d" % number, 0)
            same += os.fstat(descriptor).st_ctime_ns == before
            assert cache.digest(path) == digest_bytes(b"%04d" % number)
    finally:
        os.close(descriptor)
    assert same > 100 or ticking.name != "ramfs"


def test_a_stat_counts_only_when_it_is_older_than_the_reading() -> None:
    device, now = os.stat("/dev/shm" if os.path.isdir("/dev/shm") else "/").st_dev, 10**18
    old, new = now - COARSE_NS - 1, now - FINE_NS // 2

    def signature(mtime: int, ctime: int, where: int = device) -> tuple[int, int, int, int, int]:
        return where, 1, 1, mtime, ctime

    unknown = 0xFFFF_FFFF
    assert settled(signature(old, old), now)
    assert settled(signature(old, old, unknown), now)
    assert not settled(signature(old, new + 7), now)
    assert not settled(signature(new + 7, old, unknown), now)
    assert not settled(signature(old, now + 10**12 + 7), now), "a clock ahead of ours"
    assert settled(signature(now + 10**18, now - 10**9 + 7), now), "an mtime set to a year ahead"
    between = now - 5 * FINE_NS + 7
    assert settled(signature(between, between), now)
    assert not settled(signature(between, between, unknown), now), "an unknown file system"
    whole = now - 10**9
    assert not settled(signature(whole, whole), now), "a file system that counts in seconds"


def test_an_mtime_in_the_future_does_not_defeat_the_cache(tmp_path: Path) -> None:
    path, cache, year_ns = tmp_path / "file", StatCache(), 365 * 86400 * 10**9
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, time.time_ns() + year_ns))
    time.sleep(SETTLE_S)
    entries = snapshot([path])
    if not unchanged(entries):
        pytest.skip("the file system of the temporary folder is not known to be local")
    assert cache.digest(path) == cache.digest(path)
    assert cache.hashed_bytes == 5


def test_what_may_not_be_read_is_named() -> None:
    with _temporary() as folder:
        folder.chmod(0o755)
        (folder / "secret").mkdir()
        (folder / "secret.bin").write_bytes(b"")
        (folder / "secret").chmod(0)
        (folder / "secret.bin").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            for name in ("secret", "secret.bin"):
                with pytest.raises(Tf2aifError, match="permission to read it is missing") as caught:
                    digest_tree(folder / name)
                assert name in caught.value.render()
        finally:
            os.seteuid(user)
            (folder / "secret").chmod(0o755)


def test_a_large_file_just_written_is_read_once(tmp_path: Path) -> None:
    path, cache = tmp_path / "large", StatCache()
    path.write_bytes(bytes(5_000_000))
    if not settled((path.stat().st_dev, 0, 0, 1, time.time_ns() - 3 * FINE_NS + 1), time.time_ns()):
        pytest.skip("the file system of the temporary folder is not known to be local")
    digests = {cache.digest(path) for _ in range(5)}
    assert digests == {digest_bytes(bytes(5_000_000))}
    assert cache.hashed_bytes == 5_000_000


def test_threads_that_want_a_file_at_once_read_it_once(tmp_path: Path) -> None:
    path, size = tmp_path / "large", 200_000_000
    path.touch()
    os.truncate(path, size)  # a hole: no disk is filled
    time.sleep(SETTLE_S)
    cache, barrier = StatCache(), threading.Barrier(4)

    def look(_: int) -> str:
        barrier.wait(30)
        return cache.digest(path)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(look, range(4)))) == 1
    assert cache.hashed_bytes == size


def test_large_files_of_a_tree_are_read_in_threads_and_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abc":
        (tree / name).write_bytes(name.encode() * 3_000_000)
    time.sleep(SETTLE_S)
    cache = StatCache()
    digests = {digest_tree(tree, cache) for _ in range(3)}
    assert cache.hashed_bytes == 9_000_000
    assert [e.digest for e in list_tree(tree)] == [digest_file(tree / name) for name in "abc"]
    assert digests == {digest_tree(tree)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: bytes(len(data)),
        lambda data: data.replace(b"tf2aif-stat-1", b"tf2aif-stat-9"),
        lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
        lambda data: b"not ours",
    ],
)
def test_a_damaged_cache_file_is_an_empty_cache(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = _settled_file(tmp_path / "file", b"12345")
    cache = StatCache.load(tmp_path / "stats")
    cache.digest(path)
    cache.save()
    (tmp_path / "stats").write_bytes(damage((tmp_path / "stats").read_bytes()))
    cache = StatCache.load(tmp_path / "stats")
    assert cache.digest(path) == digest_bytes(b"12345")
    assert cache.hashed_bytes == 5


def test_saving_merges_and_forgets_what_vanished(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1")
    _settled_file(second, b"2")
    one, two = StatCache.load(tmp_path / "s" / "stats"), StatCache.load(tmp_path / "s" / "stats")
    one.digest(first)
    two.digest(second)
    one.save()
    two.save()
    both = StatCache.load(tmp_path / "s" / "stats")
    both.digest(first)
    both.digest(second)
    assert both.hashed_bytes == 0
    before = (tmp_path / "s" / "stats").stat()
    both.save()
    assert (tmp_path / "s" / "stats").stat() == before, "nothing new, nothing written"
    second.unlink()
    first.touch()
    time.sleep(SETTLE_S)
    both.digest(first)
    both.save()
    assert b"second" not in (tmp_path / "s" / "stats").read_bytes()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["stats"]


def test_a_cache_that_cannot_be_saved_says_so(tmp_path: Path) -> None:
    path = _settled_file(tmp_path / "file", b"1")
    cache = StatCache.load(path / "stats")  # below a file
    cache.digest(path)
    with pytest.raises(Tf2aifError, match="cannot be written"):
        cache.save()


def _rewrite_for_ever(path: str) -> None:
    data = bytes(8_000_000)
    while True:
        with open(path, "r+b") as file:
            file.write(data)


def _digest_often(path: Path) -> None:
    until = time.monotonic() + 60  # on a busy machine the writer sleeps through many readings
    while time.monotonic() < until:
        assert digest_file(path) == digest_bytes(bytes(8_000_000))


def test_a_file_that_never_holds_still_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8_000_000))
    spawn = multiprocessing.get_context("spawn")
    writer = spawn.Process(target=_rewrite_for_ever, args=(str(path),), daemon=True)
    writer.start()
    try:
        with pytest.raises(ChangedWhileReading, match="changed while it was read"):
            _digest_often(path)
    finally:
        writer.kill()
        writer.join()


# Snapshots


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"1")
    (root / "other").write_bytes(b"2")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far").write_bytes(b"3")
    (tmp_path / "outside" / "back").symlink_to(root)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "name").symlink_to(tmp_path / "outside" / "far")
    time.sleep(SETTLE_S)
    return root


CHANGES: dict[str, Callable[[Path], object]] = {
    "edit": lambda t: (t / "a" / "file").write_bytes(b"x"),
    "touch": lambda t: (t / "a" / "file").touch(),
    "new file": lambda t: (t / "a" / "b" / "new").write_bytes(b""),
    "new folder": lambda t: (t / "a" / "b" / "new").mkdir(),
    "removed file": lambda t: (t / "other").unlink(),
    "removed folder": lambda t: (t / "a" / "b").rmdir(),
    "renamed file": lambda t: (t / "other").rename(t / "another"),
    "executable": lambda t: (t / "other").chmod(0o755),
    "behind a link": lambda t: (t.parent / "outside" / "far").write_bytes(b"x"),
    "new behind a link": lambda t: (t.parent / "outside" / "new").write_bytes(b"x"),
    "link turned": lambda t: ((t / "name").unlink(), (t / "name").symlink_to(t / "other")),
    "link became a file": lambda t: ((t / "name").unlink(), (t / "name").write_bytes(b"3")),
    "link leads nowhere": lambda t: (t.parent / "outside" / "far").unlink(),
    "missing file came": lambda t: (t.parent / "missing").write_bytes(b""),
    "tree removed": lambda t: shutil.rmtree(t),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_snapshot_notices(tree: Path, change: str) -> None:
    entries = json.loads(json.dumps(snapshot([tree, tree.parent / "missing", tree])))
    assert unchanged(entries)
    assert unchanged(entries), "asking changes nothing"
    CHANGES[change](tree)
    assert not unchanged(entries)


def test_a_snapshot_of_files_just_written_says_nothing(tree: Path) -> None:
    assert unchanged(snapshot([tree]))
    (tree / "a" / "file").write_bytes(b"z")
    assert not unchanged(snapshot([tree]))
    assert unchanged(snapshot([tree], settle_s=COARSE_NS / 1e9 + 1))


def test_a_snapshot_of_nothing_says_nothing() -> None:
    assert not unchanged(snapshot([]))


def test_a_snapshot_notices_an_edit_with_the_old_mtime(tree: Path) -> None:
    entries, path = snapshot([tree]), tree / "other"
    status = path.stat()
    path.write_bytes(b"9")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not unchanged(entries)


def test_a_dangling_link_is_never_unchanged(tree: Path) -> None:
    (tree / "dangling").symlink_to("nowhere")
    time.sleep(SETTLE_S)
    assert not unchanged(snapshot([tree]))


def test_asking_imports_next_to_nothing() -> None:
    root = Path(__file__).parents[1]
    code = "import sys, tf2aif.snapshot; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    loaded = set(done.stdout.split())
    assert "tf2aif.snapshot" in loaded
    heavy = {"dataclasses", "doit", "inspect", "logging", "msgspec", "numpy", "re", "tempfile"}
    assert not loaded & (heavy | {"subprocess", "typing", "xxhash"})


def test_a_thread_waiting_for_a_file_gets_the_error_too(tmp_path: Path) -> None:
    cache, errors = StatCache(), []

    def look() -> None:
        try:
            cache.digest(tmp_path / "nothing")
        except FileNotFoundError as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 4
