"""Speed-up over native TensorFlow of the best variant of each recipe, at batch 1.

    tf2aif build && python benchmarks/speedup.py [--threads 2] [RECIPE ...]

Two runs for each recipe, in `build/` as it stands. The first is short: all variants for this
machine that hold their accuracy gate and the native baseline (`cpu-tf`: the frozen graph of the
same model) take turns, and the fastest is chosen. So no rule says which engine is best for which
network. In the second only that one and the baseline take turns, in fresh processes, each with
the same number of threads; its figures are independent of those that it was chosen by.

A speed-up is the baseline's median latency over the variant's, round by round: the table has the
geometric mean of the rounds with its 95% interval, by bootstrap over rounds. The means over the
recipes have theirs in the same way. Figures are noisy where the last three medians of either are
not within 10%, as `tf2aif bench` has it. Only engines are timed: no server, no hooks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from timed import machine
from zoo import put_between

from tf2aif.bench.baseline import Built, find_baseline, find_samples, read_built
from tf2aif.bench.engines import EngineSubject
from tf2aif.client.figures import is_stable
from tf2aif.client.load import Load, Window
from tf2aif.client.measure import measure, warm_up_all
from tf2aif.errors import Tf2aifError

FOUR = ("digits", "mobilenet-v2", "resnet50", "inception-v3")
PUBLISHED = "published averages of the original: 3.6x on a CPU, 2.7x on ARM"
RESAMPLES = 10_000

Ratios = NDArray[np.float64]


class Chosen(NamedTuple):
    """One recipe: who won the short run, and the rounds of the long one."""

    winner: Built
    native: Built
    quick_ms: dict[str, float]  # variant -> median of the short run
    winner_ms: float
    native_ms: float
    ratios: Ratios  # native over winner, of medians, one a round
    stable: bool  # by the rule of `tf2aif bench`, both of them


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=FOUR)
    parser.add_argument("--build", type=Path, default=Path("build"), help="where variants stand")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--rounds", type=int, default=20, help="of the long run")
    parser.add_argument("--window", type=float, default=1.0, help="seconds of a turn in it")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    parser.add_argument("--markdown", type=Path, help="put the tables into this page, too")
    options = parser.parse_args()
    on = machine()
    found = {name: speed_up_of(options.build / name, options) for name in options.recipes}
    tables = "\n\n".join(
        (
            f"{on}; batch 1, {options.threads} threads for each engine, "
            f"{options.rounds} rounds of {options.window:g} s for each of the two.",
            chosen_table(found),
            means(found),
            f"The {PUBLISHED}.",
            quick_table(found),
        )
    )
    print(tables)
    if options.markdown:
        put_between(options.markdown, "speed-up", tables)
    if options.json:
        options.json.write_text(json.dumps(as_data(on, found), indent=1) + "\n")


def speed_up_of(recipe: Path, options: argparse.Namespace) -> Chosen:
    """The best variant of one recipe, and how much faster it is than the baseline."""
    variants, native = candidates(recipe)
    short = Load(window_s=0.4, max_windows=4, warmup_s=0.4, generator="own")
    quick = {
        name: float(np.median(np.concatenate([w.latencies_ns for w in windows]))) / 1e6
        for name, windows in in_turns([*variants, native], short, options.threads).items()
    }
    winner = min(variants, key=lambda variant: quick[variant.id])
    print(f"{recipe.name}: {winner.id} of {len(variants)}", file=sys.stderr, flush=True)
    long = Load(window_s=options.window, max_windows=options.rounds, warmup_s=1.0, generator="own")
    windows = in_turns([winner, native], long, options.threads, all_rounds=True)
    ours, theirs = (medians(windows[one.id]) for one in (winner, native))
    return Chosen(
        winner=winner,
        native=native,
        quick_ms=quick,
        winner_ms=float(np.median(ours)),
        native_ms=float(np.median(theirs)),
        ratios=theirs / ours,
        stable=all(is_stable("single-stream", windows[one.id]) for one in (winner, native)),
    )


def candidates(recipe: Path) -> tuple[list[Built], Built]:
    """Variants for this machine that hold their gate, and the baseline. Raises Tf2aifError."""
    found: list[Built] = []
    for folder in sorted(recipe.glob("*/variant.json")):
        try:
            built = read_built(folder.parent)
        except Tf2aifError:
            continue  # for another platform, or failed: its gate among other reasons
        record = built.record
        holds = record.accuracy and record.accuracy.drop <= record.accuracy.allowed_drop
        if record.state == "verified-on-device" and holds and not record.emulates:
            found.append(built)
    variants = [one for one in found if not one.record.baseline]
    native = find_baseline(variants[0]) if variants else None
    if native is None:
        hint = f"tf2aif build recipes/{recipe.name}.yaml"
        raise Tf2aifError("no variant and baseline for this machine", at=str(recipe), hint=hint)
    return variants, native


def in_turns(
    variants: Sequence[Built], load: Load, threads: int, *, all_rounds: bool = False
) -> dict[str, list[Window]]:
    """Windows of each engine, taken in turns; with `all_rounds` as many as the load allows."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        subjects = {}
        for each in variants:
            samples = find_samples(each)
            if samples is None:
                raise Tf2aifError(f"{each.id} has no evaluation set")
            log = Path(scratch, f"{each.record.variant}.log")
            subject = EngineSubject(each, samples, threads, log)
            subjects[each.id] = stack.enter_context(closing(subject))
        for subject in subjects.values():
            subject.wait_ready()
        paces = warm_up_all(subjects, load)
        if not all_rounds:
            return measure(subjects, load, paces)
        found: dict[str, list[Window]] = {name: [] for name in subjects}
        for number in range(1, load.max_windows + 1):
            for name in sorted(subjects, reverse=bool(number % 2)):
                found[name].append(subjects[name].run(load, paces[name], number))
        return found


def medians(windows: Sequence[Window]) -> Ratios:
    """The median latency of each window, milliseconds."""
    return np.array([np.median(window.latencies_ns) / 1e6 for window in windows])


# What is made of the rounds.


def geometric(ratios: Ratios) -> float:
    """The geometric mean over the last axis."""
    return float(np.exp(np.log(ratios).mean()))


def resampled(ratios: Ratios, seed: int) -> Ratios:
    """Geometric means of rounds drawn with replacement, (RESAMPLES,)."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(ratios), (RESAMPLES, len(ratios)))
    return np.asarray(np.exp(np.log(ratios)[drawn].mean(axis=1)))


def interval(values: Ratios) -> str:
    """From the 2.5th to the 97.5th percentile."""
    low, high = np.percentile(values, (2.5, 97.5))
    return f"{low:.2f} to {high:.2f}"


def chosen_table(found: dict[str, Chosen]) -> str:
    """A line for each recipe."""
    lines = [
        "| recipe | best variant | accuracy, drop | median | native | speed-up | 95% | figures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, (name, one) in enumerate(found.items()):
        accuracy = one.winner.record.accuracy
        score = f"{accuracy.variant:.3f}, {accuracy.drop:+.3f}" if accuracy else "not measured"
        lines.append(
            f"| {name} | `{one.winner.record.variant}` | {score} | {one.winner_ms:.3g} ms "
            f"| {one.native_ms:.3g} ms | **{geometric(one.ratios):.2f}x** "
            f"| {interval(resampled(one.ratios, seed))} | {'stable' if one.stable else 'noisy'} |"
        )
    return "\n".join(lines)


def means(found: dict[str, Chosen]) -> str:
    """Geometric and arithmetic mean over recipes, with and without the smallest network."""
    sets = {"all": list(found), "without digits": [name for name in found if name != FOUR[0]]}
    if len(sets["without digits"]) in (0, len(found)):
        del sets["without digits"]
    lines = []
    for what, names in sets.items():
        each = np.array([geometric(found[name].ratios) for name in names])
        drawn = np.array([resampled(found[name].ratios, i) for i, name in enumerate(names)])
        lines.append(
            f"- {what} ({len(names)}): geometric mean {geometric(each):.2f}x "
            f"({interval(np.exp(np.log(drawn).mean(axis=0)))}), "
            f"arithmetic mean {each.mean():.2f}x ({interval(drawn.mean(axis=0))})"
        )
    return "\n".join(lines)


def quick_table(found: dict[str, Chosen]) -> str:
    """Medians of the short run: what the choice was made by."""
    columns = sorted({name.partition("/")[2] for one in found.values() for name in one.quick_ms})
    lines = [
        f"| median ms, short run | {' | '.join(found)} |",
        f"|---|{'---|' * len(found)}",
    ]
    for column in columns:
        values = [one.quick_ms.get(f"{name}/{column}") for name, one in found.items()]
        cells = ["not measured" if value is None else f"{value:.3g}" for value in values]
        lines.append(f"| `{column}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_data(on: str, found: dict[str, Chosen]) -> dict[str, Any]:
    """All figures, for other programs."""
    return {
        "machine": on,
        "recipes": {
            name: {
                "winner": one.winner.id,
                "native": one.native.id,
                "short_run_ms": one.quick_ms,
                "winner_ms": one.winner_ms,
                "native_ms": one.native_ms,
                "speedup": geometric(one.ratios),
                "rounds": one.ratios.tolist(),
                "stable": one.stable,
            }
            for name, one in found.items()
        },
    }


if __name__ == "__main__":
    try:
        main()
    except Tf2aifError as error:
        sys.exit(error.render())
