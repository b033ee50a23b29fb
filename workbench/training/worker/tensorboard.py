"""TensorBoard's logs beside a run's own events, where they were asked for. Worker only; needs the package tensorboard then.

Covers what transformers' own callback writes (loss, learning rate, gradient norm, settings), into ``tensorboard/`` of the run's
folder, and the held-out loss as ``eval/loss``. ``tensorboard --logdir runs`` shows several runs beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.training.config import TrainConfig
from workbench.training.folder import RunFolder, steps_of
from workbench.training.worker import distributed


def open_board(config: TrainConfig, folder: RunFolder, checkpoints: Sequence[Path]) -> Any | None:
    """A ``SummaryWriter``, or None where none was asked for, and on other ranks than 0.

    ``checkpoints``: those of the run; steps after the last one are written again, and readers are to skip those written before.
    """
    if config.report_to != "tensorboard" or distributed.rank() != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter

    done = int(steps_of(checkpoints[-1])) if checkpoints else 0
    return SummaryWriter(str(folder.root / "tensorboard"), purge_step=done + 1 if done else None, flush_secs=10)


def callbacks(board: Any | None) -> list[Any]:
    """The callbacks by which ``Trainer`` writes its logs there."""
    if board is None:
        return []
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(board)]
