"""`tf2aif place` on a large fleet: seconds, how far from the best, and beside greedy plans.

    python benchmarks/place.py [--nodes 1000] [--kinds 10] [--services 50] [--seeds 1 2 3]

The fleet, its services and the figures of the variants are drawn at random, since nobody has lent
us a thousand nodes: what is measured here is the solver, not models. The time is that of the whole
command. Then every policy's plan gets the same simulated requests, and the script fails where the
solver's plan comes out worse than a greedy one on the aim that it was given: objectives missed,
then energy, then cost. With `--scale 20` the fleet is too small for all services.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from timed import machine, timed

from tf2aif.choose.catalogue import (
    Catalogue,
    CatalogueAccuracy,
    CatalogueVariant,
    MeasuredOn,
    Measurement,
    Percentiles,
    Requirements,
    encode_catalogue,
    read_catalogue,
)
from tf2aif.choose.fleet import read_fleet
from tf2aif.choose.load import poisson
from tf2aif.choose.options import make_problem
from tf2aif.choose.place import ORDER, plans
from tf2aif.choose.placement import Placement, read_placement
from tf2aif.choose.select import places_of
from tf2aif.choose.services import read_services
from tf2aif.choose.simulate import ranks, simulate

GPU = "nvidia.com/gpu"
RECIPES = {"lenet": 0.15, "kws": 0.6, "mobilenet": 9.0, "unet": 25.0, "resnet50": 40.0}  # ms
PRECISIONS = {"fp32": (1.0, 0.95), "fp16": (0.8, 0.949), "int8": (0.4, 0.94)}  # time, accuracy
KINDS: list[tuple[str, int, int, float, float, float, str | None]] = [
    # platform, cores, memory MiB, idle W, busy W, cost an hour, GPU
    ("linux/amd64", 8, 16000, 30, 95, 0.20, None),
    ("linux/amd64", 16, 64000, 80, 220, 0.50, None),
    ("linux/amd64", 32, 128000, 140, 380, 1.10, None),
    ("linux/amd64", 16, 64000, 110, 240, 1.50, "A30"),
    ("linux/amd64", 32, 256000, 160, 420, 3.10, "H100"),
    ("linux/arm64", 4, 4000, 3, 8, 0.03, None),
    ("linux/arm64", 4, 8000, 4, 12, 0.05, None),
    ("linux/arm64", 8, 32000, 8, 40, 0.15, "Orin"),
]


def main() -> None:
    """Print the table; exit with 1 where the solver is beaten."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--kinds", type=int, default=10, help="of nodes; all different")
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--scale", type=float, default=1.0, help="of every service's requests")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    print(
        f"{machine()}\n{options.nodes} nodes of {options.kinds} kinds, {options.services} services"
    )
    head = ("seed", "wall s", "CPU s", "MiB", "gap", "policy", "missed", "Wh", "cost", "nodes")
    print("\n" + "".join(f"{name:>13}" for name in head))
    beaten = [seed for seed in options.seeds if not _run(seed, options)]
    if beaten:
        sys.exit(f"a greedy policy beats the solver: seeds {beaten}")


def _run(seed: int, options: argparse.Namespace) -> bool:
    """Place and simulate one drawn problem; whether the solver is not beaten."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _draw(work, seed, options)
        command = [sys.executable, "-m", "tf2aif", "-C", folder, "place", "--json"]
        times = timed(["sh", "-c", '"$@" || [ $? -eq 1 ]', "sh", *command], work)  # 1: no room
        placement = read_placement(work / "build" / "placement.json")
        problem, load = _again(work, seed)
        found, _ = plans(problem)
        result = simulate(problem, found, load, seed)
    by = {name: ranks(one, ORDER) for name, one in result.policies.items()}
    for name, one in result.policies.items():
        first = name == "solver"
        own = (f"{times.wall_s:.1f}", f"{times.cpu_s:.1f}", f"{times.peak_mb:.0f}", _gap(placement))
        cells = (str(seed), *own) if first else ("",) * 5
        energy = f"{one.energy.joules / 3600:.1f}"
        print(
            "".join(
                f"{cell:>13}"
                for cell in (
                    *cells,
                    name,
                    str(len(one.missed)),
                    energy,
                    f"{one.cost:.3f}",
                    str(one.nodes),
                )
            )
        )
    return by["solver"] <= min(by.values())


def _gap(placement: Placement) -> str:
    gap = {bound.aim: bound.gap for bound in placement.bounds}.get("energy")
    return "-" if gap is None else f"{gap:.1%}"


def _again(work: Path, seed: int) -> Any:
    """The same problem in this process, and the requests for it."""
    services = read_services(work / "services.yaml")
    places = places_of(read_fleet(work / "fleet.yaml"))
    problem = make_problem(read_catalogue(work / "build" / "catalogue.json"), places, services)
    return problem, poisson(services, seed)


def _draw(work: Path, seed: int, options: argparse.Namespace) -> None:
    """A catalogue, a fleet and services."""
    drawn = random.Random(seed)
    nodes = {}
    for index in range(options.kinds):
        platform, cores, memory, idle, busy, cost, gpu = KINDS[index % len(KINDS)]
        factor = drawn.uniform(0.8, 1.25)  # kinds of the same sort differ
        node: dict[str, Any] = {
            "platform": platform,
            "count": options.nodes // options.kinds + (index < options.nodes % options.kinds),
            "cpu": f"processor {index}",
            "cores": cores,
            "memory_mb": memory,
            "cost_per_hour": round(cost * factor, 4),
            "power": {"idle_w": round(idle * factor, 1), "busy_w": round(busy * factor, 1)},
        }
        if gpu:
            node |= {"gpu": f"{gpu} {index}", "resources": {GPU: drawn.choice([1, 2, 4])}}
        nodes[f"kind{index}"] = node
    (work / "build").mkdir()
    (work / "build" / "catalogue.json").write_bytes(encode_catalogue(_catalogue(nodes, drawn)))
    (work / "fleet.yaml").write_text(json.dumps({"nodes": nodes}, indent=1))  # JSON is YAML
    (work / "services.yaml").write_text(
        json.dumps({"services": _services(options, drawn)}, indent=1)
    )


def _services(options: argparse.Namespace, drawn: random.Random) -> dict[str, Any]:
    found = {}
    for index in range(options.services):
        recipe = drawn.choice(list(RECIPES))
        limit = RECIPES[recipe] * drawn.choice([4, 8, 20])
        objectives = [f"p99<={limit:.3g}ms"]
        objectives += ["accuracy>=0.945"] if drawn.random() < 0.3 else []
        found[f"service{index}"] = {
            "recipe": recipe,
            "rate": drawn.randint(200, 3000) * options.scale,
            "objectives": objectives,
            "replicas": drawn.choice([1, 1, 2, 3]),
        }
    return found


def _catalogue(nodes: dict[str, Any], drawn: random.Random) -> Catalogue:
    variants = []
    for recipe, base in RECIPES.items():
        for target in ("cpu", "arm", "gpu", "jetson"):
            for precision, (time, score) in PRECISIONS.items():
                variants.append(
                    _variant(recipe, target, precision, base * time, score, nodes, drawn)
                )
    return Catalogue(variants=tuple(sorted(variants, key=lambda one: one.id)))


def _variant(
    recipe: str,
    target: str,
    precision: str,
    milliseconds: float,
    score: float,
    nodes: dict[str, Any],
    drawn: random.Random,
) -> CatalogueVariant:
    platform = "linux/amd64" if target in ("cpu", "gpu") else "linux/arm64"
    accelerated = target in ("gpu", "jetson")
    fits = [
        n for n in nodes.values() if n["platform"] == platform and (not accelerated or "gpu" in n)
    ]
    return CatalogueVariant(
        id=f"{recipe}/{target}-{precision}",
        recipe=recipe,
        variant=f"{target}-{precision}",
        target=target,
        precision=precision,
        state="built",
        platform=platform,
        engine="litert",
        artifact=None,
        size_bytes=None,
        accuracy=CatalogueAccuracy(
            metric="top-1", value=score, source=0.95, drop=0.95 - score, allowed_drop=0.02,
            samples=1000, labels=True,
        ),
        requires=Requirements(
            resources={GPU: 1} if accelerated else {},
            memory_mb=drawn.choice([120.0, 300.0, 700.0]),
        ),
        measurements=tuple(_measured(node, milliseconds, accelerated, drawn) for node in fits),
    )  # fmt: skip


def _measured(
    node: dict[str, Any], milliseconds: float, accelerated: bool, drawn: random.Random
) -> Measurement:
    """Drawn, not measured: this script looks at the solver alone."""
    slow = 3.0 if node["platform"] == "linux/arm64" else 1.0
    value = milliseconds * slow * drawn.uniform(0.6, 1.6) * (0.08 if accelerated else 1.0)
    threads = 1 if accelerated else drawn.choice([1, 2, 4])
    watts = 60.0 if accelerated else 3.0 * threads
    steps = (1.0, 1.1, 1.2, 1.6, 2.5)
    p50, p90, p95, p99, p99_9 = (value * step for step in steps)
    return Measurement(
        origin="bench",
        subject="server",
        scenario="single-stream",
        batch=1,
        threads=threads,
        machine=MeasuredOn(
            platform=node["platform"], cpu=node["cpu"], cores=node["cores"], gpu=node.get("gpu")
        ),
        latency=Percentiles(
            mean_ms=value * 1.05, p50_ms=p50, p90_ms=p90, p95_ms=p95, p99_ms=p99, p99_9_ms=p99_9
        ),
        energy_j=watts * value / 1000,
        stable=True,
    )


if __name__ == "__main__":
    main()
