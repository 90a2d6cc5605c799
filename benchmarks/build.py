"""A cold build, the same steps each in a process of its own, a build from the store, and a no-op.

    python benchmarks/build.py [--models lenet mobilenet_v2] [--targets cpu cpu-openvino] [-n 2]

The first table tells where the CPU time of a cold build of untrained networks went: to the steps,
by kind, as their own records have it; to starting workers and importing their toolchains; and to
everything else that tf2aif does. The line below it is that overhead as a share of the steps' time.

The second has whole commands: that build; every step of it once more in a fresh process, as a
script of converters would run them, without any cache; the build after `build/` was deleted, which
the store restores; and the build with nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from timed import Times, machine, timed

MODELS = ["lenet", "mobilenet_v2", "resnet50", "inception_v3"]
TARGETS = ["cpu", "arm", "cpu-openvino", "cpu-tf", "arm-tf"]

# A build that also says what its own process used, and how many workers it started.
BUILD = """
import json, os, resource, sys
from tf2aif.cli import main
started = []
def watch(event, words):
    if event == "subprocess.Popen" and "tf2aif.worker" in words[1]:
        started.append(words[1])
sys.addaudithook(watch)
code = main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
with open(sys.argv[1], "w") as file:
    json.dump({"own_cpu_s": used.ru_utime + used.ru_stime, "workers": len(started)}, file)
sys.exit(code)
"""


class Own(NamedTuple):
    """What the planning process of a build used itself."""

    cpu_s: float
    workers: int


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("-n", "--jobs", type=int, default=2)
    parser.add_argument("--skip-fresh", action="store_true", help="no steps in fresh processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        os.environ["TF2AIF_CACHE"] = str(Path(folder, "cache"))
        write_project(project, options.models, options.targets)
        measure(project, options)


def write_project(project: Path, models: Sequence[str], targets: Sequence[str]) -> None:
    """A recipe for each model; nothing is judged, since nothing is trained."""
    recipes = project / "recipes"
    recipes.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("models.py"), recipes / "models.py")
    for name in models:
        (recipes / f"{name.replace('_', '-')}.yaml").write_text(
            f"model: {{function: models.py:{name}}}\ncalibration: random\n"
            f"gate: {{drop: 1}}\ntargets: [{', '.join(targets)}]\n"
        )


def measure(project: Path, options: argparse.Namespace) -> None:
    """Run everything, and print each part as soon as it is there."""
    print(f"{machine()}; {options.jobs} steps at a time; one run")
    print(f"{', '.join(options.models)} x {', '.join(options.targets)}\n")
    cold, own = build(project, options.jobs)
    print_shares(cold, own, step_timings(project))
    print(f"\n{'':<28} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}")
    row("cold build", cold)
    if not options.skip_fresh:
        row("each step a fresh process", in_fresh_processes(project, options.jobs))
    shutil.rmtree(project / "build")
    row("build/ deleted: from store", build(project, options.jobs)[0])
    row("nothing to do", build(project, options.jobs)[0])


def build(project: Path, jobs: int) -> tuple[Times, Own]:
    """One command, as a user gives it."""
    report = project / "used.json"
    command = [sys.executable, "-c", BUILD, str(report), "build", "-n", str(jobs)]
    times = timed(command, project)
    used = json.loads(report.read_bytes())
    return times, Own(used["own_cpu_s"], used["workers"])


def row(name: str, times: Times) -> None:
    """One row of the first table."""
    print(f"{name:<28} {times.wall_s:>8.2f} {times.cpu_s:>8.2f} {times.peak_mb:>9.0f}", flush=True)


def step_timings(project: Path) -> list[tuple[str, float, float]]:
    """Kind, CPU seconds and peak MiB of each step that ran, as its record has them."""
    from tf2aif.records import decode

    records = [decode(p.read_bytes()) for p in project.glob("build/*/.steps/*.json")]
    # What one recipe took from another through the store has the other's record.
    ran = {(r.key, r.created): r for r in records if r.timing}
    return [(r.kind, r.timing["cpu_s"], r.timing["peak_mb"]) for r in ran.values()]


def in_fresh_processes(project: Path, jobs: int) -> Times:
    """Each step of the build once more, in a process of its own; measurements one by one."""
    from tf2aif.build import Build
    from tf2aif.execute import request_for
    from tf2aif.workers import write_request

    graph_build = Build.load([project / "recipes"], project)
    folder = project / "fresh"
    folder.mkdir()
    commands: dict[bool, list[list[str]]] = {False: [], True: []}
    for number, step in enumerate(graph_build.graph.steps.values()):
        out = folder / f"{number}"
        request = request_for(step, graph_build.workspace, out)
        write_request(request, out.with_suffix(".json"))
        words = ["--request", str(out.with_suffix(".json")), "--out", str(out)]
        commands[step.alone].append([sys.executable, "-m", "tf2aif.worker", *words])
    graph_build.close()
    times = run_all(commands[False], jobs, project), run_all(commands[True], 1, project)
    shutil.rmtree(folder)
    return Times(
        sum(t.wall_s for t in times), sum(t.cpu_s for t in times), max(t.peak_mb for t in times)
    )


def run_all(commands: Sequence[list[str]], jobs: int, cwd: Path) -> Times:
    """All commands, so many at a time: wall time of all, CPU time summed, the largest peak."""
    import time

    start = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        times = list(pool.map(lambda command: timed(command, cwd), commands))
    wall = time.perf_counter() - start
    return Times(wall, sum(t.cpu_s for t in times), max(t.peak_mb for t in times))


def print_shares(cold: Times, own: Own, steps: Sequence[tuple[str, float, float]]) -> None:
    """Where the CPU time of the cold build went."""
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind, cpu_s, peak_mb in steps:
        kinds[kind].append((cpu_s, peak_mb))
    total = sum(cpu_s for _, cpu_s, _ in steps)
    print(f"{'cold build, by':<28} {'count':>8} {'CPU s':>8} {'peak MiB':>9}")
    for kind, found in sorted(kinds.items(), key=lambda item: -sum(c for c, _ in item[1])):
        cpu_s, peak = sum(c for c, _ in found), max(p for _, p in found)
        print(f"{'step ' + kind:<28} {len(found):>8} {cpu_s:>8.2f} {peak:>9.0f}")
    print(f"{'all steps':<28} {len(steps):>8} {total:>8.2f}")
    starts = cold.cpu_s - own.cpu_s - total
    print(f"{'starting workers, imports':<28} {own.workers:>8} {starts:>8.2f}")
    print(f"{'tf2aif itself':<28} {'':>8} {own.cpu_s:>8.2f}")
    print(
        f"\noverhead over the steps' own time: {own.cpu_s / total:.1%}, "
        f"with the starts {(own.cpu_s + starts) / total:.1%}"
    )


if __name__ == "__main__":
    main()
