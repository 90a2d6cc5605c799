"""The kind of toolchain that has a virtual environment of its own, made once from a lock.

    venvs/<digest>/        the environment; `tf2aif.json` in it says that it is complete
    venvs/<digest>.log     what was printed as it was made
    venvs/<digest>.lock    held by who makes it

They lie beside the store, for all projects and recipes. The digest is of the lock's bytes and the
interpreter. A virtual environment cannot be moved, so it is made in place; one that lacks its mark
was interrupted, and is made anew.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import site
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import StepFailed
from . import Identity, Making, Missing, Toolchain, environment
from .environment import PACKAGE, root_versions, this_platform, this_python
from .installed import VENV_MARK, installed
from .lock import Lock, read_lock

_BEHIND = "zzz_tf2aif_extends.pth"  # read after those of the lock's own packages

_CAUSES = (
    (("no space left", "disk quota"), "the disk is full",
     "make room, or set TF2AIF_CACHE to a folder on another disk"),
    (("hash mismatch", "do not match the hashes"), "a package has another hash than its lock says",
     "if the package is to be trusted, make the lock again; else look where it came from"),
    (("require-hashes", "--require-hashes"), "the lock has a package without a hash",
     "make the lock with `uv pip compile --generate-hashes`"),
    (("requires a different python", "python version", "matching python", "python tag", "abi tag",
      "platform tag"),
     "a package of the lock is not for this Python or this machine",
     "make the lock again with this Python, or run tf2aif with the one that the lock is for"),
    (("dns error", "failed to fetch", "error sending request", "connection", "network",
      "timed out", "temporary failure in name resolution", "no route"),
     "the package index cannot be reached",
     "is there a network? UV_INDEX_URL or PIP_INDEX_URL say where the index is"),
    (("no matching distribution", "was not found in the package registry", "no version of",
      "no solution found", "could not find a version"),
     "the package index does not have what the lock names", "is it the index of the lock?"),
)  # fmt: skip


def identity(toolchain: Toolchain) -> Identity | Missing:
    """The lock's digest, Python's version, and its roots' versions, as the lock has them.

    The environment itself need not be there: a worker that starts makes it. With `extends`, roots
    that the lock does not name are looked for in this environment. Nothing slow is done.
    """
    try:
        lock = read_lock(toolchain.lock)
    except OSError:
        return Missing(toolchain.lock, "it is the lock of the toolchain: put it there")
    behind = installed() if toolchain.extends else {}
    versions = root_versions(toolchain, {**behind, **lock.pins})
    if isinstance(versions, Missing):
        return versions
    further = {"lock": lock.digest}
    return Identity("venv", this_python(), this_platform(), versions, further)


def command(toolchain: Toolchain) -> list[str]:
    """Its own interpreter."""
    return [str(folder(toolchain) / "bin" / "python"), "-P", "-m", "tf2aif.worker"]


def search_path(toolchain: Toolchain) -> tuple[str, ...]:
    """Where this environment is not behind it: a folder that has our package and nothing else."""
    if toolchain.extends:
        return environment.search_path(toolchain)
    link = _root() / f"tf2aif-{_digest([str(PACKAGE)])}" / "tf2aif"
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        beside = link.with_name(f".{os.getpid()}-{os.urandom(4).hex()}")
        beside.symlink_to(PACKAGE)
        os.replace(beside, link)
    return (str(link.parent),)


def folder(toolchain: Toolchain) -> Path:
    """Where its environment is, or will be."""
    lock = read_lock(toolchain.lock)
    facts = [lock.digest, sys.version, os.path.realpath(sys._base_executable), sys.base_prefix]  # type: ignore[attr-defined]
    return _root() / _digest([*facts, *_behind(toolchain)])


def is_made(toolchain: Toolchain) -> bool:
    """Whether its environment stands, complete."""
    return (folder(toolchain) / VENV_MARK).is_file()


def prepare(toolchain: Toolchain, making: Making) -> None:
    """Make the environment, once over all processes; who finds it complete returns at once.

    Raises StepFailed with the cause and the last lines of what the installer said.
    """
    from ..locks import locked

    home = folder(toolchain)
    if _use(home):
        return
    home.parent.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        _say(making.log, f"waiting for another build that makes {home}")

    with locked(home.with_suffix(".lock"), waiting=waiting):
        if not (home / VENV_MARK).is_file():
            _make(toolchain, home, making)


def collect(older_than_s: float, *, dry_run: bool = False) -> dict[Path, int]:
    """Remove environments that no step has used for so long, and what interrupted builds left.

    Folder -> its size in bytes. A lock makes an environment again when a step needs it.
    """
    from ..locks import locked

    found: dict[Path, int] = {}
    for lock in sorted(_root().glob("*.lock")):
        home = lock.with_suffix("")
        with locked(lock):
            mark = home / VENV_MARK
            if not home.is_dir() or (mark.is_file() and _age_s(mark) < older_than_s):
                continue
            files = (path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
            found[home] = sum(path.stat().st_size for path in files)
            if not dry_run:
                _remove(home)
                home.with_suffix(".log").unlink(missing_ok=True)
    return found


def _use(home: Path) -> bool:
    """Whether it is complete; its mark's time says when it was last asked."""
    mark = home / VENV_MARK
    with contextlib.suppress(OSError):  # a store that we may only read
        os.utime(mark)
    return mark.is_file()


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _make(toolchain: Toolchain, home: Path, making: Making) -> None:
    lock = read_lock(toolchain.lock)
    own = home.with_suffix(".log")
    own.write_bytes(b"")
    try:
        _remove(home)
        what = f"making an environment of {len(lock.pins)} packages, once, from {lock.path}"
        _say(making.log, f"{what}; its log: {own}")
        for words in _commands(home, lock):
            _run(words, home, making._replace(log=own))
        _extend(home, toolchain)
        _complete(home, lock)
    except BaseException:
        _remove(home)
        raise
    finally:
        with open(making.log, "ab") as log:
            log.write(own.read_bytes())


def _commands(home: Path, lock: Lock) -> Iterator[list[str]]:
    """Make an empty environment; install the lock into it, each file held against its hash."""
    python = str(home / "bin" / "python")
    yield [sys.executable, "-P", "-m", "venv", "--without-pip", str(home)]
    strict = ["--require-hashes", "--no-deps", "--requirement", str(lock.path)]
    if uv := _find_uv():
        compiled = "--compile-bytecode"  # workers write none, and would compile at each start
        yield [uv, "pip", "install", "--python", python, compiled, *strict]
    elif importlib.util.find_spec("pip"):
        quiet = ["--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
        yield [sys.executable, "-P", "-m", "pip", "--python", python, "install", *quiet, *strict]
    else:
        what = "the toolchain's environment cannot be made: neither uv nor pip is here"
        raise StepFailed(what, hint="pip install 'tf2aif[images]' brings uv")


def _find_uv() -> str | None:
    return shutil.which("uv", path=os.path.dirname(sys.executable)) or shutil.which("uv")


def _run(words: list[str], home: Path, making: Making) -> None:
    from ..processes import run_guarded

    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    code = run_guarded(
        words,
        log=making.log,
        environment=environment,
        timeout_s=making.timeout_s,
        stopped=making.stopped,
    )
    if code:
        raise _failure(making.log)
    if code is None:
        ended = "it was stopped" if making.stopped() else "it took longer than the step may take"
        raise StepFailed(f"the toolchain's environment was not made: {ended}", at=str(home))


def _failure(log: Path) -> StepFailed:
    """What the installer said, in our words where we know them."""
    from ..postmortem import last_lines

    lines = last_lines(log)
    said = log.read_text(encoding="utf-8", errors="replace").lower()
    cause, hint = "its installer failed", f"the whole log: {log}"
    for signs, words, advice in _CAUSES:
        if any(sign in said for sign in signs):
            cause, hint = words, advice
            break
    message = f"the toolchain's environment cannot be made: {cause}"
    return StepFailed("\n".join([message, *(f"     | {line}" for line in lines)]), hint=hint)


def _extend(home: Path, toolchain: Toolchain) -> None:
    """Put this environment's folders behind the environment's own."""
    variables = {"base": str(home), "platbase": str(home)}
    own = Path(sysconfig.get_path("purelib", "venv", variables))
    # `addsitedir`, and not the path itself: their .pth files count too, editable installs'.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in _behind(toolchain)]
    if lines:
        (own / _BEHIND).write_text("".join(lines), encoding="utf-8")


def _behind(toolchain: Toolchain) -> list[str]:
    if not toolchain.extends:
        return []
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [path for path in (*user, *site.getsitepackages()) if os.path.isdir(path)]


def _complete(home: Path, lock: Lock) -> None:
    """Say that it is complete, once all of it is on the disk: a power cut leaves no half."""
    os.sync()
    text = json.dumps({"lock": lock.digest, "packages": dict(lock.pins)}, indent=2) + "\n"
    beside = home / f".{VENV_MARK}"
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, home / VENV_MARK)


def _remove(home: Path) -> None:
    """Remove an environment; its mark goes first."""
    (home / VENV_MARK).unlink(missing_ok=True)
    if home.exists():
        shutil.rmtree(home)


def _say(log: Path, line: str) -> None:
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def _root() -> Path:
    from ..store import default_root

    return default_root() / "venvs"


def _digest(facts: list[str]) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())
