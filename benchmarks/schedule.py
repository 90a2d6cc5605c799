"""The same cold build in the order of arrival and by the schedule: real runs, then simulated ones.

    python benchmarks/schedule.py [--models lenet mobilenet_v2] [--targets cpu cpu-openvino] [-n 2]

In the order of arrival means what doit does by itself: so many threads, each with the next step
that is ready, whatever it takes; a step that measures waits in its thread until nothing else runs.
The schedule runs twice, before and after it knows what steps take. Every build starts without a
store and without `build/`; runs are made in turns, and the table has the median of each.

The second table takes what steps took in the last of these runs, and plays it on machines with more
cores: the very code of the schedule, with a clock that is a number. "bound" is the time of
what measures, and besides the larger of the longest path and of all work spread over the cores: no
order is faster.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from timed import Times, machine, median, timed

from build import write_project
from tf2aif.build import Build
from tf2aif.estimates import Work, estimate, history_of
from tf2aif.graph import Graph
from tf2aif.schedule import Scheduler, simulate

MODELS = ["lenet", "mobilenet_v2"]
TARGETS = ["cpu", "cpu-openvino", "cpu-tf"]
CORES = [2, 4, 8, 16]

# doit's own order: as many threads as steps at a time, and nobody who says whose turn it is.
ARRIVAL = """
import sys
from pathlib import Path
from tf2aif import tasks
from tf2aif.build import Build
tasks.THREADS = int(sys.argv[1])
build = Build.load([Path.cwd() / "recipes"], Path.cwd())
build.schedule = lambda jobs: None
try:
    tasks.run(build, jobs=tasks.THREADS)
finally:
    build.close()
for error in build.failures.values():
    print(error.render())
sys.exit(build.exit_code())
"""
SCHEDULED = "import sys; from tf2aif.cli import main; sys.exit(main(['build', '-n', sys.argv[1]]))"


class Played(NamedTuple):
    """A build as it would be: seconds, and MiB that steps hold at the worst."""

    wall_s: float
    memory_mb: int


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("-n", "--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1, help="of each order, in turns")
    parser.add_argument("--memory", type=int, default=16_000, help="MiB of the simulated machines")
    parser.add_argument("--play", metavar="DIR", help="play the build of this project, run none")
    parser.add_argument("--images", action="store_true", help="with --play: with its images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(options.play or Path(folder, "project")).resolve()
        if not options.play:
            os.environ["TF2AIF_CACHE"] = str(Path(folder, "cache"))
            write_project(project, options.models, options.targets)
            measure(project, options)
        play(project, options)


def measure(project: Path, options: argparse.Namespace) -> None:
    """The first table: whole commands."""
    print(f"{machine()}; {options.jobs} cores' worth; median of {options.runs}")
    print(f"{', '.join(options.models)} x {', '.join(options.targets)}\n")
    known = project.parent / "times.json"
    rows: dict[str, list[Times]] = {}
    for _ in range(options.runs):
        for name, words, kept in (
            ("in the order of arrival", ARRIVAL, False),
            ("by the schedule, first build", SCHEDULED, False),
            ("by the schedule, times known", SCHEDULED, True),
        ):
            rows.setdefault(name, []).append(cold(project, words, options.jobs, known, kept))
    print(f"{'':<30} {'wall s':>8} {'CPU s':>8} {'of the cores':>13}")
    for name, runs in rows.items():
        each = median(runs)
        share = each.cpu_s / each.wall_s / options.jobs
        print(f"{name:<30} {each.wall_s:>8.1f} {each.cpu_s:>8.1f} {share:>12.0%}")


def cold(project: Path, words: str, jobs: int, known: Path, kept: bool) -> Times:
    """One build with nothing there, but perhaps what steps took in an earlier one."""
    cache = Path(os.environ["TF2AIF_CACHE"])
    shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(project / "build", ignore_errors=True)
    if kept:
        cache.mkdir()
        shutil.copyfile(known, cache / "times.json")
    times = timed([sys.executable, "-c", words, str(jobs)], project)
    if (cache / "times.json").exists():
        shutil.copyfile(cache / "times.json", known)
    return times


def play(project: Path, options: argparse.Namespace) -> None:
    """The second table: what steps took, on other machines."""
    build = Build.load([project / "recipes"], project, images=options.images)
    works = _works(build)
    build.close()
    reads = {
        name: tuple(other for other in build.graph.steps[name].inputs.values() if other in works)
        for name in works
    }
    total = sum(work.wall_s for work in works.values())
    print(f"\n{len(works)} steps, {total:.1f} s in all, on {options.memory} MiB")
    print(f"{'cores':>5} {'bound':>7}   {'arrival':>9} {'MiB':>7}   {'schedule':>9} {'MiB':>7}")
    for cores in CORES:
        capacity = {"cores": cores, "memory": options.memory}
        bound, _ = Scheduler(works, reads, capacity).remaining_s(0.0)
        plain = _held(works, by_arrival(works, reads, cores))
        ours = _held(works, simulate(Scheduler(works, reads, capacity)))
        print(
            f"{cores:>5} {bound:>6.1f}s   {plain.wall_s:>8.1f}s {plain.memory_mb:>7}   "
            f"{ours.wall_s:>8.1f}s {ours.memory_mb:>7}"
        )


def _works(build: Build) -> dict[str, Work]:
    """What each step took when it last ran here, and what it needs."""
    steps = {n: s for n, s in build.graph.steps.items() if build.workspace.made(s)}
    if not steps:
        raise SystemExit(f"{build.workspace.project}: nothing was built here")
    return estimate(Graph(steps, {}), build.workspace, history_of(build.workspace))


def by_arrival(
    works: Mapping[str, Work], reads: Mapping[str, tuple[str, ...]], threads: int
) -> dict[str, tuple[float, float]]:
    """Spans of steps in so many threads, first come, first served.

    One that measures holds its thread until nothing else runs; a lock that is held by many lets
    more come in before it, as flock(2) does.
    """
    spans: dict[str, tuple[float, float]] = {}
    queue: list[str] = []
    held: list[str] = []  # in a thread, not running yet
    ends: dict[str, float] = {}
    done: set[str] = set()
    now = 0.0
    while len(done) < len(works):
        known = {*queue, *held, *ends, *done}
        queue += [n for n in works if n not in known and done.issuperset(reads[n])]
        while queue and len(held) + len(ends) < threads:
            held.append(queue.pop(0))
        for name in list(held):
            quiet = not any(works[other].alone for other in ends)
            if quiet and not (works[name].alone and ends):
                held.remove(name)
                ends[name] = now + works[name].wall_s
                spans[name] = (now, ends[name])
        now = min(ends.values())
        for name in [n for n, end in ends.items() if end <= now]:
            del ends[name]
            done.add(name)
    return spans


def _held(works: Mapping[str, Work], spans: Mapping[str, tuple[float, float]]) -> Played:
    most = max(
        sum(works[n].needs.get("memory", 0) for n, (b, e) in spans.items() if b <= start < e)
        for start, _ in spans.values()
    )
    return Played(max(end for _, end in spans.values()), most)


if __name__ == "__main__":
    main()
