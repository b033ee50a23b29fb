"""Resumed from any checkpoint, a run ends with the same weights, bit for bit, whatever has a state: moments, dropout, rows.

The worker runs inside the test's process here; kills are ``test_training_kills``' part.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, complete, of
from tests.helpers.tiny_model import ROWS, write_tiny_model
from workbench.training.folder import RunFolder, steps_of

STEPS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """18 rows: 5 batches of 4, gathered by two, are 3 steps a pass, of which the last gathers one short batch."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(ROWS.read_text("utf-8").splitlines(True)[:18]), "utf-8")
    return path


@pytest.mark.parametrize(
    ("fields", "after"),
    [  # resumed within a pass, between two, and after a second was begun
        pytest.param({"optim": "paged_adamw_32bit", "lr_scheduler_type": "cosine"}, (2, 3, 4), marks=pytest.mark.slow),
        ({"optim": "paged_adamw_8bit", "gradient_checkpointing": False}, (4,)),
        pytest.param(
            {"optim": "adamw_torch", "method": "lora", "weight_decay": 0.1, "use_dora": True}, (2,), marks=pytest.mark.slow
        ),
    ],
    ids=lambda given: given["optim"] if isinstance(given, dict) else "",
)
def test_from_any_checkpoint_the_same_weights(
    model: Path, rows: Path, tmp_path: Path, fields: dict[str, Any], after: tuple[int, ...]
) -> None:
    config = in_process.config_of(
        model, max_steps=STEPS, save_steps=1, save_total_limit=STEPS, max_eval_rows=0, dataset=str(rows),
        prompt_column="prompt", completion_column="completion", lora_dropout=0.3, gradient_accumulation_steps=2, **fields,
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    run = in_process.train(config, tmp_path / "run")
    weights, losses = adapter_bytes(run), [e["loss"] for e in of(run, "step")]
    assert len(set(losses)) == STEPS
    checkpoints = RunFolder(run.dir).complete_checkpoints()
    assert [path.name for path in checkpoints] == [f"checkpoint-{n}" for n in range(1, STEPS + 1)]
    for n in (*after, STEPS):
        again = tmp_path / f"from-{n}"
        again.mkdir()
        shutil.copytree(checkpoints[n - 1], again / "checkpoints" / f"checkpoint-{n}")
        resumed = in_process.train(config, again, attempt=2)
        assert [(e["n"], e["loss"]) for e in of(resumed, "step")] == [*enumerate(losses, 1)][n:]
        assert adapter_bytes(resumed) == weights
        assert resumed.adapter_dir is not None
        assert steps_of(resumed.adapter_dir) == STEPS


def test_the_adapter_is_the_one_with_the_most_steps(model: Path, tmp_path: Path) -> None:
    """After Stop that is the saved one; once a resumed run has gone beyond it, the last checkpoint's."""
    run = in_process.train(in_process.config_of(model, max_steps=3, save_steps=2, max_eval_rows=0), tmp_path)
    assert complete(run) == ["checkpoint-2", "checkpoint-3"]
    assert run.adapter_dir == run.dir / "adapter"  # as many steps as the last checkpoint
    assert steps_of(run.dir / "adapter") == 3
    state = run.dir / "adapter" / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 2}), "utf-8")
    assert run.adapter_dir == run.dir / "checkpoints" / "checkpoint-3"
    state.unlink()
    assert run.adapter_dir == run.dir / "adapter"


def test_what_cannot_be_a_patience_is_refused(model: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text(json.dumps(in_process.config_of(model).to_dict()), "utf-8")
    run = wb.attach(tmp_path)
    for patience in (-1, float("nan"), float("inf"), "soon"):
        with pytest.raises(wb.RunError, match="patience is"):
            run.stop(patience=patience)  # type: ignore[arg-type]
    assert folder.requests() == []
    run.pause(patience=7)
    (request,) = folder.requests()
    assert (request.what, request.patience) == ("pause", 7)
    (folder.control / "stop").touch()  # as a shell can
    assert {(r.what, r.patience) for r in folder.requests()} == {("pause", 7), ("stop", None)}
