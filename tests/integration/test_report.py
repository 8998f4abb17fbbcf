"""The report as a browser shows it."""

import pytest
from playwright.sync_api import sync_playwright

from tests.conftest import FinishedRun, require_program

CHROMIUM = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.mark.parametrize("width", [1280, 390])
def test_report_is_whole_in_a_browser(finished_run: FinishedRun, width: int) -> None:
    program = require_program("chromium", "chromium-browser", "google-chrome")
    errors: list[str] = []
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=program, args=CHROMIUM)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: errors.append(request.url))
        page.goto(f"file://{finished_run.directory}/reports/report.html")
        plots = page.locator("figure svg")
        assert plots.count() == 6
        for place in range(plots.count()):
            box = plots.nth(place).bounding_box()
            assert box is not None
            assert box["width"] > 250
        assert page.locator("table").count() == 3
        assert page.locator("ol li").count() == len(finished_run.results["probe"]["feed"])
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
        browser.close()
    assert not errors
