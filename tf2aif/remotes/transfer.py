"""Bytes to and from one remote, each verified on its way."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import xxhash

from ..records import ActionRecord, OutputFile
from ..store import CorruptBlob, Store
from .keys import SigningKey, Trusted
from .remote import CHUNK, Blob, Remote, RemoteFailed, action_name
from .trust import KEEP, Believed, Bundle, Envelope, Refused, encode_bundle, read_envelope, sign

SLOWEST = 256 << 10
"""Bytes a second: a transfer that is slower, after its time-out, has failed."""

INLINE_FILE, INLINE_ALL = 16 << 10, 64 << 10
"""Bytes of an output, and of all of an action's, that travel with its record: one request."""

TRIES = 3  # of one blob: each goes on where the one before broke off


def allowed_s(size: int, timeout_s: float) -> float:
    """How long a transfer of so many bytes may take."""
    return timeout_s + size / SLOWEST


def keep_content(content: bytes, blob: Blob, file: OutputFile, store: Store) -> None:
    """Put bytes that came with a record into the store. Raises Refused, CorruptBlob."""
    if hashlib.sha256(content).hexdigest() != blob.sha256:
        raise Refused
    with store.receive(file) as write:
        write(content)


def fetch_blob(
    remote: Remote, blob: Blob, file: OutputFile, store: Store, timeout_s: float
) -> None:
    """Stream a blob into the store; a connection that breaks is taken up again where it broke.

    Raises Refused and CorruptBlob for wrong bytes, and RemoteFailed: also where it is too slow.
    """
    until = time.monotonic() + allowed_s(blob.size, timeout_s)
    state, got = hashlib.sha256(), 0
    with store.receive(file) as write:
        for attempt in range(1, TRIES + 1):
            before = got
            try:
                with remote.get_blob(blob, got) as pieces:
                    for piece in pieces:
                        got += len(piece)
                        if got > blob.size:
                            raise Refused
                        state.update(piece)
                        write(piece)
                        if time.monotonic() > until:
                            raise _too_slow(remote, blob, timeout_s)
                break  # all that it has
            except RemoteFailed:
                if got == before or attempt == TRIES or time.monotonic() > until:
                    raise
        if got != blob.size or state.hexdigest() != blob.sha256:
            raise Refused


def upload_action(
    remote: Remote,
    record: ActionRecord,
    store: Store,
    *,
    key: SigningKey,
    trusted: Trusted,
    present: Bundle | None,
    damaged: Collection[str] = (),
) -> int | None:
    """Write a record, after the bytes that it names; the bytes sent, None where it is there.

    `present` is what stands there; of that, only what is believed stays. Blobs in `damaged` are
    written over. Raises CorruptBlob where the store here has other bytes than the record says,
    and RemoteFailed.
    """
    if holds(present, record, trusted):
        return None
    others = _believed(present, trusted)
    names, small, large = _read_outputs(record, store)
    sent = 0
    for blob, source in large.items():
        if blob.sha256 in damaged or not remote.has_blob(blob):
            remote.put_blob(blob, source)
            sent += blob.size
    kept = [(sign(record, names, key), Believed(record, names)), *others][:KEEP]
    contents = {**(present.contents if present else {}), **small}
    wanted = {name for _, believed in kept for name in believed.sha256}
    contents = {name: data for name, data in sorted(contents.items()) if name in wanted}
    data = encode_bundle([envelope for envelope, _ in kept], contents)
    blobs = dict.fromkeys([*large, *_blobs_of((b for _, b in kept[1:]), contents)])
    remote.put_action(action_name(record.key), data, tuple(blobs))
    return sent + len(data)


def holds(present: Bundle | None, record: ActionRecord, trusted: Trusted) -> bool:
    """Whether this very record is there, signed by who is trusted."""
    return any(believed.record == record for _, believed in _believed(present, trusted))


def _believed(bundle: Bundle | None, trusted: Trusted) -> list[tuple[Envelope, Believed]]:
    found = []
    for envelope in bundle.records if bundle else ():
        try:
            found.append((envelope, read_envelope(envelope, trusted)))
        except Refused:
            continue
    return found


def _blobs_of(records: Iterable[Believed], contents: Collection[str]) -> list[Blob]:
    return [
        Blob(name, file.size)
        for believed in records
        for file, name in zip(believed.record.outputs, believed.sha256, strict=True)
        if name not in contents
    ]


def _read_outputs(
    record: ActionRecord, store: Store
) -> tuple[tuple[str, ...], dict[str, bytes], dict[Blob, Path]]:
    """What the outputs are called, the small ones' bytes, and where the large ones are kept."""
    names: list[str] = []
    small: dict[str, bytes] = {}
    large: dict[Blob, Path] = {}
    room = INLINE_ALL
    for file in record.outputs:
        source = store.path_of(file)
        name, content = _read_output(source, file, keep=file.size <= min(room, INLINE_FILE))
        names.append(name)
        if content is None:
            large[Blob(name, file.size)] = source
        elif name not in small:
            small[name] = content
            room -= file.size
    return tuple(names), small, {b: p for b, p in large.items() if b.sha256 not in small}


def _read_output(source: Path, file: OutputFile, *, keep: bool) -> tuple[str, bytes | None]:
    """The SHA-256 of stored bytes, which are verified; and they themselves, if to be kept."""
    state, check, parts = hashlib.sha256(), xxhash.xxh3_128(), []
    with source.open("rb") as stored:
        while data := stored.read(CHUNK):
            state.update(data)
            check.update(data)
            if keep:
                parts.append(data)
    if check.hexdigest() != file.digest:
        raise CorruptBlob("stored bytes are not what they were", at=str(source))
    return state.hexdigest(), b"".join(parts) if keep else None


def _too_slow(remote: Remote, blob: Blob, timeout_s: float) -> RemoteFailed:
    limit = allowed_s(blob.size, timeout_s)
    return RemoteFailed(
        f"too slow: {blob.size / 1e6:.1f} MB took more than {limit:.0f} s", at=remote.url
    )
