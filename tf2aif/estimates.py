"""What a step will take, judged by earlier runs: seconds, cores, memory, devices.

Three sources, the first that knows: what this very step took when it last ran on this machine, in
any checkout (`times.json` beside the store); the record of its artifact in `build/`; what steps of
its kind took. Without any of them a step counts as what is usual for its kind. Estimates choose an
order and say how long it may last. They are in no key, and a wrong one costs time and nothing else.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from .graph import Graph, Step
from .toolchains import TOOLCHAINS
from .workspace import Workspace, write_atomically

KEEP = 20_000
"""Steps that the history remembers; the oldest go first."""

USUAL_S: dict[str, float] = {
    "model": 15.0,
    "import": 5.0,
    "latency": 3.0,
    "image-base": 5.0,
    "image-packages": 30.0,
    "hls-synthesis": 1800.0,
    "tensorrt": 60.0,
}
"""What a step takes with a small model; others 1 s, or 4 s where a process of their own starts."""
USUAL_MB = {True: 900, False: 250}
"""MiB of a worker that has TensorFlow in it, or runs the user's code; and of another one."""
_ON_DEVICE = frozenset({"nvidia", "vart"})  # kinds of toolchains whose steps use an accelerator
_AT_ONCE_S = 0.02  # what is up to date or stored has only to be looked at, or copied


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What a step took when it ran."""

    kind: str
    wall_s: float
    """From its turn to its end: starting a worker and storing what it made are in it."""
    cpu_s: float = 0.0
    peak_mb: float = 0.0


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a step is expected to take."""

    wall_s: float
    needs: dict[str, int] = {}
    """Of each resource: `cores`, `memory` in MiB, and devices or hosts that serve one at a time."""
    alone: bool = False
    """It takes all cores: nothing else runs here meanwhile."""
    known: bool = False
    """From a run of this step or its kind; else a guess."""
    at_hand: bool = False
    """It is up to date or stored, so it will hardly have to run."""


class History:
    """What steps took on this machine, by their ids; two projects' may share one, and no harm."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._past = _read(path)

    def get(self, step: Step) -> Past | None:
        """What this step took when it last ran, if it was of the same kind then."""
        past = self._past.get(step.id)
        return past if past and past.kind == step.kind else None

    def values(self) -> Iterable[Past]:
        """All that is known."""
        return self._past.values()

    def add(self, new: Mapping[str, Past]) -> None:
        """Remember the runs of a build, beside what others wrote meanwhile.

        A history that cannot be written is none: it saves time and nothing else.
        """
        kept = {name: past for name, past in _read(self.path).items() if name not in new}
        kept |= new
        self._past = dict(list(kept.items())[-KEEP:])
        with suppress(OSError):
            write_atomically(self.path, msgspec.json.encode(self._past))


def _read(path: Path) -> dict[str, Past]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Past])
    except (OSError, msgspec.DecodeError):
        return {}


def history_of(workspace: Workspace) -> History:
    """The history of this machine, beside its store: it outlives `build/`."""
    return History(workspace.store.root / "times.json")


def estimate(
    graph: Graph, workspace: Workspace, history: History, *, at_hand: Collection[str] = ()
) -> dict[str, Work]:
    """What each step will take; those `at_hand` are up to date or stored."""
    past: dict[str, Past] = {}
    for step in graph.steps.values():
        if found := history.get(step) or _made(step, workspace):
            past[step.id] = found
    usual = _Usual([*past.values(), *history.values()])
    return {
        name: _work(step, past.get(name), usual, workspace, name in at_hand)
        for name, step in graph.steps.items()
    }


def _made(step: Step, workspace: Workspace) -> Past | None:
    """What the run took that made the artifact in `build/`; perhaps it was another machine's."""
    record = workspace.made(step)
    timing = record.timing if record and record.kind == step.kind else {}
    try:
        return Past(kind=step.kind, **{name: float(timing[name]) for name in _FIELDS})
    except (KeyError, TypeError, ValueError):
        return None


_FIELDS = ("wall_s", "cpu_s", "peak_mb")


class _Usual:
    """What steps of a kind took: the median of their times, and the most of memory."""

    def __init__(self, past: Iterable[Past]) -> None:
        by_kind: dict[str, list[Past]] = defaultdict(list)
        for one in past:
            by_kind[one.kind].append(one)
        self.wall_s = {k: statistics.median(p.wall_s for p in v) for k, v in by_kind.items()}
        self.peak_mb = {k: max(p.peak_mb for p in v) for k, v in by_kind.items()}


def _work(
    step: Step, past: Past | None, usual: _Usual, workspace: Workspace, at_hand: bool
) -> Work:
    wall_s = past.wall_s if past else usual.wall_s.get(step.kind, _usual_s(step))
    peak_mb = past.peak_mb if past else usual.peak_mb.get(step.kind, 0.0)
    needs = {"cores": _cores(step, past), "memory": int(peak_mb) + 1 if peak_mb else _mb(step)}
    place = workspace.places.place(step.toolchain)
    far = place is not None and place.kind == "ssh"
    elsewhere = far or workspace.seat(step) is not None
    if place is not None and far:
        needs = {f"host {place.name}": 1}  # it runs one step at a time, and nothing here
    elif elsewhere:
        needs = {}  # a farm sees to its own machines
    elif step.device or (place.gpus is not None if place else _kind(step) in _ON_DEVICE):
        needs["device"] = 1
    return Work(
        wall_s=_AT_ONCE_S if at_hand else wall_s,
        needs=needs,
        alone=step.alone and not elsewhere,
        known=at_hand or past is not None or step.kind in usual.wall_s,
        at_hand=at_hand,
    )


def _cores(step: Step, past: Past | None) -> int:
    """The threads that it is told to use; else what it kept busy, where that was more than one.

    It is rounded down, with a little tolerance: half a core that is left over serves another step.
    """
    engine = step.options.get("engine_options")
    told = step.threads or (engine.get("threads") if isinstance(engine, dict) else None)
    if isinstance(told, int):
        return max(1, told)
    busy = past.cpu_s / past.wall_s if past and past.wall_s > 0.5 else 1.0
    return max(1, int(busy + 0.2))


def _usual_s(step: Step) -> float:
    return USUAL_S.get(step.kind, 4.0 if step.code else 1.0)


def _mb(step: Step) -> int:
    roots = TOOLCHAINS[step.toolchain].roots if step.toolchain in TOOLCHAINS else ()
    tensorflow = any("tensorflow" in root.distributions for root in roots)
    return USUAL_MB[tensorflow or step.code is not None]


def _kind(step: Step) -> str:
    return TOOLCHAINS[step.toolchain].kind if step.toolchain in TOOLCHAINS else ""
