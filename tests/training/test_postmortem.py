"""What a supervisor tells of a worker that cannot tell any more."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.texts import changes, missing
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.folder import RunFolder
from workbench.training.watch import postmortem
from workbench.training.watch.outside import Outside


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """Two steps; the first batch is measured."""
    folder = tmp_path_factory.mktemp("postmortem")
    return in_process.train(in_process.config_of(write_tiny_model(folder / "model"), max_steps=2), folder / "run")


@pytest.fixture
def starved(tmp_path: Path) -> Outside:
    """Seen from outside, as the kernel kills it for want of memory."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 3\n", "ascii")
    outside = Outside(os.getpid(), vmstat)
    outside.sample()
    vmstat.write_text("oom_kill 4\n", "ascii")
    return outside


def cut(run: wb.Run, folder: Path, last: str) -> RunFolder:
    """The run as it would be, had its worker been killed after the first event of kind ``last``."""
    lines = (run.dir / "events-rank0.jsonl").read_text("utf-8").splitlines(True)
    end = next(i for i, line in enumerate(lines) if json.loads(line)["k"] == last)
    (folder / "control").mkdir()
    (folder / "events-rank0.jsonl").write_text("".join(lines[: end + 1]), "utf-8")
    (folder / "config.json").write_bytes((run.dir / "config.json").read_bytes())
    return RunFolder(folder)


def test_the_batch_that_the_kernel_killed_is_told_with_what_would_have_fitted(
    run: wb.Run, starved: Outside, tmp_path: Path
) -> None:
    told = postmortem.status_of(cut(run, tmp_path, "batch"), 1, -signal.SIGKILL, starved)
    assert (told["state"], told["kind"], told["exit_code"]) == ("failed", "out_of_memory", -signal.SIGKILL)
    batch = next(event for event in run.events() if event["k"] == "batch")
    assert not missing(told["message"], "This machine", "out of memory at step 1", f"{batch['longest']} tokens", "forecast")
    assert not missing(told["message"], "kernel", "last held")
    assert changes(told["remedy"])
    assert "Resume" in told["remedy"]


def test_after_a_step_its_batch_is_over(run: wb.Run, starved: Outside, tmp_path: Path) -> None:
    told = postmortem.status_of(cut(run, tmp_path, "step"), 1, -signal.SIGKILL, starved)
    assert not missing(told["message"], "out of memory at step 2", "full batch", "forecast")


def test_before_the_model_is_loaded_no_batch_is_to_blame(run: wb.Run, starved: Outside, tmp_path: Path) -> None:
    told = postmortem.status_of(cut(run, tmp_path, "phase"), 1, -signal.SIGKILL, starved)
    assert not missing(told["message"], "out of memory in the phase import", "kernel")
    assert "batch" not in told["message"]


def test_where_no_killing_was_counted_memory_is_a_guess(run: wb.Run, tmp_path: Path) -> None:
    told = postmortem.status_of(cut(run, tmp_path, "step"), 1, -signal.SIGKILL, Outside(os.getpid(), tmp_path / "none"))
    assert (told["state"], told["kind"]) == ("killed", "killed")
    assert not missing(told["message"], "possibly out of memory", "after 1 step")
