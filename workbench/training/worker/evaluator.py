"""What a run learns from, and what is measured of it by rank 0 before, in and after training. Worker only.

Covers the events of held-out loss and of samples; how they are computed is in ``trainer``, ``generation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.training.config import TrainConfig
from workbench.training.events import EventWriter
from workbench.training.rows.tokens import TokenRow
from workbench.training.worker import distributed, generation, trainer
from workbench.training.worker.batches import Collator


@dataclass(frozen=True, kw_only=True)
class Material:
    """The tokenizer, and the rows and prompts that it made tokens of."""

    tokenizer: Any
    collator: Collator
    rows: Sequence[TokenRow]
    """Those that are learnt from."""
    held_out: Sequence[TokenRow]
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures ``net`` on ``material``, each time in a phase of its own."""

    config: TrainConfig
    net: Any
    dtype: torch.dtype
    material: Material
    phase: trainer.Phase
    asked: trainer.Asked
    writer: EventWriter
    board: Any | None
    """TensorBoard's writer."""

    def evaluate(self, n: int) -> float | None:
        """Records the held-out loss after step ``n``, on rank 0; None elsewhere, and where Stop or Pause breaks it off."""
        if not self.material.held_out or distributed.rank() != 0:
            return None
        with self.phase("evaluate"), trainer.measuring(self.net, self.dtype):
            rows, size = self.material.held_out, self.config.per_device_train_batch_size
            loss = trainer.held_out_loss(self.net, rows, self.material.collator, size, self.asked)
            if loss is not None:
                self.writer.emit("eval", n=n, loss=loss)
                if self.board:
                    self.board.add_scalar("eval/loss", loss, n)
            return loss

    def sample(self, stage: str) -> None:
        """Records what the model makes of each prompt, ``"before"`` or ``"after"``, until Stop or Pause."""
        if not self.material.prompts or distributed.rank() != 0 or self.asked():
            return
        with self.phase("sample"), trainer.measuring(self.net, self.dtype):
            for prompt in self.material.prompts:
                if self.asked():
                    return
                tokens = self.config.sample_max_new_tokens
                encoded = generation.encode(self.material.tokenizer, prompt)
                made = generation.generate(self.net, self.material.tokenizer, encoded, tokens, self.asked)
                self.writer.emit("generated", stage=stage, prompt=prompt, text=made.text)
