"""Debian's packages by name and digest, through apt: its own sources, proxies and keys.

A private tree keeps the machine's own lists and state out of it, and lets an x86 machine ask for
arm64. A lock pins each package by SHA-256; no address is in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..errors import StepFailed, ToolchainMissing

APT_HELPER = "/usr/lib/apt/apt-helper"
_SOURCES = Path("/etc/apt")
_TIMEOUT_S = 600.0
_PRINTED = re.compile(
    r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})"
)


class Pinned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One package of a lock."""

    name: str
    version: str
    path: str  # in every archive, such as pool/main/t/tini/tini_0.19.0-1_amd64.deb
    size: int
    sha256: str


class DebianLock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exactly which packages a base consists of."""

    suite: str
    architecture: str
    packages: tuple[Pinned, ...]


class Archive(Struct, frozen=True):
    """An entry of apt's sources: where it is, and the entry as it is written."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    text: str
    deb822: bool


def read_lock(path: Path) -> DebianLock:
    """A lock file. Raises StepFailed where it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DebianLock)
    except (OSError, msgspec.DecodeError) as error:
        raise StepFailed(f"not the lock of a Debian base: {error}", at=str(path)) from error


def write_lock(lock: DebianLock, path: Path) -> None:
    """Write a lock file, one line a field, for people to compare."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(lock), indent=1) + b"\n")


def lock_packages(
    names: Iterable[str], suite: str, architecture: str, sources: Path = _SOURCES
) -> DebianLock:
    """Ask apt for the present versions of these packages.

    Raises ToolchainMissing where there is no apt, StepFailed where it fails or knows one not.
    """
    archives = [a for a in read_sources(sources) if _has_suite(a, suite)]
    if not archives:
        raise _no_archive(suite)
    with tempfile.TemporaryDirectory() as folder:
        config = _private_tree(Path(folder), architecture, archives)
        _apt(["apt-get", "update", "-qq"], config)
        printed = _apt(["apt-get", "download", "--print-uris", "-qq", *sorted(names)], config)
    found = [_pinned(match, archives) for match in _PRINTED.finditer(printed)]
    lacking = set(names) - {package.name for package in found}
    if lacking:
        raise StepFailed(f"apt gave no digest for {', '.join(sorted(lacking))}")
    packages = tuple(sorted(found, key=lambda package: package.name))
    return DebianLock(suite=suite, architecture=architecture, packages=packages)


def fetch(lock: DebianLock, cache: Path, sources: Path = _SOURCES) -> dict[str, Path]:
    """Every package of a lock as a file in `cache`, verified, by its name.

    What is there already is not fetched again. Raises StepFailed where no archive has one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    files = {package.name: cache / f"{package.sha256}.deb" for package in lock.packages}
    missing = [p for p in lock.packages if not _is_intact(files[p.name], p.sha256)]
    archives = [a for a in read_sources(sources) if _has_suite(a, lock.suite)] if missing else []
    for uri in dict.fromkeys(uri for archive in archives for uri in archive.uris):
        missing = _download(uri, missing, cache)
    if missing:
        if not archives:
            raise _no_archive(lock.suite)
        first = missing[0]
        raise StepFailed(
            f"no archive has {first.name} {first.version} any more"
            + (f", and {len(missing) - 1} others" if len(missing) > 1 else ""),
            at=first.path,
            hint="'tf2aif image lock' takes the present versions into the lock",
        )
    return files


def read_sources(folder: Path) -> list[Archive]:
    """apt's sources, in both of their formats; switched-off ones are left out."""
    found = []
    lists = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.is_file():
            found += [_from_line(line) for line in path.read_text().splitlines() if _is_deb(line)]
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        found += _from_stanzas(path.read_text())
    return found


def _is_deb(line: str) -> bool:
    return line.split(maxsplit=1)[:1] == ["deb"]


def _from_line(line: str) -> Archive:
    words = re.sub(r"\[[^]]*\]", "", line).split()
    return Archive((words[1],), (words[2],), line, deb822=False)


def _from_stanzas(text: str) -> list[Archive]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line and not line.startswith("#")]
        fields = {n.strip().lower(): v.split() for n, _, v in (x.partition(":") for x in lines)}
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            uris, suites = fields.get("uris", []), fields.get("suites", [])
            found.append(Archive(tuple(uris), tuple(suites), "\n".join(lines), deb822=True))
    return found


def _has_suite(archive: Archive, suite: str) -> bool:
    return any(one == suite or one.startswith(f"{suite}-") for one in archive.suites)


def _private_tree(root: Path, architecture: str, archives: Sequence[Archive]) -> Path:
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (root / name).mkdir(parents=True)
    (root / "status").touch()
    stanzas = "\n\n".join(a.text for a in archives if a.deb822)
    (root / "parts" / "debian.sources").write_text(stanzas + "\n")
    lines = "\n".join(a.text for a in archives if not a.deb822)
    (root / "sources.list").write_text(lines + "\n")
    values = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": root,
        "Dir::State::Lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root / "cache",
        "Dir::Etc::SourceList": root / "sources.list",
        "Dir::Etc::SourceParts": root / "parts",
        "APT::Sandbox::User": "",
    }
    config = root / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in values.items()))
    return config


def _apt(command: list[str], config: Path) -> str:
    if shutil.which(command[0]) is None:
        raise ToolchainMissing(
            "apt is not here: a Debian base is made with it",
            hint="install apt, or use a base of another kind: 'oci:FOLDER' or 'registry:NAME'",
        )
    environment = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        env=environment,
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise StepFailed(
            f"{' '.join(command[:2])} ended with {done.returncode}: {' '.join(lines)[:500]}",
            hint="'apt-get update' must work on this machine, for Debian's archives",
        )
    return done.stdout


def _download(uri: str, wanted: Sequence[Pinned], cache: Path) -> list[Pinned]:
    """Fetch what that archive has; what is still missing."""
    if not wanted:
        return []
    if not Path(APT_HELPER).exists():
        raise ToolchainMissing("apt is not here: a Debian base is fetched with it")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        arguments = []
        for one in wanted:
            target = os.path.join(folder, one.sha256)
            arguments += [f"{uri.rstrip('/')}/{one.path}", target, f"SHA256:{one.sha256}"]
        command = [APT_HELPER, "-o", "APT::Sandbox::User=", "download-file", *arguments]
        # Its exit code says that one failed; which one, the files say.
        subprocess.run(command, cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=False)
        left = []
        for one in wanted:
            file = Path(folder, one.sha256)
            if _is_intact(file, one.sha256):
                file.replace(cache / f"{one.sha256}.deb")
            else:
                left.append(one)
    return left


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _pinned(match: re.Match[str], archives: Sequence[Archive]) -> Pinned:
    name, version, _ = match["file"].removesuffix(".deb").split("_")
    prefixes = sorted((u for a in archives for u in a.uris), key=len, reverse=True)
    prefix = next(p for p in prefixes if match["uri"].startswith(p.rstrip("/") + "/"))
    return Pinned(
        name=name,
        version=version.replace("%3a", ":"),
        path=match["uri"].removeprefix(prefix.rstrip("/")).lstrip("/"),
        size=int(match["size"]),
        sha256=match["sha256"],
    )


def _no_archive(suite: str) -> StepFailed:
    return StepFailed(
        f"apt's sources on this machine name no archive of Debian {suite}",
        at=str(_SOURCES),
        hint="add one, or use a base of another kind: 'oci:FOLDER' or 'registry:NAME'",
    )
