"""Layers and images: the same files give the same bytes, and a tar holds exactly what was given."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tf2aif.errors import StepFailed
from tf2aif.oci.documents import LAYER, Descriptor, Platform, sha256
from tf2aif.oci.image import Healthcheck, Settings, compose
from tf2aif.oci.layers import Compression, Entry, complete, read_layer, tree_entries, write_layer
from tf2aif.oci.layout import Layout, write_layout
from tf2aif.oci.validate import verify

NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=40
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)


def write(folder: Path, entries: list[Entry], **more: object) -> Path:
    folder.mkdir()
    write_layer(entries, folder, created_by="test", **more)  # type: ignore[arg-type]
    return folder


def read_back(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / "blob") as tar:
        files = {m.name: tar.extractfile(m) for m in tar if m.isfile()}
        return {name: file.read() for name, file in files.items() if file}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(PATHS, st.binary(max_size=200), max_size=8), st.randoms())
def test_a_layer_holds_what_was_given_in_any_order(tmp_path, files, random):
    kept = {
        path: data
        for path, data in files.items()
        if not any(other.startswith(path + "/") for other in files)
    }
    entries = [Entry(path=path, source=data) for path, data in kept.items()]
    folder = tmp_path / os.urandom(4).hex()
    write(folder, entries)
    assert read_back(folder) == kept
    random.shuffle(entries)
    again = tmp_path / os.urandom(4).hex()
    write(again, entries)
    assert (folder / "blob").read_bytes() == (again / "blob").read_bytes()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_digests_are_of_the_bytes(tmp_path: Path, compression: Compression):
    folder = write(tmp_path / "l", [Entry(path="a/b", source=b"x" * 5000)], compression=compression)
    layer, blob = read_layer(folder), (folder / "blob").read_bytes()
    assert layer.descriptor.digest == sha256(blob)
    assert layer.descriptor.size == len(blob)
    tar = gzip.decompress(blob) if compression == "gzip" else blob
    assert layer.diff_id == "sha256:" + hashlib.sha256(tar).hexdigest()
    assert (layer.descriptor.media_type == LAYER) == (compression == "none")


def test_times_owners_and_umask_do_not_matter(tmp_path: Path):
    digests = set()
    for number, umask in enumerate((0o022, 0o077)):
        before = os.umask(umask)
        try:
            root = tmp_path / f"tree{number}"
            (root / "sub").mkdir(parents=True)
            (root / "sub" / "run.sh").write_text("#!/bin/sh\n")
            (root / "sub" / "run.sh").chmod(0o700 | (0o055 & ~umask))
            (root / "data").write_bytes(b"data")
            (root / "link").symlink_to("sub/run.sh")
            os.utime(root / "data", (number * 1000, number * 1000))
        finally:
            os.umask(before)
        folder = write(tmp_path / f"l{number}", list(tree_entries(root, "opt")))
        digests.add(read_layer(folder).descriptor.digest)
    assert len(digests) == 1
    with tarfile.open(folder / "blob") as tar:
        found = {m.name: (m.mode, m.uid, m.gid, m.mtime) for m in tar}
    assert found["opt/sub/run.sh"] == (0o755, 0, 0, 0)
    assert found["opt/data"] == (0o644, 0, 0, 0)
    assert found["opt/link"][0] == 0o777


def test_the_epoch_is_the_time_of_every_entry(tmp_path: Path):
    folder = write(tmp_path / "l", [Entry(path="a/b", source=b"")], epoch=1_700_000_000)
    with tarfile.open(folder / "blob") as tar:
        assert {member.mtime for member in tar} == {1_700_000_000}


def test_folders_come_before_what_is_in_them():
    paths = [
        e.path for e in complete([Entry(path="b/c/d", source=b""), Entry(path="b.x", source=b"")])
    ]
    assert paths == ["b", "b/c", "b/c/d", "b.x"]


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(path="../a", source=b"")],
        [Entry(path="/a", source=b"")],
        [Entry(path="a//b", source=b"")],
        [Entry(path="a", source=b""), Entry(path="a", source=b"other")],
        [Entry(path="a", source=b""), Entry(path="a/b", source=b"")],
    ],
)
def test_paths_that_no_layer_can_hold(tmp_path: Path, entries: list[Entry]):
    with pytest.raises(StepFailed, match=r"path|two files|file and a folder"):
        write(tmp_path / "l", entries)


def test_a_layer_that_is_not_there(tmp_path: Path):
    with pytest.raises(StepFailed, match="no layer"):
        read_layer(tmp_path)
    folder = write(tmp_path / "l", [Entry(path="a", source=b"1")])
    with (folder / "blob").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StepFailed, match="not as long"):
        read_layer(folder)


def image_of(folder: Path, *layers: Path, platform: str = "linux/amd64") -> Layout:
    settings_ = Settings(
        entrypoint=("/app",),
        environment={"A": "1"},
        ports=("8080/tcp",),
        healthcheck=Healthcheck(test=("CMD", "/app", "health")),
    )
    image = compose(Platform.parse(platform), layers, settings_, annotations={"k": "v"})
    return write_layout(folder, [image.named("kws", "cpu-int8")], image.blobs)


def test_an_image_is_what_its_layers_make_it(tmp_path: Path):
    layer = write(tmp_path / "l", [Entry(path="app", source=b"#!", mode=0o755)])
    one, two = image_of(tmp_path / "one", layer), image_of(tmp_path / "two", layer)
    assert one.image().descriptor == two.image().descriptor
    assert verify(one.folder) == ()
    config = one.image().config
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Healthcheck"]["Test"] == ["CMD", "/app", "health"]
    assert config["config"]["Healthcheck"]["Interval"] == 5_000_000_000
    assert config["rootfs"]["diff_ids"] == [read_layer(layer).diff_id]
    assert config["created"] == "1970-01-01T00:00:00Z"


def test_an_image_on_a_base_for_another_platform(tmp_path: Path):
    layer = write(tmp_path / "l", [Entry(path="app", source=b"")])
    base = image_of(tmp_path / "base", layer, platform="linux/arm64")
    with pytest.raises(StepFailed, match="for linux/arm64, the target for linux/amd64"):
        compose(
            Platform.parse("linux/amd64"),
            [layer],
            Settings(entrypoint=("/app",)),
            base=(base, base.image()),
        )


def test_documents_keep_fields_that_are_not_empty():
    descriptor = Descriptor(media_type="a", digest="b", size=1)
    assert msgspec.json.encode(descriptor) == b'{"mediaType":"a","digest":"b","size":1}'
