"""The report in a browser without a network: every plot drawn, light and dark, narrow and wide, and no name that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request

import workbench as wb
from tests.report.test_report import HOSTILE, SPECS, hostile

pytestmark = pytest.mark.slow

DRAWN = "() => [...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('.main-svg'))"
PAINT = """() => ({
    ink: getComputedStyle(document.body).color,
    page: getComputedStyle(document.body).backgroundColor,
    label: getComputedStyle(document.querySelector('#duel-bars .xtick text')).fill,
    bar: getComputedStyle(document.querySelector('#duel-bars .bars path')).fill,
})"""


class Reports:
    """Opens reports from their files, offline."""

    def __init__(self, browser: Browser) -> None:
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
        self.context.on("request", self._note)
        self.context.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))

    def _note(self, request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.asked.append(request.url)

    def open(self, path: Path) -> Page:
        page = self.context.new_page()
        page.goto(path.as_uri())
        page.wait_for_function(DRAWN)
        return page


@pytest.fixture
def reports(browser: Browser) -> Iterator[Reports]:
    """Nothing may have been asked for or complained about when the test is over."""
    reports = Reports(browser)
    yield reports
    reports.context.close()
    assert not reports.asked
    assert not reports.errors


def shot(page: Page, name: str) -> None:
    """Keep a picture where ``$WORKBENCH_SHOTS`` asks for pictures."""
    if folder := os.environ.get("WORKBENCH_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_a_report_draws_every_plot_in_light_and_dark(reports: Reports, tmp_path: Path) -> None:
    path = wb.write_report(wb.survey("builtin", SPECS, progress=False), tmp_path / "report.html", bits=4.25, progress=False)
    page = reports.open(path)
    assert page.locator(".js-plotly-plot").count() == 7
    assert page.get_by_role("heading", level=1).inner_text() == "builtin"
    assert page.get_by_role("table", name="The worst tensors").is_visible()
    light = page.evaluate(PAINT)
    shot(page, "report-light")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(bar) => ({PAINT})().bar !== bar", arg=light["bar"])
    dark = page.evaluate(PAINT)
    shot(page, "report-dark")
    assert light["ink"] == light["label"] != dark["label"] == dark["ink"]
    assert light["page"] == "rgb(255, 255, 255)" != dark["page"]
    # On paper the colours are those of the light page, whatever the screen's.
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"(bar) => ({PAINT})().bar === bar", arg=light["bar"])
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"(bar) => ({PAINT})().bar === bar", arg=dark["bar"])


def test_a_report_fits_a_narrow_window(reports: Reports, tmp_path: Path) -> None:
    path = wb.write_report(wb.survey("builtin", SPECS, progress=False), tmp_path / "report.html", progress=False)
    page = reports.open(path)
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("() => document.querySelector('#duel-bars .main-svg').clientWidth <= 400")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    shot(page, "report-narrow")


def test_names_out_of_a_model_run_nothing(reports: Reports, tmp_path: Path) -> None:
    surveyed = wb.survey(hostile(tmp_path / "m"), SPECS, tensors=[*HOSTILE.values()], progress=False)
    page = reports.open(wb.write_report(surveyed, tmp_path / "report.html", progress=False))
    assert page.get_by_role("heading", level=1).inner_text() == "<img src=x onerror=hacked=1>"
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        for x in range(100, int(box["width"]), 120):
            page.mouse.move(box["x"] + x, box["y"] + box["height"] / 2)
    assert page.get_by_text("<script>globalThis.hacked=1</script>").first.is_visible()
    assert page.locator("main img, main script, main a").count() == 0
    assert page.evaluate("typeof globalThis.hacked") == "undefined"
    # And if a script got in all the same, the page would refuse to run it.
    assert not reports.errors
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'globalThis.hacked = 1'}))")
    assert page.evaluate("typeof globalThis.hacked") == "undefined"
    (refused,) = reports.errors
    assert "Content Security Policy" in refused
    reports.errors.clear()
