"""A step on its way to another machine or container, and its results on their way back: as tars.

There: our own package, the files that the step reads, and last `errand.json`, which says what to
do with them. Back: what the step has written, and last `answer.json`, with the digest of each file.
A stream that was cut lacks its last member, so half of one is never taken for the whole.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from .digest import FileEntry, list_tree
from .errors import StepFailed
from .worker import Reply, Request

PACKAGE = Path(__file__).resolve().parent
START = b"--- tf2aif: what follows is an archive ---\n"
"""A login shell may print something before it."""

_ERRAND, _ANSWER = "errand.json", "answer.json"
_HOME, _OUT = "home", "out"


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done there."""

    toolchain: str
    request: Request | None = None
    """Its paths are relative to the parcel. None: say only what the toolchain is."""
    variables: dict[str, str] = {}
    """Those of this machine that can change what the step makes."""
    every_variable: bool = False
    """The step sees the whole environment there: an image's is known by its digest."""
    in_turn: bool = False
    """One step at a time on that machine."""
    timeout_s: float | None = None
    memory_mb: float | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    reply: Reply | None = None
    files: tuple[FileEntry, ...] = ()
    folders: tuple[str, ...] = ()
    identity: dict[str, dict[str, str]] = {}
    """The toolchain's: `about`, `versions` and `further`, or `missing`."""


def pack(request: Request) -> tuple[Request, dict[str, str]]:
    """A request as it is there, and what goes along: member -> path here.

    What lies in the recipe's folder keeps its place in it, so that user code finds what it reads;
    beside a file of user code go the modules that it may import.
    """
    members: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for number, (name, path) in enumerate(request.inputs.items()):
        inputs[name] = _place(path, request.folder, f"inputs/{number:02d}")
        members[inputs[name]] = path
    code = None
    if request.code:
        code = _place(request.code, request.folder, "code")
        members[code] = request.code
        for module in sorted(Path(request.code).parent.glob("*.py")):
            members[str(PurePosixPath(code).with_name(module.name))] = str(module)
    there = msgspec.structs.replace(
        request, inputs=inputs, code=code, folder=_HOME, out=_OUT, place=None
    )
    return there, members


def send(file: IO[bytes], errand: Errand, members: dict[str, str]) -> None:
    """Write a parcel. Raises OSError, of the stream or of a file that cannot be read."""
    with _writing(file) as tar:
        tar.add(PACKAGE, "tf2aif", filter=_source)
        for member, path in members.items():
            tar.add(path, member)
        for folder in (_HOME, _OUT):
            _add_folder(tar, folder)
        _add_bytes(tar, _ERRAND, msgspec.json.encode(errand))


def open_parcel(home: Path) -> Errand:
    """The errand of a parcel that was unpacked; its paths are absolute now."""
    errand = msgspec.json.decode((home / _ERRAND).read_bytes(), type=Errand)
    if errand.request is None:
        return errand
    request = errand.request
    there = msgspec.structs.replace(
        request,
        inputs={name: str(home / path) for name, path in request.inputs.items()},
        code=str(home / request.code) if request.code else None,
        folder=str(home / request.folder),
        out=str(home / request.out),
    )
    return msgspec.structs.replace(errand, request=there)


def reply_with(file: IO[bytes], answer: Answer, out: Path | None) -> None:
    """Write what came of an errand; `out` is the folder of what was made, if anything was."""
    file.write(START)
    with _writing(file) as tar:
        if out is not None:
            answer = msgspec.structs.replace(answer, files=list_tree(out), folders=_folders(out))
            for entry in answer.files:
                tar.add(out / entry.path, f"{_OUT}/{entry.path}", recursive=False)
        _add_bytes(tar, _ANSWER, msgspec.json.encode(answer))


def receive(file: IO[bytes], out: Path | None) -> Answer | None:
    """Read what came of an errand, what was made into `out`; None where the stream was cut.

    Raises StepFailed where a file is not what it was, or the answer is not of this form.
    """
    if not _find_start(file):
        return None
    answer: Answer | None = None
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or (member.name != _ANSWER and out is None):
                    raise _stray(member.name)
                if member.name == _ANSWER:
                    answer = msgspec.json.decode(content.read(), type=Answer)
                elif out is not None:
                    _write(out, member, content)
    except (tarfile.TarError, EOFError):
        return None
    except msgspec.DecodeError as error:
        raise StepFailed(f"what came back is no answer: {error}") from error
    if answer is not None and out is not None and answer.reply and not answer.reply.failure:
        _verify(out, answer)
    return answer


def _writing(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w|", dereference=True)


def _place(path: str, folder: str, elsewhere: str) -> str:
    """Where a file or folder goes in the parcel."""
    path = os.path.abspath(path)
    if folder and path.startswith(folder.rstrip("/") + "/"):
        return f"{_HOME}/{os.path.relpath(path, folder)}"
    return f"{elsewhere}/{os.path.basename(path)}"


def _source(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Our package without what Python and editors leave in it."""
    name = os.path.basename(info.name)
    return None if name == "__pycache__" or name.startswith(".") else info


def _add_folder(tar: tarfile.TarFile, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(info)


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    import io

    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _folders(out: Path) -> tuple[str, ...]:
    found = (path for path in sorted(out.rglob("*")) if path.is_dir() and not path.is_symlink())
    return tuple(str(path.relative_to(out)) for path in found)


def _find_start(file: IO[bytes]) -> bool:
    """Read up to the line that is before the archive; whether there is one."""
    return any(line.endswith(START) for line in _first_lines(file))


def _first_lines(file: IO[bytes]) -> Iterator[bytes]:
    for _ in range(1000):
        line = file.readline(1 << 16)
        if not line:
            return
        yield line


def _write(out: Path, member: tarfile.TarInfo, content: IO[bytes]) -> None:
    """One file of what was made; nothing outside of `out` is touched, whatever its name says."""
    path = PurePosixPath(member.name)
    parts: Iterable[str] = path.parts[1:]
    if path.parts[0] != _OUT or not parts or ".." in path.parts:
        raise _stray(member.name)
    dest = out.joinpath(*parts)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with open(dest, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    if member.mode & 0o100:
        dest.chmod(0o755)


def _stray(name: str) -> StepFailed:
    return StepFailed(f"what came back has no business there: {name!r}")


def _verify(out: Path, answer: Answer) -> None:
    """What is here now must be, to the bit, what was made there."""
    for folder in answer.folders:
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise _stray(folder)
        (out / folder).mkdir(parents=True, exist_ok=True)
    if list_tree(out) != answer.files:
        raise StepFailed("what came back is not what was made: a file has another digest")
