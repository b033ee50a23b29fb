"""The error's rows in a real JupyterLab: from the model to one weight's arithmetic, by mouse and by keys, light and dark."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

import workbench as wb
from tests.browser.conftest import Server
from tests.browser.fold import faults
from tests.browser.lab import Lab, write_notebook

pytestmark = pytest.mark.slow

APP = "from widgets import Workbench\napp = Workbench('builtin', state={'tab': 'Error'})\napp"
NAME = "model.layers.2.self_attn.o_proj.weight"
ROWS = 480
"""Pixels that the rows take where they have 940 of width."""


def open_rows(lab: Lab, server: Server) -> None:
    write_notebook(server.folder / "rows.ipynb", APP)
    lab.page.set_viewport_size({"width": 1280, "height": 800})
    lab.open("rows.ipynb")
    lab.alone()
    lab.run_all()
    lab.until("() => document.querySelector('.wb-error-model canvas')?.dataset.known === '42'")


def chosen_block(lab: Lab) -> int:
    """The block that was chosen, as soon as the kernel knows it; before, the page shows the worst."""
    lab.knows("app.state['block'] is None", False)
    return int(lab.value("app.state['block']"))


def arithmetic(lab: Lab, weight: int) -> list[float]:
    """The numbers of the sum on the page, once it is that of this weight."""
    lab.page.get_by_role("figure", name=f"Weight {weight}:").wait_for()
    return [float(text.replace("−", "-")) for text in lab.page.locator(".wb-error-sum b").all_inner_texts()]


def expected(block: wb.quant.inspect.Block, weight: int) -> list[float]:
    """The same from ``wb.inspect_block``, to four digits."""
    numbers = (block.weights, block.divisor, block.normalised, block.levels, block.scale, block.restored, block.errors)
    return [float(f"{float(np.broadcast_to(number, block.weights.shape)[weight]):.4g}") for number in numbers]


def block_of(index: int) -> wb.quant.inspect.Block:
    array = wb.open_model("builtin").read(NAME)
    return wb.inspect_block(array, wb.measure(array, wb.QuantSpec("nf4")), index)


def test_by_mouse_from_the_model_to_one_weight(lab: Lab, lab_server: Server) -> None:
    open_rows(lab, lab_server)
    cells = lab.page.get_by_role("application", name="Model map")
    box = cells.bounding_box()
    assert box is not None
    left, wide, tall = 26, (box["width"] - 28) / 7, (box["height"] - 18) / 6
    cells.click(position={"x": left + 3.5 * wide, "y": 2 + 2.5 * tall})
    lab.until("() => /^o$/.test(document.querySelector('.wb-error-map h3').textContent)")
    lab.knows("app.state['tensor']", NAME)

    lab.page.get_by_role("application", name="Block map").click(position={"x": 120, "y": 60})
    index = chosen_block(lab)
    row = lab.page.locator(".wb-error-weight")
    before = row.get_attribute("aria-label") or ""
    lab.page.get_by_role("application", name=f"Block {index:,}:").click(position={"x": 300, "y": 50})
    expect(row).not_to_have_attribute("aria-label", before)
    block, chosen = block_of(index), lab.page.locator(".wb-error-weight h3").inner_text()
    weight = int(chosen.removeprefix("Weight "))
    assert arithmetic(lab, weight) == expected(block, weight)
    lab.knows("app.state['weight']", weight)

    lab.page.get_by_label("Shown for each block").select_option(label="absmax")
    lab.page.get_by_role("application", name="Block map: absmax").wait_for()


def test_by_keys_from_the_model_to_one_weight_and_the_notebook_hears_none(lab: Lab, lab_server: Server) -> None:
    open_rows(lab, lab_server)
    lab.page.get_by_role("application", name="Model map").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        lab.page.keyboard.press(key)
    lab.page.wait_for_selector(".workbench-error [role=status]:has-text('layer 2, o: 9')", state="attached")
    lab.page.keyboard.press("Enter")
    lab.page.wait_for_selector(f".workbench-error [role=status]:has-text('{NAME}')", state="attached")

    lab.page.keyboard.press("Tab")  # the field
    lab.page.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert str(lab.page.evaluate(focused)).startswith("Block map: RMSE")
    before = int(lab.page.locator(".wb-error-rows [data-selected]").get_attribute("data-selected") or -1)
    lab.page.keyboard.press("ArrowRight" if before < 40 else "ArrowLeft")
    lab.page.keyboard.press("Enter")
    index = chosen_block(lab)
    assert abs(index - before) == 4, "a matrix row further: 256 weights are four blocks"

    weights = lab.page.get_by_role("application", name=f"Block {index:,}:")
    weights.focus()
    lab.page.keyboard.press("Home")
    for _ in range(3):
        lab.page.keyboard.press("ArrowRight")
    assert arithmetic(lab, 3) == expected(block_of(index), 3)
    lab.page.wait_for_selector(".workbench-error [role=status]:has-text('Weight 3')", state="attached")
    for key in ("b", "d", "d"):
        lab.page.keyboard.press(key)
    assert lab.page.locator(".jp-CodeCell").count() == 1

    lab.page.locator(".wb-error-numbers summary").click()
    expect(lab.page.locator(".wb-table[aria-label^='Weights, codes and errors'] tbody tr")).to_have_count(64)
    steps = lab.page.locator(".wb-steps[aria-label='Weight 3, step by step'] li").all_inner_texts()
    assert steps == list(block_of(index).arithmetic(3))


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_the_rows_fit_one_screen_and_can_be_read(lab: Lab, lab_server: Server, theme: str) -> None:
    open_rows(lab, lab_server)
    if theme == "Dark":
        lab.theme("JupyterLab Dark")
        lab.until("() => document.querySelector('.wb-error-rows.wb-dark')")
    height = lab.page.evaluate(
        "document.querySelector('.wb-error-weight').getBoundingClientRect().bottom"
        " - document.querySelector('.wb-error-rows').getBoundingClientRect().top"
    )
    assert height <= ROWS
    assert (
        faults(lab.page, [".wb-error-model", ".wb-error-map", ".wb-error-worst", ".wb-error-block", ".wb-error-weight"]) == []
    )
    lab.shot(f"error-rows-{theme.lower()}", ".wb-panel")
    if theme == "Dark":
        lab.theme("JupyterLab Light")
