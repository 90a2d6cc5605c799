"""Windows of one or several subjects in turns, until each is stable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from ..errors import Tf2aifError
from . import generator, loadgen
from .crew import Crew, warm_up
from .figures import is_stable
from .load import Connect, Load, Pace, Subject, Window, connections_of, rows_of


class Step(Struct, frozen=True):
    """How far a measurement is: `done` of at most `total` windows, and what was last measured."""

    done: int
    total: int
    name: str


Listen = Callable[[Step], None]


class LocalSubject:
    """A subject that is asked from this process; `rows` is the most samples in one request."""

    def __init__(self, name: str, connect: Connect, samples: int, rows: int | None) -> None:
        self.name = name
        self._connect = connect
        self._samples = samples
        self._rows = rows
        self._crew: Crew | None = None
        self._of: Load | None = None

    def warm_up(self, load: Load) -> Pace:
        """Ask for `load.warmup_s`."""
        return warm_up(self._crew_for(load), load)

    def run(self, load: Load, pace: Pace, number: int) -> Window:
        """Run one window with the generator that the load names."""
        crew = self._crew_for(load)
        run = loadgen.run if uses_loadgen(load) else generator.run
        return run(crew, load, pace, number)

    def close(self) -> None:
        """End the threads and close the connections."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _crew_for(self, load: Load) -> Crew:
        """The threads for that load; those for another one end."""
        if self._crew is None or self._of != load:
            self.close()
            size, rows = connections_of(load), rows_of(load, self._rows)
            self._crew, self._of = Crew(self._connect, self._samples, size, rows), load
        return self._crew


def uses_loadgen(load: Load) -> bool:
    """Whether a load is made by LoadGen. Raises Tf2aifError where it is wanted and not here."""
    if load.generator == "loadgen" and not loadgen.is_installed():
        raise Tf2aifError(
            "LoadGen is not on this machine",
            hint="pip install mlcommons-loadgen (x86-64 only), or take our own generator",
        )
    return load.generator != "own" and loadgen.is_installed()


def generator_name(load: Load) -> str:
    """What makes the load: LoadGen and its version, or our own generator."""
    return loadgen.identity() if uses_loadgen(load) else "tf2aif's own generator"


def warm_up_all(subjects: Mapping[str, Subject], load: Load) -> dict[str, Pace]:
    """Warm up each subject, and see how fast it is."""
    return {name: subject.warm_up(load) for name, subject in subjects.items()}


def measure(
    subjects: Mapping[str, Subject],
    load: Load,
    paces: Mapping[str, Pace],
    listen: Listen = lambda _: None,
) -> dict[str, list[Window]]:
    """Windows by subject. A round is one window of each, in an order that turns around.

    What else the machine does so falls on all of them. Rounds go on until every subject is
    stable, `load.max_windows` of them at most; all subjects get the same number.
    """
    windows: dict[str, list[Window]] = {name: [] for name in subjects}
    total = load.max_windows * len(subjects)
    for number in range(1, load.max_windows + 1):
        for name in _order(list(subjects), number):
            windows[name].append(subjects[name].run(load, paces[name], number))
            done = sum(len(each) for each in windows.values())
            listen(Step(done, total, name))
        if all(is_stable(load.scenario, each) for each in windows.values()):
            break
    return windows


def _order(names: Sequence[str], number: int) -> Sequence[str]:
    return names if number % 2 else names[::-1]
