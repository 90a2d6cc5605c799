"""Making room on a remote: old actions go, then the bytes that no action needs.

A remote is not told of reads: what counts is when an action was written. Nobody can be kept away
meanwhile, so bytes that came lately stay: their action may be on its way. Who finds an action whose
bytes went makes it himself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from ..errors import Tf2aifError
from ..upkeep import CollectReport
from .crew import Crew
from .remote import Entry, Remote
from .trust import Refused, decode_bundle, outputs_of

GRACE_S = 3600.0
_THREADS = 8


def collect(
    remote: Remote,
    *,
    max_size_bytes: int | None = None,
    older_than_s: float | None = None,
    dry_run: bool = False,
    grace_s: float = GRACE_S,
) -> CollectReport:
    """Remove actions that are too old or too much, oldest first, and bytes that none needs.

    What is no bundle of records goes too. Raises RemoteFailed where the remote cannot list what it
    keeps, or will not remove it.
    """
    now, entries = time.time(), list(remote.entries())
    blobs = {entry.name: entry for entry in entries if entry.table == "cas"}
    actions = sorted((e for e in entries if e.table == "ac"), key=lambda e: (e.modified, e.name))
    young = [
        entry for entry in actions if older_than_s is None or entry.modified >= now - older_than_s
    ]
    needs = _read_needs(remote, young)
    kept = _fitting([e for e in young if e.name in needs], needs, blobs, max_size_bytes)
    names = {entry.name for entry in kept}
    needed = {name for entry in kept for name in needs[entry.name]}
    old_actions = [entry for entry in actions if entry.name not in names]
    old_blobs = [b for b in blobs.values() if b.name not in needed and b.modified < now - grace_s]
    going = [*old_actions, *old_blobs]
    if not dry_run:
        _delete(remote, old_actions)  # first: killed here, it leaves bytes that nobody needs
        _delete(remote, old_blobs)
    return CollectReport(
        records=len(old_actions),
        blobs=len(old_blobs),
        freed_bytes=sum(entry.size for entry in going),
        kept_bytes=sum(entry.size for entry in entries) - sum(entry.size for entry in going),
        dry_run=dry_run,
    )


def _read_needs(remote: Remote, actions: Sequence[Entry]) -> dict[str, frozenset[str]]:
    """Action -> the blobs that it needs; without those that are no bundles, or gone."""

    def read(entry: Entry) -> frozenset[str] | None:
        data = remote.get_action(entry.name)
        if data is None:
            return None
        try:
            bundle = decode_bundle(data)
        except Refused:
            return None
        found = {name for envelope in bundle.records for name in outputs_of(envelope)}
        return frozenset(found - bundle.contents.keys())

    crew = Crew(_THREADS, "tf2aif-collect")
    jobs = {entry.name: crew.submit(partial(read, entry)) for entry in actions}
    crew.close()
    found = {name: job.result() for name, job in jobs.items()}
    return {name: needs for name, needs in found.items() if needs is not None}


def _fitting(
    actions: Sequence[Entry],
    needs: dict[str, frozenset[str]],
    blobs: dict[str, Entry],
    max_size_bytes: int | None,
) -> Sequence[Entry]:
    """As many as fit, the youngest first; a blob that several need is counted once."""
    if max_size_bytes is None:
        return actions
    users = Counter(name for entry in actions for name in needs[entry.name] if name in blobs)
    total = sum(e.size for e in actions) + sum(blobs[name].size for name in users)
    for index, entry in enumerate(actions):
        if total <= max_size_bytes:
            return actions[index:]
        total -= entry.size
        for name in needs[entry.name] & users.keys():
            users[name] -= 1
            total -= 0 if users[name] else blobs[name].size
    return ()


def _delete(remote: Remote, entries: Iterable[Entry]) -> None:
    crew = Crew(_THREADS, "tf2aif-collect")
    jobs = [crew.submit(partial(remote.delete, entry)) for entry in entries]
    crew.close()
    failed = [error for job in jobs if (error := job.exception()) is not None]
    for error in failed:
        if not isinstance(error, Tf2aifError):
            raise error
    if failed:
        raise failed[0]
