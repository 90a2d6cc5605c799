"""A base image from Debian's packages, in the style of distroless: no shell, no package manager.

What maintainers' scripts would have done and a server needs is done here: users, the bundle of
certificates, the merged /usr. Scanners read the packages from var/lib/dpkg/status.d.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from ..errors import StepFailed
from .apt import DebianLock, Pinned, fetch
from .bytecode import compile_tree
from .deb import Package, read_control, unpack
from .inventory import Inventory, debian_component
from .layers import Component, Entry, Layer, tree_entries, write_layer

SUITE = "bookworm"
PYTHON = "3.11"
PACKAGES = (
    "base-files", "ca-certificates", "libbz2-1.0", "libc6", "libcrypt1", "libexpat1", "libffi8",
    "libgcc-s1", "liblzma5", "libpython3.11-minimal", "libpython3.11-stdlib", "libsqlite3-0",
    "libssl3", "libstdc++6", "libuuid1", "media-types", "netbase", "python3.11-minimal", "tini",
    "tzdata", "zlib1g",
)  # fmt: skip
GLIBC = (2, 36)  # the oldest C library that these packages run with
_OF_THE_BASE = frozenset({"libc6", "base-files"})  # never brought to the image of a vendor
USER = 65532
BUNDLE = "etc/ssl/certs/ca-certificates.crt"
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "SSL_CERT_FILE": f"/{BUNDLE}",
}

_PASSWD = f"""root:x:0:0:root:/root:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
nonroot:x:{USER}:{USER}:nonroot:/home/nonroot:/usr/sbin/nologin
"""
_GROUP = f"root:x:0:\nnogroup:x:65534:\nnonroot:x:{USER}:\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
_FILES = {"etc/passwd": _PASSWD, "etc/group": _GROUP, "etc/nsswitch.conf": _NSSWITCH}
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "usr/bin/python3": "python3.11"}

# Read by nobody in a container that serves: manuals, translations, editors' and build files.
_DROPPED = (
    "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug",
    "usr/share/menu", "usr/share/pixmaps", "usr/share/applications", "usr/share/binfmts",
    "usr/share/base-files", "usr/share/python3",
    "usr/lib/python3.11/idlelib", "usr/lib/python3.11/turtledemo", "usr/lib/python3.11/tkinter",
    "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/ensurepip",
    "usr/lib/*-linux-gnu*/gconv", "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix",
    "usr/sbin/update-ca-certificates", "usr/bin/tini-static", "etc/skel", "etc/ca-certificates",
)  # fmt: skip


def build_layer(lock: DebianLock, out: Path, scratch: Path, cache: Path, *, epoch: int) -> Layer:
    """Make the base's one layer from a lock, in `out`. `cache` keeps packages between builds.

    Raises StepFailed where a package cannot be had or is not what the lock says.
    """
    root = scratch / "root"
    packages = _unpack(lock.packages, fetch(lock, cache), root)
    return write_layer(
        _entries(root),
        out,
        created_by=f"tf2aif: {len(packages)} packages of Debian {lock.suite}",
        epoch=epoch,
        components=_components(lock.packages, packages),
    )


def build_python_layer(
    lock: DebianLock, below: Inventory, out: Path, scratch: Path, cache: Path, *, epoch: int
) -> Layer:
    """Make a layer that brings Debian's Python to an image without one, in `out`.

    Of the lock's packages those go in that the image below has not, and of their files those at
    whose place it has nothing: what a vendor put there stays as it is. Raises StepFailed.
    """
    wanted = tuple(p for p in lock.packages if p.name not in below.packages | _OF_THE_BASE)
    root = scratch / "root"
    packages = _unpack(wanted, fetch(replace(lock, packages=wanted), cache), root)
    entries = [e for e in _entries(root) if e.path not in below.names]
    return write_layer(
        entries,
        out,
        created_by=f"tf2aif: Python {PYTHON} of Debian {lock.suite}",
        epoch=epoch,
        components=_components(wanted, packages),
    )


def _unpack(pinned: Sequence[Pinned], debs: Mapping[str, Path], root: Path) -> list[Package]:
    """Put the packages together as they are installed, and compile their Python."""
    root.mkdir()
    packages = []
    for one in pinned:
        package = read_control(debs[one.name])
        if (package.name, package.version) != (one.name, one.version):
            raise StepFailed(f"the lock says {one.name}, the file is {package.name}")
        unpack(debs[one.name], root, _DROPPED)
        packages.append(package)
    _finish(root, packages)
    compile_tree(root / f"usr/lib/python{PYTHON}", f"/usr/lib/python{PYTHON}", PYTHON)
    return packages


def _finish(root: Path, packages: Iterable[Package]) -> None:
    _drop_documents(root / "usr/share/doc")
    for name, text in _FILES.items():
        _write(root / name, text)
    for package in packages:
        _write(root / "var/lib/dpkg/status.d" / package.name, package.control)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    if certificates:
        _write(root / BUNDLE, "".join(path.read_text() for path in certificates))
    shutil.rmtree(root / "usr/share/ca-certificates", ignore_errors=True)
    for name, target in _LINKS.items():
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
    if (root / "usr/lib64").is_dir():
        (root / "lib64").symlink_to("usr/lib64")


def _drop_documents(folder: Path) -> None:
    """Licences stay, changelogs and READMEs go."""
    for path in folder.rglob("*"):
        if (path.is_file() or path.is_symlink()) and path.name != "copyright":
            path.unlink()


def _entries(root: Path) -> list[Entry]:
    """The tree, with the two folders of another mode."""
    open_to_all = ("tmp", "var/tmp")
    entries = [e for e in tree_entries(root, "") if e.path not in open_to_all]
    return [*entries, *(Entry(path=name, mode=0o1777) for name in open_to_all)]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _components(pinned: Iterable[Pinned], packages: Iterable[Package]) -> Iterator[Component]:
    for one, package in zip(pinned, packages, strict=True):
        yield debian_component(package.fields, "debian", "debian-12", one.sha256)
