"""Each tab on one screen: what is looked at ends above the fold, nothing sticks out, text can be read and targets be pressed.

The header keeps to one row, or two where the app is narrow. In a real JupyterLab, light and dark.
"""

from __future__ import annotations

import time

import pytest

from tests.browser import fold
from tests.browser.conftest import Server
from tests.browser.lab import PATIENCE, Lab, write_notebook
from tests.browser.test_app import tab

pytestmark = pytest.mark.slow

HEADER = (".wb-header", ".widget-tab > .lm-TabBar")


def _drawn(start: str) -> str:
    """Whether the picture is drawn whose summary begins so."""
    return f"() => document.querySelector('[role=figure][aria-label^=\"{start}\"]')?.dataset.revision"


WANTED: dict[str, tuple[str, ...]] = {
    "Model": (".wb-about", ".wb-map", ".wb-worst"),
    "Distribution": (".wb-bins [role=figure]", ".workbench-readout", ".wb-segments", ".wb-figures"),
    "Error": (".wb-error-model", ".wb-error-map", ".wb-error-block", ".wb-error-weight"),
    "Formats": (".wb-bar", ".wb-front [role=figure]", ".wb-duel"),
    "Double quant": (".wb-bar", ".wb-pictures", ".wb-figures"),
    "Cost": (".wb-bar", ".wb-segments", ".wb-run", ".wb-losses [role=figure]"),
    "Memory": (".wb-memory-settings", ".wb-forecast", ".wb-memory"),
    "Train": (".wb-run-top", ".wb-setup", ".wb-usual", ".wb-forecast", ".wb-setup + .wb-fold"),
}
"""What must end above the fold of each tab: its picture, its controls, its key figures."""
SETTLED: dict[str, str] = {
    "Model": "() => /42 of 42 tensors/.test(document.querySelector('.wb-map')?.innerText ?? '')",
    "Distribution": _drawn("Histogram of"),
    "Error": "() => document.querySelector('.wb-error-model canvas')?.dataset.known === '42'",
    "Formats": _drawn("Relative RMSE against"),
    "Double quant": _drawn("How often each of the 256 codes"),
    "Cost": "() => /9 passes/.test(document.querySelector('.wb-run')?.innerText)",
    "Memory": "() => document.querySelectorAll('.wb-rows-of-bars tr').length === 5",
    "Train": "() => document.querySelectorAll('.wb-way').length > 3",
}
"""When a tab shows all of that."""
AT_REST = "() => ![...document.querySelectorAll('.wb-progress')].some((row) => row.checkVisibility())"
"""When no work is under way: a row that tells of it stands above the picture, and goes after the last number has come."""
SIZES = {"1280 × 800": (1280, 800, 940), "1440 × 900": (1440, 900, 940), "720 px wide": (900, 900, 720)}
"""A window's width and height, and the app's least or, below 760, exact width in it."""

LANES = ("Loss", "Memory", "Paging", "Phases")
_PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
"""Once sizes have been laid out and drawn."""
_BOXES = """() => {
    const app = document.querySelector('.wb-panel').getBoundingClientRect();
    const header = document.querySelector('.wb-header').getBoundingClientRect();
    return [app.width, header.height];
}"""
_WIDE = """(least) => {
    const { width } = document.querySelector('.wb-panel').getBoundingClientRect();
    return width >= least && (width < 760) === (least < 760);
}"""
"""When the app is as wide as it is to be, whatever it was before."""
_CUT = """() => [...document.querySelectorAll('.widget-tab .lm-TabBar-tabLabel')]
    .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)"""


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_what_is_looked_at_ends_above_the_fold(lab: Lab, lab_server: Server, theme: str) -> None:
    write_notebook(lab_server.folder / "app.ipynb", "from widgets import Workbench\napp = Workbench('builtin')\napp")
    lab.page.set_viewport_size({"width": 1280, "height": 800})
    lab.open("app.ipynb")
    lab.alone()
    if theme == "Dark":
        lab.theme("JupyterLab Dark")
    lab.run_all()
    headers: dict[str, float] = {}
    for name, wanted in WANTED.items():
        tab(lab, name)
        lab.until(SETTLED[name])
        lab.until(AT_REST)
        for size, (width, height, least) in SIZES.items():
            lab.page.set_viewport_size({"width": width, "height": height})
            lab.until(_WIDE, argument=least)
            until_no_fault(lab, [*HEADER, *wanted], f"{name}, {size}")
            lab.shot(f"fold-{name.lower()}-{width}-{theme.lower()}")
            wide, header = lab.page.evaluate(_BOXES)
            assert header <= (40 if wide >= 760 else 72)
            assert header == headers.setdefault(size, header), "the header is as high in every tab"
            assert lab.page.evaluate(_CUT) == []
    if theme == "Dark":
        lab.theme("JupyterLab Light")


def test_a_run_is_on_one_screen_from_launch_to_its_result(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "app.ipynb", "from widgets import Workbench\napp = Workbench('builtin')\napp")
    lab.page.set_viewport_size({"width": 1440, "height": 900})
    lab.open("app.ipynb")
    lab.alone()
    lab.run_all()
    tab(lab, "Train")
    lab.page.get_by_role("button", name="Launch", exact=True).click()
    wanted = [".workbench-cockpit", *(f".wbc-lane[aria-label^={name}]" for name in LANES)]
    for part in wanted:
        lab.page.locator(part).wait_for()
    until_no_fault(lab, wanted, "before the first event")
    lab.until("() => Number(document.querySelector('.wbc-stage').dataset.steps) >= 20", 300)
    at_every_size(lab, wanted, "while steps arrive")
    lab.page.set_viewport_size({"width": 1280, "height": 1200})  # the picture has the whole panel
    for theme in ("Light", "Dark"):
        lab.theme(f"JupyterLab {theme}")
        stage = lab.page.locator(".wbc-lanes").bounding_box()
        assert stage is not None
        lab.page.mouse.move(stage["x"] + 0.3 * stage["width"], stage["y"] + stage["height"] / 2)
        lab.page.evaluate(_PAINTED)
        lab.shot(f"cockpit-{theme.lower()}", ".wb-panel")
    at_every_size(lab, wanted, "in the dark")
    lab.page.get_by_role("button", name="Stop", exact=True).click()
    lab.page.locator(".wb-result").wait_for(timeout=120_000)
    for theme in ("Dark", "Light"):
        lab.theme(f"JupyterLab {theme}")
        at_every_size(lab, [".wb-result", *wanted], f"after its end, {theme}")


def at_every_size(lab: Lab, wanted: list[str], when: str) -> None:
    """What is wanted is above the fold in each window; the last is the largest."""
    for name in ("720 px wide", "1280 × 800", "1440 × 900"):
        width, height, least = SIZES[name]
        lab.page.set_viewport_size({"width": width, "height": height})
        lab.until(_WIDE, argument=least)
        until_no_fault(lab, wanted, f"{when}, {name}")


def until_no_fault(lab: Lab, wanted: list[str], when: str) -> None:
    """Wait until nothing is wrong with what is on screen, which may still be laid out; fails with what stays wrong."""
    end = time.monotonic() + PATIENCE
    while found := fold.faults(lab.page, wanted):
        assert time.monotonic() < end, f"{when}: {found}"
        lab.page.evaluate(_PAINTED)
