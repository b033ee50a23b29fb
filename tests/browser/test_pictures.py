"""Pictures of what is on screen, as ordinary outputs that stay in the saved notebook."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.browser.notebooks import WIDGET, run, text_of

pytestmark = pytest.mark.slow

SHOWN = """
import numpy as np
from widgets.drawing.blockmap import BlockMap
from widgets.drawing.plot import Plot
from widgets.controls.style import Panel, column

plot = Plot({"data": [{"type": "bar", "y": [3.0, 1.0, 2.0]}]}, summary="Three bars.", height=240)
blocks = BlockMap(height=240)
blocks.show(np.arange(600, dtype=np.float32), 30, name="RMSE", summary="Six hundred blocks.")
panel = Panel("Two drawings", column(plot))
panel
"""
LATER = "panel.children[1].children = (plot, blocks)"


@pytest.fixture
def lab(open_lab: Callable[[], Lab]) -> Lab:
    """A page that no test had before: the first plot of a page asks for plotly.js."""
    return open_lab()


def save(lab: Lab) -> None:
    lab.menu("File", "Save Notebook")
    lab.page.wait_for_selector(".lm-TabBar-tab.jp-mod-dirty", state="detached")


def images(path: Path) -> list[list[Any]]:
    """Each cell's PNG outputs: (width, height) in pixels, which are half of what is seen, and alternative text."""
    found = []
    for cell in json.loads(path.read_text())["cells"]:
        pngs = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        found.append([])
        for output in pngs:
            (width, height), told = _size(output["data"]["image/png"]), output["metadata"]["image/png"]
            assert (told["width"], told["height"]) == (width // 2, height // 2)
            found[-1].append((width, height, told["alt"]))
    return found


def _size(png: str) -> tuple[int, int]:
    start = base64.b64decode(png)[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", start[16:24])
    return width, height


def test_a_picture_goes_below_the_cell_that_shows_the_view_and_stays_in_the_notebook(lab: Lab, lab_server: Server) -> None:
    path = write_notebook(lab_server.folder / "pictures.ipynb", SHOWN, LATER)
    lab.page.set_viewport_size({"width": 1280, "height": 1400})
    lab.open(path.name)
    lab.run_all()
    lab.plots(1)
    lab.page.wait_for_selector(".workbench-map [data-map]")

    first = lab.page.locator(".jp-CodeCell").first
    for drawing, count in ((".workbench-plot", 1), (".workbench-map", 2)):
        first.locator(drawing).hover()
        first.locator(drawing).get_by_role("button", name="Insert picture").click()
        lab.until("(n) => document.querySelectorAll('.jp-CodeCell')[0].querySelectorAll('img').length === n", argument=count)
    lab.page.wait_for_selector(".workbench-map [role=status]:has-text('below the cell')", state="attached")
    lab.shot("pictures")
    save(lab)
    shown, later = images(path)
    width = lab.page.evaluate("document.querySelector('.workbench-map').clientWidth")
    assert shown == [(2 * width, 480, "Three bars."), (2 * width, 480, "Six hundred blocks.")]
    assert later == []


def test_a_cells_value_may_be_a_picture_while_the_cell_waits_for_it(lab: Lab, lab_server: Server) -> None:
    hidden = "unseen = Plot({'data': [{'type': 'scatter', 'y': [1, 2]}]}, summary='On no screen.', height=200)"
    code = ("plot.picture()", "blocks.picture()", hidden, "unseen.picture()")
    path = write_notebook(lab_server.folder / "pictures.ipynb", SHOWN, LATER, *code)
    lab.page.set_viewport_size({"width": 1280, "height": 1800})
    lab.open(path.name)
    lab.run_all()
    assert lab.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    save(lab)
    *_, of_plot, of_blocks, nothing, of_unseen = images(path)
    assert [found[0][1:] for found in (of_plot, of_blocks)] == [(480, "Three bars."), (480, "Six hundred blocks.")]
    assert (nothing, of_unseen) == ([], [(1600, 400, "On no screen.")])


def test_without_a_page_a_picture_says_what_to_do(lab: Lab, lab_server: Server) -> None:
    path = write_notebook(lab_server.folder / "pictures.ipynb", SHOWN + "\nplot.close()\nplot.picture(seconds=0.1)")
    lab.open(path.name)
    lab.run_all()
    lab.page.wait_for_selector("text=Show the view in a cell first")


def test_the_committed_notebooks_get_pictures_where_widgets_were(lab: Lab, lab_server: Server) -> None:
    path = write_notebook(lab_server.folder / "pictures.ipynb", "print('text stays')", SHOWN, "'a value stays'")
    before = json.loads(path.read_text())
    notebook = run(lab, path)
    assert WIDGET not in text_of(notebook)
    assert notebook["metadata"] == before["metadata"]
    [text], [picture], [value] = (cell["outputs"] for cell in notebook["cells"])
    assert text["text"] == ["text stays\n"]
    assert value["data"] == {"text/plain": ["'a value stays'"]}
    assert picture["metadata"]["image/png"]["alt"] == "Two drawings"
    told = picture["metadata"]["image/png"]
    assert _size(picture["data"]["image/png"]) == (told["width"], told["height"])

    write_notebook(path, "1 / 0")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run(lab, path)
