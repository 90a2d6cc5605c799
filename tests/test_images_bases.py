"""Bases that others made: what is in them, Python for one without, and what is said of a wrong one.

A registry of the tests' own holds an image of Debian's packages without Python: it stands in for
a vendor's, such as one with CUDA.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import docker_engine, docker_registry, need
from msgspec.structs import replace
from test_images_build import small_base
from test_oci_layers import image_of, write

from tf2aif.errors import StepFailed
from tf2aif.oci.apt import DebianLock, read_lock
from tf2aif.oci.base_check import base_faults
from tf2aif.oci.bases import PythonSource, adopt, read_base, write_debian
from tf2aif.oci.documents import Platform
from tf2aif.oci.engine import Engine
from tf2aif.oci.image import Settings, compose
from tf2aif.oci.inventory import Inventory, take_inventory
from tf2aif.oci.layers import Entry
from tf2aif.oci.layout import Layout, write_layout
from tf2aif.oci.planning import PACKAGED_LOCKS
from tf2aif.oci.reference import Reference
from tf2aif.oci.registry import Registry
from tf2aif.oci.transfers import push
from tf2aif.oci.validate import verify
from tf2aif.spec.target import EngineUse, Target
from tf2aif.steps import Job, image_base
from tf2aif.steps.image_base import package_cache

AMD64 = Platform.parse("linux/amd64")
VENDOR = {"base-files", "libc6", "libgcc-s1", "libstdc++6", "zlib1g"}

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: {glibc}
Description: a library
 with a second line: and a colon

Package: removed
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: libssl3
Status: install ok installed
Architecture: amd64
Version: 1:3.0.2+x
"""
RELEASE = b'ID=ubuntu\nVERSION_ID="24.04"\n'
METADATA = b"Metadata-Version: 2.1\nName: Some_Package\nVersion: 1.0+cu12\n\nText: no field\n"


def files(glibc: str = "2.39-0ubuntu8") -> list[Entry]:
    """What a base of Ubuntu says of itself, without Python."""
    return [
        Entry(path="var/lib/dpkg/status", source=STATUS.format(glibc=glibc).encode()),
        Entry(path="usr/lib/os-release", source=RELEASE),
        Entry(path="etc/os-release", link="../usr/lib/os-release"),
        Entry(path="opt/py/some_package-1.0.dist-info/METADATA", source=METADATA),
        Entry(path="usr/share/a/b", source=b""),
        Entry(path="usr/share/c/d", source=b""),
    ]


def inventory_of(folder: Path, *layers: Path) -> Inventory:
    layout = image_of(folder, *layers)
    return take_inventory(layout, layout.image().manifest.layers)


def test_what_is_in_a_base_is_read_from_its_layers(tmp_path: Path):
    lower = write(tmp_path / "lower", files())
    upper = write(tmp_path / "upper", [Entry(path="usr/share/c/.wh.d", source=b"")])
    emptied = write(tmp_path / "emptied", [Entry(path="usr/share/a/.wh..wh..opq", source=b"")])
    gone = write(tmp_path / "gone", [Entry(path="opt/.wh.py", source=b"")])
    found = inventory_of(tmp_path / "one", lower)
    assert {c.purl for c in found.components} == {
        "pkg:deb/ubuntu/libc6@2.39-0ubuntu8?arch=amd64&distro=ubuntu-24.04",
        "pkg:deb/ubuntu/libssl3@1%3A3.0.2%2Bx?arch=amd64&distro=ubuntu-24.04",
        "pkg:pypi/some-package@1.0%2Bcu12",
    }
    assert found.glibc == (2, 39)
    assert {"usr/share/a/b", "usr/share/c/d"} <= found.names
    less = inventory_of(tmp_path / "two", lower, upper, emptied, gone)
    assert not {"usr/share/a/b", "usr/share/c/d"} & less.names
    assert {c.name for c in less.components} == {"libc6", "libssl3"}
    assert "opt/py/some_package-1.0.dist-info/METADATA" not in less.names


def test_a_layer_that_nobody_can_read(tmp_path: Path):
    folder = write(tmp_path / "l", files())
    layout = image_of(tmp_path / "image", folder)
    blob = layout.path(layout.image().manifest.layers[0].digest)
    blob.write_bytes(gzip.compress(b"no tar" * 1000))
    with pytest.raises(StepFailed, match="cannot look into a layer"):
        take_inventory(layout, layout.image().manifest.layers)


def source_of(scratch: Path) -> PythonSource:
    need("apt-get")
    lock = read_lock(PACKAGED_LOCKS / "debian-bookworm-amd64.json")
    return PythonSource(lock=lock, cache=package_cache(), scratch=scratch)


def test_an_old_base_is_not_given_a_python_that_cannot_run(tmp_path: Path):
    layout = image_of(tmp_path / "base", write(tmp_path / "l", files("2.35-0ubuntu3")))
    (tmp_path / "out").mkdir()
    source = source_of(tmp_path)
    with pytest.raises(StepFailed, match=r"needs glibc 2.36, the base has 2.35") as failed:
        adopt("registry:x", layout, layout.image(), "3.11", tmp_path / "out", source)
    assert "Dockerfile" in failed.value.faults[0].hint


def test_another_python_than_debians_is_not_brought(tmp_path: Path):
    layout = image_of(tmp_path / "base", write(tmp_path / "l", files()))
    (tmp_path / "out").mkdir()
    with pytest.raises(StepFailed, match=r"has no Python 3.12; it has none"):
        adopt("oci", layout, layout.image(), "3.12", tmp_path / "out", source_of(tmp_path))


def test_what_the_vendor_has_stays_as_it_is(tmp_path: Path):
    own = [
        Entry(path="usr/lib/x86_64-linux-gnu/libexpat.so.1", source=b"the vendor's"),
        Entry(path="etc/passwd", source=b"the vendor's"),
    ]
    layout = image_of(tmp_path / "base", write(tmp_path / "l", [*files(), *own]))
    (tmp_path / "out").mkdir()
    base = adopt("oci", layout, layout.image(), "3.11", tmp_path / "out", source_of(tmp_path))
    _, made, image = read_base(tmp_path / "out")
    assert (base.python, base.init) == ("/usr/bin/python3.11", ("/usr/bin/tini", "--"))
    with tarfile.open(made.path(image.manifest.layers[1].digest)) as tar:
        brought = set(tar.getnames())
    assert {"usr/bin/python3.11", "usr/bin/tini", "usr/lib/x86_64-linux-gnu/libffi.so.8"} <= brought
    assert not {"usr/lib/x86_64-linux-gnu/libexpat.so.1", "etc/passwd"} & brought
    assert not any("libssl.so" in name or "libc.so" in name for name in brought)  # it has them
    names = {c.name for c in base.components}
    assert {"libssl3", "Some_Package", "python3.11-minimal"} <= names
    (tmp_path / "out" / "base.json").unlink()
    assert verify(tmp_path / "out") == ()


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with a base that has no Python; its name, by digest."""
    folder = tmp_path_factory.mktemp("vendor")
    lock = source_of(folder).lock
    some = replace(lock, packages=tuple(p for p in lock.packages if p.name in VENDOR))
    (folder / "image").mkdir()
    base = make_debian(some, folder)
    with docker_registry(folder / "registry") as address:
        layout = Layout(folder / "image")
        push(Registry(Reference.parse(f"{address}/vendor")), layout, layout.image().descriptor)
        yield f"{address}/vendor@{base}"


def make_debian(lock: DebianLock, folder: Path) -> str:
    (folder / "scratch").mkdir()
    return write_debian(lock, folder / "image", folder / "scratch", package_cache()).digest


def test_a_vendors_base_without_python_runs_ours(
    vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The step pulls it, brings Python, and a real engine runs that: TLS, sqlite, tini and all."""
    for name in ("out", "scratch", "docker"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "scratch")
    job = Job(
        step="b/image-base-gpu",
        kind="image-base",
        options={"base": f"registry:{vendor}", "platform": "linux/amd64", "python": "3.11"},
        inputs={"lock": PACKAGED_LOCKS / "debian-bookworm-amd64.json"},
        out=tmp_path / "out",
    )
    result = image_base.run(job)
    assert result["digest"] == vendor.partition("@")[2]
    base, layout, stored = read_base(tmp_path / "out")
    assert {"libc6", "python3.11-minimal", "tini"} <= {c.name for c in base.components}
    image = compose(
        AMD64,
        [write(tmp_path / "app", [Entry(path="app", source=b"")])],
        Settings(entrypoint=(*base.init, base.python)),
        base=(layout, stored),
    )
    made = write_layout(tmp_path / "image", [image.named("vendor", "test")], image.blobs)
    assert verify(made.folder) == ()
    code = "import ssl, sqlite3, ctypes, bz2, lzma, uuid, sys; print(sys.version_info[:2])"
    with docker_engine(tmp_path / "docker") as address, Engine(address) as engine:
        engine.load(made, made.image(), "vendor", "test")
        said = engine.client.containers.run(
            "vendor:test", ["-c", code], network_mode="host", read_only=True, remove=True,
            cap_drop=["ALL"],
        )  # fmt: skip
    assert said == b"(3, 11)\n"


def target(base: str, python: str = "3.11", platform: str = "linux/amd64") -> Target:
    precisions = {"fp32": [{"step": "tflite"}]}
    engine = EngineUse(name="litert")
    return Target(platform=platform, engine=engine, precisions=precisions, base=base, python=python)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (target("debian"), None),
        (target("debian", python="3.12"), "the Debian base has Python 3.11"),
        (target("debian", platform="linux/arm/v7"), "no Debian base for linux/arm/v7"),
        (target("oci:base"), None),
        (target("oci:base", platform="linux/arm64"), "no image for linux/arm64"),
        (target("oci:nothing"), "there is no image layout 'nothing'"),
        (target("oci:folder"), "no image layout is there"),
        (target("dockerfile:folder/Dockerfile"), None),
        (target("dockerfile:folder"), "'folder' is a folder"),
        (target("dockerfile:Dockerfile"), "there is no Dockerfile 'Dockerfile'"),
        (target(f"registry:r.example/a@sha256:{'0' * 64}"), None),
        (target("registry:r.example/a:v1"), "named by digest"),
        (target("registry:r.example/A"), "not the name of an image"),
    ],
)
def test_what_can_be_said_of_a_base_before_a_build(tmp_path: Path, given: Target, said: str | None):
    small_base(tmp_path / "base")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "Dockerfile").write_text("FROM scratch\n")
    faults = base_faults(given, tmp_path, "targets/t.yaml:2: base")
    assert [fault.at for fault in faults] == ([] if said is None else ["targets/t.yaml:2: base"])
    assert all(said in fault.message for fault in faults if said)
