"""Bench: engine alone, server and baseline of real variants, in turns."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonschema
import msgspec
import pytest
from serving import TARGET, served

from tf2aif.bench import (
    BenchOptions,
    BenchRecord,
    bench,
    bench_table,
    import_records,
    read_records,
)
from tf2aif.bench.baseline import find_baseline, read_built
from tf2aif.bench.engines import EngineSubject, alone
from tf2aif.bench.record import SpeedUp, encode_record
from tf2aif.bench.run import speed_up
from tf2aif.bench.servers import serve
from tf2aif.client.figures import Figures, WindowFigures
from tf2aif.client.load import Load
from tf2aif.client.measure import Step
from tf2aif.client.report import to_json
from tf2aif.client.run import Options, Silent, run
from tf2aif.errors import Tf2aifError
from tf2aif.record import read_record
from tf2aif.spec.schema import schema_of

pytest_plugins = ("built",)

SHORT = Load(window_s=0.1, warmup_s=0.1, max_windows=3)
NATIVE = f"digits/{TARGET}-tf-fp32"


class Watch(Silent):
    """Notes what was measured, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, step: Step) -> None:
        self.names.append(step.name)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own: measurements are kept there, too."""
    monkeypatch.setenv("TF2AIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def measured(
    digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, BenchRecord], list[str]]:
    """The int8 variant and the baseline, measured together; and the order of the windows."""
    watch = Watch()
    loads = tuple(
        msgspec.structs.replace(SHORT, scenario=name) for name in ("single-stream", "offline")
    )
    folders = [digits / f"{TARGET}-int8", digits / f"{TARGET}-tf-fp32"]
    options = BenchOptions(loads=loads, threads=1, starts=1)
    cache = tmp_path_factory.mktemp("cache")
    return bench(folders, options, watch, cache), watch.names


def test_engine_server_and_baseline_take_turns(
    measured: tuple[dict[str, BenchRecord], list[str]],
) -> None:
    _, names = measured
    subjects = {f"digits/{TARGET}-int8", NATIVE}
    expected = {f"{name} {what}" for name in subjects for what in ("engine", "server")}
    first, second = names[:4], names[4:8]
    assert set(first) == expected
    assert second == first[::-1]
    assert len(names) == 2 * 3 * 4


def test_record_is_written_and_read(
    digits: Path, measured: tuple[dict[str, BenchRecord], list[str]]
) -> None:
    records, _ = measured
    for name, record in records.items():
        folder = digits / name.partition("/")[2]
        assert read_records(folder)[-1] == record
        variant = read_record(folder)
        assert variant is not None
        assert variant.accuracy is not None
        assert record.accuracy is not None
        assert record.id == f"{variant.recipe}/{variant.variant}"
        assert record.artifact == variant.artifact
        assert record.accuracy.value == variant.accuracy.variant
        assert (record.batch, record.threads, record.random) == (variant.batch, 1, False)
        assert record.machine.cores >= 1
        assert record.machine.memory_bytes > 2**28
        assert "no MLPerf results" in record.note


def test_record_names_the_engines_version(
    measured: tuple[dict[str, BenchRecord], list[str]],
) -> None:
    records, _ = measured
    litert, native = (records[name].engine for name in (f"digits/{TARGET}-int8", NATIVE))
    assert (litert.name, litert.version) == ("litert", version("ai-edge-litert"))
    assert (native.name, native.version) == ("tensorflow", version("tensorflow"))


def test_start_and_memory_are_of_the_server(
    measured: tuple[dict[str, BenchRecord], list[str]],
) -> None:
    records, _ = measured
    litert, native = (records[name] for name in (f"digits/{TARGET}-int8", NATIVE))
    for record in (litert, native):
        assert record.cold_start_s is not None
        assert record.cold_starts_s == (record.cold_start_s,)
        assert record.memory_bytes is not None
        assert record.memory_peak_bytes is not None
        assert 2**24 < record.memory_bytes <= record.memory_peak_bytes
    assert litert.cold_start_s is not None
    assert native.cold_start_s is not None
    assert native.memory_bytes is not None
    assert litert.memory_bytes is not None
    assert 2 * litert.memory_bytes < native.memory_bytes  # TensorFlow is far larger


def test_what_is_null_has_its_reason(measured: tuple[dict[str, BenchRecord], list[str]]) -> None:
    for record in measured[0].values():
        counted = all(each.energy for each in record.scenarios)
        assert counted == ("energy" not in record.unmeasured)
        assert (record.image is None) == ("image" in record.unmeasured)
        unsure = [doubt for doubt in record.doubts if doubt.startswith(("single", "offline"))]
        assert record.stable == (not unsure)
        value = msgspec.json.decode(encode_record(record))
        jsonschema.validate(value, schema_of(BenchRecord), jsonschema.Draft202012Validator)


def test_figures_hang_together(measured: tuple[dict[str, BenchRecord], list[str]]) -> None:
    records, _ = measured
    stream, offline = records[f"digits/{TARGET}-int8"].scenarios
    assert stream.native is not None
    for figures in (stream.engine, stream.server, stream.native):
        assert figures.failures == {}
        assert figures.latency is not None
        assert figures.latency.p50_ms is not None
        assert figures.latency.p50_ms > 0
    assert stream.overhead_ms is not None
    assert stream.overhead_ms > 0
    assert stream.speedup is not None
    assert stream.speedup.low <= stream.speedup.high
    assert stream.speedup.ratio > 1  # LiteRT on so small a model is far faster than TensorFlow
    assert set(stream.stages) == {"queue", "preprocess", "inference", "postprocess", "request"}
    assert offline.overhead_ms is None
    assert offline.engine.latency is None


def test_baseline_is_compared_with_nothing(
    measured: tuple[dict[str, BenchRecord], list[str]],
) -> None:
    records, _ = measured
    assert records[f"digits/{TARGET}-int8"].native == NATIVE
    assert records[NATIVE].native is None
    assert all(s.native is None and s.speedup is None for s in records[NATIVE].scenarios)


def test_table_has_a_line_for_each(measured: tuple[dict[str, BenchRecord], list[str]]) -> None:
    table = bench_table(measured[0].values())
    assert table.count(f"digits/{TARGET}-int8 ") == 2
    assert "no MLPerf results" in table


def test_without_an_evaluation_set_samples_are_drawn(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / f"{TARGET}-int8", tmp_path / "digits" / f"{TARGET}-int8")
    (record,) = bench(
        [tmp_path / "digits" / f"{TARGET}-int8"], BenchOptions(loads=(SHORT,), starts=2)
    ).values()
    assert record.random
    assert record.native is None
    assert len(record.cold_starts_s) == 2
    assert record.scenarios[0].engine.failures == record.scenarios[0].server.failures == {}


# What goes wrong.


def test_what_is_not_built(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(Tf2aifError, match="no variant is there"):
        bench([tmp_path])
    with pytest.raises(Tf2aifError, match="no variant is named"):
        bench([])


def test_variant_for_another_machine(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(digits / f"{TARGET}-int8", folder)
    record = read_record(folder)
    assert record is not None
    other = "linux/arm/v7"
    (folder / "variant.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(record, platform=other))
    )
    with pytest.raises(Tf2aifError, match=f"is for {other}; this machine is"):
        bench([folder])


@pytest.fixture
def broken(digits: Path, tmp_path: Path) -> Path:
    """A variant whose model is no model."""
    folder = tmp_path / "digits" / f"{TARGET}-int8"
    shutil.copytree(digits / f"{TARGET}-int8", folder)
    (folder / "artifact" / "model.tflite").write_bytes(b"nothing")
    return folder


def test_server_that_does_not_start(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(Tf2aifError, match=r"the server of digits/.* ended with 1") as failure:
        with serve(read_built(broken), threads=None, log=tmp_path / "log"):
            pass
    assert "LiteRT cannot load it" in failure.value.render()


def test_engine_that_does_not_load(broken: Path, digits: Path, tmp_path: Path) -> None:
    samples = digits / ".steps" / "evaluation"
    subject = EngineSubject(read_built(broken), samples, None, tmp_path / "log")
    with pytest.raises(Tf2aifError, match="LiteRT cannot load it"):
        subject.wait_ready()
    subject.close()


def test_engine_that_dies(digits: Path, tmp_path: Path) -> None:
    variant = read_built(digits / f"{TARGET}-int8")
    subject = EngineSubject(variant, digits / ".steps" / "evaluation", 1, tmp_path / "log")
    subject.wait_ready()
    assert subject.warm_up(SHORT).throughput > 0
    subject.kill()
    with pytest.raises(Tf2aifError, match="ended with exit code -9"):
        subject.warm_up(SHORT)
    subject.close()


def test_baseline_is_the_native_variant_of_the_platform(digits: Path) -> None:
    found = find_baseline(read_built(digits / f"{TARGET}-int8"))
    assert found is not None
    assert found.id == NATIVE
    assert find_baseline(found) is None


def test_engine_alone_runs_one_at_a_time() -> None:
    assert alone(Load(scenario="offline")).connections == 1


def test_speed_up_is_of_rounds() -> None:
    def figures(scenario: str, medians: list[float]) -> Figures:
        windows = [
            WindowFigures(p50_ms=ms, throughput=1 / ms, queries=9, errors=0) for ms in medians
        ]
        return Figures(
            scenario=scenario,  # type: ignore[arg-type]
            stable=True,
            latency=None,
            throughput=1 / medians[-1],
            queries=9,
            samples=9,
            errors=0,
            failures={},
            windows=tuple(windows),
        )

    found = speed_up(figures("offline", [1.0, 2.0]), figures("offline", [4.0, 4.0]))
    assert found == SpeedUp(ratio=2.0, low=2.0, high=4.0)
    assert speed_up(figures("server", [1.0]), figures("server", [1.0])) is None


def test_importing_bench_loads_no_vendor_library() -> None:
    program = "import sys, tf2aif.bench; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    vendors = {"tensorflow", "ai_edge_litert", "openvino", "onnxruntime", "mlperf_loadgen"}
    assert not vendors & set(shown.stdout.split())


def test_windows_that_cannot_be_measured_are_told(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tf2aif", "bench", "a/b", "--max-windows", "2"]
    ended = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert ended.returncode == 2
    assert "error: it cannot be measured so: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_emulation_is_told_and_not_compared(
    measured: tuple[dict[str, BenchRecord], list[str]], digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits" / f"{TARGET}-int8"
    shutil.copytree(digits / f"{TARGET}-int8", folder)
    shutil.copytree(digits / f"{TARGET}-tf-fp32", tmp_path / NATIVE)
    record = read_record(folder)
    assert record is not None
    record = msgspec.structs.replace(record, emulates="vart")
    (folder / "variant.json").write_bytes(msgspec.json.encode(record))
    found = bench([folder], BenchOptions(loads=(SHORT,), threads=1, starts=1))[
        f"digits/{TARGET}-int8"
    ]
    assert (found.native, found.emulates, found.scenarios[0].speedup) == (None, "vart", None)
    told = "emulated, litert in place of vart: these times say nothing of the device"
    assert told in bench_table([found])
    assert told not in bench_table(measured[0].values())


def test_a_clients_report_from_the_device_is_taken(digits: Path, tmp_path: Path) -> None:
    samples = digits / ".steps" / "evaluation"
    with served(digits / f"{TARGET}-int8", "--threads", "2") as url:
        report = run(Options(urls=(url,), samples=samples, loads=(SHORT,)))
    file = tmp_path / "edge-7.json"
    file.write_bytes(to_json(report))
    build = tmp_path / "build"
    shutil.copytree(digits / f"{TARGET}-int8", build / "digits" / f"{TARGET}-int8")
    before = read_records(build / "digits" / f"{TARGET}-int8")
    found = import_records([file], build)
    (record,) = found.records
    assert found.added == 1
    assert import_records([file], build).added == 0
    after = read_records(build / "digits" / f"{TARGET}-int8")
    assert [each for each in after if each not in before] == [record]
    assert record.imported_from == str(file)
    assert (record.engine.name, record.engine.version) == ("litert", version("ai-edge-litert"))
    assert (record.threads, record.random, record.machine) == (2, False, report.machine)
    assert record.scenarios[0].server == report.servers[0].runs[0].figures
    assert record.scenarios[0].engine is None
    assert "server's figures only" in record.unmeasured["engine"]
    assert record.memory_bytes is not None
    assert f"digits/{TARGET}-int8 " in bench_table(found.records)
