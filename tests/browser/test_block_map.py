"""The block map in a real JupyterLab: read, zoomed until a cell is a block, chosen by mouse and keyboard, light and dark."""

from __future__ import annotations

import json

import pytest

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook

pytestmark = pytest.mark.slow

ROWS, COLUMNS = 3000, 300

CELL = f"""
import ipywidgets, numpy as np
from widgets.drawing.blockmap import BlockMap

values = np.random.default_rng(0).random({ROWS} * {COLUMNS} - 50, dtype=np.float32) * 0.001
values[1234 * {COLUMNS} + 221] = 0.004          # the worst block
values[200 * {COLUMNS} + 5] = np.nan

said = ipywidgets.Label("nothing yet")
map = BlockMap(height=380)
map.on_select(lambda block: setattr(said, "value", f"chose {{block // {COLUMNS}}} {{block % {COLUMNS}}}"))
display(map, said)

def show(scale=1.0):
    map.show(values * scale, {COLUMNS}, name="RMSE", unit="of 1", rows="row of the matrix", columns="block of the row",
             summary="RMSE of each block; <b>one</b> is far worse than the others.")

show()
"""

MAP = "document.querySelector('.workbench-map [role=figure][data-map]')"


def read(lab: Lab) -> dict[str, list[float]]:
    """Window, plot area, cells, what a cell covers: as numbers."""
    data = json.loads(lab.until(f"() => {MAP} && JSON.stringify({MAP}.dataset)"))
    return {key: [float(part) for part in text.split(",") if part] for key, text in data.items()}


def pixel(lab: Lab, row: float, column: float) -> tuple[float, float]:
    """Where the page shows a place of the map."""
    shown, box = read(lab), lab.page.locator(".workbench-map canvas").bounding_box()
    assert box is not None
    (top, bottom, first, last), (left, up, width, height) = shown["window"], shown["area"]
    x = box["x"] + left + (column - first) / (last - first) * width
    return x, box["y"] + up + (row - top) / (bottom - top) * height


def until(lab: Lab, condition: str) -> None:
    """Wait until a condition on ``data``, the map's dataset, holds."""
    lab.until(f"() => {{ const data = {MAP}?.dataset; return data && ({condition}); }}")


def open_map(lab: Lab, server: Server) -> None:
    write_notebook(server.folder / "map.ipynb", CELL)
    lab.open("map.ipynb")
    lab.run_all()
    until(lab, "data.covers === '10,1'")  # as fine as the screen: 3,000 rows on 324 pixels, 300 blocks on 688


def test_a_map_is_as_fine_as_the_screen_and_finer_when_zoomed(lab: Lab, lab_server: Server) -> None:
    open_map(lab, lab_server)
    figure = lab.page.locator(".workbench-map [role=figure]")
    assert figure.get_attribute("aria-label") == "RMSE of each block; <b>one</b> is far worse than the others."
    lab.shot("map-light", ".workbench-map")

    # The pointer learns the exact value of the worst block under it.
    lab.page.mouse.move(*pixel(lab, 1235, 221.5))
    lab.page.wait_for_selector("text=row 1,234, block 221: RMSE 0.004 of 1, the largest of 10 blocks here")
    lab.page.mouse.click(*pixel(lab, 1235, 221.5))
    lab.page.wait_for_selector("text=chose 1234 221")
    until(lab, f"data.selected === '{1234 * COLUMNS + 221}'")

    # A box zooms; Python sends the part anew, block by block, and a block that has no value shows as such.
    before = lab.received
    lab.page.mouse.move(*pixel(lab, 100, 0.2))
    lab.page.mouse.down()
    lab.page.mouse.move(*pixel(lab, 300, 100), steps=4)
    lab.page.mouse.up()
    until(lab, "data.covers === '1,1'")
    assert lab.received - before < 60_000
    lab.page.mouse.move(*pixel(lab, 200.5, 5.5))
    lab.page.wait_for_selector("text=row 200, block 5: RMSE no finite value")
    lab.shot("map-zoomed", ".workbench-map")

    # New values of the same shape keep the zoom and come at its resolution.
    window, number = read(lab)["window"], read(lab)["map"]
    lab.kernel("values[200 * 300 + 5] = 0.002; show(2.0)")
    until(lab, f"data.map === '{int(number[0]) + 1}' && data.covers === '1,1'")
    assert read(lab)["window"] == window
    lab.page.mouse.move(*pixel(lab, 200.5, 6.5))
    lab.page.mouse.move(*pixel(lab, 200.5, 5.5))
    lab.page.wait_for_selector("text=row 200, block 5: RMSE 0.004 of 1")

    lab.page.mouse.dblclick(*pixel(lab, 250, 50))
    until(lab, f"data.window === '0,{ROWS},0,{COLUMNS}' && data.covers === '10,1'")
    lab.theme("JupyterLab Dark")
    lab.shot("map-dark", ".workbench-map")
    lab.theme("JupyterLab Light")


def test_the_keyboard_does_what_the_mouse_does(lab: Lab, lab_server: Server) -> None:
    open_map(lab, lab_server)
    lab.kernel("map.select(1234 * 300 + 220)")
    until(lab, f"data.selected === '{1234 * COLUMNS + 220}'")
    canvas = lab.page.locator(".workbench-map canvas")
    canvas.focus()
    for _ in range(9):
        lab.page.keyboard.press("+")
    until(lab, "data.covers === '1,1'")
    top, bottom, left, right = read(lab)["window"]
    assert top <= 1234 < bottom
    assert left <= 220 < right
    lab.page.keyboard.press("ArrowRight")
    lab.until(
        "() => /row 1,234, block 221: RMSE 0\\.004/.test(document.querySelector('.workbench-map [role=status]').textContent)"
    )
    lab.page.keyboard.press("Enter")
    lab.page.wait_for_selector("text=chose 1234 221")
    until(lab, f"data.selected === '{1234 * COLUMNS + 221}'")
    lab.shot("map-keyboard", ".workbench-map")

    # The cursor takes the window along; Home shows the whole; keys that mean nothing here do not reach the notebook either.
    for _ in range(3):
        lab.page.keyboard.press("Shift+ArrowDown")
    until(lab, f"Number(data.window.split(',')[1]) > {bottom}")
    lab.page.keyboard.press("Home")
    until(lab, f"data.window === '0,{ROWS},0,{COLUMNS}'")
    lab.page.wait_for_selector(".workbench-map [role=status]:text-is('The whole map')", state="attached")  # told after a pause
    for key in ("b", "d", "d"):
        lab.page.keyboard.press(key)
    assert lab.page.locator(".jp-CodeCell").count() == 1
    lab.page.keyboard.press("Tab")
    assert lab.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Zoom in"


def test_it_fits_its_place_and_survives_a_reload(lab: Lab, lab_server: Server) -> None:
    open_map(lab, lab_server)
    lab.kernel("map.height = 700")
    until(lab, "data.covers === '5,1'")
    lab.kernel("map.fail('<i>no</i> values')")
    lab.page.wait_for_selector(".workbench-map [role=alert]:has-text('<i>no</i> values')")
    lab.kernel("show(); map.select(7)")
    lab.page.wait_for_selector(".workbench-map [role=alert]", state="hidden")
    until(lab, "data.selected === '7'")
    lab.menu("File", "Save Notebook")
    lab.page.wait_for_selector(".lm-TabBar-tab.jp-mod-dirty", state="detached")
    lab.page.reload()
    until(lab, "data.covers === '5,1' && data.selected === '7'")
    ratio = lab.page.evaluate(f"{MAP}.querySelector('canvas').width / {MAP}.clientWidth / devicePixelRatio")
    assert abs(ratio - 1) < 0.01
