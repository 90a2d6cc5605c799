"""What is told of a step whose process did not live to tell it: what killed it, and the traces."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from pathlib import Path

TAIL_BYTES = 8192
TAIL_LINES = 20

_OUR_FRAMES = re.compile(r'  File "(?:[^"]*/tf2aif/worker\.py|<frozen runpy>)"')  # here or far
_SIGNALS = {
    signal.SIGABRT: "native code gave up: a failed check, or an exception that nobody caught",
    signal.SIGBUS: "a file that was mapped into memory was cut, or the disk is full",
    signal.SIGFPE: "an arithmetic fault in native code",
    signal.SIGILL: "an instruction that this processor does not have: built for another one?",
    signal.SIGSEGV: "a segmentation fault in native code",
    signal.SIGTERM: "somebody asked it to end",
    signal.SIGXCPU: "past its limit of CPU time",
}


def cause_of_death(returncode: int | None, *, out_of_memory: bool) -> str:
    """What ended a process, from its return code as `subprocess` gives it."""
    if returncode is None:
        return "it closed its connection and went on running, and was stopped"
    if returncode >= 0:
        return f"its process ended with exit code {returncode}: something in it called exit"
    number = -returncode
    if number == signal.SIGKILL:
        return _killed(out_of_memory=out_of_memory)
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"its process was killed by signal {number}"
    words = _SIGNALS.get(signal.Signals(number))
    return f"its process was killed by {name}" + (f" ({words})" if words else "")


def _killed(*, out_of_memory: bool) -> str:
    if out_of_memory:
        return (
            "out of memory: its process was killed by the kernel's out-of-memory killer (SIGKILL)"
        )
    return "its process was killed by SIGKILL, most often the kernel's out-of-memory killer"


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, as far as we can see.

    The machine's count, and those of the control groups that we are in, of both versions.
    """
    return sum(_count(path, "oom_kill") for path in _counters())


def _counters() -> list[Path]:
    paths = [Path("/proc/vmstat")]
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, group = line.split(":", 2)
        if not controllers:
            paths.append(Path(f"/sys/fs/cgroup{group}/memory.events"))
            paths.append(Path("/sys/fs/cgroup/memory.events"))
        elif "memory" in controllers.split(","):
            paths.append(Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control"))
            paths.append(Path("/sys/fs/cgroup/memory/memory.oom_control"))
    return list(dict.fromkeys(paths))


def _count(path: Path, name: str) -> int:
    fields = (line.split() for line in _lines(path))
    return sum(int(words[1]) for words in fields if len(words) == 2 and words[0] == name)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def last_lines(log: Path) -> list[str]:
    """The end of a log, as far as a person wants to see it at once."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.rstrip()[:200] for line in text.splitlines()]
    return [line for line in lines if line and not _is_ours(line)][-TAIL_LINES:]


def _is_ours(line: str) -> bool:
    """Frames of the worker itself, in the stack that Python prints as it crashes."""
    return bool(_OUR_FRAMES.match(line))


def full_message(step: str, what: str, log: Path, again: str | None, *, tail: bool) -> str:
    """One line that says it all, then the end of the log, where the rest is, how to try again."""
    lines = [f"{step}: {what}"]
    if tail:
        lines += [f"     | {line}" for line in last_lines(log)]
    lines.append(f"  log: {log}")
    if again:
        lines.append(f"again: {again}")
    return "\n".join(lines)


def command_by_hand(request_file: Path) -> str:
    """The command that runs a step again, from the file of its request."""
    words = shlex.join([sys.executable, "-m", "tf2aif.worker", "--request", str(request_file)])
    home = str(Path(__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return f"PYTHONPATH={shlex.quote(home)} {words}" if home in given else words
