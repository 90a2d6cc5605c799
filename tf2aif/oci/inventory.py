"""What is in the layers of an image that others made: its files, and the packages of Debian, Ubuntu
and Python that it says it has.

Source: deb-control(5); os-release(5); PyPA, "Core metadata specifications"; for deleted files, the
OCI image specification, "Layer Filesystem Changeset"; the purl specification's types deb and pypi.
"""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from email.parser import HeaderParser
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from ..errors import StepFailed
from .documents import Descriptor
from .layers import Component
from .layout import Layout

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_STATUS, _RELEASE = "var/lib/dpkg/status", ("etc/os-release", "usr/lib/os-release")
_READ = (
    _STATUS,
    "var/lib/dpkg/status.d/*",
    *_RELEASE,
    "*.dist-info/METADATA",
    "*.egg-info/PKG-INFO",
)
_MAX_BYTES = 64 << 20  # of one file that is read: dpkg's status of a desktop has 5 MB


class Inventory(Struct, frozen=True, kw_only=True):
    """The files of a container, and what is installed in it."""

    names: frozenset[str]
    components: tuple[Component, ...] = ()

    @property
    def packages(self) -> frozenset[str]:
        """The names of Debian's packages in it."""
        return frozenset(c.name for c in self.components if c.purl.startswith("pkg:deb/"))

    @property
    def glibc(self) -> tuple[int, ...]:
        """The version of its C library, such as (2, 36); empty where that is not known."""
        versions = [c.version for c in self.components if c.name == "libc6"]
        found = re.match(r"(\d+)\.(\d+)", versions[0]) if versions else None
        return tuple(map(int, found.groups())) if found else ()


def take_inventory(layout: Layout, layers: Iterable[Descriptor]) -> Inventory:
    """Look into the layers from the bottom up; what upper ones delete is not there.

    Raises StepFailed for a layer that is neither gzip nor uncompressed.
    """
    files: dict[str, bytes] = {}  # path -> its bytes where it is read, else nothing
    for layer in layers:
        found, deleted, emptied = _read_layer(layout.path(layer.digest))
        files = {n: data for n, data in files.items() if not _is_gone(n, deleted, emptied)}
        files |= found
    release = _release(files)
    components = {c.purl: c for c in (*_debian(files, release), *_python(files))}
    return Inventory(
        names=frozenset(files),
        components=tuple(components[purl] for purl in sorted(components)),
    )


def debian_component(
    fields: Mapping[str, str], vendor: str, distribution: str, sha256: str = ""
) -> Component:
    """A package of Debian or of what is made from it, as the bill of materials lists it.

    >>> debian_component({"Package": "a", "Version": "1:2+b", "Architecture": "all"}, "debian",
    ...     "debian-12").purl
    'pkg:deb/debian/a@1%3A2%2Bb?arch=all&distro=debian-12'
    """
    name, version = fields["Package"], fields["Version"]
    return Component(
        type="library",
        name=name,
        version=version,
        purl=f"pkg:deb/{vendor}/{quote(name, safe='')}@{quote(version, safe='~')}"
        f"?arch={fields.get('Architecture', 'all')}&distro={distribution}",
        sha256=sha256,
    )


def python_component(metadata: str) -> Component:
    """A distribution of Python, from its core metadata."""
    fields = HeaderParser().parsestr(metadata)
    name, version = str(fields["Name"]), str(fields["Version"])
    return Component(
        type="library",
        name=name,
        version=version,
        purl=f"pkg:pypi/{normal_name(name)}@{quote(version, safe='!')}",
        licence=str(fields["License-Expression"] or ""),
    )


def normal_name(name: str) -> str:
    """A distribution's name as indexes spell it (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


def _read_layer(path: Path) -> tuple[dict[str, bytes], set[str], set[str]]:
    """The files of a layer, what it deletes, and the folders that it empties first."""
    found: dict[str, bytes] = {}
    deleted: set[str] = set()
    emptied: set[str] = set()
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                name = member.name.removeprefix("./").strip("/")
                folder, _, last = name.rpartition("/")
                if last == _OPAQUE:
                    emptied.add(folder)
                elif last.startswith(_WHITEOUT):
                    deleted.add(f"{folder}/{last.removeprefix(_WHITEOUT)}".lstrip("/"))
                elif name:
                    found[name] = _content(tar, member, name)
    except (OSError, EOFError, tarfile.TarError, gzip.BadGzipFile) as error:
        raise StepFailed(
            f"cannot look into a layer of the base: {error}",
            at=str(path),
            hint="layers are read that are gzip or uncompressed",
        ) from error
    return found, deleted, emptied


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    wanted = member.isfile() and member.size <= _MAX_BYTES
    if not wanted or not any(fnmatchcase(name, pattern) for pattern in _READ):
        return b""
    file = tar.extractfile(member)
    return file.read() if file else b""


def _is_gone(name: str, deleted: set[str], emptied: set[str]) -> bool:
    """Whether a layer above takes a file away: by its name, or with a folder that it is in."""
    if not deleted and not emptied:
        return False
    parts = name.split("/")
    above = {"/".join(parts[:end]) for end in range(len(parts))}
    return name in deleted or bool(above & (deleted | emptied))


def _release(files: Mapping[str, bytes]) -> dict[str, str]:
    text = next((files[name] for name in _RELEASE if files.get(name)), b"")
    lines = text.decode("utf-8", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and line[0] != "#")
    return {name: value.strip("\"'") for name, _, value in pairs}


def _debian(files: Mapping[str, bytes], release: Mapping[str, str]) -> Iterator[Component]:
    vendor = release.get("ID", "debian")
    distribution = f"{vendor}-{release['VERSION_ID']}" if "VERSION_ID" in release else vendor
    for name, data in files.items():
        if name == _STATUS or name.startswith(f"{_STATUS}.d/"):
            for stanza in data.decode("utf-8", "replace").split("\n\n"):
                fields = _fields(stanza)
                there = fields.get("Status", "install ok installed").endswith(" installed")
                if there and {"Package", "Version"} <= fields.keys():
                    yield debian_component(fields, vendor, distribution)


def _fields(stanza: str) -> dict[str, str]:
    lines = (line for line in stanza.splitlines() if line and not line[0].isspace())
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _python(files: Mapping[str, bytes]) -> Iterator[Component]:
    for name, data in files.items():
        if data and name.endswith((".dist-info/METADATA", ".egg-info/PKG-INFO")):
            component = python_component(data.decode("utf-8", "replace"))
            if "None" not in (component.name, component.version):
                yield component
