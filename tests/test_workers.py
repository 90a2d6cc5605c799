"""Workers survive what steps do to them, say what happened, and leave nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from processes import is_running, until

from tf2aif.errors import StepFailed
from tf2aif.postmortem import cause_of_death, last_lines, oom_kills
from tf2aif.processes import tree_memory_mb
from tf2aif.workers import Outcome, Request, Workers, write_request

HERE = Path(__file__).parent
Do = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _deeds_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.fixture
def do(workers: Workers, tmp_path: Path) -> Do:
    """Runs one deed in the toolchain `python`, with a log and an output folder in `tmp_path`."""

    def run(
        deed: str,
        *,
        log: str = "log.txt",
        timeout_s: float | None = 60,
        memory_mb: float | None = None,
        request: dict[str, Any] | None = None,
        **options: Any,
    ) -> Outcome:
        return workers.run(
            make_request(tmp_path, deed, **(request or {}), **options),
            log=tmp_path / log,
            timeout_s=timeout_s,
            memory_mb=memory_mb,
        )

    return run


def make_request(
    folder: Path,
    deed: str,
    *,
    toolchain: str = "python",
    environment: tuple[str, ...] = (),
    seed: int | None = None,
    **options: Any,
) -> Request:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return Request(
        step=f"kws/{deed}",
        kind="deed",
        module="deeds",
        toolchain=toolchain,
        options={"do": deed, **options},
        out=str(out),
        environment=environment,
        seed=seed,
    )


def pids_in(mark: Path) -> list[int]:
    """The process ids that a step wrote down once it was running."""
    until(mark.exists, 20)
    return [int(word) for word in mark.read_text().split()]


# -- what a step gets and gives --


def test_a_process_is_kept_for_the_next_step(do: Do) -> None:
    first, second = do("tell"), do("tell")
    assert first.result["pid"] == second.result["pid"] != os.getpid()


def test_a_step_works_in_a_scratch_folder_that_goes_away(do: Do, tmp_path: Path) -> None:
    result = do("tell").result
    assert result["cwd"] == result["tmp"]
    assert not Path(str(result["cwd"])).exists()
    assert (tmp_path / "out" / "done").is_file()


def test_a_step_sees_no_stray_variable(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRAY", "1")
    monkeypatch.setenv("LISTED", "2")
    seen = do("tell", request={"environment": ("LISTED",)}).result["environment"]
    assert isinstance(seen, dict)
    assert "STRAY" not in seen
    assert (seen["LISTED"], seen["PYTHONHASHSEED"]) == ("2", "0")


def test_a_changed_variable_means_another_process(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    first = do("tell").result["pid"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert do("tell").result["pid"] != first


def test_random_numbers_do_not_depend_on_the_steps_before(do: Do) -> None:
    first = do("draw", request={"seed": 7}).result
    assert do("draw", request={"seed": 7}).result == first
    assert do("draw", request={"seed": 8}).result != first


def test_the_log_has_all_that_was_printed_and_nothing_of_the_next_step(
    do: Do, tmp_path: Path
) -> None:
    do("print_all", text="größe→", log="a.txt")
    do("print_all", text="later", log="b.txt")
    first = (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert sorted(first.split("\n")) == sorted(
        ["größe→", "größe→", "child größe→", "native größe→", ""]
    )
    assert "größe" not in (tmp_path / "b.txt").read_text(encoding="utf-8")


def test_a_log_begins_anew(do: Do, tmp_path: Path) -> None:
    do("print_all", text="first")
    do("tell")
    assert (tmp_path / "log.txt").read_bytes() == b""


def test_huge_output_and_huge_results_block_nothing(do: Do, tmp_path: Path) -> None:
    do("print_all", text="x" * 1000, times=20_000)
    assert (tmp_path / "log.txt").stat().st_size > 20_000_000
    value = "é" * 1_000_000
    assert do("give", value=value).result == {"value": value}  # larger than any pipe, both ways


def test_what_it_took_is_measured(do: Do) -> None:
    outcome = do("allocate", mb=200)
    assert 0.5 <= outcome.wall_s < 5
    assert 0 <= outcome.cpu_s < outcome.wall_s + 1
    assert 200 < outcome.peak_mb < 500
    assert do("tell").peak_mb < 200  # the peak is of this step alone


def test_loaded_distributions_are_observed(do: Do) -> None:
    import numpy

    assert do("tell").observed == {"dist.numpy": numpy.__version__}


def test_a_process_that_loaded_more_than_its_toolchain_retires(do: Do) -> None:
    loads = do("load", name="yaml")
    after = do("tell")
    assert "dist.pyyaml" in loads.observed
    assert "dist.pyyaml" not in after.observed
    assert after.result["pid"] != loads.result["pid"]


def test_loading_more_of_the_same_keeps_the_process(do: Do) -> None:
    first = do("load", name="numpy.testing").result["pid"]
    assert do("tell").result["pid"] == first


def test_a_forked_child_that_returns_is_not_a_second_worker(do: Do) -> None:
    first = do("fork")
    assert do("tell").result["pid"] == first.result["pid"]


# -- what goes wrong in a step --


def test_a_refusal_travels_with_its_place_and_hint(do: Do, tmp_path: Path) -> None:
    pid = do("tell").result["pid"]
    with pytest.raises(StepFailed) as caught:
        do("refuse")
    fault = caught.value.faults[0]
    assert fault.message.splitlines() == [
        "kws/refuse: operator 'Foo' is not supported",
        f"  log: {tmp_path / 'log.txt'}",
        f"again: {sys.executable} -m tf2aif.worker --request {tmp_path / 'log.request.json'}",
    ]
    assert (fault.at, fault.hint) == ("model: Foo", "use Bar")
    assert do("tell").result["pid"] == pid  # nothing is wrong with the process


FATAL: list[tuple[str, dict[str, Any], str, str]] = [
    ("fail", {}, "ZeroDivisionError: division by zero", "Traceback"),
    ("exhaust", {}, "ran out of memory", "Unable to allocate 128. TiB"),
    ("vendor_exit", {}, "something in it called exit(3)", "no licence found"),
    ("hard_exit", {"code": 5}, "its process ended with exit code 5", "leaving"),
    ("hard_exit", {"code": 0}, "its process ended with exit code 0", "leaving"),
    ("abort", {}, "killed by SIGABRT (native code gave up", "Fatal Python error: Aborted"),
    ("crash", {}, "killed by SIGSEGV (a segmentation fault", "Segmentation fault"),
    ("kill", {}, "killed by SIGKILL, most often the kernel's out-of-memory killer", ""),
    ("kill", {"number": signal.SIGTERM}, "killed by SIGTERM (somebody asked it to end)", ""),
    ("kill", {"number": 40}, "killed by signal 40", ""),
    ("close_all", {}, "closed its connection", ""),
    ("load", {"name": "no_such_module"}, "ModuleNotFoundError: No module named", "deeds.py"),
]


@pytest.mark.parametrize(("deed", "options", "said", "logged"), FATAL)
def test_a_fatal_step_is_one_failed_step(
    do: Do, tmp_path: Path, deed: str, options: dict[str, Any], said: str, logged: str
) -> None:
    pid = do("tell").result["pid"]
    with pytest.raises(StepFailed) as caught:
        do(deed, **options)
    message = caught.value.faults[0].message
    assert said in message.splitlines()[0]
    assert str(tmp_path / "log.txt") in message
    assert logged in (tmp_path / "log.txt").read_text()
    assert logged in message
    assert do("tell").result["pid"] != pid


def test_a_result_that_json_cannot_hold_is_refused(do: Do) -> None:
    with pytest.raises(StepFailed, match=r"returned what JSON cannot hold: .* type object"):
        do("give", strange=True)


def test_only_the_end_of_a_long_log_is_told(do: Do) -> None:
    with pytest.raises(StepFailed) as caught:
        do("vendor_exit")
    assert "     | no licence found" in caught.value.render()
    assert len(caught.value.render().splitlines()) < 30


def test_past_its_time_a_step_is_killed_with_its_children(do: Do, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(StepFailed, match=r"over its time limit of 1.5 s"):
        do("sleep", mark=str(mark), timeout_s=1.5)
    until(lambda: not any(map(is_running, pids_in(mark))), 2)


@pytest.mark.parametrize("in_child", [False, True])
def test_past_its_memory_a_step_is_killed(do: Do, in_child: bool) -> None:
    with pytest.raises(StepFailed, match=r"over its memory limit: \d+ MiB used, 300 allowed"):
        do("allocate", mb=500, in_child=in_child, memory_mb=300)
    assert do("tell", memory_mb=300).result["pid"]


def test_a_process_that_has_grown_is_replaced_before_the_next_step(do: Do) -> None:
    leaked = do("leak", mb=200, memory_mb=400).result["pid"]
    assert do("tell", memory_mb=1000).result["pid"] == leaked
    assert do("tell", memory_mb=400).result["pid"] != leaked


def test_a_child_left_behind_hides_nothing_and_is_killed(do: Do, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(StepFailed, match="exit code 4"):
        do("leave_child", mark=str(mark))
    until(lambda: not any(map(is_running, pids_in(mark))), 2)


def test_a_toolchain_that_cannot_be_imported_fails_the_step(
    do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "numpy.py").write_text("raise ImportError('libfoo.so.3 is missing')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}{os.pathsep}{HERE}")
    with pytest.raises(StepFailed, match=r"ImportError: libfoo.so.3 is missing"):
        do("tell")


def test_a_worker_that_cannot_start_shows_why(
    do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise ImportError('broken install')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StepFailed, match=r"(?s)exit code 1.*broken install"):
        do("tell")


# -- several at once --


def test_threads_get_processes_of_their_own(do: Do) -> None:
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(do, "sleep", seconds=0.5, log=f"{n}.txt") for n in range(8)]
        pids = [task.result().result["pid"] for task in tasks]
    assert 2 <= len(set(pids)) <= 4
    assert do("tell").result["pid"] in pids


def test_a_crash_disturbs_no_other_step(do: Do) -> None:
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(do, "sleep", seconds=0.4, log=f"good{n}.txt") for n in range(2)]
        bad = [pool.submit(do, "crash", log=f"bad{n}.txt") for n in range(2)]
        assert all(task.result().result["pid"] for task in good)
        assert all(isinstance(task.exception(), StepFailed) for task in bad)


def test_closing_ends_steps_that_run(workers: Workers, do: Do, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(do, "sleep", mark=str(mark))
        pids = pids_in(mark)
        workers.close()
        with pytest.raises(StepFailed, match="stopped before it was done"):
            task.result(timeout=5)
    until(lambda: not any(map(is_running, pids)), 2)
    with pytest.raises(StepFailed, match="stopped before it was done"):
        do("tell")


def test_closing_ends_idle_processes_and_leaks_no_pipe(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Workers() as workers:
        log = tmp_path / "log.txt"
        pid = workers.run(make_request(tmp_path, "tell"), log=log).result["pid"]
        with pytest.raises(StepFailed):
            workers.run(make_request(tmp_path, "crash"), log=log)
        workers.close()  # and once more at the end of the block
    assert not is_running(int(str(pid)))
    assert len(os.listdir("/proc/self/fd")) == before


# -- the planning process ends --

PARENT = """
import sys
from pathlib import Path
from tf2aif.workers import Request, Workers

out, mark, deed = sys.argv[1:]
options = {"do": deed, "mark": mark}
request = Request(step="a/b", kind="deed", module="deeds", toolchain="python", options=options,
                  out=out)
with Workers() as workers:
    workers.run(request, log=Path(out) / "log.txt")
"""


def start_parent(tmp_path: Path, deed: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A planning process whose step is running, and the process ids of the step."""
    mark = tmp_path / "mark"
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(mark), deed],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return parent, pids_in(mark)


@pytest.mark.parametrize("deed", ["sleep", "hold_lock"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_the_planning_process(
    tmp_path: Path, deed: str, number: signal.Signals
) -> None:
    parent, pids = start_parent(tmp_path, deed)
    assert all(map(is_running, pids))
    parent.send_signal(number)
    parent.communicate(timeout=5)
    until(lambda: not any(map(is_running, pids)), 2)


def test_ctrl_c_ends_the_step_and_is_handed_on(tmp_path: Path) -> None:
    parent, pids = start_parent(tmp_path, "sleep")
    os.killpg(parent.pid, signal.SIGINT)  # the terminal sends it to the whole group
    _, errors = parent.communicate(timeout=10)
    assert b"KeyboardInterrupt" in errors
    assert b"StepFailed" not in errors
    until(lambda: not any(map(is_running, pids)), 2)


def test_ctrl_c_does_not_reach_a_worker(do: Do) -> None:
    assert do("tell").result["session"] not in (0, os.getsid(0))


# -- again, by hand --


def test_the_printed_command_runs_the_step_again(do: Do, tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        do("hard_exit", code=9)
    again = re.search(r"^again: (.*)$", caught.value.faults[0].message, re.MULTILINE)
    assert again
    done = run_by_hand(shlex.split(again[1])[1:])
    assert (done.returncode, "leaving" in done.stdout) == (9, True)


def test_a_step_by_hand_gives_the_same(do: Do, tmp_path: Path) -> None:
    write_request(make_request(tmp_path, "draw", seed=3), tmp_path / "request.json")
    words = ["-m", "tf2aif.worker", "--request", str(tmp_path / "request.json")]
    done = run_by_hand([*words, "--out", str(tmp_path / "new")])
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout) == do("draw", request={"seed": 3}).result
    assert f"written to {tmp_path / 'new'}" in done.stderr


def test_a_refusal_by_hand_is_an_error(tmp_path: Path) -> None:
    write_request(make_request(tmp_path, "refuse"), tmp_path / "request.json")
    done = run_by_hand(["-m", "tf2aif.worker", "--request", str(tmp_path / "request.json")])
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: kws/refuse: operator 'Foo' is not supported",
        "   at: model: Foo",
        " hint: use Bar",
    ]


def run_by_hand(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# -- what killed it --


def test_a_kill_that_the_kernel_counted_is_out_of_memory() -> None:
    said = cause_of_death(-signal.SIGKILL, out_of_memory=True)
    assert said.startswith("out of memory: ")


def test_the_kernels_count_of_kills_is_readable() -> None:
    assert oom_kills() >= 0


def test_the_last_lines_of_a_log_are_cut_to_what_one_reads(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"\xff\xfe\n" * 10_000 + b"x" * 2000 + b"\n\n\nend\n")
    lines = last_lines(log)
    assert lines[-1] == "end"
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 200
    assert last_lines(tmp_path / "none") == []


def test_memory_of_a_process_and_its_children() -> None:
    code = (
        "import subprocess, sys; x = bytearray(b'1' * (100 << 20)); subprocess.run(['sleep', '9'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        until(lambda: tree_memory_mb(process.pid) > 100, 20)
        assert 100 < tree_memory_mb(process.pid, limit_mb=50) < 160
        os.killpg(process.pid, signal.SIGKILL)
    assert tree_memory_mb(process.pid) == 0


def test_warm_steps_leave_no_thread_behind(do: Do) -> None:
    do("give")
    before = threading.active_count()
    for _ in range(10):
        do("give")
    assert threading.active_count() == before
