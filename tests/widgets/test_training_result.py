"""What the panel says of a run with a best checkpoint, and setting up another run that begins from its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.immediate import Immediate
from tests.helpers.tiny_model import write_tiny_model
from tests.helpers.training_cells import shown
from widgets import TrainingCell
from widgets.panels.train.result import facts, loss_html
from workbench.training.folder import RunFolder, RunStatus
from workbench.training.results.outcome import outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """One that is evaluated after every step."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    folder.mkdir()
    model = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    config = in_process.config_of(model, max_steps=4, eval_steps=1, save_steps=4, learning_rate=10.0, max_grad_norm=0)
    return in_process.train(config, folder)


def test_the_best_is_named_beside_the_last_loss(run: wb.Run) -> None:
    came_to = outcome(run)
    assert came_to.best is not None
    n, loss = came_to.best
    assert f"lowest {loss:.3f}, after step {n}" in loss_html(came_to)
    assert run.adapter_dir is not None
    assert f"checkpoints/checkpoint-{n}." in facts(run, run.adapter_dir, came_to)


def test_the_code_that_loads_a_loftq_adapter_has_its_base_in_just_these_4_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_process.config_of(
        write_tiny_model(tmp_path / "tiny"), max_steps=1, init_lora_weights="loftq", lora_alpha=8, lora_r=8,
        block_size=32, llm_int8_skip_modules=("down_proj",),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    run = in_process.ended(in_process.train(config, tmp_path / "run"))
    panel = TrainingCell(run=run.dir, executor=Immediate())
    code = panel.result.loading.text
    panel.close()
    monkeypatch.setattr(bnb.nn.Params4bit, "__new__", bnb.nn.Params4bit.__new__)  # which the code changes
    cell: dict[str, Any] = {}
    exec(code, cell)
    layers = {name: module for name, module in cell["model"].named_modules() if hasattr(module, "lora_A")}
    for name, layer in layers.items():
        state = getattr(layer.get_base_layer().weight, "quant_state", None)
        assert (state is None) == ("down_proj" in name)
        assert state is None or state.blocksize == 32


def test_an_early_finish_is_told_and_another_run_begins_from_its_adapter(run: wb.Run) -> None:
    RunFolder(run.dir).write_status(RunStatus("finished", message="Finished early, after 4 steps.", kind="early"))
    panel = TrainingCell(run=run.dir, executor=Immediate())
    assert "Finished early, after 4 steps." in panel.message.value
    assert shown(panel.result.widget)
    panel.result.train_on.click()
    assert panel.config.init_adapter == str(run.dir)
    assert shown(panel._before)
    assert f"init_adapter={str(run.dir)!r}" in panel.code
    assert "load_peft_weights" in panel.copy.code
    panel.close()


def test_a_finished_run_is_extended_from_its_result(run: wb.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = RunFolder(run.dir), []
    monkeypatch.setattr(wb.Run, "extend", lambda self, steps: asked.append(steps) or self)
    folder.write_status(RunStatus("finished"))
    panel = TrainingCell(run=run.dir, executor=Immediate())
    panel.result.more.click()
    assert shown(panel.result._more_steps)
    panel.result.steps.value = 7
    panel.result.extend.click()
    assert asked == [7]
    folder.write_status(RunStatus("stopped"))
    panel.close()
    panel = TrainingCell(run=run.dir, executor=Immediate())
    assert not shown(panel.result.more), "it is resumed"
    assert not shown(panel.result._more_steps)
    panel.close()
