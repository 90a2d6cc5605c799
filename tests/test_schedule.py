"""The order of steps: never over what the machine has, longest path first, and everybody's turn."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tf2aif.admission import Admission
from tf2aif.estimates import Work
from tf2aif.schedule import HOLD_S, PASSES, Scheduler, ranks, simulate

CAPACITY = {"cores": 4, "memory": 1000}
Graph = tuple[dict[str, Work], dict[str, tuple[str, ...]]]


def work(wall_s: float, cores: int = 1, memory: int = 1, alone: bool = False, **more: int) -> Work:
    """A step's work as a test writes it."""
    return Work(wall_s=wall_s, needs={"cores": cores, "memory": memory, **more}, alone=alone)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to thirty steps, each reading some before it; a few larger than the machine."""
    works: dict[str, Work] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    for i in range(draw(st.integers(1, 30))):
        needs = draw(
            st.fixed_dictionaries(
                {"cores": st.integers(0, 6), "memory": st.integers(0, 1400)},
                optional={"device": st.just(1), "host a": st.just(1)},
            )
        )
        wall_s = draw(st.floats(0.01, 100))
        works[f"s{i}"] = Work(wall_s=wall_s, needs=needs, alone=draw(st.integers(0, 9)) == 0)
        earlier = st.lists(st.sampled_from(sorted(inputs)), max_size=3, unique=True)
        inputs[f"s{i}"] = tuple(draw(earlier)) if inputs else ()
    return works, inputs


@settings(deadline=None, max_examples=40)
@given(graphs(), st.lists(st.sampled_from([0.1, 1, 10]), min_size=30, max_size=30))
def test_everything_runs_within_what_there_is(graph: Graph, wrong: list[float]) -> None:
    works, inputs = graph
    lasts = {n: w.wall_s * by for (n, w), by in zip(works.items(), wrong, strict=False)}
    scheduler = Scheduler(works, inputs, CAPACITY)
    spans = simulate(scheduler, lasts.__getitem__)
    assert spans.keys() == works.keys()
    for name, (start, end) in spans.items():
        assert end == start + lasts[name]
        assert all(spans[other][1] <= start for other in inputs[name])
        used: Counter[str] = Counter()
        for other, (began, ended) in spans.items():
            if began <= start < ended:
                used.update(scheduler.needs[other])
        assert all(amount <= CAPACITY.get(what, 1) for what, amount in used.items())
        assert not works[name].alone or used["cores"] == CAPACITY["cores"]


@settings(deadline=None, max_examples=40)
@given(graphs())
def test_the_machine_never_idles_while_a_step_waits(graph: Graph) -> None:
    works, inputs = graph
    spans = simulate(Scheduler(works, inputs, CAPACITY))
    for name, (start, _) in spans.items():
        ready = max((spans[other][1] for other in inputs[name]), default=0.0)
        moments = sorted({ready, *(e for _, e in spans.values() if ready <= e < start)})
        for moment in (m for m in moments if m < start):
            assert any(began <= moment < ended for began, ended in spans.values())


@settings(deadline=None, max_examples=40)
@given(graphs())
def test_with_cores_alone_no_step_passes_one_with_a_longer_path(graph: Graph) -> None:
    works, inputs = graph
    works = {n: Work(wall_s=w.wall_s, needs={"cores": 1}) for n, w in works.items()}
    scheduler = Scheduler(works, inputs, CAPACITY)
    spans = simulate(scheduler)
    ready = {n: max((spans[o][1] for o in inputs[n]), default=0.0) for n in works}
    for first, second in itertools.permutations(works, 2):
        if ready[first] <= spans[second][0] < spans[first][0]:
            assert scheduler.ranks[first] <= scheduler.ranks[second]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0.1, 50), st.integers(1, 4)), min_size=2, max_size=25))
def test_right_estimates_delay_no_step_by_filling_a_gap(steps: list[tuple[float, int]]) -> None:
    works = {f"s{i}": work(wall_s, cores) for i, (wall_s, cores) in enumerate(steps)}
    scheduler = Scheduler(works, {}, CAPACITY)
    spans = simulate(scheduler)
    # The first step that had to wait starts at the latest when those with longer paths that were
    # there before it make room, whatever else ran meanwhile.
    order = sorted(works, key=scheduler._order)
    first = next((n for n in order if spans[n][0] > 0), None)
    if first is None:
        return
    before = order[: order.index(first)]
    free, wanted = CAPACITY["cores"], works[first].needs["cores"]
    free -= sum(works[n].needs["cores"] for n in before)
    promised = 0.0
    for end, name in sorted((spans[n][1], n) for n in before):
        if free >= wanted:
            break
        free += works[name].needs["cores"]
        promised = end
    assert spans[first][0] <= promised + 1e-9


def test_wrong_estimates_delay_a_step_by_so_many_only() -> None:
    works = {"long": work(100, 3), "large": work(50, 4)}
    works |= {f"small{i:03}": work(0.001, 1) for i in range(200)}
    lasts = {name: 10.0 if name.startswith("small") else w.wall_s for name, w in works.items()}
    spans = simulate(Scheduler(works, {}, CAPACITY), lasts.__getitem__)
    before = [n for n in works if n.startswith("small") and spans[n][0] < spans["large"][0]]
    assert 0 < len(before) <= PASSES
    assert spans["large"][0] <= lasts["long"] + PASSES * 10


def test_a_gap_is_filled() -> None:
    works = {"long": work(10, 3), "large": work(9, 4), "short": work(8), "too-long": work(8.5, 2)}
    spans = simulate(Scheduler(works, {}, CAPACITY))
    assert spans == {"long": (0, 10), "short": (0, 8), "large": (10, 19), "too-long": (19, 27.5)}


def test_what_measures_at_the_end_is_last_and_has_the_machine() -> None:
    works = {
        "import": work(1),
        "latency": work(30, alone=True),
        "convert": work(5),
        "check": work(1),
        "other-latency": work(3, alone=True),
    }
    inputs = {"latency": ("import",), "convert": ("import",), "check": ("convert",)}
    spans = simulate(Scheduler(works, inputs | {"other-latency": ("import",)}, CAPACITY))
    assert spans["check"] == (6, 7)
    assert (spans["latency"], spans["other-latency"]) == ((7, 37), (37, 40))


def test_a_step_larger_than_everything_runs_by_itself() -> None:
    works = {"huge": work(5, 1, 9000), "small": work(50, 1, 1), "other": work(1, 1, 1)}
    spans = simulate(Scheduler(works, {}, CAPACITY))
    assert spans == {"small": (0, 50), "other": (0, 1), "huge": (50, 55)}


def test_what_runs_elsewhere_takes_nothing_here() -> None:
    works = {f"far{i}": Work(wall_s=9, needs={"host board": 1}) for i in range(2)}
    works |= {f"farm{i}": Work(wall_s=9) for i in range(20)}
    works |= {"alone": work(5, alone=True), "here": work(5, 4)}
    spans = simulate(Scheduler(works, {}, CAPACITY))
    assert {spans[f"farm{i}"] for i in range(20)} == {(0, 9)}
    assert {spans["far0"], spans["far1"]} == {(0, 9), (9, 18)}
    assert {spans["alone"], spans["here"]} == {(5, 10), (0, 5)}


def test_ranks_are_the_longest_ways_to_the_end() -> None:
    works = {"a": work(1), "b": work(2), "c": work(7), "d": work(4)}
    assert ranks(works, {"a": ["b", "c"], "b": ["d"], "c": [], "d": []}) == {
        "a": 8, "b": 6, "c": 7, "d": 4,
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(graphs())
@example(({"s0": work(5, 0, 0)}, {"s0": ()}))
def test_what_is_left_is_never_more_than_it_takes(graph: Graph) -> None:
    works, inputs = graph
    scheduler = Scheduler(works, inputs, CAPACITY)
    expected, guessed = scheduler.remaining_s(0.0)
    assert guessed == pytest.approx(expected)  # nothing is known from earlier runs
    assert expected <= max(end for _, end in simulate(scheduler).values()) + 1e-6
    assert scheduler.remaining_s(0.0) == (0.0, 0.0)


def test_what_rests_on_a_failure_is_not_expected_any_more() -> None:
    works = {"a": work(1), "b": work(100), "c": work(2)}
    scheduler = Scheduler(works, {"b": ("a",)}, CAPACITY)
    scheduler.ask("a", 0.0)
    assert scheduler.grant(0.0) == ["a"]
    scheduler.release("a", 5.0)
    scheduler.fail("a")
    assert "b" not in scheduler.coming
    assert scheduler.remaining_s(5.0)[0] == 2.0
    assert scheduler.lost == {"a", "b"}


# Room for who must come at once.


def test_room_is_kept_for_a_longer_path_that_must_come_at_once() -> None:
    works = {"a": work(1), "short": work(1, 4), "long": work(9, 4)}
    scheduler = Scheduler(works, {"short": ("a",), "long": ("a",)}, CAPACITY)
    scheduler.finish("a", 10.0)
    scheduler.ask("short", 10.001)
    assert scheduler.grant(10.001) == []
    assert scheduler.wake(10.001) == pytest.approx(10.0 + HOLD_S)
    scheduler.ask("long", 10.002)
    assert scheduler.grant(10.002) == ["long"]


def test_room_is_not_kept_for_who_does_not_come() -> None:
    works = {"a": work(1), "short": work(1, 4), "long": work(9, 4)}
    scheduler = Scheduler(works, {"short": ("a",), "long": ("a",)}, CAPACITY)
    scheduler.finish("a", 10.0)
    scheduler.ask("short", 10.001)
    assert scheduler.grant(10.0 + 2 * HOLD_S) == ["short"]
    assert scheduler.wake(11.0) is None


def test_room_is_kept_while_what_a_step_made_is_being_noted() -> None:
    works = {"a": work(1), "next": work(1), "measure": work(9, alone=True)}
    scheduler = Scheduler(works, {"next": ("a",)}, CAPACITY)
    scheduler.ask("a", 0.0)
    assert scheduler.grant(0.0) == ["a"]
    scheduler.ask("measure", 0.5)
    scheduler.release("a", 1.0)
    assert scheduler.grant(1.0) == []
    scheduler.finish("a", 1.01)
    assert scheduler.grant(1.01) == []
    scheduler.ask("next", 1.02)
    assert scheduler.grant(1.02) == ["next"]


def test_room_is_kept_for_nobody_who_fits_beside() -> None:
    works = {"a": work(1), "short": work(1), "long": work(9)}
    scheduler = Scheduler(works, {"short": ("a",), "long": ("a",)}, CAPACITY)
    scheduler.finish("a", 10.0)
    scheduler.ask("short", 10.001)
    assert scheduler.grant(10.001) == ["short"]


# Threads.


class Told:
    """What an admission says, and what its steps used while they ran."""

    def __init__(self) -> None:
        self.words: list[tuple[str, str, str]] = []
        self.ran: list[str] = []
        self.lock = threading.Lock()
        self.running: set[str] = set()
        self.most: Counter[str] = Counter()

    def __call__(self, what: str, name: str, about: str) -> None:
        with self.lock:
            self.words.append((what, name, about))

    def run(self, admission: Admission, name: str, seconds: float = 0.01) -> None:
        """Take a turn and work for a while."""
        with admission.turn(name):
            with self.lock:
                self.ran.append(name)
                self.running.add(name)
                used: Counter[str] = Counter()
                for other in self.running:
                    used.update(admission.needs(other))
                self.most |= used
            time.sleep(seconds)
            with self.lock:
                self.running.discard(name)
        admission.finish(name, well=True)


def open_with(
    works: Mapping[str, Work], inputs: Mapping[str, tuple[str, ...]] | None = None, **more: float
) -> tuple[Admission, Told]:
    """An admission on a machine of four cores."""
    told = Told()
    return Admission(Scheduler(works, inputs or {}, CAPACITY, **more), told), told


def test_threads_keep_within_what_there_is() -> None:
    works = {f"s{i}": work(0.01 * (i % 5 + 1), i % 3 + 1, 100 * (i % 7)) for i in range(60)}
    admission, told = open_with(works)
    with ThreadPoolExecutor(60) as pool:
        list(pool.map(lambda name: told.run(admission, name), works))
    assert sorted(told.ran) == sorted(works)
    assert told.most["cores"] <= 4
    assert told.most["memory"] <= 1000
    assert told.most["cores"] >= 3  # and they did run at once
    assert admission.standing().finished == 60
    assert admission.idle_room_mb() == 1000


def test_threads_that_come_in_any_order_go_by_the_length_of_their_paths() -> None:
    works = {"first": work(1), **{f"s{i}": work(i + 1, 4) for i in range(6)}}
    admission, told = open_with(works, {f"s{i}": ("first",) for i in range(6)}, hold_s=5.0)
    admission.finish("first", well=True)
    with ThreadPoolExecutor(6) as pool:
        for i in range(6):
            pool.submit(told.run, admission, f"s{i}")
            time.sleep(0.005)
    assert told.ran == ["s5", "s4", "s3", "s2", "s1", "s0"]


def test_who_does_not_come_holds_nobody_up() -> None:
    works = {"first": work(1), "late": work(99, 4), "here": work(1, 4)}
    admission, told = open_with(works, {"late": ("first",), "here": ("first",)})
    admission.finish("first", well=True)
    told.run(admission, "here")
    assert told.ran == ["here"]


def wait_until(so: Callable[[], bool]) -> None:
    """Another thread gets there."""
    end = time.monotonic() + 10
    while not so():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_step_that_fails_makes_room() -> None:
    admission, told = open_with({"a": work(1, 4), "b": work(1, 4)})
    with pytest.raises(ZeroDivisionError), admission.turn("a"):
        raise ZeroDivisionError
    admission.finish("a", well=False)
    told.run(admission, "b")
    assert told.ran == ["b"]


def test_what_waits_is_told_and_counted() -> None:
    works = {
        "runs": work(5, 1, 800, device=1),
        "memory": work(1, 1, 500),
        "cores": work(1, 4),
        "device": work(1, 1, 1, device=1),
        "locked": work(1),
        "reads": work(1),
        "afar": Work(wall_s=3.0),
    }
    admission, told = open_with(works, {"reads": ("runs",)}, hold_s=0.0)
    over = threading.Event()

    def occupy() -> None:
        with admission.turn("runs"), admission.afar("afar", "board"):
            over.wait(10)

    with ThreadPoolExecutor(8) as pool:
        pool.submit(occupy)
        wait_until(lambda: "afar" in admission.standing().running)
        admission.locked("locked")
        for name in ("memory", "cores", "device"):
            pool.submit(told.run, admission, name)
        wait_until(lambda: admission.standing().waiting.get("device") == 1)
        wait_until(lambda: sum(admission.standing().waiting.values()) == 5)
        standing = admission.standing()
        over.set()
    waits = {"memory": 1, "cores": 1, "device": 1, "a lock": 1, "steps before": 1}
    assert standing.waiting == waits
    assert list(standing.running) == ["runs", "afar"]
    assert (standing.finished, standing.total) == (0, 7)
    assert standing.left_s is None  # it would be a guess
    assert ("runs", "afar", "board") in told.words
    assert ("waits", "memory", "memory") in told.words
    assert sorted(told.ran) == ["cores", "device", "memory"]


def test_the_rest_is_told_where_it_is_known() -> None:
    works = {f"s{i}": Work(wall_s=3.0, needs={"cores": 1}, known=i < 6) for i in range(8)}
    admission, _ = open_with(works)
    assert admission.standing().left_s == pytest.approx(6.0)


def test_an_ended_build_begins_nothing() -> None:
    admission, told = open_with({"a": work(1, 4), "b": work(1, 4)})
    ended: list[type[BaseException]] = []

    def ask() -> None:
        try:
            told.run(admission, "b")
        except BaseException as error:  # what a thread of doit would hand on
            ended.append(type(error))

    with admission.turn("a"):
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: ("waits", "b", "cores") in told.words)
        admission.close()
        thread.join(10)
    assert ended == [KeyboardInterrupt]
    assert told.ran == []
    assert admission.idle_room_mb() == 1000


def test_a_step_of_another_graph_needs_no_turn() -> None:
    admission, told = open_with({"a": work(1, 4)})
    with admission.turn("a"):
        told.run(admission, "unknown")
    assert told.ran == ["unknown"]
    assert admission.standing().finished == 0


@pytest.mark.parametrize(("share", "known"), [(1.0, True), (0.4, False), (0.0, False)])
def test_most_of_the_time_must_be_known_to_be_told(share: float, known: bool) -> None:
    works = {f"s{i}": Work(wall_s=1.0, known=i < 10 * share) for i in range(10)}
    admission, _ = open_with(works)
    assert (admission.standing().left_s is not None) == known


def test_a_large_graph_keeps_all_cores_busy() -> None:
    works = {f"s{i}": work(1 + i % 7) for i in range(1000)}
    inputs = {f"s{i}": (f"s{i // 3}",) for i in range(1, 1000)}
    spans = simulate(Scheduler(works, inputs, {"cores": 64, "memory": 10_000}))
    total = sum(w.wall_s for w in works.values())
    assert max(end for _, end in spans.values()) < 1.2 * math.ceil(total / 64) + 60
