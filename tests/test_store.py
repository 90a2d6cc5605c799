"""The store: what comes out is what went in, or nothing; whoever dies, whenever."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf2aif.digest import digest_bytes, digest_tree, list_tree
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.facts import key
from tf2aif.store import ActionRecord, CorruptBlob, Store, default_root

KEY = key({"step": "kws/import"})
_spawn = multiprocessing.get_context("spawn")


def make(folder: Path, **files: bytes) -> Path:
    """An artifact: `a__b=b"..."` is the file a/b."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def add(store: Store, folder: Path, base_key: str = KEY, **observed: Any) -> ActionRecord:
    return store.add(
        base_key,
        folder,
        step="kws/import",
        kind="import",
        facts={"step": "kws/import"},
        observed=observed,
        result={"accuracy": 0.5},
        timing={"wall_s": 1.0, "cpu_s": 1.0, "peak_mb": 10.0},
    )


def nothing(name: str) -> Any:
    raise AssertionError(f"nobody should have asked for {name}")


def blobs(store: Store) -> list[Path]:
    return sorted(path for path in (store.root / "v1" / "cas").rglob("*") if path.is_file())


def records(store: Store) -> list[Path]:
    return sorted((store.root / "v1" / "ac").rglob("*.json"))


def spoil(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return make(tmp_path / "artifact", model=b"weights" * 1000, variables__index=b"index")


_trees = st.dictionaries(
    st.lists(st.text("abé .", min_size=1, max_size=3), min_size=1, max_size=3)
    .map("/".join)
    .filter(lambda path: not any(part in (".", "..") for part in path.split("/"))),
    st.none() | st.tuples(st.binary(max_size=8), st.booleans()),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(_trees)
def test_what_comes_out_is_what_went_in(tree: dict[str, tuple[bytes, bool] | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, source = Store(Path(folder, "store")), Path(folder, "source")
        source.mkdir()
        for path, content in tree.items():
            with contextlib.suppress(NotADirectoryError, FileExistsError, IsADirectoryError):
                if content is None:
                    (source / path).mkdir(parents=True)
                else:
                    (source / path).parent.mkdir(parents=True, exist_ok=True)
                    (source / path).write_bytes(content[0])
                    (source / path).chmod(0o755 if content[1] else 0o644)
        record = add(store, source)
        assert store.find(KEY, nothing) == record
        store.restore(record, Path(folder, "there", "dest"))
        assert digest_tree(Path(folder, "there", "dest")) == digest_tree(source)
        assert list_tree(source) == record.outputs


def test_a_miss_makes_nothing(store: Store, artifact: Path) -> None:
    assert store.find(KEY, nothing) is None
    assert store.records(KEY) == []
    assert not store.root.exists()
    assert store.info().records == store.gc().records == store.verify().records == 0


def test_a_record_keeps_what_it_was_given(store: Store, artifact: Path) -> None:
    before = time.time()
    record = add(store, artifact, numpy="2.1")
    assert (record.step, record.kind, record.key) == ("kws/import", "import", KEY)
    assert record.facts == {"step": "kws/import"}
    assert record.observed == {"numpy": "2.1"}
    assert record.result == {"accuracy": 0.5}
    assert before <= record.created <= time.time()
    assert store.records(KEY) == [record]


def test_what_is_restored_is_no_link_into_the_store(
    store: Store, artifact: Path, tmp_path: Path
) -> None:
    record = add(store, artifact)
    assert all(path.stat().st_mode & 0o222 == 0 for path in blobs(store))
    store.restore(record, tmp_path / "dest")
    (tmp_path / "dest" / "model").write_bytes(b"spoilt")
    (artifact / "model").write_bytes(b"spoilt too")
    store.restore(record, tmp_path / "dest")
    assert (tmp_path / "dest" / "model").read_bytes() == b"weights" * 1000
    assert [path.stat().st_nlink for path in blobs(store)] == [1, 1]


def test_restoring_replaces_all_that_was_there(
    store: Store, artifact: Path, tmp_path: Path
) -> None:
    record = add(store, artifact)
    make(tmp_path / "dest", other=b"x", model=b"old")
    store.restore(record, tmp_path / "dest")
    assert digest_tree(tmp_path / "dest") == digest_tree(artifact)
    (tmp_path / "file").write_bytes(b"a file where a folder goes")
    store.restore(record, tmp_path / "file")
    assert digest_tree(tmp_path / "file") == digest_tree(artifact)
    assert not [path for path in os.listdir(tmp_path) if path.startswith(".")]


def test_equal_bytes_are_stored_once(store: Store, tmp_path: Path) -> None:
    add(store, make(tmp_path / "one", a=b"same", b=b"same", c=b"1"))
    add(store, make(tmp_path / "two", d=b"same", e=b"2"), key("another"))
    assert len(blobs(store)) == 3


# Observed facts


def test_the_record_whose_observed_facts_are_those_of_now(store: Store, tmp_path: Path) -> None:
    first = add(store, make(tmp_path / "1", m=b"1"), numpy="1.0", code="a")
    second = add(store, make(tmp_path / "2", m=b"2"), numpy="2.0")
    assert store.find(KEY, {"numpy": "1.0", "code": "a"}.__getitem__) == first
    assert store.find(KEY, {"numpy": "2.0", "code": "b"}.__getitem__) == second
    assert store.find(KEY, {"numpy": "1.0", "code": "b"}.__getitem__) is None
    assert len(store.records(KEY)) == 2


def test_the_newest_record_wins(store: Store, tmp_path: Path) -> None:
    add(store, make(tmp_path / "1", m=b"1"))
    newest = add(store, make(tmp_path / "2", m=b"2"))
    os.utime(records(store)[0], (1, 1))
    assert store.find(KEY, nothing) == newest


def test_an_observed_file_that_vanished_is_a_miss(store: Store, artifact: Path) -> None:
    def vanished(name: str) -> Any:
        raise FileNotFoundError(name)

    add(store, artifact, code="a")
    assert store.find(KEY, vanished) is None
    assert store.records(KEY)


@pytest.mark.parametrize(("then", "now"), [(1, True), (1, 1.0), ("1", 1), (None, "null"), (0, "")])
def test_observed_values_keep_their_types(
    store: Store, artifact: Path, then: object, now: object
) -> None:
    add(store, artifact, fact=then)
    assert store.find(KEY, lambda name: now) is None
    assert store.find(KEY, lambda name: then) is not None


def test_records_under_one_key_do_not_grow_for_ever(store: Store, artifact: Path) -> None:
    for number in range(70):
        add(store, artifact, number=number)
    assert len(store.records(KEY)) == 64
    assert store.find(KEY, lambda name: 69) is not None
    assert store.find(KEY, lambda name: 0) is None


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: spoil(path, path.read_bytes()[:-1]),
        lambda path: spoil(path, b"\0" * path.stat().st_size),
        lambda path: spoil(path, path.read_bytes().replace(b"w", b"v", 1)),
        lambda path: path.unlink(),
    ],
    ids=["cut", "zeros", "one byte", "gone"],
)
def test_damaged_bytes_are_noticed_and_dropped(
    store: Store, artifact: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    record = add(store, artifact)
    damage(max(blobs(store), key=lambda path: path.stat().st_size))
    dest = make(tmp_path / "dest", old=b"old")
    with pytest.raises(CorruptBlob):
        store.restore(record, dest)
    assert (dest / "old").read_bytes() == b"old"
    assert store.find(KEY, nothing) is None
    assert len(blobs(store)) == 1, "the sound one"
    assert add(store, artifact).outputs == record.outputs
    store.restore(store.find(KEY, nothing) or record, dest)
    assert digest_tree(dest) == digest_tree(artifact)


def test_a_record_whose_bytes_are_gone_is_a_miss(store: Store, artifact: Path) -> None:
    add(store, artifact)
    blobs(store)[0].unlink()
    assert store.find(KEY, nothing) is None
    assert records(store) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: data.replace(b"0.5", b"0.9"),
        lambda data: b"{}",
    ],
)
def test_a_damaged_record_is_a_miss(
    store: Store, artifact: Path, damage: Callable[[bytes], bytes]
) -> None:
    add(store, artifact)
    (path,) = records(store)
    spoil(path, damage(path.read_bytes()))
    assert store.find(KEY, nothing) is None
    assert add(store, artifact) == store.find(KEY, nothing)
    assert store.verify().bad_records == (str(path),)


def test_a_record_under_another_key_is_no_record_of_it(store: Store, artifact: Path) -> None:
    add(store, artifact)
    (path,) = records(store)
    other = key("another")
    moved = store.root / "v1" / "ac" / other[:2] / other / path.name
    moved.parent.mkdir(parents=True)
    moved.write_bytes(path.read_bytes())
    assert store.find(other, nothing) is None


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "a//b", ".", ""])
def test_no_record_writes_outside_its_folder(
    store: Store, artifact: Path, tmp_path: Path, name: str
) -> None:
    add(store, artifact)
    (path,) = records(store)
    forged = path.read_bytes().replace(b'"model"', b'"%s"' % name.encode())
    (path.parent / f"{digest_bytes(forged)}.json").write_bytes(forged)
    path.unlink()
    assert store.find(KEY, nothing) is None


def test_verify_finds_what_is_wrong_and_drops_it(store: Store, tmp_path: Path) -> None:
    add(store, make(tmp_path / "good", a=b"good"))
    add(store, make(tmp_path / "bad", a=b"bad!"), key("bad"))
    assert store.verify().sound
    (bad,) = (path for path in blobs(store) if path.read_bytes() == b"bad!")
    spoil(bad, b"mad!")
    report = store.verify()
    assert (report.records, report.blobs) == (2, 2)
    assert report.bad_blobs == (str(bad),)
    assert len(report.bad_records) == 1
    assert store.find(KEY, nothing)
    assert store.find(key("bad"), nothing) is None
    assert store.verify().sound


# What cannot be stored


def test_what_an_artifact_must_not_hold(store: Store, artifact: Path) -> None:
    with pytest.raises(FileNotFoundError):
        add(store, artifact / "nothing")
    (artifact / "loop").symlink_to("variables")
    with pytest.raises(StepFailed, match="a link to one of its folders"):
        add(store, artifact)
    (artifact / "loop").unlink()
    with open(os.fsencode(artifact) + b"/\xff", "wb"):
        pass
    with pytest.raises(StepFailed, match="not UTF-8"):
        add(store, artifact)
    os.unlink(os.fsencode(artifact) + b"/\xff")
    os.mkfifo(artifact / "pipe")
    with pytest.raises(Tf2aifError, match="neither a file nor a folder"):
        add(store, artifact)
    assert not store.root.exists()


def test_a_key_is_a_digest(store: Store, artifact: Path) -> None:
    for bad in ("", "../../../x", "short"):
        with pytest.raises(ValueError, match="not a key"):
            store.find(bad, nothing)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_nothing_half_is_left(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=2m") as small:
        store = Store(small / "store")
        fits = add(store, make(tmp_path / "fits", a=os.urandom(500_000)))
        large = make(tmp_path / "large", a=os.urandom(1_000_000), b=os.urandom(1_000_000))
        with pytest.raises(Tf2aifError, match="cache cannot be written: No space left") as caught:
            add(store, large, key("large"))
        assert "gc" in caught.value.render()
        assert store.find(key("large"), nothing) is None
        assert store.info().leftover_bytes == 0
        with pytest.raises(Tf2aifError, match="artifact cannot be written: No space left"):
            store.restore(add(Store(tmp_path / "other"), large), small / "dest")
        assert sorted(os.listdir(small)) == ["store"]
        assert store.find(KEY, nothing) == fits
        assert store.gc().blobs == 1, "the half of the large one"
        store.restore(fits, tmp_path / "dest")


def test_a_store_that_can_only_be_read(tmp_path: Path, artifact: Path) -> None:
    with mounted(tmp_path / "medium", "size=2m") as medium:
        store = Store(medium / "store")
        record = add(store, artifact)
        subprocess.run(["mount", "-o", "remount,ro", str(medium)], check=True)
        assert store.find(KEY, nothing) == record
        store.restore(record, tmp_path / "dest")
        assert digest_tree(tmp_path / "dest") == digest_tree(artifact)
        assert store.verify().sound
        with pytest.raises(Tf2aifError, match="cache cannot be written"):
            add(store, make(tmp_path / "new", a=b"new"))
        with pytest.raises(Tf2aifError, match="cache cannot be written"), store.lock("new"):
            pass


# Locks


def test_a_lock_excludes_threads(store: Store) -> None:
    inside = most = 0

    def enter(number: int) -> None:
        nonlocal inside, most
        with store.lock("kws/import"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.005)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(16)))
    assert most == 1


def test_shared_holders_exclude_only_the_others(store: Store) -> None:
    entered, waits = threading.Event(), threading.Event()

    def alone() -> None:
        with store.lock("machine", waiting=waits.set):
            entered.set()

    with store.lock("machine", shared=True), store.lock("machine", shared=True):
        thread = threading.Thread(target=alone)
        thread.start()
        assert waits.wait(10)
        assert not entered.wait(0.05)
    assert entered.wait(10)
    thread.join()


def _hold(root: str, ready: Any) -> None:
    with Store(Path(root)).lock("name"):
        ready.set()
        time.sleep(600)


def test_a_lock_dies_with_its_holder(store: Store) -> None:
    ready, waits = _spawn.Event(), threading.Event()
    holder = _spawn.Process(target=_hold, args=(str(store.root), ready), daemon=True)
    holder.start()
    assert ready.wait(30)
    threading.Timer(0.1, holder.kill).start()
    with store.lock("name", waiting=waits.set):
        assert waits.is_set()
    holder.join()


def test_a_lock_is_not_left_to_a_process_forked_meanwhile(store: Store) -> None:
    with store.lock("name"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with store.lock("name", waiting=lambda: pytest.fail("it was left to the child")):
            pass
    finally:
        child.kill()
        child.wait()


def test_collecting_removes_only_locks_that_nobody_holds(store: Store, artifact: Path) -> None:
    add(store, artifact)
    with store.lock("free"):
        pass
    locks = store.root / "v1" / "locks"
    with store.lock("held"):
        assert len([path for path in locks.rglob("*") if path.is_file()]) == 2
        store.gc()
        assert len([path for path in locks.rglob("*") if path.is_file()]) == 1
        with pytest.raises(BlockingIOError):
            _try(next(path for path in locks.rglob("*") if path.is_file()))


def _try(path: Path) -> None:
    import fcntl

    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_holds_while_its_file_is_collected_again_and_again(store: Store) -> None:
    counter, stop = store.root.parent / "counter", threading.Event()
    counter.write_text("0")
    add(store, make(store.root.parent / "a", a=b"a"))

    def collect() -> None:
        while not stop.is_set():
            store.gc()

    def count(number: int) -> None:
        for _ in range(40):
            with store.lock("counter"):
                counter.write_text(str(int(counter.read_text()) + 1))

    thread = threading.Thread(target=collect)
    thread.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    stop.set()
    thread.join()
    assert counter.read_text() == "160"


# Collection


def test_collecting_by_size_drops_the_least_recently_used(store: Store, tmp_path: Path) -> None:
    for number in range(4):
        data = {"own": bytes([number]) * 100_000, "shared": b"s" * 50_000}
        add(store, make(tmp_path / f"{number}", **data), key(number))
    by_key = {path.parent.name: path for path in records(store)}
    for number in range(4):
        os.utime(by_key[key(number)], (1000 + number,) * 2)
    assert store.find(key(0), nothing), "used now"
    dry = store.gc(max_size_bytes=320_000, dry_run=True)
    assert len(records(store)) == 4
    report = store.gc(max_size_bytes=320_000)
    assert store.gc(max_size_bytes=320_000).records == 0
    assert (report.records, report.blobs) == (dry.records, dry.blobs) == (2, 2)
    assert report.freed_bytes == dry.freed_bytes > 200_000
    assert report.kept_bytes == store.info().size_bytes <= 320_000
    assert [bool(store.find(key(n), nothing)) for n in range(4)] == [True, False, False, True]
    assert store.verify().sound


def test_collecting_by_age(store: Store, tmp_path: Path) -> None:
    add(store, make(tmp_path / "old", a=b"old"), key("old"))
    add(store, make(tmp_path / "new", a=b"new"), key("new"))
    old = next(path for path in records(store) if path.parent.name == key("old"))
    os.utime(old, (time.time() - 1000,) * 2)
    assert store.gc(older_than_s=2000).records == 0
    assert store.gc(older_than_s=500).records == 1
    assert [path.read_bytes() for path in blobs(store)] == [b"new"]


def test_collecting_drops_what_nobody_can_use(store: Store, artifact: Path) -> None:
    record = add(store, artifact)
    add(store, make(artifact.parent / "lone", a=b"lone"), key("lone"))
    damaged = next(path for path in records(store) if path.parent.name == key("lone"))
    spoil(damaged, b"{")
    leftover = store.root / "v1" / "tmp" / "123-abc"
    leftover.write_bytes(b"half")
    assert store.info().leftover_bytes == 4
    report = store.gc()
    assert (report.records, report.blobs) == (1, 1)
    assert not leftover.exists()
    assert store.find(KEY, nothing) == record
    assert store.gc(max_size_bytes=0).records == 1
    assert store.info().size_bytes == 0


def test_old_leftovers_go_with_the_next_writer(store: Store, artifact: Path) -> None:
    add(store, artifact)
    old, young = (store.root / "v1" / "tmp" / name for name in ("1-old", "1-young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    add(store, artifact)
    assert not old.exists()
    assert young.exists()


def _collect_for_ever(root: str, ready: Any) -> None:
    store = Store(Path(root))
    while True:
        if store.gc(max_size_bytes=60_000).records:
            ready.set()


def test_collecting_beside_builds_never_breaks_one(store: Store, tmp_path: Path) -> None:
    ready = _spawn.Event()
    arguments = (str(store.root), ready)
    collector = _spawn.Process(target=_collect_for_ever, args=arguments, daemon=True)
    collector.start()
    hits = drops = number = 0
    try:
        while not ready.is_set() or hits < 200:
            number += 1
            data = {"model": bytes([number % 5]) * 20_000, "common": b"c" * 10_000}
            source = make(tmp_path / "source", **data)
            record = add(store, source, key(number % 5))
            try:
                store.restore(record, tmp_path / "dest")
                assert digest_tree(tmp_path / "dest") == digest_tree(source)
                hits += 1
            except CorruptBlob:
                drops += 1
        assert collector.is_alive()
    finally:
        collector.kill()
        collector.join()
    assert hits + drops == number
    assert store.verify().sound


# Two builds, and deaths


def _add_and_restore(root: str, source: str, dest: str, rounds: int) -> None:
    store = Store(Path(root))
    wanted = digest_tree(Path(source))
    for number in range(rounds):
        add(store, Path(source), key(number))
        record = store.find(key(number), nothing)
        assert record is not None
        store.restore(record, Path(dest))
        store.restore(record, Path(f"{dest}-{os.getpid()}"))
        assert digest_tree(Path(f"{dest}-{os.getpid()}")) == wanted


def test_two_processes_add_and_restore_the_same(
    store: Store, artifact: Path, tmp_path: Path
) -> None:
    arguments = (str(store.root), str(artifact), str(tmp_path / "dest"), 60)
    both = [_spawn.Process(target=_add_and_restore, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert digest_tree(tmp_path / "dest") == digest_tree(artifact)
    assert len(blobs(store)) == 2
    assert store.verify().sound
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def _die_at_every_line(folder: str) -> None:
    """Store and restore in a child that kills itself at the first line, at the second, …"""
    root, allowed = Path(folder), set()
    store = Store(root / "store")
    for line in itertools.count():
        source = make(root / "source", a=b"%d" % line * 80_000, b__c=b"%d" % line)
        allowed.add(digest_tree(source))
        child = os.fork()
        if child == 0:
            _kill_at(line)
            store.restore(add(store, source, key(line)), root / "dest")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert store.verify().sound, line
        record = store.find(key(line), nothing)
        if record is not None:
            store.restore(record, root / "check")
            assert digest_tree(root / "check") == digest_tree(source)
        if (root / "dest").exists():
            assert digest_tree(root / "dest") in allowed
        store.gc(max_size_bytes=1_000_000)
        assert store.info().leftover_bytes == 0
        left = list(root.glob(".dest*"))
        assert len(left) <= 2, "what the killed had left stays for ever"
        for path in left:
            os.utime(path, (1, 1))
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
    assert record is not None
    assert line > 200


def _kill_at(line: int) -> None:
    """Have this process killed before it runs that line (counted from now) of the store."""
    files = {"store.py", "blobs.py", "records.py", "folders.py", "upkeep.py"}
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if os.path.basename(frame.f_code.co_filename) not in files:
            return None
        if event == "line":
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        return trace

    sys.settrace(trace)


def test_a_kill_at_any_line_leaves_nothing_half(tmp_path: Path) -> None:
    process = _spawn.Process(target=_die_at_every_line, args=(str(tmp_path),))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert not list(tmp_path.glob(".dest*"))


# Adds and restores numbered artifacts, in which every file holds the same number.
_WRITER = """
import os, random, sys
from pathlib import Path
from tf2aif.store import CorruptBlob, Store
from tf2aif.facts import key

root = Path(sys.argv[1])
store, source, number = Store(root / "store"), root / "source", random.randrange(10**6)
(source / "b").mkdir(parents=True, exist_ok=True)
while True:
    number += 1
    (source / "a").write_bytes(b"%d" % number * 300_000)
    (source / "b" / "c").write_bytes(b"%d" % number)
    record = store.add(key(number % 7), source, step="s", kind="s", facts={}, observed={},
                       result={}, timing={})
    try:
        store.restore(record, root / "dest")
    except CorruptBlob:
        pass
    print("one more", flush=True)
"""


def test_kills_in_the_middle_of_a_write_leave_nothing_half(tmp_path: Path) -> None:
    store, chance = Store(tmp_path / "store"), random.Random(7)
    restored = midway = 0
    for turn in range(200):
        if turn >= 12 and midway:
            break  # at most a few more, where writes are quick
        command = [sys.executable, "-c", _WRITER, str(tmp_path)]
        root = Path(__file__).parents[1]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            assert writer.stdout.readline()
            time.sleep(chance.uniform(0, 0.05))
            while turn % 2 and not os.listdir(tmp_path / "store" / "v1" / "tmp"):
                assert writer.poll() is None
            writer.kill()
        midway += store.info().leftover_bytes > 0
        assert store.verify().sound
        for record in filter(None, (store.find(key(number), nothing) for number in range(7))):
            store.restore(record, tmp_path / "check")
            _assert_one_number(tmp_path / "check")
            restored += 1
        if (tmp_path / "dest").exists():
            _assert_one_number(tmp_path / "dest")
        store.gc(max_size_bytes=10_000_000)
    assert restored >= 12
    assert midway, "no kill came while something was being written"


def _assert_one_number(folder: Path) -> None:
    assert (folder / "a").read_bytes() == (folder / "b" / "c").read_bytes() * 300_000


# Where it is


def test_where_the_store_is(tmp_path: Path) -> None:
    chosen = str(tmp_path)
    assert default_root({"TF2AIF_CACHE": chosen, "XDG_CACHE_HOME": "/x"}) == tmp_path
    assert default_root({"XDG_CACHE_HOME": chosen}) == tmp_path / "tf2aif"
    home = Path("~/.cache/tf2aif").expanduser()
    assert default_root({}) == default_root({"XDG_CACHE_HOME": "relative"}) == home
    assert default_root({"TF2AIF_CACHE": ""}) == home
    assert default_root({"TF2AIF_CACHE": "rel"}) == Path.cwd() / "rel"


def test_a_store_below_a_file_says_what_to_do(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store")
    assert store.find(KEY, nothing) is None
    with pytest.raises(Tf2aifError, match="TF2AIF_CACHE") as caught:
        add(store, artifact)
    assert caught.value.__cause__ is not None
    assert getattr(caught.value.__cause__, "errno", 0) == errno.ENOTDIR
