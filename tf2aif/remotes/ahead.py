"""Bring from the remotes, side by side, what a graph's steps will want: before the first one runs.

A step's key is known as soon as the artifacts that it reads are, and those are known from records
alone. So all that others made is found and fetched in as many rounds as the graph is deep, and not
one step after the other. Where a step has to run here, those behind it are asked for when it has.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path

from ..facts import Value
from ..freshness import assess
from ..graph import Graph, Step
from ..observed import current_value
from ..records import ActionRecord, artifact_digest
from ..store import Store
from ..workspace import Workspace

Begin = Callable[[Step, str, Callable[[str], Value], Store], Future[ActionRecord | None]]


def fetch_ahead(graph: Graph, workspace: Workspace, *, dry_run: bool = False) -> tuple[str, ...]:
    """Bring what the remotes have into the store; the steps that were found there.

    Nothing is put in its place in `build/`, and what is there or in the store is not asked for.
    With `dry_run` only records are read, and the shared cache's report says what would be taken.
    """
    if workspace.shared is None:
        return ()
    shared = workspace.shared
    search = _Search(graph, workspace, shared.begin_looking if dry_run else shared.begin_taking)
    search.run()
    shared.note_unfound(search.unfound)
    return tuple(name for name in graph.steps if name in search.taken)


class _Search:
    """The steps whose artifacts are known, and those that are being asked for."""

    def __init__(self, graph: Graph, workspace: Workspace, begin: Begin) -> None:
        self.graph = graph
        self.workspace = workspace
        self.begin = begin
        self.known: dict[str, str] = {}  # step -> the digest of its artifact
        self.taken: set[str] = set()
        self.unfound: list[str] = []  # toolchains that are not here, of steps that nobody gave
        self.asked: dict[Future[ActionRecord | None], str] = {}
        self.readers: dict[str, list[str]] = {}
        for step in graph.steps.values():
            for other in set(step.inputs.values()):
                self.readers.setdefault(other, []).append(step.id)

    def run(self) -> None:
        for step in self.graph.steps.values():  # each after what it needs
            if not step.inputs:
                self.look(step)
        while self.asked:
            done, _ = wait(self.asked, return_when=FIRST_COMPLETED)
            for future in done:
                name = self.asked.pop(future)
                if record := future.result():
                    self.taken.add(name)
                    self.learn(name, record)
                elif self.workspace.lacks(step := self.graph.steps[name]):
                    self.unfound.append(step.toolchain)

    def look(self, step: Step) -> None:
        """Find out what the step makes; or ask."""
        space = self.workspace
        verdict = assess(step, space, {name: self.known[name] for name in step.inputs.values()})
        if verdict.state in ("fresh", "stored") and verdict.record:
            self.learn(step.id, verdict.record)
        elif verdict.key:
            current = partial(current_value, folder=Path(step.folder), cache=space.stats)
            asked = self.begin(step, verdict.key, current, space.store)
            self.asked[asked] = step.id

    def learn(self, name: str, record: ActionRecord) -> None:
        """A step's artifact is known; look at those that waited for it alone."""
        self.known[name] = artifact_digest(record.outputs)
        for reader in self.readers.get(name, ()):
            step = self.graph.steps[reader]
            if all(other in self.known for other in step.inputs.values()):
                self.look(step)
