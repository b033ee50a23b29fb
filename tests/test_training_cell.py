"""The training panel with a real run and without a browser: launch, watch, stop, attach, errors, closing."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import pytest

import workbench as wb
from tests.tiny_model import write_tiny_model
from widgets import TrainingCell
from widgets.plot import PlotlyLibrary

SECONDS = 180
SHORT = wb.TrainConfig(max_steps=3, max_length=48, per_device_train_batch_size=2, max_eval_rows=4, sample_max_new_tokens=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cell(model: Path, tmp_path: Path) -> Iterator[Callable[..., TrainingCell]]:
    """Makes panels; runs and panels end with the test."""
    made: list[TrainingCell] = []

    def make(**options: Any) -> TrainingCell:
        panel = TrainingCell(model, **options)
        panel._run_dir.value = str(tmp_path / "a run")
        made.append(panel)
        return panel

    yield make
    for panel in made:
        if panel.run and panel.run.status.state in ("starting", "running"):
            panel.run.stop(patience=0)
            panel.run.wait(SECONDS)
        panel.close()
        panel.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("workbench-ticker")]


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of a live panel, within a bound."""
    pause = threading.Event()
    for _ in range(SECONDS * 20):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("the panel did not get there in time")


def test_the_controls_are_a_config_and_lines_of_code(cell: Callable[..., TrainingCell]) -> None:
    panel = cell(config=SHORT)
    panel._controls["lora_r"].value = 4
    panel._controls["dataset"].value = " rows.jsonl "
    panel._columns.value = "question, answer"
    panel._run_dir.value = ""
    assert panel.config.lora_r == 4
    assert panel.config.dataset == "rows.jsonl"
    assert panel.config.columns == ("question", "answer")
    assert panel.config.sample_max_new_tokens == 4, "what has no control stays as it was given"
    namespace: dict[str, Any] = {}
    exec(panel.code.replace("run = wb.launch(", "config = ("), namespace)
    assert namespace["config"] == panel.config


def test_every_control_has_a_visible_label(cell: Callable[..., TrainingCell]) -> None:
    panel = cell()
    controls = [*panel._controls.values(), panel._columns, panel._run_dir, panel._launch, panel._stop, panel._pause]
    assert all(control.description for control in controls)


@pytest.mark.parametrize(
    ("control", "value", "said"),
    [
        ("max_steps", 0, "max_steps is 0"),
        ("dataset", "missing <b>.jsonl", "missing &lt;b&gt;.jsonl"),
        ("learning_rate", -1.0, "learning_rate is -1.0"),
    ],
)
def test_bad_input_shows_in_the_panel_with_the_controls_back(
    cell: Callable[..., TrainingCell], control: str, value: Any, said: str
) -> None:
    panel = cell()
    panel._controls[control].value = value
    panel._launch.click()
    assert said in panel.message.value
    assert 'role="alert"' in panel.message.value
    assert panel.run is None
    assert not panel._launch.disabled


def test_three_column_names_are_an_error_that_names_the_field(cell: Callable[..., TrainingCell]) -> None:
    panel = cell()
    panel._columns.value = "a, b, c"
    panel._launch.click()
    assert "Columns" in panel.message.value
    panel._columns.value = ""
    panel._attach.click()
    assert "there is no run in this folder" in panel.message.value


def test_a_run_is_launched_watched_to_its_end_and_picked_up_again(cell: Callable[..., TrainingCell]) -> None:
    panel = cell(config=SHORT)
    panel._launch.click()
    assert panel.message.value == ""
    assert panel._launch.disabled
    assert not panel._stop.disabled
    until(lambda: not panel._launch.disabled)
    assert panel.run is not None
    assert panel.run.status.state == "finished", panel.message.value
    assert "Finished after 3 steps" in panel.message.value
    assert "after 3 steps" in panel._view.plots["loss"].summary
    assert "RSS" in panel._view.plots["memory"].summary
    assert "not GPU paging" in panel._view.plots["paging"].summary
    assert "train" in panel._view.plots["phases"].summary
    results = panel._view._results.value
    assert "Held-out loss, measured" in results
    assert str(panel.run.adapter_dir) in results
    assert results.count("<tr>") == 4, "a heading and three prompts, before and after"
    assert "step 3 of 3" in panel._view._log.value

    again = cell(run=panel.run.dir)
    assert again._view.plots["loss"].summary == panel._view.plots["loss"].summary
    assert again._controls["max_steps"].value == 3
    assert again._view._results.value == results

    # The two lines that the panel shows load the adapter in plain peft.
    [shown] = re.findall(r'<pre class="wb-code">(.*?)</pre>', results, re.DOTALL)
    assert len(shown.splitlines()) == 2
    namespace: dict[str, Any] = {}
    exec(html.unescape(shown), namespace)
    assert any("lora_A" in name for name, _ in namespace["model"].named_parameters())


def test_stop_ends_a_run_early_and_leaves_an_adapter(cell: Callable[..., TrainingCell]) -> None:
    panel = cell(config=wb.TrainConfig(max_steps=10_000, max_length=48, max_eval_rows=0, sample_prompts=()))
    panel._launch.click()
    until(lambda: "after" in panel._view.plots["loss"].summary)
    panel._stop.click()
    assert "Stop was asked for" in panel.message.value
    until(lambda: not panel._launch.disabled)
    assert "Stopped after" in panel.message.value
    assert panel.run is not None
    assert panel.run.adapter_dir is not None
    assert not panel._resume.disabled


def test_closing_the_panel_frees_all_and_leaves_the_run_alone(cell: Callable[..., TrainingCell]) -> None:
    PlotlyLibrary.shared()
    before = set(ipywidgets.Widget.get_manager_state()["state"])
    panel = cell(config=wb.TrainConfig(max_steps=10_000, max_length=48))
    panel._launch.click()
    panel.close()
    assert set(ipywidgets.Widget.get_manager_state()["state"]) == before
    assert panel.run is not None
    assert panel.run.status.state in ("starting", "running")
