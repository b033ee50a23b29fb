"""A run's mirror: it follows the run, a bad disk never troubles the run, and another session goes on from it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, complete, ended, files_of, is_step, of, report_of, until
from tests.helpers.live_runs import first as first_event
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.events import read_events
from workbench.training.folder import RunFolder, RunStatus, write_json
from workbench.training.watch.mirror import MARK, Mirror

STEPS = 400
RESUMED_ELSEWHERE = """
import sys
import workbench as wb
run = wb.resume_from(sys.argv[1], folder=sys.argv[2])
print(run.dir, run.wait(200).state)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(model: Path, tmp_path: Path) -> wb.TrainConfig:
    """Everything that has a state, and a checkpoint often."""
    return in_process.config_of(
        model, max_steps=STEPS, save_steps=5, save_total_limit=1, max_eval_rows=0, lora_dropout=0.2,
        lr_scheduler_type="cosine", mirror_dir=str(tmp_path / "drive"),
    )  # fmt: skip


# --- the thread that keeps it


class Kept:
    """A folder that looks like a run's, its mirror, and what was said."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.there = RunFolder(tmp_path / "runs" / "run"), RunFolder(tmp_path / "drive" / "run")
        self.said: list[tuple[str, str]] = []
        write_json(self.folder.config, {"model": "builtin"})
        self.folder.write_status(RunStatus("running"))
        self.there.root.parent.mkdir(parents=True)

    def open(self) -> Mirror:
        return Mirror(self.folder, self.there.root, lambda level, text: self.said.append((level, text)))

    def save(self, step: int, text: str = "weights", best: int | None = None) -> None:
        """A checkpoint, as the worker writes one; ``best``: the step that is the best so far."""
        path = self.folder.checkpoint(step)
        path.mkdir(parents=True)
        (path / "adapter_model.safetensors").write_text(f"{text} {step}", "utf-8")
        write_json(path / "trainer_state.json", {"global_step": step, "best_global_step": best})
        self.folder.mark_complete(step, keep=1)

    def train(self, text: str) -> None:
        """An adapter, as the worker puts one in place."""
        self.folder.fresh.mkdir()
        (self.folder.fresh / "adapter_config.json").write_text(text, "utf-8")
        self.folder.keep(self.folder.adapter)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_the_best_checkpoint_and_what_the_run_began_from_are_brought_over_too(kept: Kept) -> None:
    (kept.folder.first_adapter).mkdir()
    (kept.folder.first_adapter / "adapter_config.json").write_text("first", "utf-8")
    write_json(kept.folder.root / "lineage.json", {"before": []})
    for step in (5, 10, 15):
        kept.save(step, best=5)
    mirror = kept.open()
    assert mirror.flush()
    kept.save(20, best=5)
    assert mirror.flush()
    mirror.close()
    assert [path.name for path in kept.there.complete_checkpoints()] == ["checkpoint-5", "checkpoint-20"]
    assert kept.there.best == kept.there.checkpoint(5)
    ours, theirs = files_of(kept.folder.root), files_of(kept.there.root)
    assert theirs.pop(MARK)
    assert theirs == ours
    assert kept.said == []


def test_what_is_new_is_brought_over_and_nothing_else_stays(kept: Kept) -> None:
    mirror = kept.open()
    kept.save(5)
    kept.train("first")
    with kept.folder.events("rank0").open("a") as events:
        events.write('{"k": "step", "t": 1}\n{"k": "st')
    assert mirror.flush()
    assert [path.name for path in kept.there.complete_checkpoints()] == ["checkpoint-5"]
    assert (kept.there.adapter / "adapter_config.json").read_text("utf-8") == "first"
    assert kept.there.events("rank0").read_text("utf-8") == '{"k": "step", "t": 1}\n', "whole lines"
    assert kept.there.read_status() == RunStatus("running")

    kept.save(10)
    kept.train("second")
    with kept.folder.events("rank0").open("a") as events:
        events.write('ep", "t": 2}\n')
    assert mirror.flush()
    mirror.close()
    ours, theirs = files_of(kept.folder.root), files_of(kept.there.root)
    assert theirs.pop(MARK)
    assert theirs == ours
    assert kept.said == []


def test_a_mirror_says_that_its_run_goes_on_before_it_has_all_of_it(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Mirror) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(kept.folder.checkpoint(5)))

    monkeypatch.setattr(Mirror, "_checkpoints", gone)
    mirror = kept.open()
    mirror.flush()
    assert kept.there.read_status() == RunStatus("running")
    kept.folder.write_status(RunStatus("finished"))
    mirror.flush()
    mirror.close()
    assert kept.there.read_status() == RunStatus("running"), "it does not say finished before it has all"


def test_a_disk_that_fails_is_told_once_and_tried_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, full = Mirror._copy, [True]

    def failing(self: Mirror, file: Path, to: Path) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))
        copy(self, file, to)

    monkeypatch.setattr(Mirror, "_copy", failing)
    mirror = kept.open()
    kept.save(5)
    assert not mirror.flush()
    assert not mirror.flush()
    assert [(level, "No space left on device" in text) for level, text in kept.said] == [("warning", True)]
    full.clear()
    assert mirror.flush()
    mirror.close()
    assert [level for level, _ in kept.said] == ["warning", "info"]
    assert [path.name for path in kept.there.complete_checkpoints()] == ["checkpoint-5"]


def test_a_disk_that_hangs_is_waited_for_only_so_long(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    hanging = threading.Event()
    monkeypatch.setattr(Mirror, "_copy", lambda self, file, to: hanging.wait(60))
    mirror = kept.open()
    assert not mirror.flush(stuck=0.05)
    assert not mirror.flush(wanted=lambda: False)
    mirror.close()
    hanging.set()


def test_a_drive_that_is_gone_does_not_become_a_folder_of_this_disk(kept: Kept) -> None:
    kept.there.root.parent.rmdir()
    mirror = kept.open()
    assert not mirror.flush()
    mirror.close()
    assert not kept.there.root.parent.exists()
    assert kept.said[0][0] == "warning"


def test_a_checkpoint_that_is_removed_while_it_is_copied_still_arrives_whole(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Mirror._copy

    def overtaken(self: Mirror, file: Path, to: Path) -> None:
        if file.name == "adapter_model.safetensors" and kept.folder.checkpoint(5).exists():
            kept.save(10)
            assert not kept.folder.checkpoint(5).exists()
        copy(self, file, to)

    monkeypatch.setattr(Mirror, "_copy", overtaken)
    kept.save(5)
    mirror = kept.open()
    assert mirror.flush()
    assert mirror.flush()
    mirror.close()
    assert [path.name for path in kept.there.complete_checkpoints()] == ["checkpoint-10"]
    assert files_of(kept.there.checkpoints) == files_of(kept.folder.checkpoints)


def test_where_a_disk_has_no_links_a_checkpoint_that_went_is_not_taken_for_whole(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    copy = Mirror._copy

    def overtaken(self: Mirror, file: Path, to: Path) -> None:
        copy(self, file, to)
        if file.name == "adapter_model.safetensors":
            (kept.folder.checkpoint(5) / "complete").unlink(missing_ok=True)

    kept.save(5)
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Mirror, "_copy", overtaken)
    mirror = kept.open()
    mirror.flush()
    mirror.close()
    assert kept.there.complete_checkpoints() == []


def test_another_session_that_goes_on_from_the_mirror_is_left_alone(kept: Kept) -> None:
    before = kept.open()
    assert before.flush()
    after = kept.open()
    assert after.flush()
    kept.save(5)
    before.flush()
    after.close()
    assert kept.said == [("warning", f"Another session goes on from the mirror {kept.there.root}: this one leaves it alone.")]


def test_events_that_another_session_still_wrote_are_replaced_by_this_run_s(kept: Kept) -> None:
    def emit(n: int, attempt: int) -> None:
        with kept.folder.events("rank0").open("a") as events:
            events.write(json.dumps({"k": "step", "t": n, "n": n, "attempt": attempt}) + "\n")

    emit(1, 1)
    before = kept.open()
    assert before.flush()
    before.close()
    late = '{"k": "step", "t": 2, "n": 2, "loss": 1.5, "attempt": 1}\n'
    for moment in ("before this one begins", "while it goes on"):  # a look of the other's that was under way
        with kept.there.events("rank0").open("a") as events:
            events.write(late)
        emit(2, 2)
        if moment == "before this one begins":
            after = kept.open()
        assert after.flush()
        assert kept.there.events("rank0").read_bytes() == kept.folder.events("rank0").read_bytes(), moment
    after.close()
    assert [(level, "held events of another session" in text) for level, text in kept.said] == [("warning", True)] * 2


# --- what is refused


def test_launch_refuses_a_mirror_that_cannot_be_or_is_another_runs(config: wb.TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "drive" / "run").mkdir(parents=True)
    (tmp_path / "drive" / "run" / "config.json").write_text("{}", "utf-8")
    (tmp_path / "file").write_text("", "utf-8")
    for fields, told in (
        ({}, "mirror of another run is there already"),
        ({"mirror_dir": str(tmp_path / "file")}, "the mirror cannot be made"),
        ({"mirror_dir": str(tmp_path)}, "where the run itself is"),
        ({"mirror_dir": str(tmp_path / "unmounted" / "MyDrive" / "runs")}, "the folder around it is not there"),
    ):
        with pytest.raises(wb.RunError, match=told):
            wb.launch(replace(config, **fields), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert not (tmp_path / "unmounted").exists(), "a Drive that is not mounted is no folder of this machine"


def test_only_a_mirror_is_resumed_from_and_a_mirror_is_not_resumed_in_place(kept: Kept, tmp_path: Path) -> None:
    kept.folder.write_status(RunStatus("paused"))
    with pytest.raises(wb.RunError, match="not the mirror of a run"):
        wb.resume_from(kept.folder.root)
    mirror = kept.open()
    mirror.flush()
    mirror.close()
    with pytest.raises(wb.RunError, match="this is the mirror of a run") as caught:
        wb.attach(kept.there.root).resume()
    assert "wb.resume_from" in caught.value.remedy
    with pytest.raises(wb.RunError, match="folder is not empty"):
        wb.resume_from(kept.there.root, folder=tmp_path / "runs")
    with pytest.raises(InterruptedError):
        wb.resume_from(kept.there.root, tmp_path / "new", cancelled=lambda: True)
    kept.there.write_status(RunStatus("finished"))
    with pytest.raises(wb.RunError, match="the run is finished"):
        wb.resume_from(kept.there.root, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- whole runs


def lost(run: wb.Run, mirror: Path) -> int:
    """Ends the run's processes as a machine that is taken away does, and removes its folder; the last step it took."""
    until(run, lambda _: RunFolder(mirror).complete_checkpoints() != [])
    first_event(run, is_step(int(RunFolder(mirror).complete_checkpoints()[-1].name.split("-")[1]) + 2))
    status = run.status
    assert status.state == "running", report_of(run)
    for pid in (status.pid, status.worker_pid):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    until(run, lambda r: r.status.state == "killed")
    steps = max(event["n"] for event in of(run, "step"))
    shutil.rmtree(run.dir)
    return int(steps)


def test_a_run_whose_folder_is_gone_goes_on_from_its_mirror(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> None:
    mirror = tmp_path / "drive" / "run"
    with forks.ready():
        run = wb.launch(config, tmp_path / "runs" / "run")
        steps = lost(run, mirror)
        assert steps < STEPS
        seen = wb.attach(mirror)
        assert seen.status.state == "killed"
        assert seen.adapter_dir is not None
        again = wb.resume_from(mirror, folder=tmp_path / "elsewhere")
        assert again.dir == tmp_path / "elsewhere" / "run"
        begun = first_event(again, lambda e: e["k"] == "step" and e["attempt"] == 2)
        assert begun["n"] > 1
        again.stop()
        assert ended(again, "stopped").attempt == 2
        until(again, lambda _: (RunFolder(mirror).read_status() or RunStatus("")).state == "stopped")
    assert adapter_bytes(wb.attach(mirror)) == adapter_bytes(again), "the mirror has the end, too"
    assert [event["k"] for event in read_events(mirror)] == [event["k"] for event in read_events(again.dir)]
    assert (again.config.mirror_dir, len(complete(wb.attach(mirror)))) == (str(tmp_path / "drive"), 1)


def test_a_run_whose_drive_goes_away_trains_on(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    with forks.ready():
        run = wb.launch(config, tmp_path / "runs" / "run")
        until(run, lambda _: RunFolder(drive / "run").complete_checkpoints() != [])
        drive.rename(tmp_path / "away")
        first_event(run, lambda e: e["k"] == "log" and e["level"] == "warning" and "mirror" in e["text"])
        first_event(run, is_step(max(event["n"] for event in of(run, "step")) + 1))
        run.stop()
        assert "adapter is saved" in ended(run, "stopped", 60).message
    assert not drive.exists()


@pytest.mark.slow
def test_killed_deleted_and_resumed_in_a_fresh_process_it_ends_with_the_same_weights(
    config: wb.TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, max_steps=(steps := 150))
    whole = in_process.train(replace(config, mirror_dir=None), tmp_path / "whole")
    run = wb.launch(config, tmp_path / "runs" / "run")
    assert lost(run, tmp_path / "drive" / "run") < steps
    command = [sys.executable, "-c", RESUMED_ELSEWHERE, str(tmp_path / "drive" / "run"), str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == [str(tmp_path / "elsewhere" / "run"), "finished"], done.stderr
    again = wb.attach(tmp_path / "elsewhere" / "run")
    assert adapter_bytes(again) == adapter_bytes(whole)
    losses: Callable[[wb.Run], dict[int, float]] = lambda r: {e["n"]: e["loss"] for e in of(r, "step")}  # noqa: E731
    assert losses(again) == losses(whole)
    assert json.loads((tmp_path / "drive" / "run" / MARK).read_text("utf-8"))["run"] == "run"
