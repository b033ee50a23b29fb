"""The training cell in a real JupyterLab: launched by its button, finished, dark; and a run that outlives page and kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.helpers.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow

CELL = """
import time
import workbench as wb
from widgets import TrainingCell
config = wb.TrainConfig(max_steps={steps}, max_length=48, per_device_train_batch_size=2, max_eval_rows={held_out},
                        sample_max_new_tokens=6, eval_steps=4, sample_prompts={prompts!r})
began = time.process_time()
cell = TrainingCell({model!r}, config=config)
seconds = time.process_time() - began
cell
"""

# How many steps the cockpit has, if that is more than n.
STEPS = """(n) => {
    const seen = Number(document.querySelector('.wbc-stage')?.dataset.steps ?? 0);
    return seen > n && seen;
}"""

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
    lab.page.set_viewport_size({"width": 1280, "height": 4200})
    lab.open("train.ipynb")


def test_a_run_is_watched_to_its_end(lab: Lab, lab_server: Server, model: Path) -> None:
    hostile = "<img src=x onerror=window.ran=1> n."
    rows = [{"text": f"{hostile} {'word ' * (n % 9)}"} for n in range(40)]
    (lab_server.folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
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

    # Every fault stands beside its field, behind the fold too, and the buttons still work.
    more = lab.page.get_by_role("button", name="More settings")
    assert more.get_attribute("aria-expanded") == "false"
    dropout = lab.page.get_by_label("Dropout (share)", exact=True)
    assert dropout.count() == 0, "what is behind it is made when it is opened"
    more.press("Enter")
    fill(dropout, "3")
    more.press("Enter")
    fill(field, "0")
    lab.page.wait_for_selector(".wb-fault:has-text('Steps is 0')")
    assert dropout.is_visible(), "a fold with a fault stays open"
    assert dropout.get_attribute("aria-invalid") == "true"
    lab.page.get_by_role("button", name="Launch", exact=True).click()
    lab.page.wait_for_selector(".wb-error[role=alert]:has-text('Steps is 0')")
    lab.shot("training-error", ".wb-panel")
    fill(dropout, "0")
    fill(field, "8")
    lab.page.wait_for_selector(".wb-fault", state="detached")

    # What would change the forecast is a press away.
    lab.page.get_by_role("button", name="rank 64").click()
    lab.page.get_by_role("button", name="rank 16").wait_for()
    assert lab.page.get_by_label("Rank", exact=True).input_value() == "64"
    lab.page.get_by_role("button", name="rank 16").click()
    lab.page.get_by_role("button", name="rank 64").wait_for()

    # A dataset's rows are shown as the model sees them, and nothing in them runs.
    fill(lab.page.get_by_label("Dataset", exact=True), "rows.jsonl")
    lab.page.get_by_role("button", name="Preview rows", exact=True).click()
    lab.page.wait_for_selector(".wb-rows mark", timeout=60_000)
    assert "All 40 rows: 40 to learn from" in lab.text(".wb-panel")
    assert lab.page.locator(".wb-panel img").count() == 0
    lab.shot("training-preview", ".wb-panel")
    lab.page.get_by_role("button", name="Launch", exact=True).click()

    for lane in ("Loss", "Memory", "Paging", "Phases"):
        lab.page.wait_for_selector(f".wbc-lane[aria-label^={lane}]")
    until_ended(lab, "finished")
    lab.page.wait_for_selector(".wb-result")
    assert "Not measured" in lab.text(".wb-result"), "these rows have none that are held out"
    assert lab.page.get_by_label("Folder of what was trained").input_value().endswith("/adapter")
    assert lab.page.get_by_role("table", name="Bytes that page").is_visible()
    small_tab(lab, "Samples")
    lab.page.wait_for_selector(".wb-samples")
    assert lab.text(".wb-panel .wb-samples tbody tr:nth-child(2) th") == hostile
    assert lab.page.evaluate("window.ran") is None
    small_tab(lab, "Receipt")
    lab.page.get_by_role("table", name="Receipt of the run's memory").wait_for()
    small_tab(lab, "Paging truth")
    lab.page.get_by_role("button", name="Simulated: the same run").click()
    lab.page.get_by_label("What may page").select_option(label="everything (unlike any QLoRA)")
    lab.page.wait_for_selector(".wb-note:has-text('each step evicts')")
    assert drawing(lab, "Simulated, with")["title"]["text"].startswith("Simulated")

    # A prompt is answered by base and adapter, as text, whatever is in it; Shift+Enter begins a line and runs no cell.
    prompt = lab.page.get_by_label("Prompt", exact=True)
    prompt.fill("<img src=x onerror=window.ran=1> n.")
    prompt.press("Shift+Enter")
    assert prompt.input_value().endswith("n.\n")
    prompt.press("Enter")
    lab.page.wait_for_selector(".wb-answer-adapter small:has-text('token')")
    lab.page.get_by_role("status").filter(has_text="adapter: ").wait_for(state="attached")
    assert lab.page.evaluate("window.ran") is None
    assert lab.page.get_by_role("button", name="Cancel").filter(visible=True).count() == 0
    lab.shot("training-tried", ".wb-try")

    # What merging the adapter changes is shown before the merged model is written; an error stands where it was made.
    lab.page.get_by_role("button", name="Export…").click()
    write = lab.page.get_by_role("button", name="Export", exact=True)
    assert write.is_disabled()
    lab.page.get_by_role("button", name="Show what merging changes").click()
    lab.page.wait_for_selector(".wb-note:has-text('Measured. ‖merged')", timeout=120_000)
    assert "merged, and quantized to 4 bits again" in drawing(lab, "‖merged − trained‖")["names"]
    folder = lab.page.get_by_label("Folder to write", exact=True)
    assert folder.input_value().endswith("-merged")
    fill(folder, ".")
    write.click()
    lab.page.wait_for_selector(".wb-error[role=alert]:has-text('the folder is not empty')")
    fill(folder, "merged")
    write.click()
    lab.page.wait_for_selector(".wb-message[role=status]:has-text('Written:')", timeout=60_000)
    assert (lab_server.folder / "merged" / "model.safetensors").stat().st_size > 0
    lab.shot("training-light", ".wb-panel")
    lab.theme("JupyterLab Dark")
    lab.shot("training-dark", ".wb-panel")
    lab.theme("JupyterLab Light")

    # Back to the form, where the run is in the list with what it came to; its settings are a press away.
    lab.page.get_by_role("button", name="New run").click()
    row = lab.page.get_by_role("table", name="Earlier runs").get_by_role("row").filter(has_text="8 steps")
    row.filter(has_text="MiB").wait_for()
    row.get_by_role("button", name="use settings").click()
    lab.page.wait_for_selector(".wb-message:has-text('taken over')")
    row.get_by_role("button", name="open").click()
    until_ended(lab, "finished")


def test_a_run_goes_on_while_a_cell_is_busy_the_page_is_reloaded_and_the_kernel_restarted(
    lab: Lab, lab_server: Server, model: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "let go"
    launch, busy = "wb.live_runs() or cell._launch.click()", BUSY.format(gate=str(gate))
    open_cell(lab, lab_server, model, launch, busy, steps=100_000, held_out=0, prompts=())
    lab.start_all()
    try:
        lab.until(STEPS, 180, 3)
        lab.until(STEPS, 180, 6)
        assert lab.page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt").inner_text() == "[*]:", "the cell is still busy"
    finally:
        gate.touch()
    lab.finished()

    # The page goes and comes back: what it shows is the kernel's, and goes on.
    lab.menu("File", "Save Notebook")
    lab.page.wait_for_selector(".lm-TabBar-tab.jp-mod-dirty", state="detached")
    lab.page.reload()
    lab.until(STEPS, argument=6)
    seen = lab.page.evaluate(STEPS, 0)
    lab.until(STEPS, argument=seen)

    # The kernel goes: the panel that opens next finds the run by itself, with all that it did meanwhile.
    lab.menu("Kernel", "Restart Kernel…")
    lab.page.get_by_role("button", name="Confirm Kernel Restart").click()
    lab.kernel("pass")
    lab.run_all(60)
    assert float(lab.kernel("print(seconds)")) < 2, "of the kernel's own time: the run keeps the machine busy meanwhile"
    lab.page.wait_for_selector(".wb-message:has-text('is going on')")
    lab.until(STEPS, argument=seen)
    lab.page.get_by_role("button", name="Stop", exact=True).click()
    until_ended(lab, "stopped")
    lab.page.wait_for_selector(".wb-result")
    folder = lab_server.folder / lab.page.get_by_label("Folder of what was trained").input_value()
    assert (folder / "adapter_model.safetensors").stat().st_size > 0


def small_tab(lab: Lab, title: str) -> None:
    """Open one of the tabs under the cockpit."""
    lab.page.locator(".wb-small-tabs .lm-TabBar-tab", has_text=title).click()


def until_ended(lab: Lab, state: str) -> None:
    """Wait until the cockpit says that the run has ended so."""
    lab.page.wait_for_selector(f".wbc-state[data-state={state}]", timeout=180_000)


def fill(field: Locator, value: str) -> None:
    """What a reader types, and leaves."""
    field.fill(value)
    field.press("Tab")


def drawing(lab: Lab, summary: str) -> Any:
    """Title and traces of the plot that a screen reader calls so."""
    return lab.page.evaluate(
        """(summary) => {
            const plot = [...document.querySelectorAll('.js-plotly-plot')]
                .find((e) => e.closest('[role=figure]').getAttribute('aria-label').startsWith(summary));
            return { title: plot.layout.title, names: plot.data.map((trace) => trace.name) };
        }""",
        summary,
    )
