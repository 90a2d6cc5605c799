"""What is said of an action on a remote, and what of it is believed.

An entry of `ac/` is a `Bundle`: a few signed records of one action, newest first, and the bytes of
their small outputs. Each record is signed as DSSE says (Dead Simple Signing Envelope 1.0.2): the
signature covers the very bytes of the payload and their type. The small outputs need no signature,
since the record names them by their SHA-256.

Nothing here reads a file or asks a remote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from ..facts import key as key_of
from ..graph import Step
from ..records import ActionRecord, decode
from ..records import encode as encode_record
from .keys import SigningKey, Trusted, key_id
from .outputs import strange_files

PAYLOAD_TYPE = "application/vnd.tf2aif.action.v1+json"
SCHEMA = 1
KEEP = 8
"""Records in one bundle: what an action looked at when it ran may differ from tree to tree."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):
    """Why a record is not believed: one of a few fixed reasons, for counting."""


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who signed, and the 64 bytes."""

    keyid: str
    sig: bytes


class Envelope(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A signed record, as DSSE writes it."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of `ac/`."""

    schema: int
    records: tuple[Envelope, ...]
    contents: dict[str, bytes] = {}
    """SHA-256 -> the bytes of a small output."""


class SharedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload: the record as stores keep it, and what its outputs are called here."""

    schema: int
    record: msgspec.Raw
    sha256: tuple[str, ...]
    """Of each output, in the record's order."""


class Believed(msgspec.Struct, frozen=True):
    """A record that was signed by a trusted key and says what a record of the step can say."""

    record: ActionRecord
    sha256: tuple[str, ...]


_encoder = msgspec.json.Encoder()
_bundles = msgspec.json.Decoder(Bundle)
_payloads = msgspec.json.Decoder(SharedRecord)


def sign(record: ActionRecord, sha256: Sequence[str], key: SigningKey) -> Envelope:
    """The record in an envelope; `sha256` names its outputs, in order."""
    shared = SharedRecord(SCHEMA, msgspec.Raw(encode_record(record)), tuple(sha256))
    payload = _encoder.encode(shared)
    signature = Signature(key_id(key.public), key.sign(signed_bytes(PAYLOAD_TYPE, payload)))
    return Envelope(PAYLOAD_TYPE, payload, (signature,))


def signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: lengths before names, so that nothing is ambiguous."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode_bundle(records: Sequence[Envelope], contents: dict[str, bytes]) -> bytes:
    """An entry of `ac/`."""
    return _encoder.encode(Bundle(SCHEMA, tuple(records), contents))


def decode_bundle(data: bytes) -> Bundle:
    """An entry of `ac/`, of which nothing is believed yet. Raises Refused."""
    try:
        bundle = _bundles.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused("not a bundle of records") from error
    if bundle.schema != SCHEMA:
        raise Refused("of another version")
    return bundle


def read_envelope(envelope: Envelope, trusted: Trusted) -> Believed:
    """What a trusted key has signed, if it is a record at all. Raises Refused."""
    signed = signed_bytes(envelope.payload_type, envelope.payload)
    if not any(trusted.holds(one.keyid, one.sig, signed) for one in envelope.signatures):
        raise Refused("not signed by a trusted key")
    if envelope.payload_type != PAYLOAD_TYPE:
        raise Refused("of another version")
    try:
        shared = _payloads.decode(envelope.payload)
        record = decode(bytes(shared.record))
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused("not a record") from error
    if shared.schema != SCHEMA or encode_record(record) != bytes(shared.record):
        raise Refused("of another version")
    if len(shared.sha256) != len(record.outputs) or not all(map(_SHA256.fullmatch, shared.sha256)):
        raise Refused("not a record")
    return Believed(record, shared.sha256)


def outputs_of(envelope: Envelope) -> tuple[str, ...]:
    """What a record, believed or not, says its outputs are called; for making room."""
    try:
        return _payloads.decode(envelope.payload).sha256
    except (msgspec.DecodeError, RecursionError):
        return ()


def check_record(record: ActionRecord, step: Step, key: str) -> None:
    """Whether it is of this very action, and names what the step can have made. Raises Refused."""
    if record.key != key or key_of(record.facts) != key or record.kind != step.kind:
        raise Refused("of another action")
    paths = [file.path for file in record.outputs]
    if not paths or paths != sorted(set(paths)) or strange_files(step, paths):
        raise Refused("with other outputs than the step has")
    places = {*paths, *record.folders}
    if len(places) != len(paths) + len(record.folders) or any(
        parent in places for place in places for parent in _parents(place)
    ):
        raise Refused("with other outputs than the step has")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]
