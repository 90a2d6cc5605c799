"""The report: what it reads, what it says, how it changes. `test_report_browser.py` looks at it."""

from __future__ import annotations

import csv
import doctest
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import msgspec
import pytest
import report_made
from hypothesis import given, settings
from hypothesis import strategies as st
from report_made import accuracy, latency, put, put_bench, variant

from tf2aif.cli import _parser
from tf2aif.errors import FilesError, Tf2aifError
from tf2aif.report import front, labels, words
from tf2aif.report.changes import compare, differences, read_report
from tf2aif.report.collect import collect
from tf2aif.report.data import Report, encode_report
from tf2aif.report.front import pareto_front
from tf2aif.report.labels import Box, around, place_labels

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ROOT = Path(__file__).parents[1]


def read(build: Path) -> Report:
    """The report of a build folder, at a fixed time."""
    return collect(build, "project", NOW)


def write(build: Path, **options: Any) -> Any:
    """Write the report beside the build folder."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[report]'")
    pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")
    from tf2aif.report.files import write_report

    return write_report(build, build.parent / "out" / "index.html", "project", now=NOW, **options)


def ids(report: Report, keep: Callable[[Any], object]) -> list[str]:
    """The variants of which something holds."""
    return [one.id for one in report.variants if keep(one)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder with everything in it; not to be written to."""
    return report_made.zoo(tmp_path_factory.mktemp("zoo") / "build")


# The front.

points = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(st.sampled_from([1.0, 2.0, 3.0, 4.0]), st.sampled_from([0.7, 0.8, 0.9])),
    max_size=9,
)


@given(points)
def test_the_front_is_what_nobody_dominates(points: dict[str, tuple[float, float]]) -> None:
    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    wanted = {n for n, p in points.items() if not any(dominates(q, p) for q in points.values())}
    found = pareto_front(points)
    assert set(found) == wanted
    assert [points[name][0] for name in found] == sorted(points[name][0] for name in found)


def test_what_failed_or_was_emulated_is_on_no_front(tmp_path: Path) -> None:
    best = {"accuracy": accuracy(0.92), "latency": latency(0.001)}
    good = variant("r", "cpu-int8", accuracy=accuracy(0.919), latency=latency(0.01))
    failed = variant("r", "cpu-fp16", state="failed", reason="too much lost", **best)
    emulated = variant("r", "board-ap16", emulates="board", latency=None)
    put(tmp_path, good, failed, emulated)
    put_bench(tmp_path, emulated, 0.0001)
    report = read(tmp_path)
    assert ids(report, lambda one: one.front_on) == ["r/cpu-int8"]
    (shown,) = (one for one in report.variants if one.emulates)
    assert [timing.emulates for timing in shown.timings] == ["board"]


def test_times_of_two_machines_are_on_two_fronts(tmp_path: Path) -> None:
    fast = variant("r", "cpu-int8", accuracy=accuracy(0.92), latency=latency(0.01))
    board = variant("r", "arm-int8", accuracy=accuracy(0.915), latency=None, state="built")
    put(tmp_path, fast, board)
    put_bench(tmp_path, board, 4.0, imported_from="board.jsonl")
    found = {one.id: one for one in read(tmp_path).variants}
    assert found["r/arm-int8"].front_on == ("A Board, 6 cores, aarch64",)
    assert found["r/cpu-int8"].front_on == ("A Processor, 2 cores, x86_64",)
    (timing,) = found["r/arm-int8"].timings
    assert (timing.origin, timing.median_ms, timing.high_ms) == ("imported", 4.0, 4.8)


# Labels.

SPOT = st.tuples(st.floats(20, 300), st.floats(20, 300))


@settings(max_examples=40, deadline=None)
@given(st.lists(SPOT, max_size=40), st.booleans())
def test_labels_cover_nothing(spots: list[tuple[float, float]], together: bool) -> None:
    spots = [(150.0 + x / 30, 150.0) for x, _ in spots] if together else spots
    inside, line = Box(0, 0, 320, 320), Box(0, 149, 320, 151)
    found = place_labels(spots, [(18.0, 14.0)] * len(spots), inside, [line])
    boxes = [around(*place, 18.0, 14.0) for place in found if place]
    assert len(boxes) == len(spots)
    taken = [line, *(around(x, y, 9.0, 9.0) for x, y in spots)]
    for number, box in enumerate(boxes):
        assert box.within(inside)
        assert not any(box.meets(other) for other in [*boxes[:number], *taken])


def test_where_there_is_no_room_there_is_no_label() -> None:
    assert place_labels([(5.0, 5.0)], [(18.0, 14.0)], Box(0, 0, 10, 10)) == [None]


# What is read.


def test_a_report_has_what_stands_in_the_records(tmp_path: Path) -> None:
    made = variant("r", "cpu-int8", image=report_made.image("r", "cpu-int8"))
    put(tmp_path, made)
    (one,) = read(tmp_path).variants
    assert (one.id, one.state, one.artifact) == ("r/cpu-int8", made.state, made.artifact)
    assert one.accuracy
    assert made.accuracy
    assert one.accuracy.value == made.accuracy.variant
    assert one.image
    assert one.image.size_bytes == 54_000_000
    assert made.latency
    assert one.timing
    assert one.timing.speedup
    assert one.timing.median_ms == made.latency["variant"]["median_ms"]
    assert one.timing.low_ms == made.latency["variant"]["p10_ms"]
    assert one.timing.speedup.low == made.latency["speedup_low"]
    assert one.timing.machine == "A Processor, 2 cores, x86_64"


def test_only_measurements_of_what_stands_there_count(tmp_path: Path) -> None:
    old, new = (variant("r", "cpu-int8", seed=seed, latency=None) for seed in (1, 2))
    put(tmp_path, new)
    put_bench(tmp_path, old, 9.0)
    put_bench(tmp_path, new, 3.0, measured_at="2026-11-20T10:00:00+00:00")
    put_bench(tmp_path, new, 2.0, stable=False, measured_at="2026-11-20T11:00:00+00:00")
    lines = tmp_path / "r" / "cpu-int8" / "bench.jsonl"
    lines.write_bytes(lines.read_bytes() + b"{cut off")
    (one,) = read(tmp_path).variants
    assert [bench.engine_p50_ms for bench in one.bench] == [2.0]  # the newest
    assert [timing.median_ms for timing in one.timings] == [2.0]
    assert (one.bench[0].stable, one.timings[0].stable) == (False, False)
    assert any("engine" in doubt for doubt in one.bench[0].doubts)
    assert one.bench[0].energy_j is None
    assert one.bench[0].memory_bytes == 90 * 2**20


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, variant("r", "cpu-int8"), variant("r", "cpu-fp32"), variant("r", "cpu-fp16"))
    (tmp_path / "r" / "cpu-fp32" / "variant.json").write_text("{")
    (tmp_path / "r" / "cpu-fp16" / "variant.json").write_text('{"schema": 99}')
    (tmp_path / "placement.json").write_text('{"schema": 99}')
    report = read(tmp_path)
    assert ids(report, bool) == ["r/cpu-int8"]
    assert report.unread == ("r/cpu-fp16", "r/cpu-fp32", "placement.json")
    (tmp_path / "r" / "cpu-int8" / "variant.json").unlink()
    with pytest.raises(FilesError, match="built by another version"):
        read(tmp_path)


def test_nothing_built_is_told(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="no variant to report") as raised:
        read(tmp_path / "build")
    assert "tf2aif build" in raised.value.faults[0].hint


def test_steps_and_the_last_build_are_read(zoo: Path) -> None:
    report = read(zoo)
    assert {step.kind for step in report.steps} == {"check", "import"}
    assert len(report.steps) == 34
    assert report.build
    assert (report.build.ran, report.build.restored, report.build.fresh) == (17, 17, 12)
    assert report.build.started == "2026-09-21T14:13:20+00:00"
    assert report.placement
    assert report.placement.unplaced == ("roofs",)
    assert report.simulation
    assert report.simulation.requests > 1000


def test_variants_are_numbered_by_recipe_the_baseline_last(zoo: Path) -> None:
    report = read(zoo)
    assert [one.number for one in report.variants] == list(range(1, 35))
    for ones in report.recipes.values():
        assert [one.baseline for one in ones] == [False] * 16 + [True]


# What changed.


def test_a_change_is_told_and_noise_is_not(tmp_path: Path) -> None:
    timed = {"latency": latency(0.020), "accuracy": accuracy(0.92)}
    same, other, gone, new = (variant("r", f"cpu-{n}", **timed) for n in ("a", "b", "c", "d"))
    before = read(put(tmp_path / "1", same, other, gone))
    noisy = variant("r", "cpu-a", latency=latency(0.0203), accuracy=accuracy(0.92))
    changed = variant(
        "r", "cpu-b", seed=1, latency=latency(0.035), accuracy=accuracy(0.9), state="failed",
        size_bytes=1, image=report_made.image("r", "cpu-b"),
    )  # fmt: skip
    now = read(put(tmp_path / "2", noisy, changed, new))
    found = {(one.id, one.what): one.verdict for one in differences(before, now)}
    assert found == {
        ("r/cpu-b", "state"): "worse",
        ("r/cpu-b", "artifact"): "neither",
        ("r/cpu-b", "accuracy"): "worse",
        ("r/cpu-b", "latency"): "worse",
        ("r/cpu-b", "speed-up"): "worse",
        ("r/cpu-b", "size"): "better",
        ("r/cpu-b", "image"): "neither",
        ("r/cpu-c", "gone"): "neither",
        ("r/cpu-d", "new"): "neither",
    }


def test_times_under_other_conditions_are_not_compared(tmp_path: Path) -> None:
    before = read(put(tmp_path / "1", variant("r", "cpu-a", latency=latency(0.02))))
    for changes in ({"threads": 1}, {"batch": 8}, {"machine": {**report_made.CPU, "cpus": 9}}):
        timed = variant("r", "cpu-a", latency=latency(0.2, **changes))
        now = read(put(tmp_path / "2", timed))
        assert list(differences(before, now)) == []


def test_a_report_made_again_does_not_hide_what_changed(tmp_path: Path) -> None:
    first = read(put(tmp_path / "1", variant("r", "cpu-a")))
    second = read(put(tmp_path / "2", variant("r", "cpu-a"), variant("r", "cpu-b")))
    told = compare(first, second)
    assert [(one.id, one.what) for one in told.differences] == [("r/cpu-b", "new")]
    second = msgspec.structs.replace(second, changes=told)
    assert compare(second, read(tmp_path / "2")) == told
    third = read(put(tmp_path / "3", variant("r", "cpu-b")))
    assert [one.what for one in compare(second, third).differences] == ["gone"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not a report"), ("[]", "schema None"), ('{"schema": 7}', "schema 7"),
     ('{"schema": 1}', "not a report")],
)  # fmt: skip
def test_what_is_no_report_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(FilesError, match=said) as raised:
        read_report(path)
    assert raised.value.faults[0].at == str(path)
    with pytest.raises(FilesError, match="cannot be read"):
        read_report(tmp_path)


# The files.


def test_json_is_of_its_schema_and_reads_back(zoo: Path) -> None:
    report = read(zoo)
    schema = json.loads((ROOT / "schemas" / "report.json").read_text(encoding="utf-8"))
    encoded = encode_report(report)
    jsonschema.validate(json.loads(encoded), schema, jsonschema.Draft202012Validator)
    assert msgspec.json.decode(encoded, type=Report) == report


def test_csv_has_a_line_for_each_variant(tmp_path: Path) -> None:
    reason = 'no, "tool"\nhere'
    bundle = variant("r", "gpu-int8", state="bundled", reason=reason, accuracy=None, latency=None)
    put(tmp_path / "build", variant("r", "cpu-int8"), bundle)
    written = write(tmp_path / "build")
    timed, empty = csv.DictReader(io.StringIO(written.csv.read_text(encoding="utf-8")))
    (first, _) = written.report.variants
    assert float(timed["latency_median_ms"]) == first.timing.median_ms
    assert float(timed["speedup_low"]) == first.timing.speedup.low
    assert (timed["state"], timed["on_front"]) == ("verified-on-device", "True")
    assert empty["reason"] == reason
    columns = ("accuracy_value", "latency_median_ms", "speedup", "machine", "image_digest")
    assert [empty[name] for name in columns] == [""] * 5


def test_the_same_build_gives_the_same_bytes(tmp_path: Path) -> None:
    build = report_made.small(tmp_path / "build")
    written = write(build)
    paths = (written.page, written.json, written.csv)
    first = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    write(build)
    assert [path.read_bytes() for path in paths] == first


def test_a_report_is_compared_with_the_one_before(tmp_path: Path) -> None:
    build = report_made.small(tmp_path / "build")
    first = write(build)
    assert first.report.changes is None
    main = tmp_path / "main.json"
    shutil.copyfile(first.json, main)
    put(build, variant("iris", "cpu-fp16"))
    second = write(build)
    assert [one.id for one in second.report.changes.differences] == ["iris/cpu-fp16"]
    assert write(build).report.changes == second.report.changes
    put(build, variant("iris", "cpu-dynamic"))
    third = write(build, since=main)
    names = ["iris/cpu-dynamic", "iris/cpu-fp16"]
    assert [one.id for one in third.report.changes.differences] == names
    first.json.write_text("{}")  # of another version: as if there were none
    assert write(build).report.changes is None


# The command.


def test_the_command_writes_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[report]'")
    pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")
    report_made.small(tmp_path / "build")
    command = [sys.executable, "-m", "tf2aif", "report"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = "wrote build/report/index.html, and beside it report.json and report.csv\n"
    assert done.stdout == said
    (tmp_path / "build" / "iris" / "cpu-int8" / "variant.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    words = ("--json", "-o", "site/page.html", "--since", "build/report/report.json")
    arguments = _parser().parse_args(["report", *words])
    assert arguments.command(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {
        "page": "site/page.html", "data": "site/report.json", "csv": "site/report.csv",
        "variants": 2, "changes": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ([], FilesError, "there is no variant to report"),
        (["-o", "report.json"], Tf2aifError, "'report.json' does not end in .html"),
        (["--since", "old.json"], FilesError, "cannot be read"),
    ],
)
def test_wrong_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], kind: Any, said: str
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[report]'")
    pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")
    monkeypatch.chdir(tmp_path)
    if words:
        report_made.small(tmp_path / "build")
    arguments = _parser().parse_args(["report", *words])
    with pytest.raises(kind, match=said):
        arguments.command(arguments)
    assert not (tmp_path / "build" / "report").exists()


@pytest.mark.parametrize("module", [front, labels, words], ids=lambda module: module.__name__)
def test_examples_are_so(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_nothing_heavy_is_loaded(zoo: Path) -> None:
    code = (
        "import sys, datetime, pathlib; from tf2aif.report.collect import collect;"
        f"collect(pathlib.Path({str(zoo)!r}), 'x', datetime.datetime.now(datetime.UTC));"
        "heavy = {'tensorflow', 'doit', 'matplotlib', 'jinja2', 'ortools', 'docker'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
