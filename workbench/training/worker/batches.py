"""Rows to batches, and a batch's loss. Needs torch, and neither transformers nor peft.

Covers padding and the cross-entropy over the tokens that bear a loss, as training and every held-out measurement take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.training.rows.tokens import TokenRow
from workbench.training.worker.head import IGNORED, Head, labelled


class Collator:
    """Rows → one batch, padded on the right to the longest; ``labels`` are -100 where no loss is taken."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    @classmethod
    def of(cls, tokenizer: Any) -> Collator:
        """The collator that pads with the tokenizer's own token for it, or else its last."""
        pad = tokenizer.pad_token_id
        return cls(pad if pad is not None else tokenizer.eos_token_id or 0)

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Trainer's form of ``batch``."""
        return self.batch([item["row"] for item in items])

    def batch(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Three tensors (rows, longest) of int64.

        Packs have positions instead of a mask: with one, transformers would let their rows run together.
        """
        shape = len(rows), max(len(r.input_ids) for r in rows)
        ids = np.full(shape, self.pad, np.int64)
        mask = np.zeros(shape, np.int64)
        positions = np.zeros(shape, np.int64)
        labels = np.full(shape, -100, np.int64)
        for i, row in enumerate(rows):
            n = len(row.input_ids)
            ids[i, :n] = row.input_ids
            mask[i, :n] = 1
            labels[i, :n] = np.where(row.loss, row.input_ids, -100)
            if row.positions is not None:
                positions[i, :n] = row.positions
        packed = rows[0].positions is not None
        arrays = {"input_ids": ids, "labels": labels} | ({"position_ids": positions} if packed else {"attention_mask": mask})
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Cross-entropy in nats, summed over the batch's tokens that bear a loss, and how many those are.

    Some logits are made at a time; all at once where the model does more to them than is known here. To be called without
    gradients.
    """
    batch = {k: v.to(model.device) for k, v in batch.items()}
    labels = batch.pop("labels")
    head = Head(model)
    with head.caught() as seen:
        first = model(**batch).logits
    if head.agrees(seen, first):
        hidden, wanted = labelled(seen[0], labels)
        return float(head.summed_loss(hidden, wanted)), len(wanted)
    logits, after = model(**batch).logits[:, :-1].float(), labels[:, 1:]  # position t predicts token t + 1
    total = torch.nn.functional.cross_entropy(logits.transpose(1, 2), after, ignore_index=IGNORED, reduction="sum")
    return float(total), int((after != IGNORED).sum())
