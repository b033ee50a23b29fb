"""TensorBoard's logs hold what the run's events tell, read back by TensorBoard itself."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.events import latest_steps


def test_the_logs_hold_each_step_and_the_held_out_loss(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = in_process.config_of(write_tiny_model(tmp_path / "model"), report_to="tensorboard", save_steps=2)
    (tmp_path / "run").mkdir()
    run = in_process.train(config, tmp_path / "run")
    shutil.rmtree(run.dir / "checkpoints" / "checkpoint-4")
    run = in_process.train(config, run.dir, attempt=2)  # takes steps 3 and 4 again
    read = EventAccumulator(str(run.dir / "tensorboard"))
    read.Reload()

    def curve(tag: str) -> list[tuple[int, float]]:
        return [(scalar.step, scalar.value) for scalar in read.Scalars(tag)]

    steps = latest_steps(run.events())
    assert [step["n"] for step in steps] == [1, 2, 3, 4]
    for tag, field in (("train/loss", "loss"), ("train/learning_rate", "lr"), ("train/grad_norm", "grad_norm")):
        assert curve(tag) == [(step["n"], pytest.approx(step[field])) for step in steps], tag
    held_out = {event["n"]: event["loss"] for event in run.events() if event["k"] == "eval"}
    assert dict(curve("eval/loss")) == pytest.approx(held_out)


def test_without_the_package_launch_tells_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(wb.ConfigError, match="not installed") as caught:
        wb.launch(wb.TrainConfig(report_to="tensorboard"), tmp_path / "run")
    assert caught.value.where == "report_to"
    assert 'qlora-workbench[tensorboard]"' in caught.value.remedy
    assert not (tmp_path / "run").exists()
