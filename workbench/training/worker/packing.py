"""Rows end to end in one, each with positions of its own. Worker only (needs torch).

transformers makes the mask that keeps such rows apart from positions that begin again, where it is given no attention mask.
Covers making packs, which tokens of a batch of them are no padding, and whether a model keeps rows apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.errors import ConfigError
from workbench.sources.header import shown
from workbench.training.lengths import packs
from workbench.training.rows.tokens import MadeRows, TokenRow, lengths_of

_TOKENS = 12
"""Of each row on which a model is tried."""
_RIGHT = 0.1
"""Of what a row's logits change where it runs on from another, what they may change in a pack: experts round otherwise."""


class Packs(MadeRows):
    """Rows as packs of at most ``most`` tokens, each put together when it is asked for."""

    def __init__(self, rows: Sequence[TokenRow], most: int) -> None:
        lengths = lengths_of(rows)
        self._rows, self._packs = rows, packs(lengths.tolist(), most)
        self.lengths = np.array([lengths[pack].sum() for pack in self._packs], np.int64)

    def row(self, at: int) -> TokenRow:
        """A pack, its rows copied end to end."""
        some = [self._rows[i] for i in self._packs[at]]
        positions = np.concatenate([np.arange(len(row.input_ids), dtype=np.int32) for row in some])
        ids, loss = (np.concatenate(parts) for parts in zip(*((row.input_ids, row.loss) for row in some), strict=True))
        return TokenRow(ids, loss, positions)


def tokens_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, length) int64: 1 at tokens, 0 at padding. In packs all padding has position 0, and a row two tokens or more."""
    if "attention_mask" in batch:
        return batch["attention_mask"]
    positions = batch["position_ids"]
    after = torch.nn.functional.pad(positions[:, 1:], (0, 1))
    return ((positions > 0) | (after == 1)).long()


@torch.no_grad()
def check_packing(model: Any, rows: Sequence[TokenRow]) -> None:
    """Raises ``ConfigError`` where a row's logits change with what lies in front of it in a pack.

    To be called as it will train, without a cache: with one, transformers makes no mask of positions. In evaluation mode no
    random numbers are drawn.
    """
    ids = torch.as_tensor(rows[0].input_ids[:_TOKENS].astype(np.int64))
    n = len(ids)

    def changed(places: torch.Tensor) -> float:
        """How far two other rows in front move the logits of the second, at these positions."""
        found = []
        for front in (ids, ids.flip(0)):
            both = {"input_ids": torch.cat([front, ids])[None], "position_ids": places[None]}
            found.append(model(**{name: t.to(model.device) for name, t in both.items()}).logits[0, n:].float())
        return float((found[0] - found[1]).abs().amax())

    try:
        apart = changed(torch.arange(n).repeat(2)) <= _RIGHT * changed(torch.arange(2 * n))
    except (TypeError, ValueError):  # it takes no positions
        apart = False
    if not apart:
        kind = shown(str(model.config.model_type), 60)
        what = f"packing: a model of the type {kind} does not keep rows that lie end to end apart."
        raise ConfigError([what], where="TrainConfig", remedy="Leave packing False; group_by_length saves most of the padding.")
