"""What it costs to know that inputs did not change: our stat cache beside MD5 without one.

    python benchmarks/hashing.py [--files 1000] [--large-mb 500]

CPU milliseconds (user and system, this process), the best of three, files in the page cache. `md5`
reads everything, as doit's checker does after a touch or a fresh checkout. The ratios are what
counts: the machine may be busy with other things.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tf2aif.digest import StatCache, digest_tree
from tf2aif.snapshot import snapshot, unchanged


def main() -> None:
    """Make the files, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--large-mb", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        small, large = Path(folder, "small"), Path(folder, "large.bin")
        _make_small(small, arguments.files)
        _make_large(large, arguments.large_mb)
        time.sleep(2.5)  # old enough for their stats to count
        _table(f"{arguments.files} files of 2 KB", _measure(small, Path(folder, "stats-small")))
        _table(f"one file of {arguments.large_mb} MB", _measure(large, Path(folder, "stats-large")))
    print(f"importing the snapshot: {_import_ms('tf2aif.snapshot'):.1f} ms")
    print(f"importing the digests:  {_import_ms('tf2aif.digest'):.1f} ms")


def _make_small(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"{number % 10}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(2000))


def _make_large(path: Path, megabytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))


def _measure(path: Path, stats: Path) -> dict[str, float]:
    def cached() -> None:
        cache = StatCache.load(stats)
        digest_tree(path, cache)
        if cache.hashed_bytes:
            raise SystemExit("the stat cache read what had not changed")

    times = {"md5, no cache": _cpu_ms(lambda: _md5(path))}
    times["xxh3, no cache"] = _cpu_ms(lambda: digest_tree(path))
    cache = StatCache.load(stats)
    digest_tree(path, cache)
    cache.save()
    times["xxh3, stat cache, loading included"] = _cpu_ms(cached)
    stamp = json.dumps(snapshot([path]))
    times["snapshot, JSON included"] = _cpu_ms(lambda: _ask(stamp))
    return times


def _ask(stamp: str) -> None:
    if not unchanged(json.loads(stamp)):
        raise SystemExit("the snapshot saw a change that nobody made")


def _md5(path: Path) -> None:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                hashlib.file_digest(opened, "md5").hexdigest()


def _cpu_ms(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best * 1e3


def _import_ms(module: str) -> float:
    code = (
        "import time; start = time.process_time();"
        f"import {module}; print(time.process_time() - start)"
    )
    runs = (
        float(
            subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
        )
        for _ in range(5)
    )
    return min(runs) * 1e3


def _table(title: str, times: dict[str, float]) -> None:
    slowest = times["md5, no cache"]
    print(title)
    for name, milliseconds in times.items():
        print(f"  {name:36} {milliseconds:9.2f} ms   {slowest / milliseconds:8.0f} x")


if __name__ == "__main__":
    main()
