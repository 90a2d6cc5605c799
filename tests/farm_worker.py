"""`tf2aif worker` with the step of these tests in its table; `--rogue`: one that cheats.

A rogue signs what it made, and then writes other bytes in their place into the shared cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tf2aif.cli
from tf2aif.farm.host import Host
from tf2aif.records import ActionRecord
from tf2aif.remotes.folder import FolderRemote
from tf2aif.steps import STEPS

KIND = "test-farm"


def cheat(self: Host, record: ActionRecord) -> None:
    """Other bytes under the names of those that were signed."""
    remote = self.carriage.remote
    assert isinstance(remote, FolderRemote)
    for path in Path(remote.root, "cas").rglob("*"):
        if path.is_file() and path.stat().st_size >= 30_000:
            path.write_bytes(b"x" * path.stat().st_size)


def main() -> int:
    STEPS[KIND] = "farm_step"
    words = sys.argv[1:]
    if "--rogue" in words:
        words.remove("--rogue")
        honest = Host._keep

        def keep(self, errand, out, reply):  # type: ignore[no-untyped-def]
            record = honest(self, errand, out, reply)
            self.carriage.give(record, self.key, self.trusted)
            cheat(self, record)
            return record

        Host._keep = keep  # type: ignore[method-assign]
    return tf2aif.cli.main(["worker", *words])


if __name__ == "__main__":
    sys.exit(main())
