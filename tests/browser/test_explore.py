"""The explorable page from its file, offline: its numbers are ``wb.measure``'s, keys move it, and it fits every screen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect

import workbench as wb
from scripts.explore.page import MEASURED, TARGET, TENSOR
from tests.browser.test_heroes import percent
from widgets.heroes.block_scales import PLACE

FIGURES = ("outlier", "levels", "weight", "channel", "scales", "bits")


class Explorer:
    """Opens the page without a network, and notes what it asks for and complains about."""

    def __init__(self, browser: Browser, width: int = 1280, scheme: Any = "light") -> None:
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.on("request", self._note)
        self.context.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.page: Page = self.context.new_page()
        self.page.goto(TARGET.as_uri())
        expect(self.page.locator(".wb-hero[data-drawn]")).to_have_count(len(FIGURES))

    def _note(self, request: Request) -> None:
        if not request.url.startswith(("file:", "blob:")):
            self.asked.append(request.url)

    def figure(self, name: str) -> Locator:
        return self.page.locator(f"[data-figure={name}]")

    def press(self, name: str, slider: str, *keys: str) -> dict[str, str]:
        """Press keys on a figure's slider; returns what it comes to then."""
        for key in keys:
            self.figure(name).get_by_role("slider", name=slider, exact=True).press(key)
        return self.shown(name)

    def shown(self, name: str) -> dict[str, str]:
        """What a figure comes to, once all that was asked for is drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return dict(self.figure(name).locator(".wb-hero-body").evaluate("(body) => ({ ...body.dataset })"))

    def close(self) -> None:
        """Nothing may have been asked for or complained about."""
        self.context.close()
        assert not self.asked
        assert not self.errors


@pytest.fixture
def explorer(browser: Browser) -> Iterator[Explorer]:
    explorer = Explorer(browser)
    yield explorer
    explorer.close()


@pytest.fixture(scope="module")
def weights() -> Any:
    return wb.open_model("builtin").read(TENSOR)


def test_an_outlier_dragged_by_keys_errs_as_measured(explorer: Explorer, weights: Any) -> None:
    for keys in ((), ("Shift+ArrowDown",), ("End",)):
        shown = explorer.press("outlier", "Outlier", *keys)
        row = weights[0].astype(np.float32)
        sigma = np.delete(row, PLACE).astype(np.float64).std()
        row[PLACE] = np.float32(-float(shown["outlier"]) * sigma)
        spec = wb.QuantSpec("int4", 256)
        assert float(shown["rmse"]) == float(f"{wb.measure(row, spec).rmse:.4g}")
        assert shown["zeros"] == str(int(((wb.quantize(row, spec).dequantize() == 0) & (row != 0)).sum()))


@pytest.mark.usefixtures("formats")
def test_levels_err_as_measured_wherever_they_are(explorer: Explorer, weights: Any) -> None:
    assert explorer.shown("levels")["error"] == percent(wb.measure(weights, "nf4").relative_rmse)
    for name, keys in (
        ("Level 12 of 16", ["Shift+ArrowRight"]),
        ("Level 3 of 16", ["Home"]),
        ("Level 9 of 16", ["ArrowUp"] * 3),
    ):
        shown = explorer.press("levels", name, *keys)
        sliders = explorer.figure("levels").get_by_role("slider").all()
        wb.register_format("dragged", [float(slider.get_attribute("aria-valuenow") or "nan") for slider in sliders])
        assert shown["error"] == percent(wb.measure(weights, "dragged").relative_rmse)


def test_every_block_size_errs_as_measured_with_and_without_double_quantization(explorer: Explorer, weights: Any) -> None:
    for double in (False, True):
        if double:
            for name in ("weight", "scales"):
                explorer.figure(name).get_by_role("button", name="Quantize the scales too").click()
        for name, sizes in (("weight", (32, 64, 128, 256)), ("scales", (32, 64, 128, 256, 512, 1024))):
            for i, size in enumerate(sizes):
                shown = explorer.press(name, "Weights to one scale", "ArrowRight" if i else "Home")
                stats = wb.measure(weights, wb.QuantSpec("nf4", size, double_quant=double))
                assert shown["error"] == percent(stats.relative_rmse)
                if name == "weight":
                    assert float(shown["rmse"]) == float(f"{stats.block_rmse[int(shown['weight']) // size]:.4g}")
                else:
                    assert shown["bits"] == f"{stats.spec.bits_per_weight - 4:.3f}"


def test_a_larger_row_errs_as_measured(explorer: Explorer, weights: Any) -> None:
    explorer.press("channel", "Row 80", "End")
    larger = weights.astype(np.float32)
    larger[80] *= 16
    for i, size in enumerate((32, 64, 128, 256, 512, 1024, 2048, 4096)):
        shown = explorer.press("channel", "Weights to one scale", "ArrowRight" if i else "Home")
        found = wb.measure(larger, wb.QuantSpec("nf4", size))
        assert (shown["error"], float(shown["rmse"])) == (percent(found.relative_rmse), float(f"{found.rmse:.4g}"))


def test_the_dial_says_what_was_measured(explorer: Explorer) -> None:
    found = json.loads(MEASURED.read_text("utf-8"))
    for i, bits in enumerate((16, 8, 6, 5, 4, 3, 2)):
        shown = explorer.press("bits", "Bits a weight", "ArrowRight" if i else "Home")
        assert shown["text"] == found["texts"][str(bits)]
        assert float(shown["kl"]) == float(f"{found['costs'][str(bits)]['kl']:.2g}")
    assert explorer.page.locator("tbody tr").count() == len(found["lines"])


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (380, "light"), (380, "dark")])
def test_it_fits_the_screen_in_light_and_dark(browser: Browser, width: int, scheme: str) -> None:
    explorer = Explorer(browser, width, scheme)
    page = explorer.page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.wb-hero :is(text, span, b, small, button)')].filter((t) => {
            const box = t.getBoundingClientRect(), frame = t.closest('.wb-hero').getBoundingClientRect();
            return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
        }).map((t) => t.textContent)"""
    )
    assert cut == []
    ground, ink = page.evaluate("(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))")
    darker = [sum(map(int, colour[4:-1].split(","))) for colour in (ground, ink)]
    assert (darker[0] < darker[1]) == (scheme == "dark")
    if folder := os.environ.get("WORKBENCH_SHOTS"):
        page.screenshot(path=f"{folder}/explore-{width}-{scheme}.png", full_page=True)
    explorer.close()


def test_tab_reaches_every_figure_and_what_it_reaches_has_a_name(explorer: Explorer) -> None:
    reached = set()
    for _ in range(60):
        explorer.page.keyboard.press("Tab")
        figure, named = explorer.page.evaluate(
            """(({ activeElement: at }) => [at.closest("[data-figure]")?.dataset.figure ?? null,
                Boolean(at === document.body || at.ariaLabel || at.labels?.length || at.textContent.trim())])(document)"""
        )
        assert named, figure
        reached.add(figure)
    assert reached >= set(FIGURES)
