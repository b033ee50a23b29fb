"""What the app shows of a model on its way here, and of the disk, without a browser."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers.immediate import Immediate
from tests.helpers.in_process import config_of
from widgets import TrainingCell
from widgets.panels.train import words
from widgets.panels.train.live import RunView
from workbench.training import disk
from workbench.training.events import EventWriter
from workbench.training.folder import RunFolder, RunStatus, write_json

Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def run(tmp_path: Path) -> wb.Run:
    """A run that has said how far its model is."""
    folder = RunFolder(tmp_path / "run")
    write_json(folder.config, config_of(Path("org/large")).to_dict())
    writer = EventWriter(folder.events("supervisor"), 1)
    writer.emit("phase", name="fetch", edge="begin")
    writer.emit("fetch", done=1_200_000_000, total=5_400_000_000, speed=30_000_000.0)
    writer.close()
    return wb.attach(folder.root)


def test_the_cockpit_says_how_far_the_model_is_and_can_be_stopped(run: wb.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wb.Run, "status", RunStatus("fetching"))
    view = RunView(lambda status: None, lambda error: pytest.fail(str(error)), Immediate())
    view.follow(run)
    content: dict[str, Any] = view.cockpit._state["content"]
    assert content["state"] == "fetching"
    assert content["fetch"] == {
        "done": 1_200_000_000, "total": 5_400_000_000, "left": 140.0, "text": "1.20 GB of 5.40 GB, 30.00 MB/s",
    }  # fmt: skip
    assert {"pause", "stop"} <= set(content["actions"])
    assert content["summary"] == "Run run: fetching, 1.20 GB of 5.40 GB, 30.00 MB/s."
    view.close()


def test_before_the_first_byte_and_after_the_last_nothing_is_said_of_bytes(run: wb.Run) -> None:
    history = wb.RunHistory()
    assert words.fetching(RunStatus("running"), history) is None
    assert words.fetching(RunStatus("fetching"), history) == {
        "done": 0, "total": 0, "left": None, "text": "the model is looked up",
    }  # fmt: skip
    history.feed(run.events())
    assert words.fetching(RunStatus("fetching", attempt=2), history) == words.fetching(RunStatus("fetching"), wb.RunHistory())


def test_the_disk_is_told_beside_the_forecast_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = TrainingCell("builtin", executor=Immediate())
    told = panel.setup.disk.value
    assert "On disk, forecast: checkpoint " in told
    assert "merged model (export)" in told
    assert "are free." in told
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Disk(10**9, 10**9, 1_000))
    panel.form.controls["lora_r"].value = 8
    assert "Does not fit the disk: it takes" in panel.setup.disk.value
    panel.close()


def test_another_model_is_not_asked_for_the_revision_of_the_one_before(tmp_path: Path) -> None:
    pinned = wb.TrainConfig(model=str(tmp_path / "a"), model_revision="a" * 40)
    panel = TrainingCell(config=pinned, executor=Immediate())
    assert panel.config == pinned
    panel.form.controls["model"].value = "builtin"
    assert (panel.config.model, panel.config.model_revision) == ("builtin", None)
    panel.close()
