"""A tiny failing project for each failure: what `tf2aif check` says of it, word for word.

`expected.txt` in each folder of tests/faults holds the text.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tf2aif.spec.check import check

FAULTS = Path(__file__).parent / "faults"
CASES = sorted(path.name for path in FAULTS.iterdir() if path.is_dir() and path.name[0] != ".")


def render(project: Path) -> str:
    """All faults of a project, as the command line prints them."""
    return "\n\n".join(fault.render() for fault in check([], project)) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_project_with_faults(name: str) -> None:
    assert render(FAULTS / name) == (FAULTS / name / "expected.txt").read_text(encoding="utf-8")


def test_every_case_has_a_fault() -> None:
    assert len(CASES) > 15
    for name in CASES:
        assert "error: " in (FAULTS / name / "expected.txt").read_text(encoding="utf-8")
