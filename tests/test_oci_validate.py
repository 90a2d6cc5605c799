"""The validator finds every change to a sound layout or archive, and nothing in a sound one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_oci_layers import image_of, write

from tf2aif.errors import Tf2aifError
from tf2aif.oci.archive import save
from tf2aif.oci.documents import encode
from tf2aif.oci.layers import Entry
from tf2aif.oci.layout import Layout
from tf2aif.oci.validate import verify


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A small image of a compressed layer and a raw one."""
    code = write(tmp_path / "code", [Entry(path="app", source=b"code" * 100, mode=0o755)])
    model = write(tmp_path / "model", [Entry(path="m", source=b"w" * 300)], compression="none")
    return image_of(tmp_path / "image", code, model)


def test_sound(layout: Layout, tmp_path: Path):
    assert verify(layout.folder) == ()
    save(layout, tmp_path / "image.tar", "kws", "cpu")
    assert verify(tmp_path / "image.tar") == ()


def test_an_archive_is_the_same_each_time(layout: Layout, tmp_path: Path):
    save(layout, tmp_path / "a.tar", "kws", "cpu")
    save(layout, tmp_path / "b.tar", "kws", "cpu")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.tar*")) == ["a.tar", "b.tar"]


def test_every_byte_of_every_blob_counts(layout: Layout):
    for path in sorted((layout.folder / "blobs" / "sha256").iterdir()):
        data = path.read_bytes()
        for position in (0, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[position] ^= 1
            path.write_bytes(changed)
            assert verify(layout.folder), (path.name, position)
        path.write_bytes(data + b"\0")
        assert any("bytes of" in fault.message for fault in verify(layout.folder))
        path.write_bytes(data)
    assert verify(layout.folder) == ()


def test_every_file_counts(layout: Layout, tmp_path: Path):
    files = [p for p in layout.folder.rglob("*") if p.is_file()]
    assert len(files) == 6
    for path in files:
        copy = tmp_path / "copy"
        shutil.copytree(layout.folder, copy)
        (copy / path.relative_to(layout.folder)).unlink()
        assert verify(copy), path.name
        shutil.rmtree(copy)


Edit = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("what", "edit", "said"),
    [
        ("manifest", lambda d: d.update(schemaVersion=1), "schema version 1"),
        ("manifest", lambda d: d.update(mediaType="x/y"), "calls itself 'x/y'"),
        ("manifest", lambda d: d["layers"].pop(), "has 2 layers, its manifest 1"),
        ("manifest", lambda d: d["layers"].reverse(), "unpacked it has the digest"),
        ("manifest", lambda d: d["layers"][0].update(size=1), "says 1 bytes of"),
        ("manifest", lambda d: d["layers"][0].update(digest="md5:1"), "not a SHA-256 digest"),
        ("manifest", lambda d: d["layers"][0].update(mediaType="a/b"), "cannot be looked into"),
        ("config", lambda d: d.update(architecture="arm64"), "is for arm64"),
        ("config", lambda d: d.pop("os"), "does not say its os"),
        ("config", lambda d: d["rootfs"]["diff_ids"].pop(), "has 1 layers, its manifest 2"),
        ("index", lambda d: d.update(manifests=[]), "names no image"),
    ],
)
def test_documents_that_lie(layout: Layout, what: str, edit: Edit, said: str):
    rewrite(layout, what, edit)
    faults = verify(layout.folder)
    assert any(said in fault.message for fault in faults), faults


def rewrite(layout: Layout, what: str, edit: Edit) -> None:
    """Change a document and all that names it, so that only what it says is wrong."""
    image = layout.image()
    index = msgspec.json.decode((layout.folder / "index.json").read_bytes())
    manifest = msgspec.json.decode(layout.read(image.descriptor.digest))
    config = msgspec.json.decode(layout.read(manifest["config"]["digest"]))
    edit({"index": index, "manifest": manifest, "config": config}[what])
    layout.path(image.manifest.config.digest).unlink()
    layout.path(image.descriptor.digest).unlink()
    manifest["config"].update(put(layout, config))
    for entry in index["manifests"]:
        entry.update(put(layout, manifest))
    (layout.folder / "index.json").write_bytes(encode(index))


def put(layout: Layout, document: Any) -> dict[str, Any]:
    from tf2aif.oci.documents import sha256

    data = encode(document)
    layout.path(sha256(data)).write_bytes(data)
    return {"digest": sha256(data), "size": len(data)}


def test_a_layer_that_leaves_its_root(tmp_path: Path):
    import io
    import tarfile

    folder = write(tmp_path / "l", [Entry(path="a", source=b"x")], compression="none")
    with tarfile.open(folder / "blob", "w") as tar:
        for name in ("../escape", "twice", "twice"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    from tf2aif.oci.documents import sha256_file
    from tf2aif.oci.layers import read_layer

    record = msgspec.json.decode((folder / "layer.json").read_bytes())
    digest = sha256_file(folder / "blob")
    record["descriptor"].update(digest=digest, size=(folder / "blob").stat().st_size)
    record["diff_id"] = digest
    (folder / "layer.json").write_bytes(msgspec.json.encode(record))
    assert read_layer(folder).diff_id == digest
    said = [fault.message for fault in verify(image_of(tmp_path / "i", folder).folder)]
    assert said == ["holds '../escape', outside its root", "holds 'twice' twice"]


def test_what_is_neither(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"no tar at all")
    with pytest.raises(Tf2aifError, match="neither an image layout nor an archive"):
        verify(tmp_path / "file")
    with pytest.raises(Tf2aifError, match="cannot read"):
        verify(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert {fault.message for fault in verify(empty)} == {"missing"}
