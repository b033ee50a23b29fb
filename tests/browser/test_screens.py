"""Every view in the light and in the dark theme: drawn, named, inside its frame.

``make screens`` keeps the pictures, and those that the tests of the Cost and Train views take once there is something to see;
and a moving one of the cockpit, which plays the recorded run.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from tests.browser.alone import DARK, LIGHT, Alone
from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.browser.test_app import tab
from tests.browser.test_cockpit import recorded
from widgets.views import TABS

pytestmark = pytest.mark.slow

PLOTS = {"Model": 1, "Distribution": 1, "Error": 2, "Formats": 1, "Double quant": 3, "Memory": 0, "Cost": 1, "Train": 0}
"""Drawings in each tab."""

BUTTONS = {"Cost": "Measure the formats", "Train": "Launch"}
"""What is there in a tab that draws nothing before it is pressed."""

SETTLED = """(count) => {
    const seen = (e) => e.checkVisibility();
    const figures = [...document.querySelectorAll('.widget-tab [role=figure]')].filter(seen);
    const drawn = figures.filter((e) => e.dataset.revision && e.getAttribute('aria-label'));
    const waiting = [...document.querySelectorAll(':is(.wb-progress, .wb-header) progress')].filter(seen);
    const counting = [...document.querySelectorAll('.wb-note')].filter(seen).some((e) => /…$/.test(e.textContent));
    return figures.length === count && drawn.length === count && !waiting.length && !counting;
}"""

OVERFLOW = """() => {
    const outer = document.querySelector('.wb-panel').getBoundingClientRect();
    return [...document.querySelectorAll('.wb-panel *')].filter((e) => {
        const box = e.getBoundingClientRect();
        return e.checkVisibility() && box.width && box.right > outer.right + 1 && !e.closest('.wb-scroll, [role=figure]');
    }).map((e) => e.tagName + '.' + e.className).slice(0, 5);
}"""


NAMELESS = """() => [...document.querySelectorAll(
        '.wb-panel :is(input, select, textarea, button, [role=slider], [role=figure], canvas[tabindex])'
    )].filter((e) => {
        const labelled = e.labels?.length && [...e.labels].some((label) => label.textContent.trim());
        const own = e.getAttribute('aria-label') || e.title || (e.tagName === 'BUTTON' && e.textContent.trim());
        return e.checkVisibility() && !labelled && !own && !e.closest('.modebar');
    }).map((e) => e.outerHTML.slice(0, 200))"""


def test_every_view_is_drawn_and_named(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "app.ipynb", "from widgets import Workbench\napp = Workbench('builtin')\napp")
    lab.page.set_viewport_size({"width": 1400, "height": 2400})
    lab.open("app.ipynb")
    lab.run_all(120)
    for name in TABS:
        tab(lab, name)
        for theme in ("Light", "Dark"):  # one after the other, so that both pictures are of the same settings
            lab.theme(f"JupyterLab {theme}")
            lab.until(SETTLED, argument=PLOTS[name])
            if name in BUTTONS:
                lab.page.get_by_role("button", name=BUTTONS[name], exact=True).wait_for()
            if name == "Formats":
                lab.until("() => document.querySelector('[role=figure][aria-label^=\"Relative RMSE against\"]')")
            if name == "Model":
                lab.until("() => /42 of 42 tensors/.test(document.body.innerText)")
            assert lab.page.evaluate(OVERFLOW) == [], f"{name} is wider than its frame"
            assert lab.page.evaluate(NAMELESS) == [], f"{name} has controls without a name"
            assert not lab.page.locator(".wb-error").locator("visible=true").count(), name
            if name not in BUTTONS:
                lab.shot(f"{name.lower().replace(' ', '-')}-{theme.lower()}", ".wb-panel")
    lab.theme("JupyterLab Light")


FRAMES = 48
"""Of the moving picture, of 120 milliseconds each; the last stays for two and a half seconds."""


@pytest.mark.parametrize(("theme", "name"), [(LIGHT, "light"), (DARK, "dark")][: 2 if "WORKBENCH_SHOTS" in os.environ else 1])
def test_the_recorded_run_makes_a_moving_picture(browser: Browser, tmp_path: Path, theme: str, name: str) -> None:
    page = browser.new_page(device_scale_factor=1.5)
    drawing = recorded()
    Alone(page, drawing, width=940, theme=theme)
    page.get_by_role("button", name="Replay").click()
    page.get_by_role("button", name="Hold").click()
    page.get_by_role("button", name="Higher lanes").click()
    slider, cockpit = page.get_by_role("slider"), page.locator(".workbench-cockpit")
    page.wait_for_function("document.querySelector('.workbench-cockpit').getBoundingClientRect().height > 400")
    frames = []
    for i in range(1, FRAMES + 1):
        slider.fill(f"{float(slider.get_attribute('max') or 0) * i / FRAMES:.2f}")
        frames.append(Image.open(io.BytesIO(cockpit.screenshot())).convert("RGB"))
    page.close()
    drawing.close()
    path = Path(os.environ.get("WORKBENCH_SHOTS", tmp_path)) / f"cockpit-moving-{name}.webp"
    times = [120] * (FRAMES - 1) + [2_500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, lossless=True, method=4)
    assert path.stat().st_size <= 1_500_000
    with Image.open(path) as made:
        assert made.n_frames == FRAMES
