"""Runs that go on while a panel opens, whose folders go while they are watched, or that are listed: without a browser."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.immediate import Immediate, Later
from tests.helpers.training_cells import SECONDS, SHORT, offered, press, put, shown, until
from widgets import TrainingCell
from widgets.state import State, Store
from workbench.training.folder import RunFolder, RunStatus, write_json
from workbench.training.host import create_time
from workbench.training.watch.mirror import MARK


def test_a_run_that_goes_on_is_found_and_launch_asks_before_a_second_one(
    cell: Callable[..., TrainingCell], model: Path, tmp_path: Path
) -> None:
    first = wb.launch(dataclasses.replace(SHORT, model=str(model), max_steps=10_000, save_steps=0), tmp_path / "runs" / "first")
    try:
        panel = cell(executor=Immediate())
        assert panel.run is not None
        assert panel.run.dir == first.dir
        assert shown(panel._during)
        assert "first" in panel.message.value
        assert panel.config.max_steps == 100, "what the form says stays"
        press(panel, "new")
        assert shown(panel._before)
        assert not shown(panel._question)
        assert panel.earlier.table.lines[0]["actions"] == ["watch", "use"]

        panel._launch.click()
        assert shown(panel._question)
        assert "first" in panel._asked.value
        assert [run.dir.name for run in wb.runs(tmp_path / "runs")] == ["first"], "nothing is launched yet"
        panel._instead.click()
        assert panel.run.dir == first.dir
        assert shown(panel._during)

        press(panel, "new")
        panel._launch.click()
        put(panel, max_steps=1)
        panel._anyway.click()
        assert panel.run.dir.name == "a run"
        assert not shown(panel._question)
        assert any("first went on" in event.get("text", "") for event in panel.run.events() if event["k"] == "log")
    finally:
        first.stop(patience=0)
        first.wait(SECONDS)


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_run_whose_folder_goes_while_it_is_watched_is_named_and_the_controls_come_back(
    cell: Callable[..., TrainingCell], how: str, tmp_path: Path
) -> None:
    panel = cell(config=dataclasses.replace(SHORT, max_steps=10_000, max_eval_rows=0, sample_prompts=()))
    panel._launch.click()
    assert panel.run is not None
    status = panel.run.status
    until(lambda: "training loss" in panel.view.cockpit.summary)
    folder = panel.run.dir
    if how == "removed":
        (folder / "config.json").unlink()
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.rename(tmp_path / "elsewhere")
    until(lambda: "no longer there" in panel.message.value)
    assert str(folder) in panel.message.value
    assert offered(panel) == ["new"]
    press(panel, "new")
    assert shown(panel._before)
    assert not panel._launch.disabled
    until(lambda: all(create_time(pid) is None for pid in (panel.run.status.pid, status.pid) if pid))  # type: ignore[union-attr]


def test_a_list_with_a_run_that_is_removed_leaves_it_out(
    cell: Callable[..., TrainingCell], model: Path, tmp_path: Path
) -> None:
    run = in_process.train(in_process.config_of(model, max_steps=1, max_eval_rows=0), tmp_path / "runs" / "short")
    panel = cell(executor=Immediate())
    assert [line["key"] for line in panel.earlier.table.lines] == ["short"]
    shutil.rmtree(run.dir)
    panel.earlier.table.press("open", "short")
    assert "no longer there" in panel.message.value
    panel.earlier.table.ticked = ["short"]
    assert "no longer there" in panel.message.value
    panel.earlier.renew("runs")
    [line] = panel.earlier.table.lines
    assert line["key"] == "recorded", "the one that comes with the workbench"
    panel.earlier.table.press("open", "recorded")
    assert "finished" in panel.view.cockpit.summary
    assert shown(panel.result.widget), "its adapter comes along"
    assert not shown(panel.result.more), "no checkpoint does"
    beside = panel.result._export.folder.value
    assert not beside.startswith(str(wb.recorded_run().dir)), "nothing is written into the installation"


def test_resume_goes_on_from_a_mirror_in_the_folder_of_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = RunFolder(tmp_path / "drive" / "mirrored")
    write_json(there.config, wb.TrainConfig(str(model)).to_dict())
    write_json(there.root / MARK, {})
    there.write_status(RunStatus("paused"))
    monkeypatch.setattr(wb.Run, "resume", lambda self, *, changed_ok: self)  # what follows is the run's own part
    waits = Later()
    store = Store(State(runs_folder=str(tmp_path / "runs")))
    panel = TrainingCell(run=there.root, store=store, executor=waits)
    assert offered(panel) == ["resume", "new"]
    press(panel, "resume")
    assert not (tmp_path / "runs").exists(), "it is copied on another thread"
    waits.run()
    assert panel.run is not None
    assert panel.run.dir == tmp_path / "runs" / "mirrored"
    assert panel.run.config.mirror_dir == str(tmp_path / "drive")
    assert "goes on from its mirror" in panel.message.value
    panel.close()
