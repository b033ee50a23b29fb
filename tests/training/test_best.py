"""The best checkpoint: written by its evaluation, kept, named, and the one that a run ends with where that is asked for.

The worker runs inside the test's process; the held-out loss is the test's own where it must rise.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, complete, ended, first, is_step, of
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.folder import RunFolder, steps_of
from workbench.training.results.outcome import outcome
from workbench.training.watch.endings import FINISHED, PAUSED
from workbench.training.watch.outside import Outside
from workbench.training.watch.postmortem import status_of
from workbench.training.worker import trainer

FALLS_AND_RISES = {0: 3.0, 2: 2.0, 4: 1.0, 6: 1.5, 8: 1.25, 10: 0.5}
"""Held-out losses by step: the lowest of the first eight steps is step 4's."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(autouse=True)
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The held-out loss after each step."""
    given = dict(FALLS_AND_RISES)

    def told(net: Any, rows: Sequence[Any], collator: Any, size: int, asked: Any) -> float:
        return given[asked.__self__.where.get("step", 0)]

    monkeypatch.setattr(trainer, "held_out_loss", told)
    return given


def train(model: Path, root: Path, attempt: int = 1, code: int = FINISHED, **fields: Any) -> wb.Run:
    root.mkdir(exist_ok=True)
    usual = {"max_steps": 8, "eval_steps": 2, "save_steps": 3, "save_total_limit": 1, "lora_dropout": 0.2}
    return in_process.train(in_process.config_of(model, **usual | fields), root, attempt, code)


def weights_after(model: Path, root: Path, steps: int) -> bytes:
    return adapter_bytes(train(model, root, max_steps=steps, eval_steps=0))


def message(run: wb.Run) -> str:
    """How the run ended, as the supervisor finds it."""
    return str(status_of(RunFolder(run.dir), 1, 0, Outside(1))["message"])


def test_an_evaluation_that_is_the_best_writes_a_checkpoint_which_stays(model: Path, tmp_path: Path) -> None:
    run = train(model, tmp_path / "run")
    assert [event["n"] for event in of(run, "checkpoint")] == [2, 3, 4, 6, 8]
    assert complete(run) == ["checkpoint-4", "checkpoint-8"]  # one is kept, and the best besides
    assert run.best_dir == run.dir / "checkpoints" / "checkpoint-4"
    assert run.adapter_dir == run.dir / "adapter"
    assert adapter_bytes(run) == weights_after(model, tmp_path / "eight", 8)
    assert outcome(run).best == (4, 1.0)
    assert "checkpoints/checkpoint-4" in message(run)
    assert str(run.best_dir) in run._repr_html_()
    card = (run.dir / "adapter" / "README.md").read_text("utf-8")
    assert "| held out, after 4 steps, the lowest | `1.0000` |" in card
    assert "The weights are those after step" not in card


def test_it_ends_with_the_best_where_that_is_asked_for(model: Path, tmp_path: Path) -> None:
    run = train(model, tmp_path / "run", load_best_model_at_end=True, save_steps=0)
    assert complete(run) == ["checkpoint-4"]
    assert run.adapter_dir == run.dir / "adapter"
    assert steps_of(run.adapter_dir) == 8
    assert adapter_bytes(run) == weights_after(model, tmp_path / "four", 4)
    assert "The weights are those after step 4," in (run.adapter_dir / "README.md").read_text("utf-8")
    assert outcome(run).held_out == (3.0, 1.0)  # before, and of what it ends with
    assert str(tmp_path) not in (run.adapter_dir / "trainer_state.json").read_text("utf-8")
    shutil.rmtree(run.dir / "adapter")  # as where it was killed
    assert run.adapter_dir == run.best_dir


def test_patience_finishes_a_run_early_and_by_name(model: Path, tmp_path: Path) -> None:
    run = train(model, tmp_path / "run", max_steps=100, early_stopping_patience=2, load_best_model_at_end=True)
    assert [event["n"] for event in of(run, "step")][-1] == 8
    assert [(e["n"], e["patience"]) for e in of(run, "early_stop")] == [(8, 2)]
    assert message(run).startswith("Finished early, after 8 steps: the held-out loss did not fall in 2 evaluations")
    assert adapter_bytes(run) == weights_after(model, tmp_path / "four", 4)
    again = train(model, run.dir, 2, max_steps=100, early_stopping_patience=2, load_best_model_at_end=True)
    assert [event["n"] for event in of(again, "step")][-1] == 8  # a resumed run has no more patience
    assert adapter_bytes(again) == adapter_bytes(train(model, tmp_path / "four", max_steps=4, eval_steps=0))


@pytest.mark.parametrize("n", [3, 4, 6])
def test_resumed_from_any_checkpoint_best_and_patience_are_the_same(model: Path, tmp_path: Path, n: int) -> None:
    fields = {"max_steps": 100, "early_stopping_patience": 2, "load_best_model_at_end": True, "save_total_limit": 9}
    whole = train(model, tmp_path / "whole", **fields)
    again = tmp_path / "again"
    for path in RunFolder(whole.dir).complete_checkpoints():
        if steps_of(path) <= n:
            shutil.copytree(path, again / "checkpoints" / path.name)
    resumed = train(model, again, 2, **fields)
    after = [(e["n"], e["loss"]) for e in of(whole, "step") if e["n"] > n]
    assert [(e["n"], e["loss"]) for e in of(resumed, "step")] == after
    assert complete(resumed) == complete(whole)
    assert [of(run, "early_stop")[0]["n"] for run in (resumed, whole)] == [8, 8]
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert noted(resumed) == noted(whole)


def noted(run: wb.Run) -> tuple[float, list[Any]]:
    """The best loss and every evaluation, as the last checkpoint has them."""
    state = json.loads((run.dir / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text("utf-8"))
    return state["best_metric"], [entry for entry in state["log_history"] if "eval_loss" in entry]


@pytest.mark.parametrize(("n", "save_steps"), [(4, 3), (8, 3), (8, 0)], ids=["within", "the last", "without checkpoints"])
def test_an_evaluation_that_a_pause_breaks_off_is_made_up_for_before_anything_else(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, save_steps: int
) -> None:
    monkeypatch.undo()  # losses as they are measured
    fields = {"load_best_model_at_end": True, "early_stopping_patience": 9, "save_steps": save_steps, "save_total_limit": 9}
    whole, root = train(model, tmp_path / "whole", **fields), tmp_path / "run"
    measure = trainer.held_out_loss

    def interrupted(net: Any, rows: Sequence[Any], collator: Any, size: int, asked: Any) -> float | None:
        if asked.__self__.where.get("step") == n:
            RunFolder(root).ask("pause", 60)
        return measure(net, rows, collator, size, asked)

    monkeypatch.setattr(trainer, "held_out_loss", interrupted)
    paused = train(model, root, code=PAUSED, **fields)
    assert [event["n"] for event in of(paused, "step")][-1] == n
    assert n not in [event["n"] for event in of(paused, "eval")]
    (root / "control" / "pause").unlink()
    monkeypatch.undo()
    again = train(model, root, 2, **fields)
    losses = [{event["n"]: event["loss"] for event in of(run, "eval")} for run in (again, whole)]
    assert losses[0] == losses[1]
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert [steps_of(run.best_dir) for run in (again, whole) if run.best_dir] == [steps_of(whole.best_dir or root)] * 2
    assert not save_steps or noted(again) == noted(whole)


def test_the_last_evaluation_counts_and_one_that_is_no_number_does_not(
    model: Path, tmp_path: Path, losses: dict[int, float]
) -> None:
    losses |= {2: float("nan"), 8: 0.75}
    run = train(model, tmp_path / "run")
    assert run.best_dir == run.dir / "checkpoints" / "checkpoint-8"
    assert [event["n"] for event in of(run, "eval")] == [0, 2, 4, 6, 8]
    assert outcome(run).best == (8, 0.75)


def test_without_evaluations_there_is_no_best(model: Path, tmp_path: Path) -> None:
    assert train(model, tmp_path / "run", max_steps=2, eval_steps=0).best_dir is None
    with pytest.raises(wb.ConfigError) as caught:
        wb.TrainConfig(load_best_model_at_end=True, early_stopping_patience=1, max_eval_rows=0)
    assert [fault.split()[0] for fault in caught.value.faults] == ["eval_steps", "max_eval_rows"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n', "utf-8")
    with pytest.raises(wb.ConfigError, match="no rows are held out"):
        wb.launch(wb.TrainConfig(dataset=str(rows), eval_steps=1, early_stopping_patience=1), tmp_path / "none")


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_best_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of its own, as a user's run is, with losses as they are measured."""
    monkeypatch.undo()
    fields = {"load_best_model_at_end": True, "early_stopping_patience": 3, "learning_rate": 0.5, "max_steps": 30}
    whole = train(model, tmp_path / "whole", **fields)
    run = wb.launch(whole.config, tmp_path / "run")
    first(run, is_step(5))
    pid = run.status.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    ended(run, "killed")
    assert ended(run.resume(), "finished").attempt == 2
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert complete(run) == complete(whole)
    best = [folder.best_dir.name for folder in (run, whole) if folder.best_dir is not None]
    assert len(best) == 2
    assert best[0] == best[1]


def test_the_copied_cell_says_what_it_leaves_out() -> None:
    assert "early_stopping_patience" not in wb.as_code(wb.TrainConfig())
    assert "this cell takes every step" in wb.as_code(wb.TrainConfig(eval_steps=5, early_stopping_patience=2))
