"""A toolchain's lock: a requirements file in which every line names one version and its hashes.

Such a file is what `uv pip compile --generate-hashes` and `pip-compile --generate-hashes` write.
Nothing heavy is imported here: a lock is read whenever a build is planned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import Fault
from .installed import normalize

PACKAGED = Path(__file__).resolve().parent.parent / "data" / "locks"
HINT = "`uv pip compile --generate-hashes requirements.in --output-file` writes such a file"

_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*==\s*(?P<v>[^\s;]+)")


class Lock(NamedTuple):
    """A lock as it was read."""

    path: Path
    digest: str
    """xxh3_128 of its bytes."""
    pins: Mapping[str, str]
    """Distribution, by normalised name -> version."""


def read_lock(path: str) -> Lock:
    """Read a lock; a name without a folder is one of ours. Raises OSError."""
    import xxhash

    file = PACKAGED / path  # an absolute path stays as it is
    data = file.read_bytes()
    text = data.decode("utf-8", "replace")
    found = (_PIN.match(line) for _, line in _lines(text))
    pins = {normalize(match["name"]): match["v"] for match in found if match}
    return Lock(file, xxhash.xxh3_128_hexdigest(data), pins)


def lock_faults(text: str, shown: str) -> list[Fault]:
    """Every line of a lock that does not fix one version, or has no hash."""
    faults, count = [], 0
    for number, line in _lines(text):
        if line.startswith("-"):
            continue  # an option, such as --find-links
        count += 1
        name = line.split()[0]
        if not _PIN.match(line):
            faults.append(Fault(f"'{name}' is not fixed to one version", f"{shown}:{number}", HINT))
        elif "--hash=" not in line:
            faults.append(Fault(f"'{name}' has no hash", f"{shown}:{number}", HINT))
    return faults if count else [Fault("the lock names no package", shown, HINT)]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each logical line; comments and empty ones are left out."""
    whole, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        start = start or number
        whole += line.removesuffix("\\") + " "
        if not line.endswith("\\"):
            if whole.strip():
                yield start, whole.strip()
            whole, start = "", 0
    if whole.strip():
        yield start, whole.strip()
