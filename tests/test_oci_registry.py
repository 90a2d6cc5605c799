"""Push and pull against Debian's own docker-registry: nothing sent twice, broken things said."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from engine import Cutter, docker_registry, need
from test_oci_layers import image_of, write

from tf2aif.errors import Tf2aifError
from tf2aif.oci import registry as registry_module
from tf2aif.oci.credentials import find_credentials
from tf2aif.oci.documents import Index, Platform
from tf2aif.oci.image import attach, referrers_tag
from tf2aif.oci.layers import Entry
from tf2aif.oci.layout import Layout, place
from tf2aif.oci.reference import Reference
from tf2aif.oci.registry import Registry
from tf2aif.oci.transfers import Pushed, pull, push, push_index
from tf2aif.oci.validate import verify

# bcrypt of "right horse", as htpasswd -B writes it.
HTPASSWD = "user:$2y$05$abcdefghijklmnopqrstuuB05BVy0V7KomGh8K56xgiHLq3Wkqh46\n"
BIG = hashlib.shake_256(b"weights").digest(3 << 20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that lets everybody in."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Docker configuration of the test's own."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An image with a small compressed layer and 3 MiB of raw weights."""
    code = write(tmp_path / "code", [Entry(path="app", source=b"code")])
    model = write(tmp_path / "model", [Entry(path="m", source=BIG)], compression="none")
    return image_of(tmp_path / "image", code, model)


def opened(address: str, repository: str, **more: object) -> Registry:
    reference = Reference.parse(f"{address}/{repository}")
    return Registry(reference, sleep=lambda _: None, **more)  # type: ignore[arg-type]


def pushed(registry: Registry, layout: Layout, tag: str = "v1", **more: object) -> Pushed:
    return push(registry, layout, layout.image().descriptor, tags=[tag], **more)  # type: ignore[arg-type]


def test_pushed_again_nothing_is_sent(server: str, layout: Layout, tmp_path: Path):
    registry = opened(server, "again")
    first, second = pushed(registry, layout), pushed(registry, layout)
    assert (first.sent, first.there) == (3, 0)
    assert (second.sent, second.there, second.sent_bytes) == (0, 3, 0)
    assert registry.head_manifest("v1") == layout.image().descriptor.digest
    pulled = pull(opened(server, "again:v1"), tmp_path / "pulled")
    assert verify(pulled.folder) == ()
    assert pulled.image().descriptor.digest == layout.image().descriptor.digest


def test_layers_of_another_repository_are_mounted(server: str, layout: Layout):
    pushed(opened(server, "first"), layout)
    result = pushed(opened(server, "team/second"), layout, mount_from=["first"])
    assert (result.mounted, result.sent) == (3, 0)
    other = pushed(opened(server, "third"), layout, mount_from=["nothing-there"])
    assert (other.mounted, other.sent) == (0, 3)


def test_a_blob_goes_up_in_chunks(server: str, layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry_module, "UPLOAD_CHUNK", 1 << 20)
    assert pushed(opened(server, "chunks"), layout).sent == 3
    assert pushed(opened(server, "chunks"), layout).sent == 0


def test_a_broken_connection_goes_on_where_it_was(
    server: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(registry_module, "UPLOAD_CHUNK", 1 << 20)
    cutter = Cutter(server)
    cutter.before, cutter.cuts = (b"PATCH", 3), 1  # the code's only chunk, two of the weights'
    assert pushed(opened(cutter.address, "resumed"), layout).sent == 3
    cutter.close()
    assert cutter.cuts == 0
    sent = [line for line in cutter.requests if line.startswith(b"PATCH")]
    assert len(sent) == 1 + 4 + 1 + 1  # of code, weights, the one that was cut, configuration


def test_a_connection_that_breaks_within_a_chunk(server: str, layout: Layout):
    cutter = Cutter(server)
    cutter.after_bytes, cutter.cuts = 1_500_000, 2
    assert pushed(opened(cutter.address, "cut"), layout).sent == 3
    cutter.close()
    assert cutter.cuts == 0
    assert pushed(opened(server, "cut"), layout).sent == 0


def test_a_connection_that_breaks_each_time_is_said_and_the_next_push_completes(
    server: str, layout: Layout
):
    cutter = Cutter(server)
    cutter.after_bytes, cutter.cuts = 1_000_000, 1000
    registry = opened(cutter.address, "broken")
    with pytest.raises(Tf2aifError, match=r"cannot upload sha256:.*broke off each time"):
        pushed(registry, layout)
    assert registry.head_manifest("v1") is None  # no half image has a name
    cutter.cuts = 0
    result = pushed(registry, layout)
    cutter.close()
    assert (result.sent, result.there) == (2, 1)


def test_nothing_listens(layout: Layout):
    with pytest.raises(Tf2aifError, match=r"cannot reach the registry: .*refused"):
        pushed(opened("127.0.0.1:9", "x"), layout)


def test_a_full_disk_is_said_and_the_next_push_completes(layout: Layout, tmp_path: Path):
    need("docker-registry", "mount", root=True)
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", root], check=True)
    try:
        with docker_registry(tmp_path / "registry", root=root) as address:
            registry = opened(address, "full")
            with pytest.raises(Tf2aifError, match=r"it answered 5\d\d") as failed:
                pushed(registry, layout)
            assert "full disk" in failed.value.faults[0].hint
            subprocess.run(["mount", "-o", "remount,size=32m", root], check=True)
            assert pushed(registry, layout).there >= 1
            assert registry.head_manifest("v1")
    finally:
        subprocess.run(["umount", root], check=True)


def log_in(folder: Path, host: str, password: str) -> None:
    auth = base64.b64encode(f"user:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def test_passwords(layout: Layout, tmp_path: Path, no_login: Path):
    with docker_registry(tmp_path / "registry", htpasswd=HTPASSWD) as address:
        with pytest.raises(Tf2aifError, match="401") as nobody:
            pushed(opened(address, "locked"), layout)
        assert "docker login" in nobody.value.faults[0].hint
        log_in(no_login, address, "wrong")
        with pytest.raises(Tf2aifError, match="401") as wrong:
            pushed(opened(address, "locked"), layout)
        assert "the password of 'user' was refused" in wrong.value.faults[0].hint
        assert "wrong" not in str(wrong.value).replace("wrong:", "")
        log_in(no_login, address, "right horse")
        assert pushed(opened(address, "locked"), layout).sent == 3


def test_a_credential_helper_is_asked(
    layout: Layout, tmp_path: Path, no_login: Path, monkeypatch: pytest.MonkeyPatch
):
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(
        '#!/bin/sh\nread host\necho "$host" > "$0.asked"\n'
        'echo \'{"Username": "user", "Secret": "right horse"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    with docker_registry(tmp_path / "registry", htpasswd=HTPASSWD) as address:
        config = {"credHelpers": {address: "test"}}
        (no_login / "config.json").write_text(json.dumps(config))
        assert pushed(opened(address, "helped"), layout).sent == 3
    assert helper.with_name("docker-credential-test.asked").read_text().strip() == address


def test_a_broken_helper_is_said(no_login: Path):
    (no_login / "config.json").write_text(json.dumps({"credsStore": "nowhere"}))
    with pytest.raises(Tf2aifError, match="no credentials could be read"):
        find_credentials("registry.example")


def test_credentials_are_never_shown(no_login: Path):
    log_in(no_login, "registry.example", "hidden")
    found = find_credentials("registry.example")
    assert found is not None
    assert found.password == "hidden"
    assert "hidden" not in repr(found)


def test_an_index_for_two_platforms_is_read_by_skopeo(server: str, tmp_path: Path):
    need("skopeo")
    registry, members, digests = opened(server, "multi"), [], {}
    for platform in ("linux/amd64", "linux/arm64"):
        architecture = platform.partition("/")[2]
        layer = write(tmp_path / f"l-{architecture}", [Entry(path=architecture, source=b"x")])
        layout = image_of(tmp_path / architecture, layer, platform=platform)
        pushed(registry, layout, tag=architecture)
        members.append(layout.image().descriptor)
        digests[architecture] = layout.image().descriptor.digest
    digest = push_index(registry, members, "all", {})
    name = f"docker://{server}/multi:all"
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", name]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    found = msgspec.json.decode(raw, type=Index)
    assert "sha256:" + hashlib.sha256(raw).hexdigest() == digest
    assert {m.platform.architecture: m.digest for m in found.manifests if m.platform} == digests
    copy = tmp_path / "copy"
    command = ["skopeo", "copy", "--all", "--src-tls-verify=false", name, f"oci:{copy}:all"]
    subprocess.run(command, check=True, capture_output=True)
    assert verify(copy) == ()
    pulled = pull(opened(server, "multi:all"), tmp_path / "arm", Platform.parse("linux/arm64"))
    assert pulled.image().descriptor.digest == digests["arm64"]
    with pytest.raises(Tf2aifError, match="no image for linux/s390x") as failed:
        pull(opened(server, "multi:all"), tmp_path / "none", Platform.parse("linux/s390x"))
    assert "linux/amd64, linux/arm64" in failed.value.faults[0].hint


def test_what_is_attached_is_found_at_the_fall_back_tag(server: str, layout: Layout):
    image = layout.image().descriptor
    notes = [attach(image, f"application/test.{n}", b"{}", {}) for n in "ab"]
    for note in notes:
        for digest, content in note.blobs.items():
            place(content, layout.path(digest))
    registry = opened(server, "attached")
    pushed(registry, layout, attached=[notes[0].descriptor])
    pushed(registry, layout, attached=[notes[1].descriptor])
    _, data = registry.pull_manifest(referrers_tag(image.digest))
    listed = msgspec.json.decode(data, type=Index).manifests
    assert {d.digest for d in listed} == {n.descriptor.digest for n in notes}
    assert {d.artifact_type for d in listed} == {"application/test.a", "application/test.b"}


def test_bytes_that_are_not_what_was_asked_for(server: str, layout: Layout, tmp_path: Path):
    registry = opened(server, "damaged")
    pushed(registry, layout)
    blob = layout.image().manifest.layers[1]
    stored = next(
        Path(p).parent / "data"
        for p in _registry_files(server)
        if blob.digest.partition(":")[2] in str(p) and str(p).endswith("data")
    )
    stored.write_bytes(BIG[::-1] + stored.read_bytes()[len(BIG) :])
    with pytest.raises(Tf2aifError, match="its bytes have the digest"):
        pull(opened(server, "damaged:v1"), tmp_path / "pulled")


def _registry_files(server: str) -> list[Path]:
    """The files of the registry that listens there, by its configuration on its command line."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        words = process.read_bytes().split(b"\0")
        if words[0].endswith(b"docker-registry"):
            config = Path(os.fsdecode(words[2]))
            if server.rpartition(":")[2] in config.read_text():
                return list((config.parent / "files").rglob("*"))
    raise AssertionError("the registry's process is not there")


def test_a_tag_that_is_not_there(server: str, tmp_path: Path):
    with pytest.raises(Tf2aifError, match="the registry has no v9"):
        pull(opened(server, "nothing:v9"), tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "host", "repository", "target"),
    [
        ("debian", "docker.io", "library/debian", "latest"),
        ("team/kws:v1", "docker.io", "team/kws", "v1"),
        ("localhost/kws", "localhost", "kws", "latest"),
        ("r.example:5000/a/b:v1", "r.example:5000", "a/b", "v1"),
        (f"r.example/a@sha256:{'0' * 64}", "r.example", "a", f"sha256:{'0' * 64}"),
    ],
)
def test_references(text: str, host: str, repository: str, target: str):
    found = Reference.parse(text)
    assert (found.host, found.repository, found.target) == (host, repository, target)


@pytest.mark.parametrize("text", ["", "UPPER/case", "r.example/a:", "r.example/a@sha256:1", "a b"])
def test_no_references(text: str):
    if text == "r.example/a:":
        assert Reference.parse(text).target == "latest"
        return
    with pytest.raises(Tf2aifError, match="not the name of an image"):
        Reference.parse(text)


def test_plain_http_is_for_this_machine_only():
    assert Reference.parse("127.0.0.1:5000/a").is_local
    assert Reference.parse("[::1]:5000/a").is_local
    assert Reference.parse("localhost:5000/a").is_local
    assert not Reference.parse("registry.example/a").is_local
    assert not Reference.parse("10.0.0.1:5000/a").is_local
