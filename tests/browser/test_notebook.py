"""The committed notebook in a real JupyterLab, from the first cell to the adapter; and the README's picture of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.browser.conftest import Server
from tests.browser.lab import Lab

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_workbench.ipynb"


def test_the_notebook_runs_from_top_to_bottom(lab: Lab, lab_server: Server) -> None:
    shutil.copy(NOTEBOOK, lab_server.folder)
    # Tall enough for every cell: JupyterLab draws only those near the window.
    lab.page.set_viewport_size({"width": 1280, "height": 4200})
    lab.open(NOTEBOOK.name)
    lab.run_all(240)
    assert lab.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert lab.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    lab.plots(2)
    lab.page.wait_for_selector(".jp-OutputArea-output:has-text('the adapter holds')")
    (adapter,) = lab_server.folder.glob("runs/*/adapter/adapter_model.safetensors")
    assert adapter.stat().st_size > 0
    # WORKBENCH_SHOTS=docs/img makes the README's picture anew.
    lab.shot("workbench", ".wb-panel[aria-label='QLoRA Workbench']")
