"""Where measurements of a variant are kept: lines of JSON, one for each run of `tf2aif bench`.

    build/<recipe>/<variant>/bench.jsonl    of the artifact that stands there
    <cache>/v1/bench/…/<artifact>.jsonl     on this machine, by the artifact's digest

Measuring again takes minutes and a quiet machine, so a measurement outlives `build/`: whoever
writes a variant's folder gets the lines of its artifact back. What a line says stands in
`tf2aif.bench.record`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from .errors import Tf2aifError
from .store import LAYOUT

FILE = "bench.jsonl"


class Head(msgspec.Struct, frozen=True):
    """What a line is of; and what two records of one measurement have in common."""

    recipe: str
    variant: str
    artifact: str
    measured_at: str = ""
    machine: Any = None
    scenarios: Any = None

    @property
    def identity(self) -> bytes:
        """The same for the same measurement, whichever way it came here."""
        return msgspec.json.encode(self, order="sorted")


def read_lines(path: Path) -> list[bytes]:
    """The records in a file, oldest first, each measurement once; none where none can be read."""
    try:
        return _merged(path.read_bytes().split(b"\n"))
    except OSError:
        return []


def add_lines(folder: Path, cache: Path, lines: Iterable[bytes]) -> int:
    """Add records of one artifact to its variant's folder and to the cache; how many were new here.

    Raises Tf2aifError where one of the two cannot be written; the other has them then.
    """
    new = _merged(lines)
    heads = [head for line in new if (head := _head(line))]
    if not heads:
        return 0
    added, failed = 0, None
    for path in (_kept(cache, heads[0].artifact), folder / FILE):
        try:
            added = _append(path, new)
        except OSError as error:
            failed = Tf2aifError(
                f"measurements cannot be kept: {error.strerror or error}",
                at=str(path),
                hint="set TF2AIF_CACHE to a folder that you can write; make room there",
            )
    if failed:
        raise failed
    return added


def restore_lines(
    old: Path, new: Path, cache: Path, *, recipe: str, variant: str, artifact: str
) -> None:
    """Put into the folder `new` what is known of that artifact: from the folder before it, and from
    the cache, where the variant may have been measured in another tree.
    """
    wanted = (recipe, variant, artifact)
    lines = [
        line
        for line in _merged([*read_lines(_kept(cache, artifact)), *read_lines(old / FILE)])
        if (head := _head(line)) and (head.recipe, head.variant, head.artifact) == wanted
    ]
    if lines:
        (new / FILE).write_bytes(b"".join(line + b"\n" for line in lines))


def _kept(cache: Path, artifact: str) -> Path:
    return cache / LAYOUT / "bench" / artifact[:2] / f"{artifact}.jsonl"


def _merged(lines: Iterable[bytes]) -> list[bytes]:
    """Records, oldest first, each measurement once: as it came first."""
    found: dict[bytes, tuple[str, bytes]] = {}
    for line in lines:
        if head := _head(line):
            found.setdefault(head.identity, (head.measured_at, line))
    return [line for _, line in sorted(found.values(), key=lambda each: each[0])]


def _append(path: Path, lines: Iterable[bytes]) -> int:
    """Add those that are not there, in one write: others may add to the file meanwhile."""
    before = path.read_bytes() if path.is_file() else b""
    known = {head.identity for line in before.split(b"\n") if (head := _head(line))}
    new = [line for line in lines if (head := _head(line)) and head.identity not in known]
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = b"\n" if before and not before.endswith(b"\n") else b""
        with path.open("ab", buffering=0) as file:
            file.write(cut_off + b"".join(line + b"\n" for line in new))
    return len(new)


def _head(line: bytes) -> Head | None:
    """What a line is of; None for what is no record, such as a line that was cut off."""
    try:
        return msgspec.json.decode(line, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
