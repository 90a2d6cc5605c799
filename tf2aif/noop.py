"""Is there nothing to do? Answered from stats alone, before anything else is imported.

After a build that ended well, its stamp holds the stat of all that could make it stale: recipes,
targets, models, data, code, artifacts and our own files; the versions of what is installed; the
variables that steps may see. The next build with the same words asks those first. A stamp says
"nothing to do" or nothing at all: then the graph is looked at as ever. See docs/why/noop.md.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import __version__
from .devices import DEVICES, device_facts
from .snapshot import snapshot, unchanged
from .toolchains import TOOLCHAINS, Missing, identity
from .toolchains.installed import environment_facts, installed
from .toolchains.variables import as_facts

if TYPE_CHECKING:
    from .build import Build
    from .toolchains.places import Place

_OTHERS = ("TF2AIF_CACHE", "XDG_CACHE_HOME", "HOME", "SOURCE_DATE_EPOCH", "TF2AIF_REMOTE")
_IN_WORLD = ("environment", "venv")  # kinds of toolchains that consist of distributions
ASK_AGAIN_S = 600.0
"""How long a build trusts that no shared cache has got meanwhile what cannot be made here."""
SETTLE_S = 0.2  # how long a build may wait for its last files' time stamps to come of age


def stamp_path(private: str, words: Sequence[str]) -> str:
    """Where the stamp of a build with these words lies."""
    import zlib

    return os.path.join(private, f"noop-{zlib.crc32(json.dumps(list(words)).encode()):08x}.json")


def nothing_to_do(private: str, words: Sequence[str]) -> dict[str, Any] | None:
    """What the last such build reported, if nothing has changed since; else None."""
    try:
        with open(stamp_path(private, words), encoding="utf-8") as file:
            stamp = json.load(file)
        same = stamp["world"] == _world(words, stamp["variables"]) and unchanged(stamp["files"])
        same = same and _is_young(stamp["made"]) and stamp["tools"] == _tools(stamp["tools"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stamp["report"] if same else None


def forget(private: str) -> None:
    """Remove all stamps: the next build looks at the graph. For who brings what no stat shows."""
    with suppress(OSError):
        for name in os.listdir(private):
            if name.startswith("noop-"):
                os.unlink(os.path.join(private, name))


def _is_young(made: float | None) -> bool:
    """Whether a stamp still counts that lasts a while only; most last for ever."""
    return made is None or 0 <= time.time() - made < ASK_AGAIN_S


def watched(build: Build, recipes: Iterable[str]) -> list[str]:
    """Every path whose change could make the build stale."""
    space = build.workspace
    from .spec.config import config_files

    package = os.path.dirname(__file__)
    paths = [*recipes, str(space.project / "targets"), str(space.project / "recipes"), package]
    paths += [str(space.project / "locks"), *config_files(space.project, space.config)]
    paths += [str(one.resolve(need)) for one in build.left_out for need in one.lacking()]
    for step in build.graph.steps.values():
        made = space.made(step.id)
        paths += [*step.files.values(), str(space.artifact(step))]
        observed = made.observed if made else {}
        kinds = ("module.", "file.", "folder.")
        paths += [
            os.path.join(step.folder, n.partition(".")[2]) for n in observed if n.startswith(kinds)
        ]
    for variant in build.graph.variants.values():
        paths += [str(space.variant(variant.id)), *variant.hook_files.values()]
    paths += [
        str(space.build / recipe / ".steps")
        for recipe in {v.recipe for v in build.graph.variants.values()}
    ]
    return paths


def write_stamp(
    build: Build, words: Sequence[str], recipes: Iterable[str], report: Mapping[str, Any]
) -> None:
    """Write the stamp, if all is up to date when looked at after the snapshot was taken.

    There is none where a toolchain is on another machine: no stat of ours tells of its versions.
    It lasts a while only where a shared cache may get what cannot be made here.
    """
    from .workspace import write_atomically

    used = {name for step in build.graph.steps.values() for name in (step.toolchain, *step.engines)}
    places = build.workspace.places
    if any(places.asks(name) or _has_gpus(places.place(name)) for name in used):
        return
    vendors = sorted(name for name in used if TOOLCHAINS[name].kind not in _IN_WORLD)
    devices = sorted({step.device for step in build.graph.steps.values() if step.device})
    tools = _tools([*vendors, *devices])
    files = snapshot(watched(build, recipes), settle_s=SETTLE_S)
    variables = sorted({name for step in build.graph.steps.values() for name in step.environment})
    if not _all_current(build):
        return
    waits = bool(build.missing) and build.workspace.shared is not None
    stamp = {
        "made": time.time() if waits else None,
        "world": _world(words, variables),
        "variables": variables,
        "tools": tools,
        "files": files,
        "report": report,
    }
    path = stamp_path(str(build.workspace.private), words)
    from pathlib import Path

    write_atomically(Path(path), json.dumps(stamp, separators=(",", ":")).encode())


def _all_current(build: Build) -> bool:
    fresh = all(build.is_fresh(name) for name in build.runnable)
    return fresh and all(build.is_current(name) for name in build.graph.variants)


def _has_gpus(place: Place | None) -> bool:
    """A container with GPUs: their driver is a fact, and the stamp does not look for it."""
    return place is not None and place.gpus is not None


def _tools(names: Iterable[str]) -> dict[str, Any]:
    """What tools are that no installed distribution tells of: vendors' own, and their devices."""
    return {name: _tool(name) for name in names}


def _tool(name: str) -> Any:
    if name in DEVICES:
        return device_facts(name)
    tool = identity(name)
    return list(tool) if isinstance(tool, Missing) else tool.facts()


def _world(words: Sequence[str], variables: Iterable[str]) -> list[Any]:
    """All but files that a build depends on, as JSON gives it back."""
    versions = sorted(f"{name}=={version}" for name, version in installed().items())
    environment = as_facts(environment_facts(tuple(variables)))
    store = [os.environ.get(n, "") for n in _OTHERS]
    cores = sorted(os.sched_getaffinity(0))
    return [__version__, sys.version, list(words), versions, environment, store, cores]
