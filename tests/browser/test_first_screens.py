"""Each notebook's first screen in a real JupyterLab: its title, its question, and a picture to drag, or a run, which moves."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Locator

from tests.browser.conftest import ROOT, Server
from tests.browser.lab import Lab
from tests.browser.test_app import FIRST_STEP, choice

pytestmark = pytest.mark.slow

HEROES = {
    "01_quantization": ("Outlier", "End"),
    "02_normal_float": ("Level 12 of 16", "Home"),
    "03_block_error": ("Weights to one scale", "End"),
    "04_double_quantization": ("Weights to one scale", "Home"),
    "05_lora_and_qlora": ("Rank", "End"),
    "06_paged_optimizers": ("Batch 31, its length", "Home"),
    "08_claims": ("What do its weights take under QLoRA?", "End"),
    "09_what_it_costs": ("Bits a weight", "End"),
}
"""What can be dragged first, and a key that takes it to where something breaks, or is mended."""
HEADLINE = ".wb-hero-line b"
MOVES = {"08_claims": ".wb-card"}
"""What follows the handle, where that is not the headline."""
BOTTOM = 772
"""Where the status bar begins, in pixels."""
HISTOGRAM = "[role=figure][aria-label^='Histogram of'][data-revision]"


def first_screen(lab: Lab, server: Server, name: str) -> None:
    """Open the notebook's first cells, as they are committed, at 1280 × 800, and run them."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    assert [cell["cell_type"] for cell in notebook["cells"][:3]] == ["markdown", "code", "code"], "nothing before the picture"
    notebook["cells"] = notebook["cells"][:3]
    for cell in notebook["cells"][1:]:
        cell["outputs"] = []
    (server.folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    lab.page.set_viewport_size({"width": 1280, "height": 800})
    lab.open(f"{name}.ipynb")
    lab.run_all()


def in_sight(part: Locator) -> bool:
    """Whether all of it is on the first screen."""
    box = part.bounding_box()
    return box is not None and 0 < box["y"] <= box["y"] + box["height"] <= BOTTOM


@pytest.mark.parametrize("name", HEROES)
def test_the_picture_is_in_sight_and_moves(lab: Lab, lab_server: Server, name: str) -> None:
    first_screen(lab, lab_server, name)
    lab.until("() => Number(document.querySelector('.wb-hero')?.dataset.drawn) >= 1")
    lab.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    label, key = HEROES[name]
    handle = lab.page.get_by_role("slider", name=label, exact=True)
    assert handle.is_visible()
    assert in_sight(lab.page.locator(".wb-hero")), "all of it, above the status bar"
    moves = MOVES.get(name, HEADLINE)
    before = lab.text(moves)
    lab.shot(f"hero-{name}", None)
    handle.press(key)
    lab.until(f"(before) => document.querySelector('{moves}').innerText !== before", argument=before)
    for shortcut in ("b", "d", "d"):  # the notebook's, which must not hear them
        lab.page.keyboard.press(shortcut)
    assert lab.page.locator(".jp-CodeCell").count() == 2
    lab.theme("JupyterLab Dark")
    lab.shot(f"hero-{name}-dragged-dark", None)
    lab.theme("JupyterLab Light")


def test_the_app_s_controls_and_figures_are_in_sight_and_move(lab: Lab, lab_server: Server) -> None:
    first_screen(lab, lab_server, "00_workbench")
    lab.until(f"() => document.querySelector(`{HISTOGRAM}`)")
    lab.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    picture = lab.page.locator(HISTOGRAM)
    lab.shot("first-00_workbench", None)
    for part in (".wb-header", ".wb-figures"):
        assert in_sight(lab.page.locator(part)), part
    before = picture.get_attribute("aria-label")
    choice(lab, "Block size").press("ArrowRight")
    lab.until(f"(before) => document.querySelector(`{HISTOGRAM}`).ariaLabel !== before", argument=before)


def test_a_run_takes_steps_in_sight(lab: Lab, lab_server: Server) -> None:
    first_screen(lab, lab_server, "07_train_an_adapter")
    lab.until("() => Number(document.querySelector('.wbc-stage')?.dataset.steps) >= 1", FIRST_STEP)
    lab.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    lab.shot("first-07_train_an_adapter", None)
    for part in (".wbc-bar", ".wbc-lane[aria-label^=Loss]"):
        assert in_sight(lab.page.locator(part)), part


def test_the_bits_dial_answers_what_the_reader_types(lab: Lab, lab_server: Server) -> None:
    from tests.browser.lab import write_notebook

    code = "from widgets import BitsDial\ndial = BitsDial('to run, v.')\ndial"
    write_notebook(lab_server.folder / "dial.ipynb", code, "dial.wait(); print('waited')")
    lab.open("dial.ipynb")
    lab.run_all()
    shown = "document.querySelector('.wb-hero-body').dataset"
    lab.until(f"() => {shown}.known === '6' && {shown}.text")
    four = lab.page.evaluate(f"{shown}.text")
    lab.page.get_by_role("slider", name="Bits a weight").press("End")
    lab.until(f"(four) => {shown}.bits === '2' && {shown}.text && {shown}.text !== four", argument=four)
    assert lab.page.locator(".wb-hero-said mark").inner_text(), "what two bits changed is marked"
    prompt = lab.page.get_by_role("textbox", name="Prompt")
    prompt.fill("music, n.")
    prompt.press("Enter")
    lab.until(f"() => {shown}.text && document.querySelector('.wb-hero-said').textContent.startsWith('music, n.')")
    assert lab.kernel("print(dial.state['prompt'], dial.wait()['text'].nunique() > 1)").strip() == "music, n. True"
    lab.kernel("dial.close()")
