"""Debian's packages: an `ar` archive of two tars, unpacked without dpkg.

Source: deb(5), deb-control(5).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from msgspec import Struct

from ..errors import StepFailed

_MAGIC = b"!<arch>\n"
_MERGED = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libx32"})


class Package(Struct, frozen=True, kw_only=True):
    """What a package says of itself."""

    name: str
    version: str
    architecture: str
    control: str  # its whole control file, which goes to var/lib/dpkg/status.d
    source: str  # the source package that it is made from

    @property
    def fields(self) -> dict[str, str]:
        """The one-line fields of its control file."""
        return _fields(self.control)


def read_control(deb: Path) -> Package:
    """The control file of a package. Raises StepFailed where it is none."""
    with _open_tar(deb, "control.tar") as tar:
        for member in tar:
            if member.name.removeprefix("./") == "control" and (file := tar.extractfile(member)):
                control = file.read().decode()
                fields = _fields(control)
                return Package(
                    name=fields["Package"],
                    version=fields["Version"],
                    architecture=fields["Architecture"],
                    control=control,
                    source=fields.get("Source", fields["Package"]).partition(" ")[0],
                )
    raise StepFailed("the package has no control file", at=str(deb))


def unpack(deb: Path, root: Path, dropped: Sequence[str] = ()) -> None:
    """Write a package's files below `root`, with usr-merged paths. Raises StepFailed.

    What lies at or below a pattern of `dropped` (as `Path.glob`, `*` within one name) is left out.
    Owners, times and set-user bits are not kept: a layer fixes them, and nothing in an image of
    ours may become root.
    """
    with _open_tar(deb, "data.tar") as tar:
        for member in tar:
            path = merged(member.name)
            if path and not is_below(path, dropped):
                _write(tar, member, root / path)


def merged(name: str) -> str:
    """The path of a package's file in a merged /usr; empty for the root itself.

    >>> merged("./lib/x86_64-linux-gnu/libc.so.6"), merged("./"), merged("./usr/bin/tini")
    ('usr/lib/x86_64-linux-gnu/libc.so.6', '', 'usr/bin/tini')
    """
    path = name.removeprefix("./").strip("/")
    if any(part == ".." for part in path.split("/")):
        raise StepFailed(f"the package holds the path {name!r}")
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path


def is_below(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns names the path, or a folder that it is in.

    >>> is_below("usr/lib/x86_64-linux-gnu/gconv/UTF-7.so", ["usr/lib/*-linux-gnu*/gconv"])
    True
    """
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        if len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, dest: Path) -> None:
    if member.isdir():
        dest.mkdir(parents=True, exist_ok=True)
        return
    dest.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        dest.unlink(missing_ok=True)
        dest.symlink_to(member.linkname)
    elif (file := tar.extractfile(member)) is not None:  # of a hard link: what it leads to
        dest.write_bytes(file.read())
        dest.chmod(0o755 if member.mode & 0o100 else 0o644)


def _open_tar(deb: Path, wanted: str) -> tarfile.TarFile:
    try:
        for name, data in _members(deb):
            if name.startswith(wanted):
                return tarfile.open(fileobj=io.BytesIO(data), mode="r:*")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise StepFailed(f"cannot read the package: {error}", at=str(deb)) from error
    raise StepFailed(f"the package has no {wanted}", at=str(deb))


def _members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """The files of an `ar` archive: a header of 60 bytes, the data, a byte where that is odd."""
    with deb.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("not an ar archive")
        while header := file.read(60):
            size = int(header[48:58])
            yield header[:16].decode("ascii").rstrip(" /"), file.read(size)
            file.seek(size % 2, 1)


def _fields(control: str) -> dict[str, str]:
    lines = (line for line in control.splitlines() if line and not line[0].isspace())
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
