"""Farms for tests: a scheduler and machines as real processes on 127.0.0.1, and builds on them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from shared_step import content_of
from sharing import new_key

from tf2aif.execute import Result, bring_up_to_date
from tf2aif.farm.address import parse
from tf2aif.farm.farm import Farm
from tf2aif.farm.local import end, start, told
from tf2aif.farm.run import FarmBuild
from tf2aif.graph import Step
from tf2aif.remotes import open_remote
from tf2aif.remotes.keys import Trusted
from tf2aif.remotes.shared import Shared
from tf2aif.steps import STEPS
from tf2aif.store import Store
from tf2aif.toolchains.variables import is_vendors
from tf2aif.workers import Workers
from tf2aif.workspace import Workspace

TESTS = Path(__file__).parent
KIND = "test-farm"
FARM_VARIABLES = ("TF2AIF_FARM", "TF2AIF_FARM_TLS")


@contextmanager
def plain_environment() -> Iterator[None]:
    """No variable that can change results or names a farm, and the toy step in the table."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if is_vendors(name) or name.startswith("TF2AIF_REMOTE") or name in FARM_VARIABLES:
                patch.delenv(name)
        patch.setitem(STEPS, KIND, "farm_step")
        yield


class TestFarm:
    """One scheduler, some machines, one shared cache; all end with `close`."""

    __test__ = False

    def __init__(self, root: Path, *, cache: str = "", tls: Path | None = None) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.cache = cache or str(root / "cache")
        self.tls = tls
        self.key = new_key(root)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = 0
        self.start_scheduler()

    def start_scheduler(self) -> None:
        """Start it; at the same port, where it had one before."""
        words = ["farm", "scheduler", "--port", str(self.port)]
        log = self.root / "scheduler.log"
        process = start([*words, *self._certificate("scheduler")], log, self._environment("none"))
        self.processes["scheduler"] = process
        self.port = int(told(process, log, rb"listens at \w+://\S*:(\d+)"))

    def add(
        self,
        name: str,
        *words: str,
        python: str = sys.executable,
        wait: bool = True,
        **environment: str,
    ) -> None:
        """One more machine; `words` are further ones of `tf2aif worker`."""
        log = self.root / f"{name}.log"
        command = [python, "-P", str(TESTS / "farm_worker.py"), self.url, "--name", name]
        command += ["--cache", self.cache, "--patience", "20", *self._certificate("worker"), *words]
        if "--offer" not in words:
            command += ["--offer", "python"]
        with open(log, "wb") as output:
            self.processes[name] = subprocess.Popen(
                command,
                env={**self._environment(name), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if wait:
            self.wait_for(name)

    def wait_for(self, name: str) -> None:
        """Until the machine has joined."""
        told(self.processes[name], self.root / f"{name}.log", rb"waits for steps()")

    def _environment(self, name: str) -> dict[str, str]:
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "TF2AIF_"))}
        return {
            **mine,
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "TF2AIF_CACHE": str(self.root / f"store-{name}"),
            "TF2AIF_SIGNING_KEY": str(self.root / "key"),
        }

    def _certificate(self, name: str) -> list[str]:
        return ["--tls", str(self.tls / name)] if self.tls else []

    @property
    def url(self) -> str:
        """Of the scheduler."""
        return f"{'tls' if self.tls else 'tcp'}://127.0.0.1:{self.port}"

    def kill(self, name: str) -> None:
        """As a power cut does."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)

    def runs(self, step: str = "") -> int:
        """How often the step (or any) began to run, on any machine."""
        path = self.root / "home" / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(not step or line.split()[0] == step for line in lines)

    def pid(self, step: str) -> int:
        """The process that ran it last."""
        found = re.findall(rf"^{step} (\d+)$", (self.root / "home" / "runs").read_text(), re.M)
        return int(found[-1])

    def log(self, name: str) -> str:
        """What a process of it printed."""
        return (self.root / f"{name}.log").read_text(errors="replace")

    def build(self, name: str, **fields: Any) -> TestBuild:
        """A build of a checkout of its own, with a store of its own."""
        return TestBuild(self, name, **fields)

    def close(self) -> None:
        """End all of it."""
        end(list(self.processes.values()))


class TestBuild:
    """One build's side."""

    __test__ = False

    def __init__(
        self,
        farm: TestFarm,
        name: str,
        *,
        chosen: Mapping[str, str] | None = None,
        trusted: Iterable[str] | None = None,
        patience_s: float = 20.0,
    ) -> None:
        self.farm = farm
        self.folder = farm.root / name
        self.space = Workspace(self.folder)
        self.space.__dict__["store"] = Store(farm.root / f"store-of-{name}")
        keys = [farm.key.public] if trusted is None else list(trusted)
        self.shared = Shared(
            [(open_remote(farm.cache, 5.0), True)],
            trusted=Trusted(keys),
            key=farm.key,
            timeout_s=5.0,
        )
        tls = str(farm.tls / "client") if farm.tls else None
        self.connection = Farm(parse(farm.url, tls), patience_s=patience_s)
        self.space.farm = FarmBuild(self.connection, self.space, self.shared, chosen=chosen)
        self.space.farm.carriage.patience_s = patience_s
        self.workers = Workers()

    def __enter__(self) -> TestBuild:
        return self

    def __exit__(self, *_: object) -> None:
        self.space.farm.close()  # type: ignore[union-attr]
        self.workers.close()
        self.shared.finish()

    def run(self, step: Step) -> Result:
        """Bring a step up to date."""
        return bring_up_to_date(step, self.space, self.workers)

    def run_all(self, steps: Iterable[Step]) -> list[Result | BaseException]:
        """Several at once."""
        found: list[Result | BaseException] = []

        def one(step: Step) -> None:
            try:
                found.append(self.run(step))
            except Exception as error:  # looked at by the test
                found.append(error)

        threads = [threading.Thread(target=one, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def content(self, step: Step) -> bytes:
        """What the step has made here."""
        return (self.space.artifact(step) / "model.tflite").read_bytes()


def step(name: str, folder: Path, *, after: Step | None = None, **fields: Any) -> Step:
    """A step of the toy kind."""
    plain = {"toolchain", "files", "code", "platform", "environment", "limits", "threads"}
    return Step(
        id=f"m/{name}",
        kind=KIND,
        recipe="m",
        folder=str(folder),
        module="farm_step",
        version=1,
        inputs={"model": after.id} if after else {},
        options={"name": name, **{k: v for k, v in fields.items() if k not in plain}},
        **{"toolchain": "python", **{k: v for k, v in fields.items() if k in plain}},
    )


def content(*names: str, size: int = 1000) -> bytes:
    """What a chain of such steps makes."""
    return b"".join(content_of(name, size) for name in names)
