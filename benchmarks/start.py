"""How long a variant's server takes from its command to `ready`.

    python benchmarks/start.py build/kws/cpu-int8 [--runs 9]

Each start is a new process; the first is not counted. CPU time is that of the process at `ready`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from timed import machine


def main() -> None:
    """Print medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("variant", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    runs = [start(options.variant) for _ in range(options.runs + 1)][1:]
    print(f"{machine()}; {options.runs} starts of {options.variant}")
    for name, values in zip(
        ("wall s", "CPU s", "resident MiB"), zip(*runs, strict=True), strict=True
    ):
        low, high = min(values), max(values)
        print(f"{name:<13} median {statistics.median(values):.3f}  ({low:.3f} to {high:.3f})")


def start(variant: Path) -> tuple[float, float, float]:
    """One start: wall and CPU seconds until `ready`, and MiB then."""
    command = [sys.executable, "-m", "tf2aif.serve", str(variant), "--port", "0"]
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        line = process.stdout.readline() if process.stdout else ""
        wall = time.perf_counter() - begin
        if not line.startswith("ready"):
            raise SystemExit(f"{variant} does not start")
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        process.terminate()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return wall, cpu, pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


if __name__ == "__main__":
    main()
