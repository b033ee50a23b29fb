"""The main job in a real JupyterLab: the committed notebook, bins, block errors, double quantization, a run, its adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator

from tests.browser.conftest import ROOT, Server
from tests.browser.lab import PATIENCE, Lab, write_notebook

APP = "from widgets import Workbench\napp = Workbench('builtin')\napp"

# The plot whose summary begins so, as ``plot``, when it is drawn and on screen.
_FIND = """
    const figures = [...document.querySelectorAll('[role=figure][data-revision]')];
    const plot = figures.find((e) => e.getAttribute('aria-label').startsWith(start) && e.checkVisibility());
    if (!plot?.data) return false; // one that still waits for its figure has none
"""
PATHS = ".wb-result .wb-copy-text textarea"
"""The adapter's folder."""
RUN = """([state, steps]) => {
    const shown = document.querySelector('.wbc-state')?.dataset.state ?? '';
    return new RegExp(state).test(shown) && Number(document.querySelector('.wbc-stage').dataset.steps) > steps;
}"""
"""Whether the cockpit shows a run in one of these states, with more than so many steps."""


def read(lab: Lab, start: str, expression: str) -> Any:
    """An expression in ``plot``, as soon as the plot whose summary starts so is on screen."""
    return lab.until(f"(start) => {{ {_FIND} return JSON.stringify({expression}) ?? 'null'; }}", argument=start)


FIRST_STEP = 180
"""Seconds that a worker may take to its first steps, while other tests use the same cores."""


def until(lab: Lab, start: str, condition: str, seconds: float = PATIENCE) -> None:
    """Wait until a condition on that plot holds."""
    lab.until(f"(start) => {{ {_FIND} return {condition}; }}", seconds, start)


def tab(lab: Lab, name: str) -> None:
    """Bring one of the app's tabs to the front."""
    lab.page.locator(".widget-tab .lm-TabBar-tab", has_text=name).click()


def choice(lab: Lab, name: str) -> Locator:
    """One of the choices in the header of what is on screen: "Layer", "Tensor", "Format", "Block size"."""
    return lab.page.get_by_role("combobox", name=name, exact=True).locator("visible=true")


def choose(lab: Lab, name: str, label: str) -> None:
    """Choose a line of such a list."""
    choice(lab, name).click()
    line = lab.page.locator(f"span:text-is({json.dumps(label)})")
    lab.page.get_by_role("listbox", name=name, exact=True).get_by_role("option").filter(has=line).click()


def shows(lab: Lab, name: str, text: str) -> None:
    """Wait until a choice in the header is this one."""
    choice(lab, name).filter(has=lab.page.locator(f"span:text-is({json.dumps(text)})")).wait_for()


def model_field(lab: Lab) -> Locator:
    """The field that finds models, opened."""
    field = lab.page.get_by_role("combobox", name="Model", exact=True)
    if not field.is_visible():
        lab.page.get_by_role("button", name="Model", exact=True).click()
    return field


def open_app(lab: Lab, server: Server) -> None:
    write_notebook(server.folder / "app.ipynb", APP)
    lab.page.set_viewport_size({"width": 1400, "height": 1500})
    lab.open("app.ipynb")
    lab.run_all(120)
    until(lab, "Histogram of", "plot.data.length === 7")


def test_bins_errors_and_scales_follow_the_controls(open_lab: Callable[[], Lab], lab_server: Server) -> None:
    lab = open_lab()
    open_app(lab, lab_server)
    print(f"the app opened with {lab.received / 1e6:.2f} MB over the websocket")
    assert lab.received < 2_500_000

    before = read(lab, "Histogram of", "Array.from(plot.data[3].y)")
    block_size = choice(lab, "Block size")
    block_size.press("ArrowRight")
    until(lab, "Histogram of", f"JSON.stringify(Array.from(plot.data[3].y)) !== {before!r}")
    lab.knows("app.state['block_size']", 128)
    choose(lab, "Format", "FP4")
    until(lab, "Histogram of", "plot.data[3].name === 'FP4' && plot.data[3].y.length === 15")
    choose(lab, "Format", "NF4")
    choose(lab, "Add a format", "FP4")
    until(lab, "Histogram of", "plot.data.length === 10")

    block_size.press("ArrowLeft")
    tab(lab, "Error")
    lab.until("() => document.querySelector('.wb-error-map [role=figure][data-map]')?.dataset.selected === '386'")
    lab.page.get_by_role("application", name="Block map").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        lab.page.keyboard.press(key)
    lab.page.get_by_role("application", name="row 37, block 2").wait_for()

    tab(lab, "Double quant")
    until(lab, "Scales take", "plot.data.length === 4")
    until(lab, "How often each of the 256 codes", "plot.data[0].y.length === 256")
    assert "8/64 + 32/(64·256)" in lab.page.locator(".wb-panel").first.inner_text()
    tab(lab, "Memory")
    lab.until("() => document.querySelectorAll('.wb-rows-of-bars tr').length === 5")
    tab(lab, "Model")
    lab.page.wait_for_selector(".wb-table[aria-label='Tensors of builtin']")

    lab.theme("JupyterLab Dark")
    for name, start in (("Distribution", "Histogram of"), ("Double quant", "How often each of the 256 codes")):
        tab(lab, name)
        until(lab, start, "plot._fullLayout.colorway[0] === '#56b4e9'")
    lab.theme("JupyterLab Light")


@pytest.mark.slow
def test_a_wrong_model_is_told_in_the_panel_and_can_be_corrected(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    tab(lab, "Model")
    for wrong in (str(lab_server.folder / "no such folder"), ""):
        model_field(lab).fill(wrong)
        lab.page.keyboard.press("Enter")
        lab.page.wait_for_selector(".wb-error[role=alert]")
        assert "Traceback" not in lab.page.locator(".wb-panel").first.inner_text()
        model_field(lab).fill("builtin")
        lab.page.keyboard.press("Enter")
        lab.page.wait_for_selector(".wb-error[role=alert]", state="detached")


@pytest.mark.slow
def test_fifty_changes_in_a_row_leave_the_last_one_on_screen(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    choice(lab, "Block size").focus()
    for key in ["ArrowRight", "ArrowLeft"] * 25:
        lab.page.keyboard.press(key)
    lab.page.keyboard.press("End")
    shows(lab, "Block size", "4096")
    lab.until("() => /4\\.008/.test(document.querySelector('.wb-table')?.closest('.wb-panel')?.innerText ?? '')")
    lab.knows("app.state['block_size']", 4096)


@pytest.mark.slow
def test_the_committed_notebook_does_the_whole_job(lab: Lab, lab_server: Server) -> None:
    shutil.copy(ROOT / "notebooks" / "00_workbench.ipynb", lab_server.folder / "00_workbench.ipynb")
    # Tall enough for every cell: JupyterLab draws only those near the window.
    lab.page.set_viewport_size({"width": 1280, "height": 6000})
    lab.open("00_workbench.ipynb")
    lab.run_all(240)
    for kind in ("error", "stderr"):
        said = lab.page.locator(f".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{kind}']")
        assert said.all_inner_texts() == []
    lab.page.wait_for_selector(".jp-OutputArea-output:has-text('the adapter holds')")
    until(lab, "Histogram of", "plot.data.length === 7")

    tab(lab, "Train")
    panel = lab.page.locator(".wb-panel[aria-label=Train]")
    for label, value in (("Steps", "8"), ("Batch (rows)", "2"), ("Length (tokens)", "64")):
        field = panel.locator(".wb-usual").get_by_label(label, exact=True)
        field.fill(value)
        field.press("Tab")
    panel.get_by_role("button", name="Launch", exact=True).click()
    lab.until(RUN, FIRST_STEP, ["starting|running", 1])
    lab.until(RUN, 180, ["finished", 7])
    panel.locator(".wb-result").wait_for()
    for theme in ("Dark", "Light"):
        lab.theme(f"JupyterLab {theme}")
        lab.shot(f"train-{theme.lower()}", ".wb-panel[aria-label=Train]", without=PATHS)
    adapters = list((lab_server.folder / "runs").glob("*/adapter/adapter_model.safetensors"))
    assert len(adapters) == 2, "of the notebook's own run, and of the app's"
