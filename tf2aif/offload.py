"""Run a step where its toolchain is, if that is not here: send a parcel, take back the answer.

The process that is started here is `docker run` or `ssh`. What the step prints comes on its
standard error, straight into the step's log. Its standard input stays open as long as we wait:
when it closes, however that comes, the other side ends the step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from .errors import StepFailed
from .facts import Facts
from .parcel import Answer, Errand, pack, receive, send
from .postmortem import last_lines
from .toolchains import environment_facts
from .toolchains.connection import NEEDS, Connection
from .worker import Reply, Request, failed_reply

GRACE_S = 60.0
"""So much longer than a step may take, nothing may be heard of it."""
POLL_S = 0.2


class Trip:
    """One errand elsewhere, from start to end."""

    def __init__(self, connection: Connection, log: Path) -> None:
        self._connection = connection
        self._log = log
        self._lock = threading.Lock()
        self._ended = ""  # why we ended it
        self._abandoned = False
        self._moved = 0
        self._over = threading.Event()
        with open(log, "ab") as output:
            self._popen = subprocess.Popen(
                connection.argv,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # the terminal's Ctrl-C is ours to handle
            )
        self._stdin = _counted(self._popen.stdin, self._count)
        self._stdout = _counted(self._popen.stdout, self._count)

    def run(
        self, errand: Errand, members: dict[str, str], out: Path | None, quiet_s: float | None
    ) -> Answer:
        """Send the parcel, wait, and take what comes back into `out`.

        `quiet_s` is how long nothing may be heard. Raises StepFailed where no answer comes.
        """
        threads = [
            threading.Thread(target=self._send, args=(errand, members), daemon=True),
            threading.Thread(target=self._watch, args=(quiet_s,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            answer = receive(self._stdout, out)
            if answer is None:
                raise self._failure()
            return answer
        except BaseException:
            self._abandoned = True
            self.signal_group()  # first: a pipe that nobody reads would hold us up
            raise
        finally:
            self._over.set()
            self.end()
            for thread in threads:
                thread.join()

    def end(self) -> None:
        """End what still runs, on both sides. Calling it twice is harmless."""
        if self._finish():
            return
        self.signal_group()
        self._popen.wait()
        if self._connection.ended_by:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(self._connection.ended_by, capture_output=True, timeout=30)

    def signal_group(self) -> None:
        """Kill the process here; the other side notices that it has gone."""
        with self._lock:
            if self._popen.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._popen.pid, signal.SIGKILL)

    def _finish(self) -> bool:
        """Close our end; whether the process then ends by itself."""
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                stream.close()
        if self._abandoned:
            return False
        try:
            self._popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _send(self, errand: Errand, members: dict[str, str]) -> None:
        try:
            send(self._stdin, errand, members)
            self._stdin.flush()
        except BrokenPipeError:
            return  # why it has gone, its exit code and log tell
        except (OSError, ValueError) as error:
            self._end_because(f"what the step reads cannot be sent: {error}")

    def _watch(self, quiet_s: float | None) -> None:
        """End it where nothing is heard of it for too long."""
        seen, since = -1, time.monotonic()
        while quiet_s is not None and not self._over.wait(POLL_S):
            now = self._moved + self._log.stat().st_size
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > quiet_s:
                self._end_because(f"nothing was heard of it for {quiet_s:g} s")
                return

    def _end_because(self, why: str) -> None:
        self._ended = self._ended or why
        self.signal_group()

    def _count(self, size: int) -> None:
        self._moved += size

    def _failure(self) -> StepFailed:
        """Why no answer came: from the exit code of the command, and what it printed."""
        if self._ended:
            return StepFailed(self._ended)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=5)
        code = self._popen.returncode
        if code in self._connection.codes:
            message, hint = self._connection.codes[code]
            return StepFailed(message, hint=hint)
        lines = last_lines(self._log)
        lacking = next((line for line in lines if line.startswith("ModuleNotFoundError")), "")
        if lacking:
            return StepFailed(f"{self._connection.where}: {lacking}", hint=f"it needs {NEEDS}")
        return StepFailed(
            f"{self._connection.where}, it ended with exit code {code} before it had answered"
        )


def run_elsewhere(
    trip: Trip,
    connection: Connection,
    request: Request,
    *,
    timeout_s: float | None,
    memory_mb: float | None,
) -> Reply:
    """Run a step there; what it makes is in `request.out` then, held against its digests.

    What is wrong, lost connections too, is the failure in the reply.
    """
    there, members = pack(request)
    errand = Errand(
        toolchain=request.toolchain,
        request=there,
        variables=environment_facts(request.environment),
        every_variable=connection.every_variable,
        in_turn=connection.in_turn,
        timeout_s=timeout_s,
        memory_mb=memory_mb,
    )
    quiet_s = None if timeout_s is None else timeout_s + GRACE_S
    try:
        answer = trip.run(errand, members, Path(request.out), quiet_s)
    except StepFailed as error:
        return _with_log(failed_reply(error))
    if answer.reply is None:
        return failed_reply(StepFailed(f"{connection.where}: it answered something else"))
    if failure := answer.reply.failure:
        said = msgspec.structs.replace(failure, message=f"{failure.message} ({connection.where})")
        return msgspec.structs.replace(answer.reply, failure=said)
    return msgspec.structs.replace(answer.reply, observed=our_own(answer.reply.observed))


def ask(connection: Connection, toolchain: str, timeout_s: float) -> dict[str, dict[str, str]]:
    """What a toolchain is there. Raises StepFailed where nobody can say."""
    with _printing() as log:
        answer = Trip(connection, log).run(Errand(toolchain=toolchain), {}, None, timeout_s)
        return answer.identity


@contextlib.contextmanager
def _printing() -> Iterator[Path]:
    """A file for what is printed while a question is asked; its end is told with what failed."""
    with tempfile.TemporaryDirectory(prefix="tf2aif-") as folder:
        log = Path(folder, "log.txt")
        try:
            yield log
        except StepFailed as error:
            fault, lines = error.faults[0], last_lines(log)
            message = f"{fault.message} ({lines[-1]})" if lines else fault.message
            raise StepFailed(message, hint=fault.hint) from error


def _with_log(reply: Reply) -> Reply:
    """Nobody over there has said what was wrong: the end of the log is told with it."""
    failure = msgspec.structs.replace(reply.failure, expected=False) if reply.failure else None
    return msgspec.structs.replace(reply, failure=failure)


def our_own(observed: Facts) -> Facts:
    """What was observed there and can be looked at here: the user's own files, by relative names.

    Distributions there are the toolchain's; its identity stands for them.
    """
    kinds = ("module.", "file.", "folder.")
    return {
        name: value
        for name, value in observed.items()
        if name.startswith(kinds) and not name.partition(".")[2].startswith("/")
    }


class _Counted:
    """A stream that counts what goes through it."""

    def __init__(self, stream: IO[bytes], count: Callable[[int], None]) -> None:
        self._count = count
        self._stream = stream
        self.readline, self.flush, self.close = stream.readline, stream.flush, stream.close

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._count(len(data))
        return data

    def write(self, data: Any) -> int:
        self._count(len(data))
        return self._stream.write(data)


def _counted(stream: IO[bytes] | None, count: Callable[[int], None]) -> IO[bytes]:
    return cast(IO[bytes], _Counted(cast(IO[bytes], stream), count))
