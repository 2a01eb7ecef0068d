"""A report page in headless Chromium, for the tests: opened offline, and checked as a reader would use it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run",
             "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextmanager
def started_browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened_page(browser: Any, file: Path, **options: Any) -> Iterator[Any]:
    """A loaded page. Afterwards: no error, no request to the network, nothing executed."""
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
    page, problems = context.new_page(), []
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url),
    )
    page.on("dialog", lambda dialog: problems.append("dialog"))
    page.goto(file.as_uri())
    yield page
    if page.evaluate("typeof BigInt") == "function":  # it evaluates even where the scripts of the page do not run
        assert page.evaluate("typeof window.executed") == "undefined"
    context.close()
    assert not problems


def check_report(browser: Any, file: Path) -> None:
    """The page of any run with samples: its charts are drawn, it fits, search filters, the player moves."""
    for width in (400, 1400):
        with opened_page(browser, file, viewport={"width": width, "height": 900}) as page:
            check_width(page, width)
    with opened_page(browser, file) as page:
        check_search(page)
        check_player(page)


def check_width(page: Any, width: int) -> None:
    """Nothing is wider than the window, before and after the charts are drawn, and every chart is drawn."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("[data-plot]").all()
    assert charts
    for chart in charts:
        chart.scroll_into_view_if_needed()
    page.wait_for_selector("[data-plot]:not([data-drawn])", state="detached")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("[data-plot] img:visible").count() == 0


def check_search(page: Any) -> None:
    """The words of a sample find it, and rows that have them in text or neighbor; words of none find nothing."""
    before = shown(page)
    words = before[0].split()[:6]
    page.locator("#samples [data-search]").fill(" ".join(words))
    rows = [row.lower() for row in page.locator("#samples [data-row]:visible").all_inner_texts()]
    assert before[0] in shown(page) and all(word.lower() in row for word in words for row in rows)
    page.locator("#samples [data-search]").fill("no such text anywhere")
    assert shown(page) == []
    page.locator("#samples [data-search]").fill("")
    assert shown(page) == before


def check_player(page: Any) -> None:
    """The slider of the player and its keys change the step that is shown."""
    player = page.locator("[data-player]").first
    slider, output = player.locator("input"), player.locator("output")
    last = output.inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert output.inner_text() != last
    assert player.locator("[data-step]:visible").count() == 1
    page.keyboard.press("ArrowRight")
    assert output.inner_text() == last


def shown(page: Any, section: str = "#samples") -> list[str]:
    """The texts of a section that are visible."""
    return page.locator(f"{section} [data-row]:visible p.sample").all_inner_texts()
