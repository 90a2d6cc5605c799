"""Debian's Chromium without a screen, and what is looked at in a page that it shows.

`started` skips the tests that use it where there is none. Pictures go to the folder that the
variable TF2AIF_SCREENSHOTS names, where it is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def started() -> Iterator[Browser]:
    """A Chromium; skips where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs chromium: apt-get install chromium")
    pytest.importorskip("playwright", reason="needs playwright: pip install '.[test]'")
    from playwright.sync_api import sync_playwright

    # As root, as in a container, Chromium starts without its sandbox or not at all.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


def picture_folder(default: Path) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("TF2AIF_SCREENSHOTS") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Watched:
    """A page, and all that it said in the console or asked the network for."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: Any, **how: Any) -> None:
        viewport = {"width": width, "height": 800}
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, **how)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def look(self, width: int, scheme: Any) -> None:
        """Look at it with another window, in other colours."""
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.emulate_media(color_scheme=scheme)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


TEXTS = """
() => {
  // Every visible run of text with the box of its letters: a line's box less its leading.
  const found = [];
  const scrolling = [...document.querySelectorAll(".scroll")];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility({opacityProperty: true})) continue;
    if (parent.closest(".hidden, script, style, title, .skip")) continue;
    const size = parseFloat(getComputedStyle(parent).fontSize);
    const svg = parent.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = svg ? [parent.getBoundingClientRect()] : range.getClientRects();
    for (const box of boxes) {
      const height = Math.min(box.height, size * scale * 0.75);
      const middle = (box.top + box.bottom) / 2;
      if (box.width < 1) continue;
      found.push({text: node.data.trim(), left: box.left, right: box.right, size: size * scale,
                  top: middle - height / 2, bottom: middle + height / 2, svg: Boolean(svg),
                  within: scrolling.indexOf(parent.closest(".scroll"))});
    }
  }
  return found;
}
"""

CLIPPED = """
() => [...document.querySelectorAll("svg text")].filter((text) => {
  const inner = text.getBoundingClientRect();
  const outer = text.closest("figure").getBoundingClientRect();
  return inner.left < outer.left - 1 || inner.right > outer.right + 1;
}).map((text) => text.textContent)
"""


def texts(page: Page) -> list[dict[str, Any]]:
    """Every visible run of text: `text`, its box (`left`, `right`, `top`, `bottom`), its `size`."""
    found: list[dict[str, Any]] = page.evaluate(TEXTS)
    assert found, "the page has no text"
    return sorted(found, key=lambda text: text["top"])


def overlaps(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of texts where one covers the other by more than a pixel.

    What lies in a box that scrolls is cut at its edge, so it is compared with its own box's alone.
    """
    covered = []
    for place, one in enumerate(found):
        for other in found[place + 1 :]:
            if other["top"] >= one["bottom"] - 1:
                break
            across = min(one["right"], other["right"]) - max(one["left"], other["left"])
            if across > 1 and one["within"] == other["within"]:
                covered.append((one["text"], other["text"]))
    return covered


def sideways(page: Page) -> int:
    """How many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def clipped(page: Page) -> list[str]:
    """Texts of plots that reach out of their figure."""
    return list(page.evaluate(CLIPPED))


def violations(page: Page) -> list[str]:
    """What axe finds wrong for readers with disabilities: rule, and where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['target']} {one['help']}" for one in found]
