"""Stop and Pause in each phase of a run, signals from elsewhere, and two runs at once: every run ends in time, and as told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, complete, ended, files_of, first, is_step, of, until, until_gone
from tests.helpers.preloaded import ENDLESS, PATIENCE, Forks
from tests.helpers.texts import missing
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.folder import RunFolder
from workbench.training.host import create_time

BEFORE = ("import", "dataset", "load", "quantize", "attach")
STEPS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> wb.TrainConfig:
    """A run with every phase: measured before, in the middle and after, with samples and checkpoints."""
    return in_process.config_of(
        write_tiny_model(tmp_path_factory.mktemp("tiny-llama")), max_steps=STEPS, save_steps=2, eval_steps=3,
        sample_prompts=("lawyer, n.",), sample_max_new_tokens=4, lora_dropout=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(config: wb.TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """The run that is never interrupted."""
    return in_process.train(config, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("phase", BEFORE)
def test_before_training_a_run_ends_at_once_though_it_is_busy(
    forks: Forks, config: wb.TrainConfig, tmp_path: Path, phase: str
) -> None:
    """The worker hangs in the phase, as one does that reads a large model; it is not waited for."""
    going = []
    for ask in ("stop", "pause"):
        with forks.ready(phase=phase, ask=ask, hang=True):
            going.append(wb.launch(config, tmp_path / ask))
    stopped, paused = (ended(run, state) for run, state in zip(going, ("stopped", "paused"), strict=True))
    assert "before the first step" in stopped.message
    assert "Resume" in paused.remedy
    for run in going:
        assert [e["name"] for e in of(run, "phase") if e["edge"] == "begin"][-1] == phase
        asked = next(e["t"] for e in of(run, "phase") if (e["name"], e["edge"]) == (phase, "begin"))
        assert (of(run, "exit")[0]["t"] - asked) / 1e9 < PATIENCE / 10
        assert run.adapter_dir is None


@pytest.mark.parametrize(
    "phase",
    ["first_forward", *(pytest.param(name, marks=pytest.mark.slow) for name in ("evaluate", "sample", "train", "save"))],
)
def test_from_the_first_measurement_on_a_run_ends_after_its_step_with_what_it_has(
    forks: Forks, config: wb.TrainConfig, whole: wb.Run, tmp_path: Path, phase: str
) -> None:
    steps = {"evaluate": 0, "sample": 0, "train": 1, "first_forward": 1, "save": 3}[phase]
    going = []
    for ask in ("stop", "pause"):
        with forks.ready(phase=phase, ask=ask):
            going.append(wb.launch(config, tmp_path / ask))
    stopped, paused = going
    told = ended(stopped, "stopped")
    after = {0: ["before the first step"], 1: ["after 1 step", "adapter"], 3: ["after 3 steps", "adapter"]}
    assert not missing(told.message, "Stopped", *after[steps])
    assert len(of(stopped, "step")) == steps
    assert stopped.adapter_dir == stopped.dir / "adapter"  # untrained if need be: it loads
    assert complete(stopped) == (["checkpoint-2"] if steps > 2 else [])

    assert not missing(ended(paused, "paused").message, "Paused", f"after {steps} step")
    assert complete(paused)[-1:] == ([f"checkpoint-{steps}"] if steps else [])
    if phase in ("evaluate", "first_forward", "save"):
        with forks.ready():
            ended(wb.attach(paused.dir).resume(), "finished")
        assert adapter_bytes(paused) == adapter_bytes(whole)


def test_asked_once_all_steps_are_done_a_run_is_finished(
    forks: Forks, config: wb.TrainConfig, whole: wb.Run, tmp_path: Path
) -> None:
    """The last phases are measurements, which Stop breaks off; there is nothing to resume."""
    with forks.ready(phase="save", ask="stop"):
        run = wb.launch(replace(config, save_steps=0, eval_steps=0), tmp_path / "run")
    ended(run, "finished")
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert [e["n"] for e in of(run, "eval")] == [0]


def test_two_runs_at_once_do_not_disturb_each_other(
    forks: Forks, config: wb.TrainConfig, whole: wb.Run, tmp_path: Path
) -> None:
    with forks.ready():
        endless = wb.launch(replace(config, max_steps=ENDLESS, eval_steps=0, save_steps=0), tmp_path / "endless")
        other = wb.launch(config, tmp_path / "other")
    ended(other, "finished")
    assert adapter_bytes(other) == adapter_bytes(whole)
    first(endless, is_step(1))
    assert [run.dir.name for run in wb.live_runs(tmp_path)] == ["endless"]
    endless.stop()
    ended(endless, "stopped")
    assert wb.live_runs(tmp_path) == []
    assert [run.dir.name for run in wb.runs(tmp_path)] == ["endless", "other"]
    assert [e["level"] for e in of(other, "log") if "endless went on" in e["text"]] == ["warning"]
    assert not any("went on" in e["text"] for e in of(endless, "log"))
    assert {e["k"] for e in other.events()} == {e["k"] for e in endless.events()} | {"checkpoint"}


@pytest.fixture
def endless(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> wb.Run:
    """A run in the middle of its training, with a checkpoint."""
    with forks.ready():
        run = wb.launch(replace(config, max_steps=ENDLESS, eval_steps=0, max_eval_rows=0, sample_prompts=()), tmp_path / "run")
    first(run, is_step(3))
    return run


@pytest.mark.parametrize("whom", ["worker", "supervisor"])
def test_sigterm_is_a_stop(endless: wb.Run, whom: str) -> None:
    """As a machine that is shut down sends it."""
    status = endless.status
    pid = status.worker_pid if whom == "worker" else status.pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert "adapter" in ended(endless, "stopped").message
    assert endless.adapter_dir == endless.dir / "adapter"


def test_a_worker_without_its_supervisor_saves_and_ends_and_the_run_goes_on_from_there(
    endless: wb.Run, forks: Forks, config: wb.TrainConfig
) -> None:
    status = endless.status
    assert status.pid is not None
    assert status.worker_pid is not None
    os.kill(status.worker_pid, signal.SIGSTOP)  # so that it can be looked at meanwhile
    os.kill(status.pid, signal.SIGKILL)
    until_gone(endless, status.pid)
    assert endless.status.state == "stopping"
    assert "The supervisor was killed" in endless.status.message
    with pytest.raises(wb.RunError, match="still going"):
        endless.resume()
    os.kill(status.worker_pid, signal.SIGCONT)
    until_gone(endless, status.worker_pid)
    assert "Resume" in ended(endless, "killed").remedy
    assert endless.adapter_dir == endless.dir / "adapter"
    with forks.ready():
        endless.resume()
    first(endless, is_step(1, attempt=2))
    endless.stop()
    ended(endless, "stopped")


def test_a_run_whose_folder_is_removed_ends(endless: wb.Run) -> None:
    """Nobody could stop it any more; whoever watches it is told so."""
    status, reader = endless.status, endless.reader()
    shutil.rmtree(endless.dir, ignore_errors=True)
    endless._folder.config.unlink(missing_ok=True)  # what the worker was just writing may have kept the folder
    for pid in (status.worker_pid, status.pid):
        process_gone(pid)
    seen = endless.watch()
    assert (seen.state, seen.kind) == ("gone", "gone")
    assert str(endless.dir) in seen.message
    assert endless.wait().state == "gone"
    for look in (reader.poll, endless.events, lambda: endless.log, lambda: endless.config, endless.stop, endless.resume):
        with pytest.raises(wb.RunError, match="no longer there"):
            look()
    assert endless.adapter_dir is None


def test_a_run_whose_folder_is_renamed_ends_and_says_so_there(endless: wb.Run, forks: Forks, tmp_path: Path) -> None:
    status = endless.status
    moved = endless.dir.rename(tmp_path / "under another name")
    for pid in (status.worker_pid, status.pid):
        process_gone(pid)
    assert endless.status.state == "gone"
    run = wb.attach(moved)
    assert (run.status.state, run.status.kind) == ("killed", "moved")
    assert "renamed" in run.status.message
    with forks.ready():
        run.resume()
    first(run, is_step(1, attempt=2))
    run.stop()
    ended(run, "stopped")


def process_gone(pid: int | None) -> None:
    """Waits, with a bound, for the end of a process of a run that has no folder to ask any more."""
    assert pid is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)


@pytest.mark.slow
def test_a_clock_that_is_set_does_not_matter(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> None:
    """A request from the future, or the past, is waited for as long as any other; so is a checkpoint's age by its step."""
    for name, jump in (("back", 3600), ("forward", -3600)):
        with forks.ready(phase="evaluate", hang=True):
            run = wb.launch(config, tmp_path / name)
        first(run, lambda e: e.get("name") == "evaluate")
        asked = time.monotonic()
        run.stop(patience=1)
        at = time.time() + jump
        os.utime(run.dir / "control" / "stop", (at, at))
        assert "Stop was asked for" in until_stopping(run).message
        assert ended(run, "stopped")
        assert 1 <= time.monotonic() - asked < abs(jump) / 10


def until_stopping(run: wb.Run) -> wb.RunStatus:
    until(run, lambda r: r.status.state == "stopping")
    return run.status


def test_the_newest_checkpoint_is_known_by_its_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, age in ((2, 0), (10, 5000), (4, 100)):
        folder.checkpoint(step).mkdir(parents=True)
        folder.mark_complete(step, keep=10)
        at = time.time() - age
        os.utime(folder.checkpoint(step), (at, at))
    folder.checkpoint(11).mkdir()  # a killed process left it
    assert [p.name for p in folder.complete_checkpoints()] == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]
    folder.checkpoint(12).mkdir()
    folder.mark_complete(12, keep=2)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-12"]


def test_an_adapter_is_replaced_whole_and_none_is_lost_by_a_kill_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str) -> None:
        folder.fresh.mkdir()
        (folder.fresh / "weights").write_text(text, "utf-8")

    folder = RunFolder(tmp_path)
    for text in ("first", "second"):
        write(text)
        folder.keep(folder.adapter)
        assert files_of(tmp_path) == {"adapter/weights": text.encode()}
    write("third")
    folder.checkpoint(1).mkdir(parents=True)
    move, moved = os.replace, []

    def killed_at_the_second(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(source)
        move(source, target)

    with monkeypatch.context() as here:
        here.setattr(os, "replace", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            folder.keep(folder.adapter)
    assert not folder.adapter.exists()
    folder.remove_unfinished()
    assert files_of(tmp_path) == {"adapter/weights": b"second"}


def test_another_process_with_the_same_pid_is_not_the_run(endless: wb.Run) -> None:
    """The status names a pid that lives, of a process that began at another time."""
    status = endless.status
    endless.stop(patience=10)
    ended(endless, "stopped")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        mine = create_time(stranger.pid)
        assert mine is not None
        pid = stranger.pid
        fake = replace(status, pid=pid, create_time=mine - 0.02, worker_pid=pid, worker_create_time=mine + 0.02)
        RunFolder(endless.dir).write_status(fake)
        assert wb.attach(endless.dir).status.state == "killed"
        RunFolder(endless.dir).write_status(replace(fake, create_time=mine))
        assert wb.attach(endless.dir).status.state == "running"  # that would be it
        stranger.communicate(b"\n")
    assert wb.attach(endless.dir).status.state == "killed"


ATTACH = """
import sys, time
import workbench as wb
began = time.process_time()  # this process's own: the machine may be busy with others
run = wb.attach(sys.argv[1])
status, events = run.status, run.events()
print(time.process_time() - began, status.state, len(events), sum(e["k"] == "step" for e in events))
"""


def test_another_kernel_has_a_long_run_with_all_its_history_within_two_seconds(whole: wb.Run, tmp_path: Path) -> None:
    from workbench.training.events import EventWriter

    folder = RunFolder(tmp_path)
    folder.config.write_bytes(RunFolder(whole.dir).config.read_bytes())
    writer = EventWriter(folder.events("rank0"), 1)
    step = {k: v for k, v in of(whole, "step")[-1].items() if k not in ("seq", "attempt", "t")}
    writer.emit_all({**step, "n": n} for n in range(1, 20_001))
    writer.emit_all({"k": "sample", "source": "worker", "rss": 10**9, "minflt": 1, "majflt": 0} for _ in range(20_000))
    folder.write_status(wb.attach(whole.dir).status)
    done = subprocess.run([sys.executable, "-c", ATTACH, str(tmp_path)], capture_output=True, text=True, check=True)
    seconds, *told = done.stdout.split()
    assert float(seconds) < 2
    assert told[1:] == ["40000", "20000"]
