"""Training inside the test's own process: the worker's code from start to end, without a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.training.events import read_events
from workbench.training.folder import RunFolder, RunStatus, write_json
from workbench.training.watch.endings import FINISHED
from workbench.training.worker.worker import Worker

USUAL: dict[str, Any] = {
    "max_length": 32, "max_eval_rows": 8, "sample_prompts": (), "save_steps": 0, "learning_rate": 0.02,
    "lr_scheduler_type": "constant", "warmup_steps": 0, "seed": 1,
}  # fmt: skip


def config_of(model: Path, **fields: Any) -> wb.TrainConfig:
    """Four steps by default."""
    steps = {} if "num_train_epochs" in fields else {"max_steps": 4}
    return wb.TrainConfig(**{"model": str(model), **USUAL, **steps, **fields})


def train(config: wb.TrainConfig, root: Path, attempt: int = 1, code: int = FINISHED) -> wb.Run:
    """Trains to the end in an empty folder, or in a later attempt goes on from the last checkpoint there.

    The test fails with the run's errors if it does not end as ``code`` says.
    """
    folder = RunFolder(root)
    write_json(folder.config, config.to_dict())
    folder.control.mkdir(exist_ok=True)
    before = signal.getsignal(signal.SIGTERM)
    worker = Worker(folder, attempt, os.getppid())
    try:
        ended_with = worker.run()
    finally:
        worker.writer.close()
        signal.signal(signal.SIGTERM, before)
    assert ended_with == code, [event for event in read_events(root) if event["k"] == "error"]
    return wb.attach(root)


def ended(run: wb.Run, state: str = "finished") -> wb.Run:
    """The run with the status that its supervisor, which there is none of here, would have left."""
    RunFolder(run.dir).write_status(RunStatus(state))
    return run
