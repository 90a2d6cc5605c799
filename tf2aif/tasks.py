"""Steps as doit tasks: the only module that knows doit.

doit loads, orders and dispatches; what is stale is decided by `tf2aif.freshness`, through one
`uptodate` object a task, and done by `tf2aif.execute`, through one action a task. See
docs/why/doit.md for what stock doit would get wrong here.
"""

from __future__ import annotations

import atexit
import io
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from doit.action import BaseAction
from doit.cmd_base import TaskLoader2
from doit.cmd_run import Run
from doit.dependency import DatabaseException, FileChangedChecker, SqliteDB, UptodateCalculator
from doit.doit_cmd import DoitMain
from doit.exceptions import TaskFailed
from doit.reporter import ZeroReporter
from doit.task import Task

from .build import Build
from .digest import digest_tree
from .errors import Tf2aifError
from .remotes import open_for

CONFIG = {"par_type": "thread", "continue": True, "backend": "tf2aif"}


class Backend(SqliteDB):  # type: ignore[misc]
    """doit's SQLite database, safe with two doits at once and with kill -9.

    Stock `SqliteDB` writes everything when the run ends: a killed run forgets all it did. This one
    commits after each task. It also tells `doit forget` from the removal after a failure, so that
    a forgotten step really runs again although the store has what it made.
    """

    _dirty: set[str]

    def __init__(self, name: str, codec: Any, *, module_name: str | None = None) -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        super().__init__(name, codec, module_name=module_name)
        self._asked: set[str] = set()

    def _sqlite3(self, name: str) -> Any:
        connection = super()._sqlite3(name)
        connection.execute("pragma busy_timeout=30000")
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        return connection

    def get(self, task_id: str, dependency: str) -> Any:
        """A value of a task; that it was asked for means that a run has begun."""
        self._asked.add(task_id)
        return super().get(task_id, dependency)

    def set(self, task_id: str, dependency: str, value: Any) -> None:
        """Store a value; the list of dependencies is the last that doit stores for a task."""
        super().set(task_id, dependency, value)
        if dependency == "deps:":
            self._cache[task_id].pop("forgotten:", None)
        if dependency in ("deps:", "ignore:", "forgotten:"):
            self._commit()

    def remove(self, task_id: str) -> None:
        """Forget a task. Outside of a run that is the user's wish, and it is remembered."""
        super().remove(task_id)
        if task_id in self._asked:
            self._conn.commit()
        else:
            self.set(task_id, "forgotten:", True)

    def remove_all(self) -> None:
        """Forget every task that is known."""
        rows = self._conn.execute("select task_id from doit").fetchall()
        super().remove_all()
        for row in rows:
            self.set(row["task_id"], "forgotten:", True)

    def _commit(self) -> None:
        for task_id in sorted(self._dirty):
            data = self.codec.encode(self._cache[task_id])
            self._conn.execute("insert or replace into doit values (?,?)", (task_id, data))
        self._conn.commit()
        self._dirty.clear()


def checker(stats: Callable[[], Any]) -> type[FileChangedChecker]:
    """doit's test of a dependency, by xxh3 and our stat cache; it reads folders too."""

    class Xxh3Checker(FileChangedChecker):  # type: ignore[misc]
        def check_modified(self, file_path: str, file_stat: Any, state: str) -> bool:  # noqa: ARG002
            return bool(state != digest_tree(Path(file_path), stats()))

        def get_state(self, dep: str, current_state: str | None) -> str | None:
            digest = digest_tree(Path(dep), stats())
            return None if digest == current_state else digest

    return Xxh3Checker


class UpToDate(UptodateCalculator):  # type: ignore[misc]
    """Whether a task's output is what its facts make; a forgotten task is not."""

    def __init__(self, name: str, is_current: Callable[[], bool]) -> None:
        super().__init__()
        self.name = name
        self.is_current = is_current
        self.forgotten = False  # the user has said `doit forget` since the task last ran

    def __call__(self) -> bool:
        """What doit asks, in the thread that owns the database."""
        self.forgotten = bool(self.get_val(self.name, "forgotten:"))
        return not self.forgotten and self.is_current()


class Action(BaseAction):  # type: ignore[misc]
    """Our action: it never prints, and turns our errors into doit's."""

    def __init__(self, act: Callable[[bool], None], test: UpToDate) -> None:
        self.act, self.test = act, test
        self.task: Any = None
        self.out = self.err = self.result = None
        self.values: dict[str, Any] = {}

    def execute(self, out: Any = None, err: Any = None) -> TaskFailed | None:  # noqa: ARG002
        """Run it; doit wants a failure as a value."""
        try:
            self.act(self.test.forgotten)
        except Tf2aifError as error:
            return TaskFailed("\n" + error.render())
        return None

    def __str__(self) -> str:
        return "tf2aif"


def make_tasks(build: Build) -> Iterator[Task]:
    """A task for each step and variant, and a group for each recipe.

    Steps are subtasks of their recipe: `doit list --all` shows them, `doit list` the variants.
    """
    graph = build.graph
    for recipe in dict.fromkeys(v.recipe for v in graph.variants.values()):
        members = [
            s for s, step in graph.steps.items() if step.recipe == recipe and s in build.runnable
        ]
        members += [name for name, v in graph.variants.items() if v.recipe == recipe]
        yield Task(
            recipe, None, task_dep=members, has_subtask=True, doc=f"all variants of {recipe}"
        )
    for name in build.runnable:
        yield _step_task(build, name)
    for name in graph.variants:
        yield _variant_task(build, name)


def _step_task(build: Build, name: str) -> Task:
    step, space = build.graph.steps[name], build.workspace
    test = UpToDate(name, lambda: build.is_fresh(name))
    reads: list[str | Path] = [*step.files.values()]
    reads += [space.artifact(other) for other in step.inputs.values()]
    return Task(
        name,
        [Action(lambda again: build.run_step(name, again=again), test)],
        file_dep=[build.relative(path) for path in reads],
        targets=[build.relative(space.artifact(name))],
        uptodate=[test],
        clean=[(build.clean_step, [name])],
        subtask_of=step.recipe,
        doc=f"{step.kind} with {step.toolchain}",
    )


def _variant_task(build: Build, name: str) -> Task:
    variant, space = build.graph.variants[name], build.workspace
    steps = [s for s in build.graph.needs(variant.steps) if s in build.runnable]
    test = UpToDate(name, lambda: build.is_current(name))
    return Task(
        name,
        [Action(lambda again: build.write_variant(name, again=again), test)],
        file_dep=[build.relative(space.artifact(step)) for step in steps],
        task_dep=steps,
        targets=[build.relative(space.variant(name))],
        uptodate=[test],
        clean=[(build.clean_variant, [name])],
        doc=f"{variant.platform}, {variant.engine}",
    )


def configure(
    dodo: str, *, images: bool = False
) -> tuple[dict[str, Any], Callable[[], Iterator[Task]]]:
    """The two names that a `dodo.py` needs, for the recipes beside it.

    With `images` each variant ends in a container image.

        from tf2aif.tasks import configure
        DOIT_CONFIG, task_tf2aif = configure(__file__)

    Raises SystemExit with all faults where a recipe or a target is wrong.
    """
    project = Path(dodo).resolve().parent
    held: list[Build] = []

    def build() -> Build:
        if not held:
            try:
                held.append(Build.load([project / "recipes"], project, images=images))
                held[0].workspace.shared = open_for(project)
            except Tf2aifError as error:
                raise SystemExit(error.render()) from None
            atexit.register(_end, held[0])
        return held[0]

    def task_tf2aif() -> Iterator[Task]:
        yield from make_tasks(build())

    database = os.path.join("build", ".tf2aif", "doit.db")
    config = {
        **CONFIG,
        "dep_file": database,
        "check_file_uptodate": checker(lambda: build().workspace.stats),
    }
    return config, task_tf2aif


def _end(build: Build) -> None:
    """Wait for what is still being given to a shared cache, and end the workers."""
    if build.workspace.shared is not None:
        report = build.workspace.shared.finish()
        for line in (report.render(), *(f"warning: {each}" for each in report.warnings)):
            if line:
                print(line, file=sys.stderr)
    build.close()


class _Loader(TaskLoader2):  # type: ignore[misc]
    """The tasks of a build that is already planned."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.build = build

    def load_doit_config(self) -> dict[str, Any]:
        return {
            **CONFIG,
            "dep_file": str(self.build.workspace.private / "doit.db"),
            "check_file_uptodate": checker(lambda: self.build.workspace.stats),
        }

    def load_tasks(self, cmd: Any, pos_args: Iterable[str]) -> list[Task]:  # noqa: ARG002
        return list(make_tasks(self.build))


class _Reporter(ZeroReporter):  # type: ignore[misc]
    """Hands on what doit tells: which tasks were not even tried."""

    def __init__(self, build: Build) -> None:
        super().__init__(io.StringIO(), {})
        self.build = build
        self.errors: list[str] = []

    def add_failure(self, task: Any, fail: Any) -> None:
        self.build.note_untried(task.name, fail.get_msg())

    def runtime_error(self, msg: str) -> None:
        self.errors.append(msg)


THREADS = 256
"""Steps that may wait for their turn at once: all that are handed over, in all but huge builds."""


def run(build: Build, *, jobs: int = 1) -> None:
    """Bring all variants of the build up to date, `jobs` cores' worth of steps at a time.

    doit hands over what is ready to as many threads; `tf2aif.admission` chooses who runs.
    """
    build.schedule(jobs)
    one = jobs == 1 and build.workspace.farm is None
    threads = 1 if one else min(THREADS, len(build.runnable) + len(build.graph.variants))
    reporter = _Reporter(build)
    loader = _Loader(build)
    extra = {"GLOBAL": {"reporter": reporter}, "BACKEND": {"tf2aif": "tf2aif.tasks:Backend"}}
    main = DoitMain(loader, config_filenames=(), extra_config=extra)
    # Not `main.run`, which prints the traceback of what goes wrong in doit, and returns 3.
    command = Run(task_loader=loader, config=main.config, cmds=main.get_cmds())
    here = os.getcwd()
    os.chdir(build.workspace.project)
    try:
        parallel = ["-n", str(threads)] if threads > 1 else []
        command.parse_execute([*parallel, *build.graph.variants])
    except (sqlite3.Error, DatabaseException) as error:
        raise _no_database(build, error) from error
    finally:
        os.chdir(here)
        if build.chronicle is not None:
            build.chronicle.stop()
    if reporter.errors:
        raise Tf2aifError("; ".join(reporter.errors))


def _no_database(build: Build, error: Exception) -> Tf2aifError:
    """Steps that had ended are in `build/` and in the store all the same."""
    reason = str(error).rpartition("Original error: ")[2]
    return Tf2aifError(
        f"doit's database cannot be written: {reason}",
        at=str(build.workspace.private / "doit.db"),
        hint="where the disk is full, make room; a damaged database can be removed",
    )
