"""Machines that share a cache: small real steps, real workers, each on a store of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared_step import content_of

from tf2aif.execute import bring_up_to_date
from tf2aif.facts import Facts, key
from tf2aif.graph import Graph, Step
from tf2aif.remotes import open_remote
from tf2aif.remotes.ahead import fetch_ahead
from tf2aif.remotes.keys import SigningKey, Trusted, find_signing_key, generate
from tf2aif.remotes.shared import Report, Shared
from tf2aif.store import ActionRecord, Store
from tf2aif.workers import Workers
from tf2aif.workspace import Workspace

SIZES = {"import": 200, "tflite": 3_000_000, "check": 900}
"""The chain's steps, each reading the one before: bytes of its larger output."""


def new_key(folder: Path, name: str = "key") -> SigningKey:
    """A signing key in a file."""
    generate(folder / name)
    found = find_signing_key({"TF2AIF_SIGNING_KEY": str(folder / name)})
    assert found is not None
    return found


def chain(folder: Path, salt: str = "") -> Graph:
    """Four steps, each reading the one before."""
    steps, before = {}, ""
    for name, size in SIZES.items():
        steps[f"m/{name}"] = Step(
            id=f"m/{name}",
            kind=f"test-{name}",
            recipe="m",
            folder=str(folder),
            module="shared_step",
            version=1,
            toolchain="python",
            options={"size": size, "salt": salt},
            inputs={"model": before} if before else {},
        )
        before = f"m/{name}"
    return Graph(steps, {})


class Machine:
    """One user's checkout, store and right to write."""

    def __init__(self, root: Path, workers: Workers, trusted: Iterable[str]) -> None:
        self.root = root
        self.workers = workers
        self.trusted = tuple(trusted)
        self.report = Report()

    def build(
        self,
        url: str,
        *,
        key: SigningKey | None = None,
        timeout_s: float = 5.0,
        ahead: bool = False,
        salt: str = "",
    ) -> dict[str, str]:
        """Build the chain with one remote; what was done for each step."""
        space = self.workspace()
        graph = chain(self.root, salt)
        space.shared = Shared(
            [(open_remote(url, timeout_s), key is not None)],
            trusted=Trusted(self.trusted),
            key=key,
            timeout_s=timeout_s,
        )
        try:
            if ahead:
                fetch_ahead(graph, space)
            done = {
                step.kind.removeprefix("test-"): bring_up_to_date(step, space, self.workers).done
                for step in graph.steps.values()
            }
        finally:
            self.report = space.shared.finish()
        self.check(salt)
        return done

    def workspace(self) -> Workspace:
        """The checkout, with this machine's own store."""
        space = Workspace(self.root / "checkout")
        space.__dict__["store"] = Store(self.root / "store")  # in place of the user's
        return space

    def check(self, salt: str = "") -> None:
        """All artifacts are right to the byte."""
        for name, size in SIZES.items():
            folder = self.root / "checkout" / "build" / "m" / ".steps" / name
            assert (folder / "model.tflite").read_bytes() == content_of(f"test-{name}", size, salt)
            assert (folder / "nested" / "signature.json").read_text() == f"test-{name}"
            assert (folder / "empty").is_dir()


RAN = dict.fromkeys(SIZES, "ran")
RESTORED = dict.fromkeys(SIZES, "restored")


def add_action(
    store: Store, folder: Path, number: int, files: dict[str, bytes] | None = None, **more: Any
) -> ActionRecord:
    """An action of a step `check`, as if it had run."""
    folder.mkdir(parents=True)
    for name, data in (files or {"check.json": b'{"n": %d}' % number}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    facts: Facts = {"schema": 1, "step": "check", "version": 1, "option.n": number}
    fields = {"observed": {"dist.numpy": "1"}, "result": {"n": number}, "timing": {"wall_s": 0.5}}
    return store.add(
        key(facts), folder, step=f"m/{number}", kind="check", facts=facts, **{**fields, **more}
    )


def step_of(record: ActionRecord) -> Step:
    """The step that makes such an action."""
    return Step(
        id=record.step,
        kind="check",
        recipe="m",
        folder="/",
        module="tf2aif.steps.check",
        version=1,
        toolchain="python",
    )
