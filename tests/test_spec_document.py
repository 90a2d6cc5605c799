"""YAML as we read it: what is text stays text, and what would be lost or guessed is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tf2aif.errors import FilesError
from tf2aif.spec.document import Key, dotted, locate, parse

names = st.text("abcxyz_.-0123456789", min_size=1, max_size=6)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
documents = st.dictionaries(names, values, min_size=1, max_size=4)


def faults_of(text: str) -> list[tuple[str, str]]:
    with pytest.raises(FilesError) as caught:
        parse(text, "x.yaml")
    return [(fault.message, fault.at) for fault in caught.value.faults]


class Quoting(yaml.SafeDumper):
    """Every string in quotes, so that only what we resolve ourselves is plain."""

    def ignore_aliases(self, data: object) -> bool:
        return True


Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@given(documents)
def test_what_is_written_is_what_is_read(value: dict[str, object]) -> None:
    text = yaml.dump(value, Dumper=Quoting, allow_unicode=True, sort_keys=False)
    assert parse(text, "x.yaml").value == value


@given(documents, st.data())
def test_an_equal_key_is_refused_wherever_it_stands(
    value: dict[str, object], data: st.DataObject
) -> None:
    text = yaml.dump(value, Dumper=Quoting, allow_unicode=True, sort_keys=False)
    name = data.draw(st.sampled_from(sorted(value)))
    again = text.rstrip("\n") + f'\n"{name}": 1\n'
    assert [message for message, _ in faults_of(again)] == [f"duplicate key '{name}'"]


@given(documents)
def test_every_key_has_its_line(value: dict[str, object]) -> None:
    text = yaml.dump(value, Dumper=Quoting, allow_unicode=True, sort_keys=False, width=1000)
    lines = text.split("\n")
    for key, line in locate(text).items():
        if key and isinstance(key[-1], str):
            assert f'"{key[-1]}"' in lines[line - 1]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-11-20", "2026-11-20"),
        ("1_000", "1_000"),
        ("010", "010"),
        ("0o17", "0o17"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("-.5", -0.5),
        ("0x1F", 31),
        ("-7", -7),
        ("True", True),
        ("~", None),
        ("", None),
        ("'10.10'", "10.10"),
    ],
)
def test_scalars_follow_the_core_schema(written: str, value: object) -> None:
    found = parse(f"key: {written}\n", "x.yaml").value["key"]
    assert found == value
    assert type(found) is type(value)


def test_anchors_and_merged_keys_are_read() -> None:
    text = "base: &base {a: 1, b: 2}\nuse:\n  <<: *base\n  b: 3\nagain: *base\n"
    document = parse(text, "x.yaml")
    assert document.value["use"] == {"a": 1, "b": 3}
    assert document.value["again"] == {"a": 1, "b": 2}
    assert document.at(("use", "b")) == "x.yaml:4: use.b"
    assert document.at(("use", "a")) == "x.yaml:1: use.a"


def test_a_key_that_is_not_there_has_the_line_of_what_holds_it() -> None:
    document = parse("a:\n  b:\n    c: 1\n", "x.yaml")
    assert document.at(("a", "b", "gone", 0)) == "x.yaml:2: a.b.gone[0]"
    assert document.at() == "x.yaml:1"


def test_a_number_is_shown_as_it_is_written() -> None:
    document = parse("a: [10.10, 1e2]\n", "x.yaml")
    assert document.written(("a", 0)) == "10.10"
    assert document.written(("a", 1)) == "1e2"
    assert document.written(("a",)) == ""
    assert document.written(("b",)) == ""


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 100_000, "- " * 100_000, "? " * 100_000, "a: " + "{b: " * 10_000],
    ids=["brackets", "dashes", "question-marks", "braces"],
)
def test_nesting_is_refused_before_it_can_crash(text: str) -> None:
    assert faults_of(text) == [("nested too deep", "x.yaml:1")]


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    from tf2aif.spec.document import MAX_BYTES, read

    (tmp_path / "x.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(FilesError, match="too long"):
        read(tmp_path / "x.yaml")


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    from tf2aif.spec.document import read

    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(tmp_path / "x.yaml").value == {"a": 1}


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        faults = () if isinstance(parse(text, "x.yaml").value, dict) else ("not a mapping",)
    except FilesError as error:
        faults = tuple(fault for fault in error.faults if not fault.message)
    assert not faults


def test_keys_are_shown_as_they_are_written() -> None:
    key: Key = ("targets", "cpu", "precisions", 2)
    assert dotted(key) == "targets.cpu.precisions[2]"


@pytest.mark.parametrize(
    "written",
    ["!!int x", "!!float x", "!!bool x", "!!null x", "!!map []", "!!binary eA==", "<<", "1" * 5000],
)
def test_what_cannot_be_a_value_is_a_fault(written: str) -> None:
    assert len(faults_of(f"key: {written}\n")) == 1


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert "aliases make this too large" in faults_of("\n".join(lines))[0][0]
