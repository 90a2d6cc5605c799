"""Records of measurements: how they are kept, what is read of them, and what an import refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tf2aif.bench import BenchRecord, bench_table, import_records, read_records
from tf2aif.bench.energy import NO_COUNTER, NO_GPU_COUNTER, Meter, Metered, energy_of
from tf2aif.bench.record import ScenarioFigures, encode_record, make_record
from tf2aif.bench.servers import read_memory
from tf2aif.client.figures import figures_of
from tf2aif.client.load import Load, Pace, Window
from tf2aif.client.machine import Machine
from tf2aif.client.report import Report, Run, Served, ServerReport, to_json
from tf2aif.engines.versions import engine_version
from tf2aif.errors import FilesError, Tf2aifError
from tf2aif.measurements import FILE, add_lines, read_lines, restore_lines
from tf2aif.record import VariantRecord
from tf2aif.table import bench_medians, variants_table

ARTIFACT = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
MACHINE = Machine(
    cpu="Cortex-A78AE",
    architecture="aarch64",
    cores=8,
    governor="performance",
    memory_bytes=8 * 2**30,
    system="Debian GNU/Linux 12",
    kernel="6.1",
    python="3.11.2",
    load_average=(0.5, 0.4, 0.3),
)


def window(ms: float, failures: dict[str, int] | None = None) -> Window:
    latencies = np.full(100, ms * 1e6, np.int64)
    return Window(latencies_ns=latencies, samples=100, duration_s=0.1, failures=failures or {})


def scenario(*medians_ms: float) -> ScenarioFigures:
    load = Load()
    figures = figures_of(load.scenario, [window(ms) for ms in medians_ms])
    return ScenarioFigures(
        scenario=load.scenario,
        load=load,
        engine=None,
        server=figures,
        native=None,
        stages={},
        overhead_ms=None,
        speedup=None,
    )


def variant(artifact: str = ARTIFACT, **changes: Any) -> VariantRecord:
    return VariantRecord(
        **{
            "schema": 1,
            "recipe": "kws",
            "variant": "arm-int8",
            "target": "arm",
            "precision": "int8",
            "platform": "linux/arm64",
            "state": "built",
            "engine": {"name": "litert", "options": {"threads": 2}},
            "artifact": artifact,
            "size_bytes": 1000,
            **changes,
        }
    )


def record(of: VariantRecord | None = None, minute: int = 0, **changes: Any) -> BenchRecord:
    made = make_record(
        of or variant(),
        engine_version="2.3.0",
        machine=MACHINE,
        scenarios=(scenario(2.0, 2.0, 2.0),),
        cold_starts_s=(0.5, 0.7, 0.4),
        threads=2,
        native=None,
        random=False,
        measured_at=f"2026-11-21T10:{minute:02}:00+00:00",
        generator="tf2aif's own generator",
    )
    return msgspec.structs.replace(made, **changes)


def write_lines(path: Path, *records: BenchRecord) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(encode_record(each) + b"\n" for each in records))
    return path


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A build folder with one variant, and the one of another recipe."""
    for each in (variant(), variant(recipe="digits", variant="arm-fp32", artifact=OTHER)):
        folder = tmp_path / "build" / each.recipe / each.variant
        folder.mkdir(parents=True)
        (folder / "variant.json").write_bytes(msgspec.json.encode(each))
    return tmp_path / "build"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def faults_of(*paths: Path, build: Path) -> list[tuple[str, str, str]]:
    """What an import says of these files; nothing may be taken then."""
    with pytest.raises(FilesError) as failed:
        import_records(paths, build)
    assert failed.value.exit_code == 2
    assert not list(build.rglob(FILE))
    return [(fault.message, fault.at, fault.hint) for fault in failed.value.faults]


# Keeping.


def test_runs_are_lines_oldest_first(build: Path, cache: Path) -> None:
    folder = build / "kws" / "arm-int8"
    runs = [record(minute=minute) for minute in (5, 1, 3)]
    for each in runs:
        assert add_lines(folder, cache, [encode_record(each)]) == 1
    assert len((folder / FILE).read_bytes().splitlines()) == 3
    assert read_records(folder) == (runs[1], runs[2], runs[0])


def test_the_same_record_is_kept_once(build: Path, cache: Path) -> None:
    folder = build / "kws" / "arm-int8"
    first = record()
    again = msgspec.structs.replace(first, imported_from="elsewhere.jsonl", accuracy=None)
    assert add_lines(folder, cache, [encode_record(first), encode_record(again)]) == 1
    assert add_lines(folder, cache, [encode_record(again)]) == 0
    assert read_records(folder) == (first,)


def test_only_what_stands_there_counts(build: Path, cache: Path) -> None:
    folder = build / "kws" / "arm-int8"
    engine = {"name": "litert", "options": {}}
    others = [
        record(variant(OTHER)),
        record(variant(engine=engine), minute=1),
        record(variant(recipe="digits"), minute=2),
        record(schema=1, minute=3),
    ]
    write_lines(folder / FILE, *others, record(minute=9))
    assert read_records(folder) == (record(minute=9),)


def test_a_line_that_was_cut_off_costs_only_itself(build: Path, cache: Path) -> None:
    folder = build / "kws" / "arm-int8"
    (folder / FILE).write_bytes(encode_record(record()) + b"\n" + encode_record(record())[:100])
    assert add_lines(folder, cache, [encode_record(record(minute=7))]) == 1
    assert read_records(folder) == (record(), record(minute=7))


def test_a_cache_that_cannot_be_written_loses_no_line(build: Path, tmp_path: Path) -> None:
    folder = build / "kws" / "arm-int8"
    (tmp_path / "full").write_text("a file where the cache should be")
    with pytest.raises(Tf2aifError, match="cannot be kept") as failed:
        add_lines(folder, tmp_path / "full", [encode_record(record())])
    assert "TF2AIF_CACHE" in failed.value.faults[0].hint
    assert read_records(folder) == (record(),)


def test_a_folder_made_anew_gets_back_what_is_of_its_artifact(build: Path, cache: Path) -> None:
    here, there = record(minute=2), record(minute=1)
    old, elsewhere = build / "kws" / "arm-int8", build.parent / "other-tree"
    add_lines(elsewhere, cache, [encode_record(there)])
    same_bytes = record(variant(recipe="digits"), minute=3)  # of one artifact with another name
    add_lines(elsewhere, cache, [encode_record(same_bytes)])
    write_lines(old / FILE, here, record(variant(OTHER), minute=4))
    new = build / "new"
    new.mkdir()
    name = {"recipe": "kws", "variant": "arm-int8"}
    restore_lines(old, new, cache, **name, artifact=ARTIFACT)
    assert read_lines(new / FILE) == [encode_record(there), encode_record(here)]
    (build / "none").mkdir()
    restore_lines(old, build / "none", cache, **name, artifact="e" * 32)
    assert not (build / "none" / FILE).exists()


# What is told.


def test_figures_of_a_noisy_machine_are_marked() -> None:
    quiet = record()
    assert (quiet.stable, quiet.doubts) == (True, ())
    busy = msgspec.structs.replace(MACHINE, load_average=(9.0, 1.0, 1.0))
    made = make_record(
        variant(),
        engine_version=None,
        machine=busy,
        scenarios=(scenario(2.0, 2.0, 2.4),),
        threads=None,
        native=None,
        random=False,
        measured_at="2026-11-21T10:00:00+00:00",
        generator="",
    )
    assert not made.stable
    assert made.doubts == (
        "the machine was busy: load 9.00 before the run, on 8 cores",
        "single-stream, server: unstable",
    )
    table = bench_table([made])
    assert all(f"kws/arm-int8: {doubt}" in table for doubt in made.doubts)


def test_cold_start_is_the_median_of_all_starts() -> None:
    assert record().cold_start_s == 0.5
    assert "ready after 0.50 s" in bench_table([record()])


def test_each_machine_has_its_own_table() -> None:
    other = msgspec.structs.replace(MACHINE, cpu="Cortex-A57")
    table = bench_table([record(), record(machine=other)])
    assert table.count("variant       scenario") == 2
    assert table.index("Cortex-A78AE") < table.index("Cortex-A57")


def test_the_list_has_the_median_of_what_was_measured_elsewhere(build: Path, cache: Path) -> None:
    of = variant()
    folder = build / "kws" / "arm-int8"
    records = {"kws/arm-int8": of, "kws/none": None}
    assert bench_medians(records, build.joinpath) == {}
    write_lines(folder / FILE, record(), record(minute=1, scenarios=(scenario(3.0, 4.0, 5.0),)))
    medians = bench_medians(records, build.joinpath)
    table = variants_table(records.items(), (), medians)
    assert table.splitlines()[2].split()[-2:] == ["4.000", "ms"]
    source = "measured by tf2aif bench on Cortex-A78AE, 8 cores, with its server, unstable:"
    assert table.endswith(f"{source}\n    kws/arm-int8")
    timed = msgspec.structs.replace(of, latency={"variant": {"median_ms": 1.0}, "speedup": 2.0})
    assert bench_medians({"kws/arm-int8": timed}, build.joinpath) == {}


def test_memory_is_read_of_a_process() -> None:
    now, most = (read_memory(os.getpid(), field) for field in ("VmRSS", "VmHWM"))
    assert now is not None
    assert most is not None
    assert 2**20 < now <= most
    assert read_memory(2**22 + 1, "VmRSS") is None  # more than the kernel's largest


def test_an_engine_of_ours_has_our_version() -> None:
    from tf2aif import __version__

    assert engine_version("pof2") == __version__
    assert engine_version("tensorrt-system") is None  # not loaded here


# Energy.


class Counter:
    """A counter of energy that goes up by so many joules at each look."""

    def __init__(self, name: str, joules: float) -> None:
        self.name = name
        self._joules = joules

    def joules(self) -> float:
        return self._joules


class Steady:
    """A subject that answers 100 samples in each window."""

    name = "engine"

    def warm_up(self, load: Load) -> Pace:
        return Pace(request_s=0.001, throughput=1000.0)

    def run(self, load: Load, pace: Pace, number: int) -> Window:
        return window(1.0)

    def close(self) -> None:
        pass


def test_energy_is_of_the_last_three_windows() -> None:
    package, gpu = Counter("rapl:package-0", 5.0), Counter("nvml:0", 20.0)
    metered = Metered(Steady(), [package, gpu])
    for number in range(2):
        metered.run(Load(), metered.warm_up(Load()), number)
    package._joules = 2.0
    for number in range(3):
        metered.run(Load(), metered.warm_up(Load()), number)
    found = energy_of(["rapl:package-0", "nvml:0"], metered, metered, None)
    assert (found.engine_j, found.native_j) == (pytest.approx(22.0 / 100), None)
    metered.restart()
    assert metered.joules_per_sample(["nvml:0"]) is None


def test_a_gpu_that_is_not_used_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_label = {"nvidia.com/gpu.present": "true"}
    meter = Meter([Counter("rapl:package-0", 1.0), Counter("nvml:0", 1.0), Counter("nvml:1", 1.0)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert meter.names_for({}) == ("rapl:package-0",)
    assert meter.names_for(gpu_label) == ("rapl:package-0", "nvml:0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert meter.names_for(gpu_label) == ("rapl:package-0", "nvml:1")
    assert meter.reason(gpu_label) == meter.reason({}) == ""
    assert Meter([]).reason({}) == NO_COUNTER
    assert Meter([Counter("rapl:package-0", 1.0)]).reason(gpu_label) == NO_GPU_COUNTER


# Importing.


def test_records_of_devices_are_taken_once(build: Path, cache: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "edge-7" / FILE, record(), record(minute=1))
    found = import_records([file], build)
    assert (found.added, len(found.records)) == (2, 2)
    kept = read_records(build / "kws" / "arm-int8")
    assert [each.imported_from for each in kept] == [f"{file}:1", f"{file}:2"]
    assert import_records([tmp_path / "edge-7", file], build).added == 0
    assert read_records(build / "kws" / "arm-int8") == kept
    assert [json.loads(line)["measured_at"] for line in cache_lines(cache)] == [
        each.measured_at for each in kept
    ]


def cache_lines(cache: Path) -> list[str]:
    (path,) = cache.rglob(f"{ARTIFACT}.jsonl")
    return path.read_text().splitlines()


def test_what_the_command_line_printed_is_taken(build: Path, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "printed.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode({"records": {"x": record()}})))
    assert import_records([file], build).records[0].imported_from == f"{file}: records.x"


def test_stability_is_judged_here(build: Path, cache: Path, tmp_path: Path) -> None:
    claims = record(scenarios=(scenario(1.0, 2.0, 3.0),))
    assert claims.stable
    (found,) = import_records([write_lines(tmp_path / FILE, claims)], build).records
    assert not found.stable
    assert found.doubts == ("single-stream, server: unstable",)


Change = Callable[[dict[str, Any]], object]
WRONG: dict[str, tuple[Change, str, str]] = {
    "another schema": (
        lambda r: r.update(schema=1),
        "a record of a measurement of schema 1; this version of tf2aif reads schema 2",
        "measure there again, with the same version of tf2aif as here",
    ),
    "a misspelt key": (
        lambda r: r.update(theads=2),
        "not a record of a measurement: Object contains unknown field `theads`",
        "",
    ),
    "a text for a number": (
        lambda r: r["machine"].update(cores="8"),
        "not a record of a measurement: Expected `int`, got `str` - at `$.machine.cores`",
        "",
    ),
    "a variant that is not here": (
        lambda r: r.update(variant="arm-int"),
        "no variant 'kws/arm-int' is built in {build}",
        "did you mean 'kws/arm-int8'?",
    ),
    "another artifact": (
        lambda r: r.update(artifact=OTHER),
        f"measured was another artifact of kws/arm-int8: {OTHER}; here is {ARTIFACT}",
        "take the figures into the tree that the artifact is from, or measure this one",
    ),
    "another engine": (
        lambda r: r["engine"].update(options={}),
        "kws/arm-int8 ran on engine litert; here it is for litert threads=2",
        "measure it there as it is built here",
    ),
    "another architecture": (
        lambda r: r["machine"].update(architecture="x86_64"),
        "kws/arm-int8 is for linux/arm64; the figures are of a machine that is x86_64",
        "under an emulator times say nothing: measure it on its device",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_record_is_refused(what: str, build: Path, cache: Path, tmp_path: Path) -> None:
    change, message, hint = WRONG[what]
    value = msgspec.to_builtins(record(minute=1))
    change(value)
    file = write_lines(tmp_path / FILE, record())
    with file.open("ab") as out:
        out.write(msgspec.json.encode(value) + b"\n")
    wanted = (message.format(build=build), f"{file}:2", hint)
    assert faults_of(file, build=build) == [wanted]


def test_all_faults_of_all_files_come_at_once(build: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_bytes(b"\n{\n\xff\n[1]\n")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "variant.json").write_text("{}")
    names = ("torn.jsonl", "empty.jsonl", "folder", "none.jsonl")
    found = faults_of(*(tmp_path / name for name in names), build=build)
    places = {at.removeprefix(f"{tmp_path}/"): message for message, at, _ in found}
    assert list(places) == [
        *("torn.jsonl:2", "torn.jsonl:3", "torn.jsonl:4"),
        *("empty.jsonl", "folder", "none.jsonl"),
    ]
    assert places["torn.jsonl:2"].startswith("not JSON: ")
    assert places["torn.jsonl:4"].startswith("not a record of a measurement: Expected `object`")
    assert places["none.jsonl"] == "cannot be read: No such file or directory"
    assert places["folder"] == "no records are in this folder"


def test_a_file_of_something_else_is_told_in_a_few_words(
    build: Path, cache: Path, tmp_path: Path
) -> None:
    other = build / "kws" / "arm-int8" / "variant.json"
    ((said, _, hint),) = faults_of(other, build=build)
    assert said.startswith("not a record of a measurement: ")
    assert hint == "name a bench.jsonl, or a client's JSON report"
    (tmp_path / "model.tflite").write_bytes(b"TFL3\n" * 100)
    found = faults_of(tmp_path / "model.tflite", build=build)
    assert len(found) == 4
    assert found[-1][0] == "so are 97 more lines"


# Reports of a client.


def report(url: str = "http://127.0.0.1:8080", **server: Any) -> Report:
    load = Load()
    figures = figures_of(load.scenario, [window(2.0)] * 3)
    given = {
        "url": url,
        "model": "kws",
        "version": "arm-int8",
        "served": Served(artifact=ARTIFACT, engine="litert", memory_bytes=2**26),
        "runs": (Run(load=load, figures=figures, stages={}),),
        **server,
    }
    return Report(
        measured_at="2026-11-21T10:00:00+00:00",
        client="0.1.0",
        generator="tf2aif's own generator",
        encoding="binary",
        machine=MACHINE,
        servers=(ServerReport(**given),),
    )


def test_a_folder_of_reports(build: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "other.json").write_text('{"servers": []}')
    (tmp_path / "edge" / "report.json").write_bytes(to_json(report("http://[::1]:8080")))
    (found,) = import_records([tmp_path / "edge"], build).records
    assert found.imported_from == str(tmp_path / "edge" / "report.json")
    assert (found.random, found.memory_bytes, found.cold_start_s) == (True, 2**26, None)
    assert found.unmeasured["cold_start_s"] == "a client's report has the server's figures only"


WRONG_REPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "over a network": ({"url": "http://edge-7:8080"}, "http://edge-7:8080 was asked over a net"),
    "another server": ({"served": None}, "does not say which artifact it serves"),
    "an older server": (
        {"served": Served(artifact="", engine="litert")},
        "does not say which artifact it serves",
    ),
    "an artifact of another build": (
        {"served": Served(artifact=OTHER, engine="litert")},
        "measured was another artifact of kws/arm-int8",
    ),
    "an emulation": (
        {"served": Served(artifact=ARTIFACT, engine="pof2")},
        "kws/arm-int8 ran on engine pof2 threads=2; here it is for litert threads=2",
    ),
    "no load": ({"runs": ()}, "the report holds no figures"),
    "a model that is not here": ({"model": "kwz"}, "no variant 'kwz/arm-int8' is built in"),
}


@pytest.mark.parametrize("what", WRONG_REPORTS)
def test_a_wrong_report_is_refused(what: str, build: Path, cache: Path, tmp_path: Path) -> None:
    changes, message = WRONG_REPORTS[what]
    file = tmp_path / "report.json"
    file.write_bytes(to_json(report(**changes)))
    ((said, at, hint),) = faults_of(file, build=build)
    assert message in said
    assert at == f"{file}: servers[0]"
    assert hint


# The command line.


def test_the_command_takes_records(build: Path, cache: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "edge" / FILE, record())
    run = [sys.executable, "-m", "tf2aif", "bench"]
    asked = [[*run, "--import", "edge"], [*run, "--json", "--import", str(file)], [*run]]
    taken, again, nothing = (
        subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        for words in asked
    )
    assert (taken.returncode, taken.stderr) == (0, "")
    assert "kws/arm-int8  single-stream" in taken.stdout
    assert taken.stdout.endswith("\n1 taken\n")
    shown = json.loads(again.stdout)
    assert (shown["added"], len(shown["records"])) == (0, 1)
    assert nothing.returncode == 2
    assert "tf2aif bench --import FILE" in nothing.stderr
