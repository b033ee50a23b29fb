"""TensorBoard's logs hold what the run's events hold, read back by TensorBoard itself; trackio gets the same.

trackio is a stand-in here, which notes what it is given: the package wants an older pillow than other tests do.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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


class Told:
    """A run of trackio's."""

    def __init__(self, **given: Any) -> None:
        self.given, self.logs, self.finished = given, list[tuple[int, dict[str, float]]](), False

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logs.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


def test_trackio_is_told_each_step_and_the_held_out_loss_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Told] = []
    stand_in = ModuleType("trackio")
    stand_in.init = lambda **given: runs.append(Told(**given)) or runs[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    config = in_process.config_of(write_tiny_model(tmp_path / "model"), report_to="trackio", save_steps=2, eval_steps=2)
    (tmp_path / "a run").mkdir()
    run = in_process.train(config, tmp_path / "a run")
    shutil.rmtree(run.dir / "checkpoints" / "checkpoint-4")
    run = in_process.train(config, run.dir, attempt=2)
    first, second = runs
    assert "TRACKIO_SPACE_ID" not in os.environ
    assert (first.given["project"], first.given["name"], first.given["resume"]) == ("qlora-workbench", "a run", "never")
    assert (second.given["name"], second.given["resume"]) == ("a run", "allow")
    assert first.finished
    assert second.finished
    steps = [step for step in run.events() if step["k"] == "step"]
    told = [(n, logs["train/loss"]) for one in runs for n, logs in one.logs if "train/loss" in logs]
    assert told == [(step["n"], pytest.approx(step["loss"])) for step in steps]
    held_out = [(n, logs["eval/loss"]) for one in runs for n, logs in one.logs if "eval/loss" in logs]
    assert held_out == [(event["n"], event["loss"]) for event in run.events() if event["k"] == "eval"]


@pytest.mark.parametrize("package", ["tensorboard", "trackio"])
def test_without_the_package_launch_tells_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(wb.ConfigError, match=f"{package} is not installed") as caught:
        wb.launch(wb.TrainConfig(report_to=package), tmp_path / "run")
    assert caught.value.where == "report_to"
    assert f'qlora-workbench[{package}]"' in caught.value.remedy
    assert not (tmp_path / "run").exists()
