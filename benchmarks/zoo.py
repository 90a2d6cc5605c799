"""The zoo: every variant and image of four models, cold, and what a change costs after that.

    python benchmarks/zoo.py [--models digits ...] [--targets cpu ...] [-n auto] [--markdown FILE]

One command builds all that the recipes of `recipes/` ask of these targets, with the images, in a
new project with a new store: nothing is taken from an earlier build. Python's and Debian's
packages, which images are made of, were downloaded before (an untimed build of one image for each
engine), as the network's speed is not ours. After that, each row of the table is one more command:

- nothing changed
- one calibration set changed: it has one sample less
- one model changed: its function is called with another argument, which trains it anew
- a toolchain's version changed: metadata with another version of OpenVINO come first on Python's
  path. The code is the same, so what is timed is all that such a change makes stale, and no more.

Steps are counted as `tf2aif build --json` tells them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from timed import Times, machine, timed

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["digits", "mobilenet-v2", "resnet50", "inception-v3"]
TARGETS = ["cpu", "cpu-openvino", "cpu-tf", "arm", "arm-tf"]
CHANGED = "openvino"  # the toolchain whose version changes


class Row(NamedTuple):
    """One command: what was changed before it, its times, and what became of the steps."""

    what: str
    times: Times
    ran: int
    restored: int
    fresh: int


class Zoo:
    """A project of its own, with a store of its own, and the command that is timed."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.project = root / "project"
        self.cache = root / "cache"
        self.models: list[str] = options.models
        self.words = ["build", "-n", options.jobs]
        self.words += [word for name in options.targets for word in ("--target", name)]
        self.words += ["--images"] if options.images else []
        self.report: dict[str, Any] = {}
        self.recipes = copy_recipes(self.project, self.models)

    def build(self, what: str, before: Mapping[str, str] | None = None) -> Row:
        """Run the command, with these variables besides, and print its row."""
        out = self.project / "report.json"
        command = [sys.executable, "-m", "tf2aif", *self.words, "--json"]
        environment = {"TF2AIF_CACHE": str(self.cache), **(before or {})}
        to_file = ["sh", "-c", 'exec "$@" > "$0"', str(out)]
        times = timed([*to_file, *command], self.project, environment)
        self.report = json.loads(out.read_bytes())
        counts = (self.report[key] for key in ("ran", "restored", "fresh"))
        row = Row(what, times, *counts)
        print(line(row), flush=True)
        return row


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--targets", nargs="+", default=TARGETS, metavar="NAME")
    parser.add_argument("-n", "--jobs", default="auto", help="as for `tf2aif build`")
    parser.add_argument("--no-images", dest="images", action="store_false")
    parser.add_argument("--keep", type=Path, help="build in this new folder, and leave it there")
    parser.add_argument("--markdown", type=Path, help="put the tables into this page, too")
    options = parser.parse_args()
    on = machine()
    with tempfile.TemporaryDirectory() as folder:
        if options.keep:
            options.keep.mkdir(parents=True)
        root = (options.keep or Path(folder)).resolve()
        if options.images:
            print("downloading packages of images, not timed", file=sys.stderr, flush=True)
            warm_downloads(Path(folder, "warm"), options)
        print("\n".join(HEAD), flush=True)
        zoo = Zoo(root, options)
        rows = measure(zoo)
        summary = summarise(zoo, on)
        print(f"\n{summary}")
        if options.markdown:
            table = "\n".join([*HEAD, *map(line, rows)])
            put_between(options.markdown, "zoo", f"{summary}\n\n{table}")


def measure(zoo: Zoo) -> list[Row]:
    """Cold, then one change after the other."""
    rows = [zoo.build("cold"), zoo.build("nothing changed")]
    edited = zoo.models[min(1, len(zoo.models) - 1)]
    one_sample_less(zoo.recipes[edited])
    rows.append(zoo.build(f"one calibration set changed: {edited}"))
    trained_anew(zoo.recipes[edited])
    rows.append(zoo.build(f"one model changed: {edited}"))
    other = shadow(zoo.project.parent / "shadow", CHANGED)
    path = os.pathsep.join(filter(None, [str(other), os.environ.get("PYTHONPATH", "")]))
    rows.append(zoo.build(f"a toolchain's version changed: {CHANGED}", {"PYTHONPATH": path}))
    return rows


# The project, and what is changed in it.


def copy_recipes(project: Path, models: Sequence[str]) -> dict[str, Path]:
    """These recipes and all code beside them; where each recipe stands."""
    recipes = project / "recipes"
    recipes.mkdir(parents=True)
    for code in (ROOT / "recipes").glob("*.py"):
        shutil.copy(code, recipes)
    return {name: Path(shutil.copy(ROOT / "recipes" / f"{name}.yaml", recipes)) for name in models}


def edit(recipe: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a recipe as data."""
    content = yaml.safe_load(recipe.read_text())
    change(content)
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))


def one_sample_less(recipe: Path) -> None:
    """Leave the last sample out of the calibration set, which must not be all that is known."""

    def change(content: dict[str, Any]) -> None:
        data = content["calibration"]["data"]
        arguments = data.get("arguments", {}) if isinstance(data, dict) else {}
        content["calibration"]["samples"] = arguments.get("samples", 40) - 1

    edit(recipe, change)


def trained_anew(recipe: Path) -> None:
    """Train the model one epoch longer than its function does by itself."""

    def change(content: dict[str, Any]) -> None:
        file, _, name = content["model"]["function"].partition(":")
        text = (recipe.parent / file).read_text()
        found = re.search(rf"^def {name}\(.*?(epochs|samples): int = (\d+)", text, re.M)
        if found is None:
            raise SystemExit(f"{file}: {name} takes neither epochs nor samples")
        content["model"]["arguments"] = {found[1]: int(found[2]) + 1}

    edit(recipe, change)


def shadow(folder: Path, name: str) -> Path:
    """A folder with a distribution's metadata under another version's name."""
    known = distribution(name)
    other = folder / f"{name}-{known.version}.post1.dist-info"
    other.mkdir(parents=True)
    for file in ("METADATA", "RECORD", "top_level.txt"):
        text = known.read_text(file)
        if text is not None:
            (other / file).write_text(
                re.sub(r"(?m)^Version: .*$", f"Version: {known.version}.post1", text)
            )
    return folder


def warm_downloads(root: Path, options: argparse.Namespace) -> None:
    """Have the packages of all images in the caches of uv and of Debian's archives."""
    small = argparse.Namespace(**{**vars(options), "models": ["digits"]})
    zoo = Zoo(root, small)
    command = [sys.executable, "-m", "tf2aif", *zoo.words]
    timed(command, zoo.project, {"TF2AIF_CACHE": str(zoo.cache)})
    shutil.rmtree(root)


# The tables.

HEAD = (
    "| command | wall s | CPU s | steps run | restored | up to date |",
    "|---|---|---|---|---|---|",
)


def line(row: Row) -> str:
    """One row of the table."""
    times = f"{row.times.wall_s:.1f} | {row.times.cpu_s:.1f}"
    if row.times.wall_s < 1:
        times = f"{row.times.wall_s:.2f} | {row.times.cpu_s:.2f}"
    return f"| {row.what} | {times} | {row.ran} | {row.restored} | {row.fresh} |"


def summarise(zoo: Zoo, on: str) -> str:
    """What was built, and on what."""
    records = list(zoo.report["variants"].values())
    images = len(list(zoo.project.glob("build/*/*/image/index.json")))
    states: dict[str, int] = {}
    for record in records:
        states[record["state"]] = states.get(record["state"], 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    targets = {record["target"] for record in records}
    return (
        f"{len(zoo.models)} models x {len(targets)} targets: {len(records)} variants ({told}), "
        f"{images} images. {on}."
    )


def put_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- MARK -->` and `<!-- /MARK -->` in a page."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = page.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no {start} and {end}")
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
