"""A finished run goes on: 20 steps and 20 more are 40, to the last bit where the schedule is constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, ended, of
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import ROWS, write_tiny_model
from workbench.training import extending, lineage
from workbench.training.events import latest_steps
from workbench.training.folder import RunFolder, RunStatus, steps_of

STATEFUL: dict[str, Any] = {
    "prompt_column": "prompt", "completion_column": "completion", "lora_dropout": 0.3, "gradient_accumulation_steps": 2,
    "optim": "paged_adamw_32bit", "save_steps": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 rows: three steps a pass, so that order and dropout go on within a pass."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(ROWS.read_text("utf-8").splitlines(True)[:18]), "utf-8")
    return path


def train(root: Path, config: wb.TrainConfig, attempt: int = 1) -> wb.Run:
    root.mkdir(exist_ok=True)
    return in_process.ended(in_process.train(config, root, attempt))


def longer(run: wb.Run, steps: int) -> wb.Run:
    """What ``extend`` does, in this process."""
    config = extending.extended(RunFolder(run.dir), run.config, steps)
    extending.write(RunFolder(run.dir), config)
    return train(run.dir, config, attempt=2)


def rates(run: wb.Run) -> list[float]:
    return [step["lr"] for step in latest_steps(run.events())]


@pytest.mark.parametrize("grouped", [True, False])
def test_steps_and_more_steps_are_as_many_from_the_start(model: Path, rows: Path, tmp_path: Path, grouped: bool) -> None:
    fields = STATEFUL | {"dataset": str(rows), "max_eval_rows": 0, "group_by_length": grouped}
    config = in_process.config_of(model, **fields, max_steps=10)
    whole = train(tmp_path / "whole", config)
    short = train(tmp_path / "short", wb.TrainConfig.from_dict(config.to_dict() | {"max_steps": 5}))
    assert adapter_bytes(short) != adapter_bytes(whole)
    run = longer(short, 5)
    assert [(s["n"], s["loss"]) for s in latest_steps(run.events())] == [(s["n"], s["loss"]) for s in of(whole, "step")]
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert run.adapter_dir is not None
    assert steps_of(run.adapter_dir) == 10
    assert run.config == config
    card = (run.adapter_dir / "README.md").read_text("utf-8")
    assert "## What came before" in card
    assert "| this run, extended after 5 steps | `to 10 steps` |" in card
    assert "## What came before" not in (short.dir / "checkpoints" / "checkpoint-5" / "README.md").read_text("utf-8")


def test_a_schedule_that_ends_is_laid_out_anew_and_warm_up_stays(model: Path, tmp_path: Path) -> None:
    fields = {"lr_scheduler_type": "linear", "warmup_steps": 0.5, "learning_rate": 0.01, "max_eval_rows": 0, "save_steps": 9}
    run = train(tmp_path / "run", in_process.config_of(model, **fields, max_steps=4))
    assert rates(run) == pytest.approx([0.0, 0.005, 0.01, 0.005])
    run = longer(run, 2)
    assert run.config.warmup == 2
    assert rates(run) == pytest.approx([0.0, 0.005, 0.01, 0.005, 0.005, 0.0025])  # not 0.0, where the first four ended
    first = next(step for step in of(run, "step") if step["n"] == 5)
    assert first["grad_norm"] > 0
    weights = adapter_bytes(run)
    assert weights != (run.dir / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors").read_bytes()


def test_patience_is_counted_anew(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.training.worker import trainer

    monkeypatch.setattr(trainer, "held_out_loss", lambda *_: 1.0)  # the first evaluation stays the best
    run = train(
        tmp_path / "run", in_process.config_of(model, max_steps=9, eval_steps=1, save_steps=9, early_stopping_patience=2)
    )
    assert [event["n"] for event in of(run, "early_stop")] == [3]
    run = longer(run, 20)
    assert run.config.max_steps == 23
    assert [event["n"] for event in of(run, "early_stop")] == [3, 5]
    assert run.best_dir == run.dir / "checkpoints" / "checkpoint-1"


def test_a_run_of_passes_goes_on_by_steps(model: Path, rows: Path, tmp_path: Path) -> None:
    fields = STATEFUL | {"dataset": str(rows), "max_eval_rows": 0}
    run = train(tmp_path / "run", in_process.config_of(model, **fields, num_train_epochs=1))
    config = extending.extended(RunFolder(run.dir), run.config, 3)
    assert (config.max_steps, config.num_train_epochs) == (6, None)


def test_what_cannot_be_extended_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", in_process.config_of(model, max_eval_rows=0, max_steps=1))
    with pytest.raises(wb.RunError, match="no checkpoint of the run's last step") as caught:
        run.extend(3)
    assert "init_adapter=run" in caught.value.remedy
    for steps in (0, -1, 2.5, True, "many"):
        with pytest.raises(wb.RunError, match="steps is"):
            run.extend(steps)  # type: ignore[arg-type]
    RunFolder(run.dir).write_status(RunStatus("paused"))
    with pytest.raises(wb.RunError, match=r"not finished \(paused\)"):
        run.extend(3)
    RunFolder(run.dir).write_status(RunStatus("finished"))
    with pytest.raises(wb.RunError, match="is finished") as caught:
        run.resume()
    assert "run.extend(steps)" in caught.value.remedy
    assert not (run.dir / "lineage.json").exists()
    (run.dir / "lineage.json").write_text("[]", "utf-8")
    with pytest.raises(wb.RunError, match="cannot be read"):
        lineage.read(run.dir)


@pytest.mark.slow
def test_twenty_steps_and_twenty_more_in_processes_of_their_own(forks: Forks, model: Path, rows: Path, tmp_path: Path) -> None:
    config = in_process.config_of(model, **STATEFUL, dataset=str(rows), max_eval_rows=0, max_steps=20)
    whole = train(tmp_path / "whole", wb.TrainConfig.from_dict(config.to_dict() | {"max_steps": 40}))
    with forks.ready():
        run = wb.launch(config, tmp_path / "run")
    ended(run, "finished")
    with forks.ready():
        run.extend(20)
    assert ended(run, "finished").message.startswith("Finished after 40 steps.")
    assert adapter_bytes(run) == adapter_bytes(whole)
    losses = [[(step["n"], step["loss"]) for step in latest_steps(each.events())] for each in (run, whole)]
    assert losses[0] == losses[1]
