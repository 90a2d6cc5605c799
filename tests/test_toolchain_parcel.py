"""What goes to another machine and comes back: whole and as it was, or not taken at all."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf2aif.digest import list_tree
from tf2aif.errors import StepFailed
from tf2aif.parcel import START, Answer, Errand, open_parcel, pack, receive, reply_with, send
from tf2aif.worker import Reply, Request

REPLY = Reply(wall_s=1.0, cpu_s=1.0, peak_mb=1.0)


def unpacked(data: bytes, home: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        tar.extraction_filter = lambda member, _: member  # as the far side does: all is taken
        tar.extractall(home)
    return home


def sent_to(home: Path, request: Request) -> Request:
    """A request after its journey, unpacked at `home`."""
    stream = io.BytesIO()
    there, members = pack(request)
    send(stream, Errand(toolchain="python", request=there), members)
    errand = open_parcel(unpacked(stream.getvalue(), home))
    assert errand.request is not None
    return errand.request


def request_of(folder: Path, **changes: object) -> Request:
    fields: dict[str, object] = {"inputs": {}, "folder": str(folder), "out": str(folder / "out")}
    return Request(step="a/b", kind="k", module="m", toolchain="python", **(fields | changes))  # type: ignore[arg-type]


def answer_with(out: Path) -> bytes:
    stream = io.BytesIO()
    reply_with(stream, Answer(reply=REPLY), out)
    return stream.getvalue()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What a step may have written."""
    out = tmp_path / "made"
    (out / "deep" / "empty").mkdir(parents=True)
    (out / "deep" / "model.bin").write_bytes(bytes(range(256)) * 100)
    (out / "run.sh").write_text("true\n")
    (out / "run.sh").chmod(0o755)
    (out / "größe").write_text("x")
    (out / "link").symlink_to("run.sh")
    return out


def test_inputs_keep_their_place_in_the_recipes_folder(tmp_path: Path) -> None:
    recipes, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    (recipes / "code").mkdir(parents=True)
    (elsewhere / "model").mkdir(parents=True)
    (recipes / "code" / "loader.py").write_text("import helper\n")
    (recipes / "code" / "helper.py").write_text("")
    (recipes / "data.npy").write_bytes(b"1")
    (elsewhere / "model" / "w").write_bytes(b"2")
    inputs = {
        "code": str(recipes / "code" / "loader.py"),
        "data": str(recipes / "data.npy"),
        "model": str(elsewhere / "model"),
    }
    request = request_of(recipes, inputs=inputs, code=inputs["code"])
    there = sent_to(tmp_path / "there", request)
    assert Path(there.inputs["data"]) == Path(there.folder) / "data.npy"
    assert there.code == there.inputs["code"] == f"{there.folder}/code/loader.py"
    assert Path(there.code).with_name("helper.py").is_file()
    assert (Path(there.inputs["model"]) / "w").read_bytes() == b"2"
    assert os.listdir(there.out) == []
    assert there.place is None


def test_two_inputs_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    inputs = {"first": str(tmp_path / "a" / "x"), "second": str(tmp_path / "b" / "x")}
    there = sent_to(tmp_path / "there", request_of(tmp_path / "recipes", inputs=inputs))
    assert [Path(path).read_text() for path in there.inputs.values()] == ["a", "b"]


def test_hard_and_soft_links_arrive_as_files(tmp_path: Path) -> None:
    """The store's files may be hard links of each other."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "a").write_text("same")
    os.link(model / "a", model / "b")
    (model / "c").symlink_to("a")
    request = request_of(tmp_path / "recipes", inputs={"model": str(model)})
    there = Path(sent_to(tmp_path / "there", request).inputs["model"])
    assert list_tree(there) == list_tree(model)
    assert not (there / "c").is_symlink()


def test_our_own_package_goes_along_without_its_leftovers(tmp_path: Path) -> None:
    sent_to(tmp_path / "there", request_of(tmp_path))
    package = tmp_path / "there" / "tf2aif"
    assert (package / "far.py").is_file()
    assert not list(package.rglob("__pycache__"))


def test_what_was_made_comes_back_as_it_was(made: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    back.mkdir()
    data = b"Last login: never\r\nhello from .bashrc\n" + answer_with(made)
    answer = receive(io.BytesIO(data), back)
    assert answer is not None
    assert answer.reply == REPLY
    assert list_tree(back) == list_tree(made) == answer.files
    assert (back / "deep" / "empty").is_dir()


def test_an_answer_that_was_cut_anywhere_is_none(made: Path, tmp_path: Path) -> None:
    data = answer_with(made)
    end = data.rindex(b"}") + 1  # of the last member; what follows is padding
    cuts = [0, 10, len(START), len(START) + 1, end - 1, *range(len(START), end, 1777)]
    for cut in cuts:
        back = tmp_path / "back"
        shutil.rmtree(back, ignore_errors=True)
        back.mkdir()
        try:
            assert receive(io.BytesIO(data[:cut]), back) is None
        except StepFailed as error:
            assert "is no answer" in error.faults[0].message  # noqa: PT017 (one of the two)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_no_changed_byte_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever byte of a file's content is another one: the digest says so."""
    folder = tmp_path_factory.mktemp("changed")
    (folder / "made").mkdir()
    (folder / "back").mkdir()
    content = bytes(range(256)) * 8
    (folder / "made" / "model.bin").write_bytes(content)
    sent = bytearray(answer_with(folder / "made"))
    at = sent.index(content) + data.draw(st.integers(0, len(content) - 1))
    sent[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StepFailed, match="a file has another digest"):
        receive(io.BytesIO(bytes(sent)), folder / "back")


@pytest.mark.parametrize(
    "name", ["out/../../escaped", "/etc/escaped", "elsewhere/x", "out", "../out/x", "errand.json"]
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_nothing_is_written_outside(tmp_path: Path, name: str, kind: bytes) -> None:
    """An answer of somebody who means ill."""
    back = tmp_path / "deep" / "back"
    back.mkdir(parents=True)
    stream = io.BytesIO()
    stream.write(START)
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        info.size = 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(b"evil"))
        content = msgspec.json.encode(Answer(reply=REPLY))
        last = tarfile.TarInfo("answer.json")
        last.size = len(content)
        tar.addfile(last, io.BytesIO(content))
    with pytest.raises(StepFailed, match="has no business there"):
        receive(io.BytesIO(stream.getvalue()), back)
    assert [path.name for path in tmp_path.rglob("*")] in (["deep", "back"], ["back", "deep"])


def test_a_link_through_which_a_file_would_leave(tmp_path: Path) -> None:
    back = tmp_path / "back"
    back.mkdir()
    stream = io.BytesIO()
    stream.write(START)
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        link = tarfile.TarInfo("out/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        file = tarfile.TarInfo("out/link/evil")
        file.size = 4
        tar.addfile(file, io.BytesIO(b"evil"))
    with pytest.raises(StepFailed, match="has no business there"):
        receive(io.BytesIO(stream.getvalue()), back)
    assert not (tmp_path / "evil").exists()


def test_folders_that_would_lie_outside_are_refused(tmp_path: Path) -> None:
    back = tmp_path / "back"
    back.mkdir()
    stream = io.BytesIO()
    stream.write(START)
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        content = msgspec.json.encode(Answer(reply=REPLY, folders=("../escaped",)))
        last = tarfile.TarInfo("answer.json")
        last.size = len(content)
        tar.addfile(last, io.BytesIO(content))
    with pytest.raises(StepFailed, match="has no business there"):
        receive(io.BytesIO(stream.getvalue()), back)
    assert not (tmp_path / "escaped").exists()
