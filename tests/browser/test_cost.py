"""What quantization costs the embedded model, in a real JupyterLab: a button is pressed, and bars come."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.browser.test_app import until
from tests.browser.test_screens import NAMELESS, OVERFLOW

pytestmark = pytest.mark.slow

CELL = (
    "from widgets import CostView\nfrom widgets.state import State\n"
    "view = CostView('builtin', state=State(max_length=64, train={'max_eval_rows': 8}))\nview"
)


def test_a_button_measures_each_format_s_divergence_and_the_bars_come_one_by_one(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "cost.ipynb", CELL)
    lab.page.set_viewport_size({"width": 1400, "height": 2400})
    lab.open("cost.ipynb")
    lab.run_all(120)
    button = lab.page.get_by_role("button", name="Measure the formats", exact=True)
    button.wait_for()
    assert "9 passes over at most 8 held-out rows of The Devil's Dictionary" in lab.text(".wb-panel")
    assert not (lab_server.folder / "costs").exists()
    button.click()
    lab.page.get_by_role("progressbar", name="Measuring the divergence of builtin").wait_for()
    lab.page.get_by_role("radio", name="Sensitivity").check()
    other = lab.page.get_by_role("button", name="Measure the sensitivities", exact=True)
    expect(other).to_be_disabled()
    assert lab.page.get_by_role("progressbar", name="Measuring the divergence of builtin").is_visible(), (
        "whichever part is in front"
    )
    lab.page.get_by_role("radio", name="Formats").check()
    until(lab, "KL divergence of each format", "plot.data[0].x.length === 8", 180)
    button.wait_for(state="hidden")
    assert lab.page.locator(".wb-table[aria-label^='Divergence from 16 bits'] tbody tr").count() == 9
    lab.page.get_by_role("radio", name="Sensitivity").check()
    expect(other).to_be_enabled()
    lab.page.get_by_role("radio", name="Formats").check()
    assert len(list((lab_server.folder / "costs").glob("builtin-*/events-cost.jsonl"))) == 1
    for theme in ("Dark", "Light"):
        lab.theme(f"JupyterLab {theme}")
        until(lab, "KL divergence of each format", f"plot._fullLayout.template && {str(theme == 'Dark').lower()} === "
              "(plot._fullLayout.colorway[0] === '#56b4e9')")  # fmt: skip
        assert lab.page.evaluate(OVERFLOW) == []
        assert lab.page.evaluate(NAMELESS) == []
        lab.shot(f"cost-{theme.lower()}", ".wb-panel")
