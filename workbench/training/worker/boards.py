"""Logs of others' beside a run's own events, where ``report_to`` asks for them: TensorBoard's or trackio's. Worker only.

Covers loss, learning rate, gradient norm, settings, and the held-out loss as ``eval/loss``; each needs the package of its name.
TensorBoard's lie in ``tensorboard/`` of the run's folder: ``tensorboard --logdir runs`` shows several runs beside each other.
trackio's lie where it keeps them on this machine (TRACKIO_DIR), in the project ``qlora-workbench``, under the name of the run's
folder: ``trackio show`` shows them. Nothing is sent anywhere.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from workbench.training.config import TrainConfig
from workbench.training.folder import RunFolder, steps_of
from workbench.training.worker import distributed

PROJECT = "qlora-workbench"
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL")
"""Variables by which trackio would send what it logs away from this machine."""


class Board(Protocol):
    """Where logs go."""

    def add_scalar(self, tag: str, value: float, n: int) -> None:
        """Logs a number after step ``n``."""

    def callbacks(self) -> Sequence[Any]:
        """The callbacks by which ``Trainer`` writes its logs there."""

    def close(self) -> None:
        """Writes what is left."""


def open_board(config: TrainConfig, folder: RunFolder, checkpoints: Sequence[Path]) -> Board | None:
    """The one that was asked for, or None, as on other ranks than 0. ``checkpoints``: those of the run, which goes on there."""
    if config.report_to == "none" or distributed.rank() != 0:
        return None
    done = int(steps_of(checkpoints[-1])) if checkpoints else 0
    return _Trackio(config, folder, done) if config.report_to == "trackio" else _TensorBoard(folder, done)


class _TensorBoard:
    """TensorBoard; steps after ``done`` are written again, and readers are to skip those written before."""

    def __init__(self, folder: RunFolder, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = done + 1 if done else None
        self._writer = SummaryWriter(str(folder.root / "tensorboard"), purge_step=purged, flush_secs=10)

    def add_scalar(self, tag: str, value: float, n: int) -> None:
        self._writer.add_scalar(tag, value, n)

    def callbacks(self) -> Sequence[Any]:
        from transformers.integrations import TensorBoardCallback

        return [TensorBoardCallback(self._writer)]

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """trackio; a run that is resumed goes on under its name, and steps that it takes again stand there twice."""

    def __init__(self, config: TrainConfig, folder: RunFolder, done: int) -> None:
        for name in _ELSEWHERE:
            os.environ.pop(name, None)
        self._run = importlib.import_module("trackio").init(
            project=PROJECT, name=folder.root.name, config=config.to_dict(), resume="allow" if done else "never", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def add_scalar(self, tag: str, value: float, n: int) -> None:
        self._run.log({tag: value}, step=n)

    def callbacks(self) -> Sequence[Any]:
        from transformers import TrainerCallback

        run = self._run

        class Logs(TrainerCallback):
            """What Trainer logs after each step."""

            def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
                if logs and "loss" in logs:
                    run.log({f"train/{name}": value for name, value in logs.items() if name != "epoch"}, step=state.global_step)

        return [Logs()]

    def close(self) -> None:
        self._run.finish()
