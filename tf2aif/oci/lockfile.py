"""Which Python packages an image holds: requirements resolved once, for another machine.

A lock is a requirements file with the SHA-256 of every file of each version, and a head that says
what it was resolved from. `uv` resolves and installs, with the user's own index settings; no
address is in a lock. While the requirements stand, so does the lock.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import StepFailed, ToolchainMissing

GLIBC = "2_28"  # the oldest that numpy and the engines have wheels for; Debian 12 has 2.36
_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
# A backport of what Python has since 3.11, which LiteRT names for every Python and never imports
# there. Its last release refuses 3.11, and uv, which overlooks that, would pin what pip refuses.
# To be dropped once LiteRT names it for older ones only.
_OVERRIDES = "backports.strenum; python_version < '3.11'\n"
_TIMEOUT_S = 900.0
_HEAD = re.compile(r"^# (?P<name>requires|platform|python|glibc): (?P<value>.+)$", re.MULTILINE)
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>\S+)", re.MULTILINE)


class Wanted(Struct, frozen=True, kw_only=True):
    """What a lock is resolved from."""

    requirements: tuple[str, ...]
    platform: str  # as OCI names it
    python: str  # such as 3.11

    def head(self) -> str:
        """The first lines of its lock."""
        lines = [f"# requires: {one}" for one in sorted(set(self.requirements))]
        lines += [f"# platform: {self.platform}", f"# python: {self.python}", f"# glibc: {GLIBC}"]
        return "".join(f"{line}\n" for line in lines)

    def arguments(self) -> list[str]:
        """What tells uv about the machine. Raises StepFailed for one that has no wheels."""
        if self.platform not in _MACHINES:
            raise StepFailed(
                f"Python packages for {self.platform} are not published",
                hint=f"there are some for {', '.join(_MACHINES)}",
            )
        machine = f"{_MACHINES[self.platform]}-manylinux_{GLIBC}"
        version = ["--python-version", self.python, "--python-platform", machine]
        return [*version, "--only-binary", ":all:"]


def is_lock_of(text: str, wanted: Wanted) -> bool:
    """Whether the lock was resolved from these very requirements, for this machine."""
    found = sorted((match["name"], match["value"].strip()) for match in _HEAD.finditer(text))
    asked = sorted((m["name"], m["value"].strip()) for m in _HEAD.finditer(wanted.head()))
    return found == asked


def resolve(wanted: Wanted, preferred: str = "") -> str:
    """The text of a lock for these requirements.

    `preferred` is another lock: its versions are kept where they fit. Nothing is downloaded but
    metadata. Raises StepFailed, in uv's words, where the requirements cannot be met.
    """
    with tempfile.TemporaryDirectory() as folder:
        lock, given = Path(folder, "lock.txt"), Path(folder, "requirements.in")
        overrides = Path(folder, "overrides.txt")
        overrides.write_text(_OVERRIDES)
        lock.write_text(preferred)
        given.write_text("".join(f"{one}\n" for one in sorted(set(wanted.requirements))))
        command = [*_uv(), "pip", "compile", str(given), "--output-file", str(lock), "--quiet"]
        command += ["--override", str(overrides)]
        command += ["--generate-hashes", "--no-header", "--no-annotate", *wanted.arguments()]
        done = _run([*command, "--no-emit-index-url", "--no-emit-find-links"], folder)
        text = lock.read_text()
    if done.returncode:
        raise StepFailed(
            f"the requirements cannot be met for {wanted.platform}, Python {wanted.python}: "
            + _words(done.stderr),
            at=", ".join(sorted(set(wanted.requirements))),
            hint="change the requirement that it names: of the engine, or in the recipe under "
            "'service: requirements:'",
        )
    return wanted.head() + text


def install(lock: Path, wanted: Wanted, dest: Path) -> None:
    """Install the wheels of a lock into a folder, each held against its hash. Raises StepFailed.

    Files are linked to those of uv's cache where that is on the same disk: they may be removed, but
    not written to.
    """
    command = [*_uv(), "pip", "install", "--target", str(dest), "--require-hashes", "--no-deps"]
    command += ["--requirement", str(lock), "--link-mode", "hardlink", "--no-compile-bytecode"]
    done = _run([*command, "--quiet", *wanted.arguments()])
    if done.returncode:
        raise StepFailed(
            f"the locked packages cannot be installed: {_words(done.stderr)}",
            at=str(lock),
            hint="'tf2aif image lock' resolves them again",
        )


def pins(text: str) -> tuple[tuple[str, str], ...]:
    """Name and version of each package of a lock."""
    return tuple((match["name"], match["version"]) for match in _PIN.finditer(text))


def _uv() -> list[str]:
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("uv")
    if found is None:
        raise ToolchainMissing("uv is not here", hint="pip install 'tf2aif[images]'")
    return [found]


def _run(command: Sequence[str], folder: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )


def _words(printed: str) -> str:
    """uv's message without its drawing characters, in one line."""
    lines: Iterable[str] = (line.strip(" ×╰─▶│├\t") for line in printed.splitlines())
    return " ".join(line for line in lines if line)[:1000] or "uv said nothing"
