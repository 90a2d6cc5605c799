"""Every kind of remote keeps the same promises; and nothing is believed that is not signed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine import docker_registry
from servers import DAV, SECRET, USER, nginx, swift
from sharing import add_action, new_key, step_of

from tf2aif.cli import main
from tf2aif.errors import Tf2aifError
from tf2aif.facts import key as key_of
from tf2aif.freshness import declared
from tf2aif.graph import Graph, Step
from tf2aif.remotes import RemoteUse, open_for, open_remote, open_shared, outputs, uses
from tf2aif.remotes.ahead import fetch_ahead
from tf2aif.remotes.collect import collect
from tf2aif.remotes.keys import SigningKey, Trusted, find_signing_key, generate, key_id
from tf2aif.remotes.oci import BUNDLE
from tf2aif.remotes.remote import Blob, Remote, RemoteFailed, action_name
from tf2aif.remotes.shared import Report, Shared
from tf2aif.remotes.trust import (
    PAYLOAD_TYPE,
    Envelope,
    Signature,
    decode_bundle,
    encode_bundle,
    sign,
    signed_bytes,
)
from tf2aif.store import ActionRecord, Store
from tf2aif.workspace import Workspace

LARGE = os.urandom(3 << 20)


# The contract of a remote: the same tests over each kind, on a real server.


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Kind -> the address of one; each server is started when it is first asked for."""
    folder = tmp_path_factory.mktemp("servers")
    found: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        with ExitStack() as stack:

            def start(kind: str) -> str:
                place = folder / kind
                place.mkdir(exist_ok=True)  # its server may have been lacking
                if kind == "folder":
                    return str(place)
                if kind == "http":
                    return f"{stack.enter_context(nginx(place)).url}/some/cache"
                if kind == "oci":
                    return f"oci://{stack.enter_context(docker_registry(place))}/team/cache"
                patch.setenv("AWS_ENDPOINT_URL", stack.enter_context(swift(place)))
                patch.setenv("AWS_ACCESS_KEY_ID", USER)
                patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
                remote: Any = open_remote("s3://bucket")
                remote._client.create_bucket(Bucket="bucket")
                remote.close()
                return "s3://bucket/some/cache"

            def address(kind: str) -> str:
                if kind not in found:
                    found[kind] = start(kind)
                return found[kind]

            yield address


@pytest.fixture(params=["folder", "http", "oci", "s3"])
def remote(request: pytest.FixtureRequest, servers: Callable[[str], str]) -> Iterator[Remote]:
    opened = open_remote(servers(request.param))
    yield opened
    opened.close()


def blob_of(data: bytes, folder: Path) -> tuple[Blob, Path]:
    path = folder / "blob"
    path.write_bytes(data)
    return Blob(hashlib.sha256(data).hexdigest(), len(data)), path


def read(remote: Remote, blob: Blob, start: int = 0) -> bytes:
    with remote.get_blob(blob, start) as pieces:
        return b"".join(pieces)


def need_listing(remote: Remote) -> None:
    if remote.url.startswith("http:") and not DAV.exists():
        pytest.skip("needs PROPFIND: apt-get install libnginx-mod-http-dav-ext")


def test_an_action_is_read_as_it_was_last_written(remote: Remote) -> None:
    name = action_name("an action")
    assert remote.get_action(name) is None
    remote.put_action(name, b'{"first": true}', ())
    assert remote.get_action(name) == b'{"first": true}'
    remote.put_action(name, b'{"second": true}', ())
    assert remote.get_action(name) == b'{"second": true}'


def test_a_long_action(remote: Remote) -> None:
    name, data = action_name("long"), b'"' + b"x" * 1_500_000 + b'"'
    remote.put_action(name, data, ())
    assert remote.get_action(name) == data


def test_a_blob_is_read_from_any_place(remote: Remote, tmp_path: Path) -> None:
    blob, path = blob_of(LARGE, tmp_path)
    assert not remote.has_blob(blob)
    with pytest.raises(RemoteFailed) as failed:
        read(remote, blob)
    assert failed.value.absent
    remote.put_blob(blob, path)
    assert remote.has_blob(blob)
    assert read(remote, blob) == LARGE
    assert read(remote, blob, 1_000_000) == LARGE[1_000_000:]
    assert read(remote, blob, len(LARGE)) == b""


def test_an_empty_blob(remote: Remote, tmp_path: Path) -> None:
    blob, path = blob_of(b"", tmp_path)
    remote.put_blob(blob, path)
    assert read(remote, blob) == b""


def test_what_is_kept_is_listed_and_removed(remote: Remote, tmp_path: Path) -> None:
    need_listing(remote)
    blob, path = blob_of(b"to be removed", tmp_path)
    name = action_name("to be removed")
    remote.put_blob(blob, path)
    remote.put_action(name, b"{}", (blob,))
    entries = {entry.name: entry for entry in remote.entries()}
    assert entries[name].table == "ac"
    assert entries[name].size >= 2
    assert 1.7e9 < entries[name].modified < 1e11
    remote.delete(entries[name])
    remote.delete(entries[name])  # gone is no failure
    assert remote.get_action(name) is None
    assert name not in {entry.name for entry in remote.entries()}
    if blob.sha256 in entries:  # a registry removes its blobs itself
        assert entries[blob.sha256].size == blob.size
        remote.delete(entries[blob.sha256])
        assert not remote.has_blob(blob)


def test_actions_of_every_size_come_back(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushed by one, taken by another: records, small outputs, large ones, none twice."""
    monkeypatch.setitem(outputs.OUTPUTS, "check", ("*",))
    key = new_key(tmp_path)
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    contents = [
        {"check.json": b"{}"},
        {"check.json": b"x" * 20_000, "one": b"x" * 20_000, "two": b""},
        {f"many/{n}": bytes([n]) * 5_000 for n in range(40)},
        {"check.json": LARGE},
    ]
    records = [add_action(a, tmp_path / f"f{n}", n, files) for n, files in enumerate(contents)]
    giving = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
    for record in records:
        giving.give(record, a)
    giving._pushes.join(60)
    assert giving.report().given == len(records)
    assert giving.report().warnings == ()
    taking = Shared([(remote, False)], trusted=Trusted([key.public]))
    found = [taking.take(step_of(r), r.key, lambda _: "1", b) for r in records]
    assert found == records
    assert taking.report().taken_bytes <= sum(len(d) for c in contents for d in c.values())
    for record, files in zip(records, contents, strict=True):
        b.restore(record, tmp_path / "restored")
        for path, data in files.items():
            assert (tmp_path / "restored" / path).read_bytes() == data
    again = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
    for record in records:
        again.give(record, a)
    again._pushes.join(60)
    assert again.report().given == 0


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return new_key(tmp_path)


# Making room.


@pytest.fixture(params=["folder", "http", "oci", "s3"])
def filled(
    request: pytest.FixtureRequest,
    servers: Callable[[str], str],
    tmp_path: Path,
    key: SigningKey,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Remote, list[ActionRecord]]]:
    """A remote of the test's own with four actions; two of them share their large output."""
    monkeypatch.setitem(outputs.OUTPUTS, "check", ("*",))
    name = f"{servers(request.param)}-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    opened = open_remote(name)
    need_listing(opened)
    store = Store(tmp_path / "filled")
    records = [
        add_action(
            store,
            tmp_path / f"made{n}",
            n,
            {"check.json": b"{}", "weights": bytes([max(n, 1)]) * 100_000},
        )
        for n in range(4)
    ]
    giving = Shared([(opened, True)], trusted=Trusted([key.public]), key=key)
    for record in records:
        giving.give(record, store)
    assert giving.finish().given == 4
    yield opened, records
    opened.close()


def takeable(remote: Remote, records: list[ActionRecord], key: SigningKey, store: Store) -> int:
    """How many can be had, whole; nothing may be refused."""
    taking = Shared([(remote, False)], trusted=Trusted([key.public]))
    found = [taking.take(step_of(r), r.key, lambda _: "1", store) for r in records]
    report = taking.report()
    assert not report.warnings
    assert not report.refused
    return sum(record is not None for record in found)


def test_room_is_made_by_age(
    filled: tuple[Remote, list[ActionRecord]], key: SigningKey, tmp_path: Path
) -> None:
    remote, records = filled
    nothing = collect(remote, older_than_s=3600)
    assert (nothing.records, nothing.blobs, nothing.freed_bytes) == (0, 0, 0)
    would = collect(remote, older_than_s=-60, dry_run=True, grace_s=-60)
    assert would.records == 4
    assert would.freed_bytes > 300_000
    assert takeable(remote, records, key, Store(tmp_path / "one")) == 4
    did = collect(remote, older_than_s=-60, grace_s=-60)
    assert (did.records, did.freed_bytes, did.kept_bytes) == (4, would.freed_bytes, 0)
    assert list(remote.entries()) == []
    assert takeable(remote, records, key, Store(tmp_path / "two")) == 0


def test_room_is_made_by_size(
    filled: tuple[Remote, list[ActionRecord]], key: SigningKey, tmp_path: Path
) -> None:
    """What stays is whole."""
    remote, records = filled
    did = collect(remote, max_size_bytes=250_000, grace_s=-60)
    assert 1 <= did.records <= 3
    assert did.kept_bytes <= 250_000
    left = takeable(remote, records, key, Store(tmp_path / "left"))
    assert left == 4 - did.records


def test_bytes_that_came_lately_stay(
    filled: tuple[Remote, list[ActionRecord]], tmp_path: Path
) -> None:
    """Their action may be on its way."""
    remote, _ = filled
    blob, path = blob_of(b"of an action that is being pushed", tmp_path)
    remote.put_blob(blob, path)
    collect(remote)
    assert remote.has_blob(blob)


def test_what_is_no_bundle_goes(filled: tuple[Remote, list[ActionRecord]]) -> None:
    remote, _ = filled
    remote.put_action(action_name("rubbish"), b"<html>", ())
    assert collect(remote, dry_run=True).records == 1


def test_a_server_that_cannot_list_says_so(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", dav=False) as server:
        with pytest.raises(RemoteFailed, match="cannot list what it keeps: 405") as failed:
            collect(open_remote(server.url))
        assert "PROPFIND" in failed.value.faults[0].hint


# Who is believed.


class Kept:
    """A remote in memory, whose entries an attacker changes."""

    url = "memory:"

    def __init__(self) -> None:
        self.actions: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}

    def get_action(self, name: str) -> bytes | None:
        return self.actions.get(name)

    def put_action(self, name: str, data: bytes, blobs: Any) -> None:
        self.actions[name] = data

    def get_blob(self, blob: Blob, start: int) -> Any:
        return nullcontext(iter((self.blobs[blob.sha256][start:],)))

    def has_blob(self, blob: Blob) -> bool:
        return blob.sha256 in self.blobs

    def put_blob(self, blob: Blob, source: Path) -> None:
        self.blobs[blob.sha256] = source.read_bytes()

    def entries(self) -> Any:
        return iter(())

    def delete(self, entry: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Attack:
    """One honest record on a remote, and what becomes of it when somebody changes something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.honest, self.stranger = new_key(folder, "honest"), new_key(folder, "stranger")
        self.remote = Kept()
        store = Store(folder / "a")
        files = {"check.json": b"{}", "large/weights": LARGE[:100_000]}
        self.record = add_action(store, folder / "made", 1, files)
        giving = Shared([(self.remote, True)], trusted=Trusted([]), key=self.honest)
        giving.give(self.record, store)
        assert giving.finish().given == 1
        self.name = action_name(self.record.key)
        self.bundle = decode_bundle(self.remote.actions[self.name])

    def put(self, *envelopes: Envelope, contents: dict[str, bytes] | None = None) -> None:
        found = self.bundle.contents if contents is None else contents
        self.remote.actions[self.name] = encode_bundle(envelopes, found)

    def take(self, allow: bool = True) -> tuple[ActionRecord | None, dict[str, int]]:
        """What a victim takes, and what it refuses; nothing refused may be in its store."""
        store = Store(self.folder / f"victim-{os.urandom(4).hex()}")
        shared = Shared([(self.remote, False)], trusted=Trusted([self.honest.public]))
        step = step_of(self.record)
        found = shared.take(step, self.record.key, lambda _: "1", store)
        assert (found is not None) == (store.find(self.record.key, lambda _: "1") is not None)
        return found, shared.finish().refused

    def signed(self, payload: bytes, key: SigningKey, kind: str = PAYLOAD_TYPE) -> Envelope:
        signature = Signature(key_id(key.public), key.sign(signed_bytes(kind, payload)))
        return Envelope(kind, payload, (signature,))


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    monkeypatch.setitem(outputs.OUTPUTS, "check", ("check.json", "large/*"))
    return Attack(tmp_path)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a JSON document, and of every object and list."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, name))


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        # A digest stays one.
        return ("0" if value[:1] != "0" else "1") + value[1:]
    if isinstance(value, list):
        return [*value, value[0] if value else "more"]
    return {**value, "more": 1}


def with_change(document: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = change(inner[path[-1]])
    return copy


def without(document: Any, path: tuple[Any, ...]) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


def test_the_honest_record_is_taken(attack: Attack) -> None:
    assert attack.take() == (attack.record, {})


def test_every_field_of_a_record_changed_in_turn(attack: Attack) -> None:
    """With the honest signature kept, and signed again by a stranger, by any of his names."""
    honest = attack.bundle.records[0]
    document = json.loads(honest.payload)
    places = list(leaves(document))
    assert {"schema", "record", "sha256"} == {p[0] for p in places}
    fields = {p[1] for p in places if p[0] == "record" and len(p) == 2}
    known = {f.name for f in msgspec.structs.fields(ActionRecord)} - {"made_by"}
    assert fields == known
    tried = 0
    for place in places:
        for other in (with_change(document, place, changed), without(document, place)):
            payload = json.dumps(other, separators=(",", ":")).encode()
            assert payload != honest.payload
            forged = attack.signed(payload, attack.stranger)
            renamed = Signature(key_id(attack.honest.public), forged.signatures[0].sig)
            for envelope in (
                msgspec.structs.replace(honest, payload=payload),
                forged,
                msgspec.structs.replace(forged, signatures=(renamed,)),
                msgspec.structs.replace(forged, signatures=(*honest.signatures, renamed)),
            ):
                attack.put(envelope)
                assert attack.take() == (None, {"not signed by a trusted key": 1}), place
                tried += 1
    assert tried > 200


def test_every_field_of_the_envelope_changed_in_turn(attack: Attack) -> None:
    honest = attack.bundle.records[0]
    one = honest.signatures[0]
    flipped = bytes([one.sig[0] ^ 1]) + one.sig[1:]
    for envelope in (
        msgspec.structs.replace(honest, payload_type=PAYLOAD_TYPE + "2"),
        msgspec.structs.replace(honest, signatures=()),
        msgspec.structs.replace(honest, signatures=(Signature(one.keyid, flipped),)),
        msgspec.structs.replace(honest, signatures=(Signature(one.keyid, b""),)),
        msgspec.structs.replace(honest, signatures=(Signature("", one.sig),)),
        msgspec.structs.replace(honest, signatures=(Signature("0" * 16, one.sig),)),
        msgspec.structs.replace(honest, payload=honest.payload + b" "),
    ):
        attack.put(envelope)
        assert attack.take() == (None, {"not signed by a trusted key": 1})
    attack.put(honest)
    bundle = json.loads(attack.remote.actions[attack.name])
    for place in leaves(bundle):
        if "payload" in place or "signatures" in place or "contents" in place:
            continue
        other = json.dumps(with_change(bundle, place, changed))
        attack.remote.actions[attack.name] = other.encode()
        found, refused = attack.take()
        if place == ("records",):  # the same record twice
            assert found == attack.record
        else:
            assert found is None, place
            assert sum(refused.values()) >= 1


def test_other_bytes_under_an_honest_record(attack: Attack) -> None:
    honest = attack.bundle.records[0]
    (name,) = attack.bundle.contents
    attack.put(honest, contents={name: b"[]"})
    assert attack.take() == (None, {"with damaged bytes": 1})
    attack.put(honest)
    (blob,) = attack.remote.blobs
    right = attack.remote.blobs[blob]
    for wrong in (right[:-1] + b"!", right + b"!", right[:-1], b""):
        attack.remote.blobs[blob] = wrong
        assert attack.take() == (None, {"with damaged bytes": 1})
    attack.remote.blobs[blob] = right
    assert attack.take() == (attack.record, {})


def test_an_honest_record_of_another_action(attack: Attack, tmp_path: Path) -> None:
    """Copied to where another action's record is looked for."""
    store = Store(tmp_path / "c")
    other = add_action(store, tmp_path / "other", 2)
    sha = [base64.b16encode(b"\0" * 32).decode().lower()] * len(other.outputs)
    attack.put(sign(other, sha, attack.honest))
    assert attack.take() == (None, {"of another action": 1})


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("facts", {"step": "check", "more": 1}, "of another action"),
        ("kind", "tflite", "of another action"),
        ("key", "0" * 32, "of another action"),
        ("outputs", [], "with other outputs than the step has"),
        ("outputs", ["check.json", "evil.py"], "with other outputs than the step has"),
        ("outputs", ["check.json", "check.json"], "with other outputs than the step has"),
        ("outputs", ["large/a", "large/a/b"], "with other outputs than the step has"),
        ("outputs", ["large/b", "large/a"], "with other outputs than the step has"),
        ("folders", ["check.json"], "with other outputs than the step has"),
        ("folders", ["check.json/x"], "with other outputs than the step has"),
        ("outputs", ["../../.ssh/authorized_keys"], "not a record"),
        ("outputs", ["/etc/cron.d/x"], "not a record"),
        ("outputs", ["large/../../x"], "not a record"),
        ("folders", ["../x"], "not a record"),
        ("outputs", ["a\0b"], "not a record"),
        ("schema", 2, "not a record"),
    ],
)
def test_nonsense_that_a_trusted_key_has_signed(
    attack: Attack, field: str, value: Any, reason: str
) -> None:
    """A trusted machine may be out of order: what cannot be is not believed all the same."""
    document = json.loads(attack.bundle.records[0].payload)
    if field == "outputs":
        one = document["record"]["outputs"][0]
        value = [{**one, "path": path} for path in value]
        document["sha256"] = [document["sha256"][0]] * len(value)
    document["record"][field] = value
    payload = json.dumps(document, separators=(",", ":")).encode()
    attack.put(attack.signed(payload, attack.honest))
    assert attack.take() == (None, {reason: 1})


@pytest.mark.parametrize("names", [[], ["0" * 64], ["x" * 64] * 2, ["0" * 63] * 2])
def test_names_that_do_not_fit_the_outputs(attack: Attack, names: list[str]) -> None:
    document = json.loads(attack.bundle.records[0].payload) | {"sha256": names}
    payload = json.dumps(document, separators=(",", ":")).encode()
    attack.put(attack.signed(payload, attack.honest))
    assert attack.take() == (None, {"not a record": 1})


def test_a_field_that_we_do_not_know(attack: Attack) -> None:
    """Signed by a newer version: we cannot know what it means."""
    document = json.loads(attack.bundle.records[0].payload)
    document["record"]["sandbox"] = "none"
    payload = json.dumps(document, separators=(",", ":")).encode()
    attack.put(attack.signed(payload, attack.honest))
    assert attack.take() == (None, {"of another version": 1})


def test_an_honest_record_beside_a_forged_one(attack: Attack) -> None:
    honest = attack.bundle.records[0]
    forged = attack.signed(honest.payload.replace(b"0.5", b"0.1"), attack.stranger)
    attack.put(forged, honest)
    assert attack.take() == (attack.record, {"not signed by a trusted key": 1})


def test_who_writes_drops_what_he_does_not_believe(attack: Attack, tmp_path: Path) -> None:
    forged = attack.signed(attack.bundle.records[0].payload, attack.stranger)
    attack.put(forged, contents={**attack.bundle.contents, "0" * 64: b"junk"})
    store = Store(tmp_path / "d")
    files = {"check.json": b"{}", "large/weights": b"other" * 10_000}
    mine = add_action(store, tmp_path / "mine", 1, files)
    giving = Shared(
        [(attack.remote, True)], trusted=Trusted([attack.honest.public]), key=attack.honest
    )
    giving.give(mine, store)
    giving.finish()
    bundle = decode_bundle(attack.remote.actions[attack.name])
    assert len(bundle.records) == 1
    assert "0" * 64 not in bundle.contents


def test_the_dsse_encoding() -> None:
    """The example of the specification (DSSE 1.0.2, protocol.md)."""
    found = signed_bytes("http://example.com/HelloWorld", b"hello world")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_observed_facts_choose_among_the_records_of_a_key(tmp_path: Path, key: SigningKey) -> None:
    """As ccache's manifests: what a step looked at differs from tree to tree."""
    remote, store = Kept(), Store(tmp_path / "s")
    records = [
        add_action(
            store, tmp_path / f"f{n}", 1, {"check.json": b"%d" % n}, observed={"file.x": f"v{n}"}
        )
        for n in range(3)
    ]
    for record in records:  # one build after the other
        giving = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
        giving.give(record, store)
        assert giving.finish().given == 1
    for n, record in enumerate(records):
        taking = Shared([(remote, False)], trusted=Trusted([key.public]))
        victim = Store(tmp_path / f"v{n}")
        assert taking.take(step_of(record), record.key, lambda _, n=n: f"v{n}", victim) == record
    taking = Shared([(remote, False)], trusted=Trusted([key.public]))
    assert taking.take(step_of(record), record.key, lambda _: "v9", victim) is None
    assert taking.finish().refused == {}


def test_nobody_is_trusted(tmp_path: Path, key: SigningKey) -> None:
    shared = Shared([(Kept(), False)], trusted=Trusted([]))
    record = add_action(Store(tmp_path / "s"), tmp_path / "f", 1)
    assert shared.take(step_of(record), record.key, lambda _: "1", Store(tmp_path / "t")) is None
    (warning,) = shared.finish().warnings
    assert "no key is trusted" in warning


def test_only_what_is_lacking_is_fetched(tmp_path: Path, key: SigningKey) -> None:
    remote, a, b = Kept(), Store(tmp_path / "a"), Store(tmp_path / "b")
    first = add_action(a, tmp_path / "1", 1, {"check.json": LARGE})
    second = add_action(a, tmp_path / "2", 2, {"check.json": LARGE})
    giving = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
    for record in (first, second):
        giving.give(record, a)
    giving.finish()
    assert len(remote.blobs) == 1
    taking = Shared([(remote, False)], trusted=Trusted([key.public]))
    for record in (first, second):
        taking.take(step_of(record), record.key, lambda _: "1", b)
    assert taking.finish().taken_bytes == len(LARGE)


# Steps whose toolchain is not here.


def lacking(folder: Path) -> tuple[Workspace, Step]:
    """A machine without the toolchain of a step."""
    space = Workspace(folder)
    space.__dict__["store"] = Store(folder / "store")
    record = add_action(Store(folder / "other"), folder / "files", 1)
    step = msgspec.structs.replace(step_of(record), folder=str(folder), toolchain="vitis")
    assert space.lacks(step)
    return space, step


def test_what_came_from_a_device_is_taken_where_its_toolchain_is_not(
    tmp_path: Path, key: SigningKey
) -> None:
    """As `import-bundle` stores it: under facts that say no more than that it ran elsewhere."""
    space, step = lacking(tmp_path / "a")
    facts = declared(step, space)
    told = {"observed": {}, "result": {}, "timing": {}, "made_by": {"host": "board"}}
    record = space.store.add(
        key_of(facts), tmp_path / "a" / "files", step=step.id, kind="check", facts=facts, **told
    )
    remote = Kept()
    giving = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
    giving.give(record, space.store)
    assert giving.finish().given == 1
    other, _ = lacking(tmp_path / "b")
    other.shared = Shared([(remote, False)], trusted=Trusted([key.public]))
    # Where the project stands is no fact.
    graph = Graph({step.id: msgspec.structs.replace(step, folder=str(tmp_path / "b"))}, {})
    assert fetch_ahead(graph, other) == (step.id,)
    assert list(other.store.all_records()) == [record]
    assert other.shared.finish().unfound == ()


@pytest.mark.parametrize("trusting", [True, False])
def test_nothing_found_for_want_of_a_toolchain_is_told(
    tmp_path: Path, key: SigningKey, trusting: bool
) -> None:
    space, step = lacking(tmp_path)
    shared = Shared([(Kept(), False)], trusted=Trusted([key.public] if trusting else []))
    space.shared = shared
    assert fetch_ahead(Graph({step.id: step}, {}), space) == ()
    report = shared.finish()
    assert report.unfound == (("vitis",) if trusting else ())
    assert ("vitis, not here" in report.render()) == trusting


# Keys and addresses.


def test_a_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    public = generate(tmp_path / "deep" / "key")
    assert (tmp_path / "deep" / "key").stat().st_mode & 0o777 == 0o600
    found = find_signing_key({"TF2AIF_SIGNING_KEY": str(tmp_path / "deep" / "key")})
    assert found is not None
    assert found.public == public
    assert public.startswith("ed25519:")
    text = (tmp_path / "deep" / "key").read_text()
    assert find_signing_key({"TF2AIF_SIGNING_KEY": text}) is not None  # as CI hands it on
    with pytest.raises(Tf2aifError, match="there is a key already"):
        generate(tmp_path / "deep" / "key")
    assert find_signing_key({"XDG_CONFIG_HOME": str(tmp_path)}) is None


def test_a_key_that_openssl_made(tmp_path: Path) -> None:
    """Ours are ordinary files: other tools make and read them."""
    path = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    found = find_signing_key({"TF2AIF_SIGNING_KEY": str(path)})
    assert found is not None
    assert Trusted([found.public]).holds(key_id(found.public), found.sign(b"x"), b"x")


@pytest.mark.parametrize("content", ["", "not a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(Tf2aifError, match="that is not a private key"):
        find_signing_key({"TF2AIF_SIGNING_KEY": str(tmp_path / "key")})


def test_a_key_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Tf2aifError, match="cannot be read: No such file"):
        find_signing_key({"TF2AIF_SIGNING_KEY": str(tmp_path / "nothing")})


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:§"])
def test_what_is_no_public_key_is_said(text: str) -> None:
    with pytest.raises(Tf2aifError, match="not a public key"):
        Trusted([text])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "no shared cache is of the kind 'ftp'"),
        ("https://", "not the address of a shared cache"),
        ("https://user:secret@host/x", "credentials do not belong"),
        ("https://user:secret@host/x?query", "credentials do not belong"),
        ("https://user:a/secret@host/x", "credentials do not belong"),
        ("s3://key:secret@bucket/x", "credentials do not belong"),
        ("oci://user:secret@host/x", "credentials do not belong"),
        ("ftp://user:secret@host/x", "credentials do not belong"),
        ("https://[host/x", "not the address"),
        ("https://host:99999/x", "not the address"),
        ("oci://", "not the address"),
        ("oci://host/repository:tag", "without a tag"),
        ("s3:///prefix", "not the address"),
        ("file://", "not the address"),
        ("file://cache/x", "not the address"),
        ("file:cache/x", "not the address"),
        ("  ", "not the address"),
        ("~no-such-user/x", "not the address"),
    ],
)
def test_wrong_addresses(url: str, said: str) -> None:
    with pytest.raises(Tf2aifError, match=said) as failed:
        open_remote(url)
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("url", ["https://host:8080/team@x/y", "http://host/a@b"])
def test_an_at_sign_in_a_path_is_no_credential(url: str) -> None:
    assert open_remote(url).url == url


def test_a_folder_with_a_blank_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a cache"
    assert open_remote(folder.as_uri()).url == open_remote(str(folder)).url == folder.as_uri()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    use = RemoteUse(str(tmp_path / "typo"))
    shared = open_shared([use])
    assert shared is not None
    assert any("there is no folder" in text and "typo" in text for text in shared.report().warnings)
    with pytest.raises(Tf2aifError, match="there is no such folder"):
        collect(open_remote(use.url))
    written = open_shared([RemoteUse(use.url, write=True)])
    assert written is not None
    assert not any("typo" in text for text in written.report().warnings)


@pytest.mark.parametrize(
    "words", [["--max-size=-1G"], ["--max-size=infG"], ["--older-than=-5d"], ["--older-than=nand"]]
)
def test_a_limit_that_is_no_amount(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cache", "gc", *words])
    assert "is no " in capsys.readouterr().err


def test_read_and_write_are_separate_rights() -> None:
    people = uses([RemoteUse("https://a"), RemoteUse("https://b", write=True)], environ={})
    assert [one.write for one in people] == [False, True]
    ci = uses([RemoteUse("https://a")], environ={"TF2AIF_REMOTE_WRITE": "yes"})
    assert ci == (RemoteUse("https://a", write=True),)
    assert uses([RemoteUse("https://a")], environ={"TF2AIF_REMOTE": "x"}) == (RemoteUse("x"),)
    assert uses([], "y", {"TF2AIF_REMOTE": "x"}) == (RemoteUse("y"),)


def test_a_projects_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TF2AIF_REMOTE", "TF2AIF_REMOTE_WRITE", "TF2AIF_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert open_for(tmp_path) is None
    public = new_key(tmp_path).public
    (tmp_path / "tf2aif.yaml").write_text(
        "cache:\n  remotes:\n  - url: shared/cache\n  - {url: 'https://cache/x', write: true}\n"
        f"  trusted: ['{public}']\n  timeout_s: 3\n"
    )
    shared = open_for(tmp_path)
    assert shared is not None
    first, second = shared.lines
    assert first.remote.url == (tmp_path / "shared/cache").as_uri()
    assert (first.writes, second.writes) == (False, True)
    assert shared.timeout_s == 3
    assert list(shared.trusted.keys) == [key_id(public)]


def test_credentials_come_from_the_environment_and_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine cache login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("TF2AIF_REMOTE_TOKEN", raising=False)
    remote: Any = open_remote("https://cache/x")
    expected = "Basic " + base64.b64encode(b"me:secret").decode()
    assert remote._headers == {"Authorization": expected}
    monkeypatch.setenv("TF2AIF_REMOTE_TOKEN", "token")
    remote = open_remote("https://cache/x")
    assert remote._headers == {"Authorization": "Bearer token"}


def documented_server(folder: Path) -> str:
    """The block of docs/shared-cache.md, for this machine; one user, `me`, may write."""
    page = (Path(__file__).parent.parent / "docs" / "shared-cache.md").read_text()
    (found,) = re.findall(r"^server \{\n.*?^\}$", page, re.M | re.S)
    password = subprocess.run(
        ["openssl", "passwd", "-apr1", "secret"], capture_output=True, text=True, check=True
    )
    (folder / "writers").write_text(f"me:{password.stdout}")
    for there, here in (
        ("listen 443 ssl;", "listen 127.0.0.1:PORT;"),
        ("root /srv/tf2aif-cache;", "root FILES;"),
        ("/etc/nginx/writers", str(folder / "writers")),
        ("  dav_ext_methods PROPFIND;\n", "  dav_ext_methods PROPFIND;\n" if DAV.exists() else ""),
    ):
        assert there in found
        found = found.replace(there, here)
    return str(found)


def test_the_web_server_of_the_documentation(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody reads; who has the password writes."""
    monkeypatch.delenv("TF2AIF_REMOTE_TOKEN", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    store = Store(tmp_path / "s")
    record = add_action(store, tmp_path / "f", 1)
    with nginx(tmp_path / "nginx", server=documented_server(tmp_path)) as server:

        def give() -> Report:
            remote = open_remote(server.url)
            giving = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
            giving.give(record, store)
            return giving.finish()

        (warning,) = give().warnings
        assert "401" in warning
        assert "~/.netrc" in warning
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
        assert give().given == 1
        (tmp_path / "netrc").unlink()
        remote = open_remote(server.url)
        assert takeable(remote, [record], key, Store(tmp_path / "t")) == 1


def test_a_small_action_is_one_request_to_a_registry(
    servers: Callable[[str], str], tmp_path: Path, key: SigningKey
) -> None:
    """Its bundle is in the manifest itself, as an OCI artifact with a type of its own."""
    remote: Any = open_remote(servers("oci"))
    store = Store(tmp_path / "s")
    record = add_action(store, tmp_path / "f", 77)
    giving = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
    giving.give(record, store)
    assert giving.finish().given == 1
    _, data = remote._registry.find_manifest("ac-" + action_name(record.key))
    manifest = json.loads(data)
    assert manifest["artifactType"] == "application/vnd.tf2aif.action.v1+json"
    assert manifest["layers"][0]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert decode_bundle(manifest["annotations"][BUNDLE].encode()).records


def test_a_registry_keeps_blobs_that_an_action_names(
    servers: Callable[[str], str], tmp_path: Path, key: SigningKey
) -> None:
    remote: Any = open_remote(servers("oci"))
    store = Store(tmp_path / "s")
    record = add_action(store, tmp_path / "f", 78, {"check.json": LARGE})
    giving = Shared([(remote, True)], trusted=Trusted([key.public]), key=key)
    giving.give(record, store)
    giving.finish()
    _, data = remote._registry.find_manifest("ac-" + action_name(record.key))
    assert [layer["size"] for layer in json.loads(data)["layers"]] == [len(LARGE)]


def test_s3_refuses_a_wrong_secret(
    servers: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = servers("s3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RemoteFailed, match="SignatureDoesNotMatch"):
        open_remote(url).get_action("0" * 64)


def test_a_bucket_that_is_not_there_is_no_empty_cache(servers: Callable[[str], str]) -> None:
    servers("s3")
    with pytest.raises(RemoteFailed, match="NoSuchBucket"):
        open_remote("s3://another/x").get_action("0" * 64)


def test_nothing_heavy_is_imported_without_remotes() -> None:
    """Planning and a build without shared caches load none of their clients."""
    code = (
        "import sys, tf2aif.cli, tf2aif.execute, tf2aif.workspace, tf2aif.remotes\n"
        "heavy = ('cryptography', 'botocore', 'urllib3', 'requests', 'ssl')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
