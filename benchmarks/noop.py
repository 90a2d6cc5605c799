"""A build with nothing to do: tf2aif beside plain doit, DVC, Snakemake and ninja, in one run.

    python benchmarks/noop.py [--steps 8 40 200 1000] [--runs 5]

Each tool has the same number of steps over one shared input, all of them built before; then the
same command again is timed, the tools in turn. For tf2aif the steps are real: one model, converted
once, checked with another engine option in each variant. For the others a step copies a file. The
others are installed into an environment of their own, made where --tools says.

The second table is one 500 MB input shared by 100 steps: tf2aif's digest of it against doit's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from timed import Times, machine, median, timed

TOOLS = ["dvc", "snakemake", "ninja", "doit"]
FIXED_STEPS = 5  # of tf2aif beside the checks: import, samples, reference, conversion

MODEL = """
import keras
from keras import layers
def make():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
"""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 40, 200, 1000])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tools", type=Path, help="a folder for the environment of the others")
    parser.add_argument("--skip", nargs="*", default=[], help="tools that are left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        binaries = install(options.tools or work / "tools")
        print(f"{machine()}; median of {options.runs} runs after one that is not counted\n")
        print(f"{'steps':>6} {'tool':<10} {'CPU s':>8} {'wall s':>8} {'CPU, tf2aif = 1':>16}")
        for count in options.steps:
            compare(work / str(count), count, binaries, options)
        shared_input(work / "shared", binaries)


def install(folder: Path) -> Path:
    """An environment with the other tools; the folder of their commands."""
    if not (folder / "bin" / "dvc").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "-q"]
        subprocess.run([*pip, "dvc", "snakemake", "ninja", "doit>=0.37,<0.38"], check=True)
    return folder / "bin"


def compare(work: Path, count: int, binaries: Path, options: argparse.Namespace) -> None:
    """Time every tool's no-op over that many steps."""
    makers = {"tf2aif": tf2aif, "doit": doit, "dvc": dvc, "snakemake": snakemake, "ninja": ninja}
    commands: dict[str, tuple[list[str], Path, dict[str, str]]] = {}
    for name, make in makers.items():
        if name in options.skip:
            continue
        project = work / name
        project.mkdir(parents=True)
        command, environment = make(project, count, binaries)
        timed(command, project, environment)  # builds
        timed(command, project, environment)  # not counted
        commands[name] = (command, project, environment)
    runs: dict[str, list[Times]] = {name: [] for name in commands}
    for _ in range(options.runs):
        for name, (command, project, environment) in commands.items():
            runs[name].append(timed(command, project, environment))
    base = median(runs["tf2aif"]).cpu_s
    for name, times in runs.items():
        middle = median(times)
        print(
            f"{count:>6} {name:<10} {middle.cpu_s:>8.3f} {middle.wall_s:>8.3f} "
            f"{middle.cpu_s / base:>16.1f}",
            flush=True,
        )


Made = tuple[list[str], dict[str, str]]


def tf2aif(project: Path, count: int, binaries: Path) -> Made:  # noqa: ARG001
    """One model, and a target whose every precision is checked with other engine options."""
    recipes, targets = project / "recipes", project / "targets"
    recipes.mkdir()
    targets.mkdir()
    (recipes / "model.py").write_text(MODEL)
    np.save(recipes / "x.npy", np.random.default_rng(0).random((4, 4), np.float32))
    wanted = "\n".join(f"  - t{i}" for i in range(count - FIXED_STEPS))
    (recipes / "many.yaml").write_text(
        f"model: {{function: model.py:make}}\nevaluation: {{data: x.npy}}\ntargets:\n{wanted}\n"
    )
    for i in range(count - FIXED_STEPS):
        (targets / f"t{i}.yaml").write_text(
            textwrap.dedent(f"""\
                platform: linux/arm64
                engine: {{name: litert, options: {{threads: {i + 1}}}}}
                precisions: {{fp32: [{{step: tflite, precision: fp32}}]}}
                """)
        )
    return [sys.executable, "-m", "tf2aif", "build"], {"TF2AIF_CACHE": str(project / "cache")}


def doit(project: Path, count: int, binaries: Path) -> Made:
    """Stock doit: a task a step."""
    (project / "input").write_text("input")
    (project / "dodo.py").write_text(
        textwrap.dedent(f"""\
            def task_copy():
                for i in range({count}):
                    yield {{"name": str(i), "file_dep": ["input"], "targets": [f"out{{i}}"],
                           "actions": [f"cp input out{{i}}"]}}
            """)
    )
    return [str(binaries / "doit"), "-v0"], {}


def dvc(project: Path, count: int, binaries: Path) -> Made:
    """DVC: a stage a step."""
    (project / "input").write_text("input")
    stages = "\n".join(
        f"  s{i}:\n    cmd: cp input out{i}\n    deps: [input]\n    outs: [out{i}]"
        for i in range(count)
    )
    (project / "dvc.yaml").write_text(f"stages:\n{stages}\n")
    environment = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(project / "site")}
    init = [str(binaries / "dvc"), "init", "--no-scm", "-q"]
    subprocess.run(init, cwd=project, check=True, env={**os.environ, **environment})
    return [str(binaries / "dvc"), "repro", "-q"], environment


def snakemake(project: Path, count: int, binaries: Path) -> Made:
    """Snakemake: a job a step."""
    (project / "input").write_text("input")
    (project / "Snakefile").write_text(
        textwrap.dedent(f"""\
            rule all:
                input: [f"out{{i}}" for i in range({count})]
            rule copy:
                input: "input"
                output: "out{{i}}"
                shell: "cp {{input}} {{output}}"
            """)
    )
    home = {"XDG_CACHE_HOME": str(project / "xdg")}
    return [str(binaries / "snakemake"), "-q", "-c", "2"], home


def ninja(project: Path, count: int, binaries: Path) -> Made:
    """ninja: an edge a step."""
    (project / "input").write_text("input")
    edges = "\n".join(f"build out{i}: copy input" for i in range(count))
    (project / "build.ninja").write_text(f"rule copy\n  command = cp $in $out\n{edges}\n")
    return [str(binaries / "ninja"), "--quiet"], {}


def shared_input(work: Path, binaries: Path) -> None:
    """One 500 MB file in the inputs of 100 steps: the first look, and the one after a touch."""
    work.mkdir()
    big = work / "big"
    block = np.random.default_rng(0).bytes(1 << 20)
    with big.open("wb") as file:
        for _ in range(500):
            file.write(block)
    script = textwrap.dedent("""\
        import sys
        from pathlib import Path
        from tf2aif.digest import digest_tree
        from tf2aif.statcache import StatCache
        cache = StatCache.load(Path("stats"))
        for _ in range(100):
            digest_tree(Path("big"), cache)
        cache.save()
        """)
    (work / "dodo.py").write_text(
        "def task_use():\n"
        "    for i in range(100):\n"
        "        yield {'name': str(i), 'file_dep': ['big'], 'actions': ['true']}\n"
    )
    ours = [sys.executable, "-c", script]
    theirs = [str(binaries / "doit"), "-v0"]
    print("\none 500 MB input of 100 steps; CPU s")
    print(f"{'':<22} {'tf2aif':>8} {'doit':>8}")
    for when in ("first look", "nothing changed", "touched"):
        if when == "touched":
            os.utime(big)
        a, b = timed(ours, work), timed(theirs, work)
        print(f"{when:<22} {a.cpu_s:>8.2f} {b.cpu_s:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
