"""Registries that want tokens, and registries with certificates of a private authority: real ones.

Debian's docker-registry checks the tokens' signatures itself, and speaks TLS itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import TokenServer, make_authority, make_certificate, token_server
from engine import docker_registry
from test_oci_layers import image_of, write
from test_oci_registry import BIG, opened, pushed

from tf2aif.errors import Tf2aifError
from tf2aif.oci import registry as registry_module
from tf2aif.oci.layers import Entry
from tf2aif.oci.layout import Layout
from tf2aif.oci.transfers import pull
from tf2aif.oci.validate import verify


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder and a Docker configuration of the test's own."""
    folder = tmp_path / "home"
    (folder / ".docker").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / ".docker"))
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An image with a small compressed layer and 3 MiB of raw weights."""
    code = write(tmp_path / "code", [Entry(path="app", source=b"code")])
    model = write(tmp_path / "model", [Entry(path="m", source=BIG)], compression="none")
    return image_of(tmp_path / "image", code, model)


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    """A token server; `user` may push."""
    with token_server(tmp_path / "tokens") as server:
        server.passwords["user"] = "right horse"
        server.pushers.add("user")
        yield server


@pytest.fixture
def guarded(tokens: TokenServer, tmp_path: Path) -> Iterator[str]:
    """A registry that lets in whom the token server sends."""
    with docker_registry(tmp_path / "registry", auth=tokens.auth) as address:
        yield address


def log_in(home: Path, host: str, **fields: str) -> None:
    """As `docker login` writes it: `auth`, or an identity token."""
    entry = dict(fields)
    if "password" in entry:
        text = f"{entry.pop('user')}:{entry.pop('password')}"
        entry["auth"] = base64.b64encode(text.encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: entry}}))


def test_a_token_is_fetched_for_each_repository(
    guarded: str, tokens: TokenServer, layout: Layout, home: Path, tmp_path: Path
):
    log_in(home, guarded, user="user", password="right horse")
    assert pushed(opened(guarded, "team/kws"), layout).sent == 3
    assert {s for query in tokens.asked for s in query["scope"]} == {
        "repository:team/kws:pull,push"
    }
    assert pushed(opened(guarded, "team/kws"), layout).sent == 0
    (home / ".docker" / "config.json").unlink()
    assert pull(opened(guarded, "team/kws:v1"), tmp_path / "pulled").image()  # anybody may


def test_a_mount_asks_for_both_repositories(
    guarded: str, tokens: TokenServer, layout: Layout, home: Path
):
    log_in(home, guarded, user="user", password="right horse")
    pushed(opened(guarded, "first"), layout)
    tokens.asked.clear()
    assert pushed(opened(guarded, "second"), layout, mount_from=["first"]).mounted == 3
    scopes = {"repository:second:pull,push", "repository:first:pull"}
    assert any(set(query["scope"]) == scopes for query in tokens.asked)


def test_an_identity_token_stands_for_a_password(
    guarded: str, tokens: TokenServer, layout: Layout, home: Path
):
    tokens.refresh["long-lived"] = "user"
    log_in(home, guarded, auth="PHRva2VuPjo=", identitytoken="long-lived")
    assert pushed(opened(guarded, "kws"), layout).sent == 3
    assert tokens.asked[0]["grant_type"] == ["refresh_token"]


def test_a_token_that_runs_out_during_an_upload_is_renewed(
    guarded: str, tokens: TokenServer, layout: Layout, home: Path, monkeypatch: pytest.MonkeyPatch
):
    log_in(home, guarded, user="user", password="right horse")
    monkeypatch.setattr(registry_module, "UPLOAD_CHUNK", 1 << 20)
    tokens.lifetime_s = -3600.0
    outdated = tokens.token("user", ["repository:kws:pull,push"])
    tokens.lifetime_s = 300.0
    registry, chunks = opened(guarded, "kws"), []
    send = registry._patch

    def send_late(location: str, part: Any, start: int, length: int) -> Any:
        chunks.append(start)
        registry._authorization = f"Bearer {outdated}"
        return send(location, part, start, length)

    monkeypatch.setattr(registry, "_patch", send_late)
    asked = len(tokens.asked)
    assert pushed(registry, layout).sent == 3
    assert chunks.count(1 << 20) == 1  # no chunk was sent twice
    assert len(tokens.asked) - asked > len(chunks)
    assert verify(pull(opened(guarded, "kws:v1"), home / "pulled").folder) == ()


def test_a_wrong_password_and_a_missing_right(
    guarded: str, tokens: TokenServer, layout: Layout, home: Path
):
    log_in(home, guarded, user="user", password="wrong horse")
    with pytest.raises(Tf2aifError, match="cannot sign in: it answered 401") as wrong:
        pushed(opened(guarded, "kws"), layout)
    assert "the password of 'user' was refused" in wrong.value.faults[0].hint
    assert "wrong horse" not in str(wrong.value)
    tokens.passwords["guest"] = "guest"
    log_in(home, guarded, user="guest", password="guest")
    with pytest.raises(Tf2aifError, match="401") as denied:
        pushed(opened(guarded, "kws"), layout)
    assert "may not do this" in denied.value.faults[0].hint


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """An authority that no system knows."""
    return make_authority(tmp_path / "authority")


@pytest.fixture
def secure(authority: tuple[Path, Path], tmp_path: Path) -> Iterator[str]:
    """A registry whose certificate that authority signed."""
    with docker_registry(tmp_path / "registry", tls=tls_of(authority)) as address:
        yield address


def tls_of(authority: tuple[Path, Path], **more: object) -> str:
    """How a registry is told of a new certificate that this authority signed."""
    certificate, key = make_certificate(authority, authority[0].parent, "server")
    return json.dumps({"certificate": str(certificate), "key": str(key), **more})


def test_a_private_authority_is_said_and_then_believed(
    secure: str,
    authority: tuple[Path, Path],
    layout: Layout,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    with pytest.raises(Tf2aifError, match="its certificate is not trusted") as failed:
        pushed(opened(secure, "kws"), layout)
    assert f"/etc/docker/certs.d/{secure}/ca.crt" in failed.value.faults[0].hint
    folder = home / ".config" / "docker" / "certs.d" / secure
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(authority[0].read_bytes())
    assert pushed(opened(secure, "kws"), layout).sent == 3
    (folder / "ca.crt").write_text("no certificate")
    with pytest.raises(Tf2aifError, match="no certificate can be read there"):
        opened(secure, "kws")
    (folder / "ca.crt").unlink()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[0]))
    assert pushed(opened(secure, "kws"), layout).there == 3


def test_a_client_certificate_is_shown(
    authority: tuple[Path, Path], layout: Layout, home: Path, tmp_path: Path
):
    tls = tls_of(authority, clientcas=[str(authority[0])])
    certificate, key = make_certificate(authority, tmp_path, "client")
    with docker_registry(tmp_path / "registry", tls=tls) as address:
        folder = home / ".config" / "docker" / "certs.d" / address
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(authority[0].read_bytes())
        with pytest.raises(Tf2aifError, match="it wants a certificate of ours"):
            pushed(opened(address, "kws"), layout)
        (folder / "client.cert").write_bytes(certificate.read_bytes())
        (folder / "client.key").write_bytes(key.read_bytes())
        assert pushed(opened(address, "kws"), layout).sent == 3


def test_a_certificate_for_another_name_is_not_believed(
    secure: str, authority: tuple[Path, Path], layout: Layout, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[0]))
    other = secure.replace("127.0.0.1", "localhost")
    with pytest.raises(Tf2aifError, match=r"not trusted: .*localhost"):
        pushed(opened(other, "kws"), layout)


def test_a_registry_without_tls_is_said_at_once(tmp_path: Path, layout: Layout):
    with docker_registry(tmp_path / "registry") as address:
        with pytest.raises(Tf2aifError, match="does not speak TLS") as failed:
            pushed(opened(address, "kws", plain_http=False), layout)
    assert "--plain-http" in failed.value.faults[0].hint
