"""What a farm costs: a step's overhead over local, and a build of 10,000 steps on 50 machines.

    python benchmarks/farm.py [--steps 100 1000 10000] [--machines 50] [--json FILE]

First one machine and one build on 127.0.0.1, with real processes: a step that writes one kilobyte,
run here and run there, in turns. Then builds of so many steps. There the machines are simulated:
all in one process, each checks its errands, brings their inputs from the shared cache, and gives
what it made, signed; only the process that would run the step is left out. Planner and scheduler
are real, each a process of its own, and their memory is what the kernel says (resident, at the
worst). doit hands over the steps, as in every build.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from tf2aif.steps import STEPS, Job

KIND = "bench-farm"
HERE = Path(__file__).resolve()

# The step, and what every process of this benchmark has in its table.
VERSION = 1
TOOLCHAIN = "python"
STEPS[KIND] = "farm"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which step it is: no two make the same."""

    number: int


def write(number: int, out: Path) -> None:
    """What a step makes."""
    (out / "data.bin").write_bytes(number.to_bytes(4, "big") * 256)


def run(job: Job) -> dict[str, Any]:
    """The step."""
    options = msgspec.convert(job.options, Options)
    write(options.number, job.out)
    return {"number": options.number}


def make_graph(folder: Path, count: int) -> Any:
    """Recipes of ten steps: one that is first, and nine that read it and each other."""
    from tf2aif.graph import Graph, Step

    steps = {}
    for number in range(count):
        first, before = number - number % 10, number - 1
        name = f"r{number // 10}/s{number % 10}"
        inputs = {}
        if number % 10:
            inputs = {"first": f"r{first // 10}/s0", "before": f"r{before // 10}/s{before % 10}"}
        steps[name] = Step(
            id=name,
            kind=KIND,
            recipe=f"r{number // 10}",
            folder=str(folder),
            module="farm",
            version=VERSION,
            toolchain=TOOLCHAIN,
            options={"number": number},
            inputs=inputs,
        )
    return Graph(steps, {})


def open_workspace(root: Path, name: str) -> Any:
    """A checkout with a store of its own, and the shared cache."""
    from tf2aif.remotes import open_remote
    from tf2aif.remotes.keys import Trusted, find_signing_key
    from tf2aif.remotes.shared import Shared
    from tf2aif.store import Store
    from tf2aif.workspace import Workspace

    (root / name).mkdir()
    space = Workspace(root / name)
    space.__dict__["store"] = Store(root / f"store-{name}")
    key = find_signing_key()
    if key is None:
        raise SystemExit("no key")
    space.shared = Shared(
        [(open_remote(str(root / "cache")), True)], trusted=Trusted([key.public]), key=key
    )
    return space


def join(space: Any, address: str) -> None:
    """Let a workspace join the farm."""
    from tf2aif.farm.address import parse
    from tf2aif.farm.farm import Farm
    from tf2aif.farm.run import FarmBuild

    space.farm = FarmBuild(Farm(parse(address)), space, space.shared)


# One step, here and there.


def measure_overhead(root: Path, address: str, rounds: int) -> dict[str, float]:
    """Milliseconds of a step in warm processes, medians, in turns: here, there, and the rest."""
    from tf2aif.execute import bring_up_to_date
    from tf2aif.workers import Workers

    here, there = open_workspace(root, "here"), open_workspace(root, "there")
    here.shared = None
    join(there, address)
    graph = make_graph(root, 10 * rounds)
    times: dict[str, list[float]] = {"here": [], "there": []}
    with Workers() as workers:
        for index, step in enumerate(list(graph.steps.values())[::10]):
            for name, space in (("here", here), ("there", there)):
                start = time.perf_counter()
                bring_up_to_date(step, space, workers)
                if index:  # the first starts the process
                    times[name].append((time.perf_counter() - start) * 1e3)
    there.farm.close()
    medians = {f"{name}_ms": round(statistics.median(each), 1) for name, each in times.items()}
    return {**medians, "overhead_ms": round(medians["there_ms"] - medians["here_ms"], 1)}


# Many steps.


def plan_and_build(root: Path, address: str, count: int) -> dict[str, float]:
    """One build in this process: seconds to plan and to build, MiB at the worst."""
    from tf2aif.build import Build
    from tf2aif.freshness import survey
    from tf2aif.tasks import run as run_tasks
    from tf2aif.worker import Meter

    space = open_workspace(root, f"planner-{count}")
    graph = make_graph(root, count)
    join(space, address)
    before = Meter.peak_mb()
    start = time.perf_counter()
    verdicts = survey(graph, space)
    planned = time.perf_counter() - start
    build = Build(graph, space)
    start = time.perf_counter()
    run_tasks(build, jobs=1)
    took = time.perf_counter() - start
    ran, failures = build.count("ran"), list(build.failures.values())
    build.close()
    if failures or ran != count or len(verdicts) != count:
        raise SystemExit(f"{ran} of {count} steps ran: {failures[:1]}")
    return {
        "steps": count,
        "plan_s": round(planned, 3),
        "build_s": round(took, 1),
        "steps_per_s": round(count / took, 1),
        "planner_mb": round(Meter.peak_mb(), 1),
        "planner_before_mb": round(before, 1),
    }


def simulate(root: Path, address: str, machines: int) -> None:
    """Machines of which only the process that runs a step is left out; until ended."""
    from tf2aif.farm.host import Host
    from tf2aif.farm.offer import make_offer
    from tf2aif.farm.scheduler import settle
    from tf2aif.farm.word import Word
    from tf2aif.farm.worker import METADATA, attach, make_host, worker_class
    from tf2aif.remotes import RemoteUse
    from tf2aif.worker import Reply

    class Simulated(Host):
        def _run(self, errand: Any, key: str, scratch: Path) -> Word:  # noqa: ARG002
            write(errand.options["number"], scratch / "out")
            reply = Reply(wall_s=0.0, cpu_s=0.0, peak_mb=0.0)
            record = self._keep(errand, scratch / "out", reply)
            self.carriage.give(record, self.key, self.trusted)
            return Word(machine=self.offer.machine, what="ran")

    async def serve() -> None:
        settle()
        workers = []
        for number in range(machines):
            offer = make_offer(name=f"machine-{number}", slots=1, only=["python"])
            host = make_host(offer, RemoteUse(str(root / "cache"), write=True))
            host.__class__ = Simulated
            worker = worker_class()(
                address, name=offer.machine, nthreads=1, resources=offer.resources(),
                host="127.0.0.1", memory_limit=0, dashboard=False, extensions={},
            )  # fmt: skip
            attach(worker, host)
            await worker
            told = msgspec.to_builtins(offer)
            await worker.scheduler.set_metadata(keys=[METADATA, offer.machine], value=told)
            workers.append(worker)
        print(f"waits for steps: {machines}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


def peak_mb(pid: int) -> float:
    """MiB resident at the worst, of another process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


class Processes:
    """What the benchmark starts, with its environment."""

    def __init__(self, root: Path) -> None:
        from tf2aif.remotes.keys import generate

        generate(root / "key")
        self.root = root
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "OMP_"))}
        self.environment = {
            **mine,
            "TF2AIF_SIGNING_KEY": str(root / "key"),
            "TF2AIF_CACHE": str(root / "store-machines"),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])]),
        }
        os.environ.clear()
        os.environ.update(self.environment)
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, words: list[str], until: bytes) -> tuple[int, str]:
        """Start one; its process id, and the rest of the line that it says `until`."""
        from tf2aif.farm.local import told

        log = self.root / f"{len(self.running)}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.running.append(process)
        return process.pid, told(process, log, until + rb"(.*)\n").decode().strip()

    def scheduler(self) -> tuple[int, str]:
        """A scheduler: its process id, and its address."""
        words = [sys.executable, "-m", "tf2aif", "farm", "scheduler", "--port", "0"]
        return self.start(words, b"listens at")

    def end(self) -> None:
        """End all of them."""
        from tf2aif.farm.local import end

        end(self.running)
        self.running.clear()


def overhead(rounds: int) -> dict[str, float]:
    """Part one, on a farm of its own."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder))
        try:
            _, address = processes.scheduler()
            processes.start(
                [sys.executable, str(HERE), "--worker", address, "--cache", f"{folder}/cache"],
                b"waits for steps",
            )
            return measure_overhead(Path(folder), address, rounds)
        finally:
            processes.end()


def many(count: int, machines: int) -> dict[str, float]:
    """Part two: one build of so many steps on a farm of its own."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder))
        try:
            pid, address = processes.scheduler()
            mine = [sys.executable, str(HERE)]
            processes.start(
                [*mine, "--simulate", str(machines), address, folder], b"waits for steps"
            )
            empty = peak_mb(pid)
            done = subprocess.run(
                [*mine, "--plan", str(count), address, folder],
                stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
            figures: dict[str, float] = json.loads(done.stdout)
            return {**figures, "scheduler_mb": peak_mb(pid), "scheduler_before_mb": empty}
        finally:
            processes.end()


def main() -> None:
    """Measure, and print what was measured."""
    words = sys.argv[1:]
    if words[:1] == ["--worker"]:
        import tf2aif.cli

        sys.exit(tf2aif.cli.main(["worker", *words[1:], "--offer", "python", "--slots", "1"]))
    if words[:1] == ["--simulate"]:
        simulate(Path(words[3]), words[2], int(words[1]))
    if words[:1] == ["--plan"]:
        threading.stack_size(512 << 10)
        print(json.dumps(plan_and_build(Path(words[3]), words[2], int(words[1]))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--machines", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures: dict[str, Any] = {"overhead": overhead(chosen.rounds), "builds": []}
    print(f"a step: {figures['overhead']}", flush=True)
    for count in chosen.steps:
        figures["builds"].append(many(count, chosen.machines))
        print(figures["builds"][-1], flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
