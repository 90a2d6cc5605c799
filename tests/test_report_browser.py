"""The page of the report, and what people see, press and hear of it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import report_made
from browser import (
    Watched,
    clipped,
    overlaps,
    picture_folder,
    sideways,
    started,
    texts,
    violations,
)

from tf2aif.report.files import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[report]'")
pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MADE = {
    "small": report_made.small,
    "zoo": report_made.zoo,
    "crowd": report_made.crowd,
    "odd": report_made.odd,
}
REAL = os.environ.get("TF2AIF_REPORT_OF", "")
if REAL:  # a `build/` folder of yours
    MADE["real"] = lambda _: Path(REAL)
AXE = [name for name in MADE if name in ("zoo", "real")]
WIDTHS = (360, 1280)
LEAST_PX = 9
BEHIND = {"light": "rgb(245, 246, 248)", "dark": "rgb(15, 18, 22)"}
"""Colour scheme -> the colour behind the page."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser that is started once."""
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    return picture_folder(tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a build to its report, each made once."""
    made: dict[str, Path] = {}

    def page(name: str) -> Path:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            build = MADE[name](root / "build")
            made[name] = write_report(build, root / "index.html", name, now=NOW).page
        return made[name]

    return page


class Links(HTMLParser):
    """What a page refers to, the text of its script, and its ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.found.append((tag, value or ""))
            elif name == "id":
                self.ids.append(value or "")
            elif name.startswith("on"):
                raise AssertionError(f"a handler: {name}")

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def test_a_page_stands_alone(pages: Callable[[str], Path]) -> None:
    page = pages("zoo").read_text(encoding="utf-8")
    links = Links(page)
    outside = {value for _, value in links.found if not value.startswith("#")}
    assert outside == {"report.json", "report.csv", "data:,"}
    inside = {value[1:] for _, value in links.found if value.startswith("#")}
    assert inside
    assert inside <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))
    references = set(re.findall(r"url\(#([^)]+)\)", page))
    assert references
    assert references <= set(links.ids)
    assert "http:" not in page
    assert "https:" not in page
    (script,) = links.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert report_made.HOSTILE not in page
    assert len(page) < 1_000_000


def test_sixty_variants_stay_small(pages: Callable[[str], Path]) -> None:
    page = pages("crowd").read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    numbers = re.findall(r"<svg.*?</svg>", page, re.S)[0]
    shown = {int(text) for text in re.findall(r">(\d+)</text>", numbers)}
    assert shown >= set(range(1, 61))  # each has its number


# In the browser.


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_in_order(
    chromium: Browser, pages: Callable[[str], Path], pictures: Path, name: str
) -> None:
    with Watched(chromium, pages(name), 360, "light") as seen:
        for width in WIDTHS:
            seen.look(width, "light")
            found = texts(seen.page)
            assert overlaps(found) == [], width
            assert clipped(seen.page) == [], width
            assert sideways(seen.page) <= 0, width
            assert min(one["size"] for one in found) >= LEAST_PX, width
            for scheme, behind in BEHIND.items():
                seen.look(width, scheme)
                colour = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert colour == behind
                seen.page.screenshot(path=pictures / f"{name}-{width}-{scheme}.png", full_page=True)
        assert seen.said == []
        assert seen.asked == [pages(name).as_uri()]


@pytest.mark.parametrize("name", AXE)
def test_axe_finds_nothing(chromium: Browser, pages: Callable[[str], Path], name: str) -> None:
    with Watched(chromium, pages(name), 360, "dark") as seen:
        assert violations(seen.page) == []
        seen.look(1280, "light")
        seen.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert violations(seen.page) == []
        assert overlaps(texts(seen.page)) == []
        seen.look(360, "light")
        assert sideways(seen.page) <= 0
        assert overlaps(texts(seen.page)) == []


def test_axe_would_find_something(chromium: Browser, pages: Callable[[str], Path]) -> None:
    """So that the test above does not pass on nothing."""
    with Watched(chromium, pages("small"), 1280, "light") as seen:
        seen.page.evaluate("document.querySelector('svg').removeAttribute('aria-label')")
        seen.page.evaluate("document.body.style.color = '#ddd'")
        found = violations(seen.page)
        assert any(one.startswith("svg-img-alt") for one in found)
        assert any(one.startswith("color-contrast") for one in found)


def test_overlaps_would_be_found(chromium: Browser, pages: Callable[[str], Path]) -> None:
    with Watched(chromium, pages("small"), 1280, "light") as seen:
        seen.page.evaluate("document.querySelector('h1').style.marginTop = '-20px'")
        assert overlaps(texts(seen.page))
        seen.page.evaluate("document.querySelector('h1').style.width = '3000px'")
        assert sideways(seen.page) > 0


def test_hostile_words_do_nothing(chromium: Browser, pages: Callable[[str], Path]) -> None:
    with Watched(chromium, pages("zoo"), 1280, "light") as seen:
        reasons = seen.page.locator("td details p").all_text_contents()
        assert any(report_made.HOSTILE in reason for reason in reasons)
        assert seen.page.locator("script").count() == 1
        assert seen.page.locator("img").count() == 0
        assert seen.said == []
        # And were a script let in, its own policy would not have the page run it.
        seen.page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'),"
            " {textContent: 'document.title = `run`'}))"
        )
        assert seen.page.title() != "run"
        assert "Content Security Policy" in seen.said[0]


# The keyboard.

FOCUS = """
() => {
  const at = document.activeElement;
  const style = getComputedStyle(at);
  const box = at.getBoundingClientRect();
  return {name: at.tagName, text: (at.ariaLabel || at.textContent).trim().slice(0, 30),
          outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
          seen: box.width > 0 && box.left >= 0 && box.right <= innerWidth};
}
"""


@pytest.mark.parametrize("width", [360, 1280])
def test_the_keyboard_reaches_all_and_shows_where_it_is(
    chromium: Browser, pages: Callable[[str], Path], width: int
) -> None:
    with Watched(chromium, pages("small"), width, "dark") as seen:
        walked = []
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            at = seen.page.evaluate(FOCUS)
            if at["name"] == "BODY":
                break
            walked.append(at)
        assert at["name"] == "BODY", "the focus is caught"
        assert walked[0]["text"] == "To the variants"
        assert all(one["seen"] for one in walked)
        assert all(one["outline"] >= 2 for one in walked)
        order = [one["text"] for one in walked]
        assert order.index("report.json") < order.index("Overview") < order.index("no.")
        assert order.index("variant") < order.index("state") < order.index("latency")
        kinds = {one["name"] for one in walked}
        assert kinds == {"A", "BUTTON", "DIV", "INPUT", "SUMMARY"}
        assert sum(one["name"] == "SUMMARY" for one in walked) == 3  # a plot's table each


def cells(seen: Watched, column: int) -> list[str]:
    """A column of the table of variants, the rows that are shown."""
    return [
        text.split("\n")[0]
        for text in seen.page.locator(
            f"#all tbody tr:not([hidden]) > :nth-child({column})"
        ).all_inner_texts()
        if text
    ]


def test_a_column_is_sorted_by_keyboard(chromium: Browser, pages: Callable[[str], Path]) -> None:
    with Watched(chromium, pages("zoo"), 1280, "light") as seen:
        button = seen.page.get_by_role("button", name="latency")
        button.focus()
        seen.page.keyboard.press("Enter")
        head = seen.page.locator("#all th", has=button)
        assert head.get_attribute("aria-sort") == "ascending"
        times = [float(text.split()[0]) for text in cells(seen, 6) if "ms" in text]
        assert times == sorted(times)
        assert len(times) > 10
        assert cells(seen, 6)[-1] == "not measured"
        assert seen.page.get_by_role("status").inner_text() == "Sorted by latency, ascending."
        seen.page.keyboard.press("Space")
        assert head.get_attribute("aria-sort") == "descending"
        assert [float(t.split()[0]) for t in cells(seen, 6) if "ms" in t] == times[::-1]
        assert cells(seen, 6)[-1] == "not measured"  # whichever way
        assert button.evaluate("(one) => one === document.activeElement")
        seen.page.get_by_role("button", name="variant").click()
        assert seen.page.locator("[aria-sort]").count() == 1
        names = cells(seen, 2)
        assert names == sorted(names)


def test_sizes_sort_as_numbers(chromium: Browser, pages: Callable[[str], Path]) -> None:
    with Watched(chromium, pages("zoo"), 1280, "light") as seen:
        seen.page.get_by_role("button", name="image").click()
        sizes = [float(text.split()[0]) for text in cells(seen, 9) if "MiB" in text]
        assert sizes == sorted(sizes)
        assert sizes[-1] > 600


def test_rows_are_filtered(chromium: Browser, pages: Callable[[str], Path]) -> None:
    with Watched(chromium, pages("zoo"), 360, "light") as seen:
        everything = len(cells(seen, 2))
        seen.page.get_by_label("Show only variants with").fill("lenet int8")
        shown = cells(seen, 2)
        assert 1 < len(shown) < everything
        assert all("lenet/" in name and "int8" in name for name in shown)
        status = seen.page.get_by_role("status").inner_text()
        assert status == f"{len(shown)} of {everything} shown."
        seen.page.get_by_label("Show only variants with").fill("")
        assert len(cells(seen, 2)) == everything


def test_without_javascript_all_is_there(chromium: Browser, pages: Callable[[str], Path]) -> None:
    with Watched(chromium, pages("small"), 1280, "light", java_script_enabled=False) as seen:
        assert len(cells(seen, 2)) == 3
        assert seen.page.get_by_role("button").count() == 0  # nothing that would not work
        assert not seen.page.locator("#filter").is_visible()


def test_on_a_telephone_a_row_is_a_card(chromium: Browser, pages: Callable[[str], Path]) -> None:
    with Watched(chromium, pages("small"), 360, "light") as seen:
        assert seen.page.get_by_role("row").count() >= 4  # still a table to a screen reader
        card = seen.page.locator("#v1")
        boxes = [one.bounding_box() for one in card.locator("td").all()]
        assert len({box["y"] for box in boxes if box}) > 2
        title = "getComputedStyle(document.querySelector('#v1 td'), '::before').content"
        assert seen.page.evaluate(title) == '"no."'
