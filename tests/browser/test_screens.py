"""Every view in the light and in the dark theme: drawn, named, inside its frame.

``make screens`` keeps the pictures, and those that the tests of the Cost and Train views take once there is something to see.
"""

from __future__ import annotations

import pytest

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.browser.test_app import tab
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


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_every_view_is_drawn_and_named(lab: Lab, lab_server: Server, theme: str) -> None:
    write_notebook(lab_server.folder / "app.ipynb", "from widgets import Workbench\napp = Workbench('builtin')\napp")
    lab.page.set_viewport_size({"width": 1400, "height": 2400})
    lab.open("app.ipynb")
    if theme == "Dark":
        lab.theme("JupyterLab Dark")
    lab.run_all(120)
    for name in TABS:
        tab(lab, name)
        lab.until(SETTLED, argument=PLOTS[name])
        if name in BUTTONS:
            lab.page.get_by_role("button", name=BUTTONS[name], exact=True).wait_for()
        if name == "Model":
            lab.until("() => /42 of 42 tensors/.test(document.body.innerText)")
        assert lab.page.evaluate(OVERFLOW) == [], f"{name} is wider than its frame"
        assert lab.page.evaluate(NAMELESS) == [], f"{name} has controls without a name"
        assert not lab.page.locator(".wb-error").locator("visible=true").count(), name
        if name not in BUTTONS:
            lab.shot(f"{name.lower().replace(' ', '-')}-{theme.lower()}", ".wb-panel")
    if theme == "Dark":
        lab.theme("JupyterLab Light")
