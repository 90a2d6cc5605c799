"""Calls in a process whose memory lies the same every time."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tf2aif.errors import StepFailed
from tf2aif.steps.still import call_still

# What the child calls: this module is imported there, too.


def addresses(argument: dict[str, Any]) -> dict[str, Any]:
    """Where the heap, the stack's neighbours and libraries are in this process."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    found = [malloc(size) for size in (40, 4000, 400000)]
    return {"found": found, "pid": os.getpid(), **argument}


def refuse(argument: dict[str, Any]) -> dict[str, Any]:
    raise StepFailed("it does not fit", at="here", hint="make it smaller")


def crash(argument: dict[str, Any]) -> dict[str, Any]:
    ctypes.string_at(0)
    return {}


def leave(argument: dict[str, Any]) -> dict[str, Any]:
    os._exit(3)


def fail(argument: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("no such thing")


@pytest.fixture(autouse=True)
def _this_module_is_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return None


def test_memory_lies_where_it_lay() -> None:
    call_still(__name__, "addresses", {})  # leaves compiled modules, which load otherwise
    one, two = (call_still(__name__, "addresses", {"held": 3000 * letter}) for letter in "xy")
    if not one.still:
        pytest.skip("this kernel does not let a process have its memory at fixed places")
    assert one.result["pid"] != two.result["pid"]
    assert one.result["found"] == two.result["found"]
    assert two.result["held"] == "y" * 3000


def test_what_the_call_refuses_is_told() -> None:
    with pytest.raises(StepFailed) as told:
        call_still(__name__, "refuse", {})
    (fault,) = told.value.faults
    assert (fault.message, fault.at, fault.hint) == ("it does not fit", "here", "make it smaller")


@pytest.mark.parametrize(
    ("how", "words"),
    [("crash", r"crashed \(SIGSEGV\)"), ("leave", "exit code 3"), ("fail", "exit code 1")],
)
def test_a_process_that_ends_is_one_failed_step(
    how: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StepFailed, match=f"the compiler's process .*{words}"):
        call_still(__name__, how, {})
    if how == "fail":
        assert "KeyError: 'no such thing'" in capfd.readouterr().err
