"""The training cell in a real JupyterLab: launched by its button, alive and stoppable while a cell is busy, finished, dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.tiny_model import write_tiny_model

CELL = """
import workbench as wb
from widgets import TrainingCell
config = wb.TrainConfig(max_steps={steps}, max_length=48, per_device_train_batch_size=2, max_eval_rows={held_out},
                        sample_max_new_tokens=6, eval_steps=4, sample_prompts={prompts!r})
cell = TrainingCell({model!r}, config=config)
cell
"""

# Busy until a file appears: a cell that a button must not have to wait for.
BUSY = """
import pathlib
while not pathlib.Path({gate!r}).exists():
    pass
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def open_cell(lab: Lab, server: Server, model: Path, *more: str, steps: int, held_out: int, prompts: tuple[str, ...]) -> None:
    code = CELL.format(model=str(model), steps=steps, held_out=held_out, prompts=prompts)
    write_notebook(server.folder / "train.ipynb", code, *more)
    lab.page.set_viewport_size({"width": 1280, "height": 1900})
    lab.open("train.ipynb")


def test_a_run_is_watched_to_its_end(lab: Lab, lab_server: Server, model: Path) -> None:
    hostile = "<img src=x onerror=window.ran=1> n."
    open_cell(lab, lab_server, model, steps=8, held_out=4, prompts=("happiness, n.", hostile))
    lab.run_all()
    lab.page.wait_for_selector(".wb-panel[aria-label=Train]")

    # Plain keys stay in the panel: in the notebook, b would insert a cell.
    field = lab.page.get_by_label("Steps", exact=True)
    field.focus()
    lab.page.get_by_role("button", name="Launch", exact=True).focus()
    lab.page.keyboard.press("b")
    lab.page.keyboard.press("Tab")
    assert lab.page.locator(".jp-CodeCell").count() == 1

    # A wrong value is told in the panel, and the button still works.
    field.fill("0")
    field.press("Tab")
    lab.page.get_by_role("button", name="Launch", exact=True).click()
    lab.page.wait_for_selector(".wb-error[role=alert]:has-text('max_steps is 0')")
    lab.shot("training-error", ".wb-panel")
    field.fill("8")
    field.press("Tab")
    lab.page.get_by_role("button", name="Launch", exact=True).click()

    lab.plots(5, 60)
    lab.until_plot(0, "plot.data[0].y.length > 1", 180)
    lab.page.wait_for_selector(".wb-state-finished", timeout=180_000)
    lab.until_plot(0, "plot.data[0].y.length === 8 && plot.data[1].y.length >= 2")
    assert lab.plot(3, "plot.layout.title.text") == "Host page faults (OS), not GPU paging"
    assert lab.text(".wb-panel .wb-samples tbody tr:nth-child(2) th") == hostile
    assert lab.page.evaluate("window.ran") is None
    assert "AutoPeftModelForCausalLM" in lab.text(".wb-results .wb-code")
    lab.shot("training-light", ".wb-panel")
    lab.theme("JupyterLab Dark")
    lab.until_plot(0, "plot._fullLayout.colorway[0] === '#56b4e9'")
    lab.shot("training-dark", ".wb-panel")
    lab.theme("JupyterLab Light")


def test_it_moves_and_stops_while_a_cell_is_busy(lab: Lab, lab_server: Server, model: Path, tmp_path: Path) -> None:
    gate = tmp_path / "let go"
    open_cell(
        lab, lab_server, model, "cell._launch.click()", BUSY.format(gate=str(gate)), steps=100_000, held_out=0, prompts=()
    )
    lab.start_all()
    try:
        lab.plots(5, 60)
        lab.until_plot(0, "plot.data[0].y?.length > 3", 180)
        lab.until("(n) => document.querySelectorAll('.js-plotly-plot')[0].data[0].y.length > n", 60, 6)
        lab.page.get_by_role("button", name="Stop", exact=True).click()
        lab.page.wait_for_selector(".wb-state-stopped", timeout=120_000)
        lab.page.wait_for_selector(".wb-results .wb-path")
        assert lab.page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt").inner_text() == "[*]:", "the cell is still busy"
    finally:
        gate.touch()
    lab.finished()
    assert (Path(lab.text(".wb-results .wb-path")) / "adapter_model.safetensors").stat().st_size > 0
