"""A dataset's first rows as the model will see them, before anything starts.

Covers ``preview`` and what it says: the shape of the rows, the loss mask, what is left out, cut or split, and how long rows
are. How rows become tokens is ``data``'s part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import DataError
from workbench.given import described, is_whole
from workbench.progress import Cancelled, Progress
from workbench.show import Shown, View, sparkline
from workbench.sources.base import Watch
from workbench.text import percent
from workbench.training import data, model_files
from workbench.training.config import TrainConfig, as_config
from workbench.training.lengths import Padding, packs
from workbench.training.rows.shapes import shape_of
from workbench.training.rows.tokens import TokenRow, lengths_of

_NONE = Padding(0.0, 0.0, 0.0)
BARS = 24
"""Bars of the histogram of lengths."""


@dataclass(frozen=True, repr=False)
class Preview(Shown):
    """Rows as the model will see them. All of it is text of the dataset: a view must escape it."""

    rows: tuple[tuple[tuple[str, bool], ...], ...]
    """For each row its tokens as text, each with whether it bears a loss."""
    counts: dict[str, int]
    """Counts of the rows looked at (``Rows.counts``), and with ``packing`` the packs that they make."""
    whole: bool
    """Whether those are all rows of the dataset, or only its first."""
    refusal: str = ""
    """Why the chat template refuses the first chat that it refuses; "" where it takes all."""
    padding: Padding = _NONE
    """Shares of padding in batches of the rows looked at, estimated."""
    shape: str = ""
    """The shape of the rows, in words."""
    recognised: bool = False
    """Whether that was recognised by columns and first rows, rather than set."""
    lengths: tuple[int, ...] = ()
    """Tokens of each row looked at, before it is cut; of the longest at least so many."""
    max_length: int = 0
    """Tokens a row may have."""

    @property
    def cut(self) -> float:
        """The share of the rows looked at that is longer than ``max_length``."""
        return sum(length > self.max_length for length in self.lengths) / max(len(self.lengths), 1)

    def histogram(self, bars: int = BARS) -> tuple[list[int], list[float]]:
        """Rows by length: (bars,) counts and (bars + 1,) edges in tokens, from 0 to the longest or ``max_length``."""
        last = max(max(self.lengths, default=0), self.max_length, 1)
        counts, edges = np.histogram(self.lengths, bars, (0, last))
        return counts.tolist(), edges.tolist()

    def _show_(self) -> View:
        lines = []
        for i, tokens in enumerate(self.rows, 1):
            learnt = [text for text, bears_a_loss in tokens if bears_a_loss]
            given = "".join(text for text, bears_a_loss in tokens if not bears_a_loss)
            lines.append(
                {
                    "row": f"{i}",
                    "tokens": f"{len(tokens):,}",
                    "learnt": f"{len(learnt):,}",
                    "from": given,
                    "to": "".join(learnt),
                }
            )
        extent = "all rows of the dataset" if self.whole else "its first rows"
        facts = {"shape": f"{self.shape}, {'recognised' if self.recognised else 'as set'}"} if self.shape else {}
        facts |= {name.replace("_", " "): f"{value:,}" for name, value in self.counts.items()}
        if self.lengths:
            counts, edges = self.histogram()
            facts["lengths"] = f"0 {sparkline(counts)} {edges[-1]:,.0f} tokens"
            facts["cut"] = f"{percent(self.cut, 1)} of rows are longer than max_length, {self.max_length:,} tokens"
        facts |= {f"padding, {how}": share for how, share in self.padding._line_().items()}
        return View(f"Rows as the model will see them; counted over {extent}", facts, lines, self.refusal)


def preview(
    config: TrainConfig,
    rows: int = 5,
    scan: int = 2_000,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Preview:
    """The first rows with their loss mask, and counts of some more; nothing beyond those is read.

    Args:
        config: The fine-tune whose rows they are.
        rows: Rows that are shown with their loss mask.
        scan: First rows that are counted.
        progress: A function of the rows done and their total.
        cancelled: Asked meanwhile; a yes ends the call.

    Returns:
        The tokens of the first rows, each with whether it bears a loss, counts and lengths of those looked at, and their
        padding.

    Raises:
        RunError: Where ``config`` is no configuration.
        ModelError: For faults of the tokenizer.
        DataError: For faults of the dataset, and numbers of rows that are none.
        InterruptedError: Once cancelled.

    >>> seen = wb.preview(wb.TrainConfig(), rows=1, scan=10)
    >>> seen.counts["kept"], seen.whole, seen.shape, seen.rows[0][:3]
    (10, False, 'prompt and completion', (('<s>', False), ('ab', False), ('as', False)))
    """
    watch = Watch(scan, progress, cancelled)
    files = data.check(as_config(config, "preview"))
    for name, value in (("rows", rows), ("scan", scan)):
        if not is_whole(value, 0):
            raise DataError(f"{described(value)} is no number of rows.", where=name, remedy="Give a whole number from 0 on.")
    watch.check()
    tokenizer = data.open_tokenizer(model_files.tokenizer_folder(config.model, config.model_revision, watch.check))
    seen = data.load(config, tokenizer, files, min(scan, config.max_train_rows or scan), watch)
    refusal = f"{seen.refusal.where}: {seen.refusal.what}" if seen.refusal else ""
    first = tuple(_shown(row, tokenizer) for row in seen.rows[:rows])
    whole = seen.total < scan or seen.total == config.max_train_rows
    title, recognised = shape_of(config, files).title, config.shape is None
    lengths, counts = tuple(seen.lengths), seen.counts()
    if config.packing:
        counts["packs"] = len(packs(lengths_of(seen.rows).tolist(), config.max_length))
    return Preview(
        first, counts, whole, refusal, seen.padding(config), title, recognised, lengths, max_length=config.max_length
    )


def _shown(row: TokenRow, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    return tuple((tokenizer.decode([int(t)]), bool(bears)) for t, bears in zip(row.input_ids, row.loss, strict=True))
