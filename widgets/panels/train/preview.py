"""A dataset's first rows as the model will see them, with the loss mask, before anything starts.

Covers asking for them in the background, progress and Cancel, and showing them. Tokens on which the loss is taken are bold and
underlined, and read out as such. All of it is text of the dataset, escaped here; ``workbench.training.data`` makes the rows.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import groupby

import ipywidgets
import numpy as np

from widgets.background.work import Work
from widgets.controls.progress import ProgressRow
from widgets.controls.style import column, note, set_note
from workbench.text import counted, percent
from workbench.training.config import TrainConfig
from workbench.training.previews import Preview, preview

FIRST_TOKENS, LAST_TOKENS = 120, 40
"""Tokens shown of a long row, at its beginning and at its end."""
_ENDS = str.maketrans({"\n": "↵\n", "\t": "⇥\t"})

Tokens = tuple[tuple[str, bool], ...]


class RunPreview:
    """``widget`` holds the rows that ``ask`` reads; ``config()`` gives the configuration to read them by, and may raise."""

    def __init__(
        self,
        config: Callable[[], TrainConfig],
        failed: Callable[[Exception], None],
        seen: Callable[[TrainConfig], None],
        executor: Executor | None = None,
    ) -> None:
        self._config, self._seen = config, seen
        self._work = Work(executor, self._apply, failed)
        self._found: tuple[TrainConfig, Preview] | None = None
        self.counts, self.lengths, self.rows = note(), ipywidgets.HTML(), ipywidgets.HTML()
        self.widget = column(ProgressRow(self._work), self.counts, self.lengths, self.rows)

    def ask(self) -> None:
        """Look at the rows of the configuration as it stands."""
        config = self._config()
        self._empty()
        self._work.submit(
            "Tokenizing the first rows",
            "rows",
            lambda progress, cancelled: (config, preview(config, progress=progress, cancelled=cancelled)),
        )

    def clear(self) -> None:
        """Show nothing, and give up what is under way: the rows are another configuration's."""
        self._work.cancel()
        self._found = None
        self._empty()

    def _empty(self) -> None:
        set_note(self.counts, "")
        self.lengths.value = self.rows.value = ""

    def of(self, config: TrainConfig) -> Preview | None:
        """The rows on show, if they are this configuration's."""
        return self._found[1] if self._found is not None and self._found[0] == config else None

    def close(self) -> None:
        """End the thread."""
        self._work.close()

    def _apply(self, found: tuple[TrainConfig, Preview]) -> None:
        self._found, (config, rows) = found, found
        set_note(self.counts, counts_summary(rows, config))
        self.lengths.value = lengths_html(rows)
        self.rows.value = rows_html(rows)
        self._seen(config)


def counts_summary(seen: Preview, config: TrainConfig) -> str:
    """What became of the rows that were looked at."""
    n = seen.counts
    looked = f"All {counted(n['total'], 'row')}" if seen.whole else f"The first {n['total']:,} rows"
    lost = [
        f"{n['empty']:,} empty" if n["empty"] else "none empty",
        f"{n['truncated']:,} cut at {config.max_length:,} tokens" if n["truncated"] else "none cut",
        f"{n['without_loss']:,} without a token to learn from" if n["without_loss"] else "none without a token to learn from",
    ]
    if n["refused"]:
        lost.append(f"{n['refused']:,} refused by the chat template (the first: {seen.refusal})")
    alone = counted(n["single_turns"], "more row") + " of a turn that the template writes otherwise once others follow"
    if n["single_turns"]:
        lost.append(alone)
    if "packs" in n:
        lost.append(f"joined into {counted(n['packs'], 'pack')}")
    shape = f"{seen.shape} (recognised)" if seen.recognised else seen.shape
    return (
        f"Shape: {shape}. "
        f"{looked}: {n['kept']:,} to learn from, {', '.join(lost)}. The longest has {counted(n['longest'], 'token')}; "
        f"the loss is taken on {n['loss_tokens']:,} of {n['tokens']:,} tokens (bold and underlined below). "
        f"{seen.padding.summary(config)}"
    )


def lengths_html(seen: Preview) -> str:
    """How long rows are, as a small histogram with a mark at ``max_length``; "" where none was tokenized."""
    if not seen.lengths:
        return ""
    counts, edges = seen.histogram()
    most, wide = max(counts), len(counts)
    bars = "".join(
        f'<rect x="{i + 0.1:.1f}" y="{1 - n / most:.3f}" width=".8" height="{n / most:.3f}">'
        f"<title>{edges[i]:,.0f} to {edges[i + 1]:,.0f} tokens: {counted(n, 'row')}</title></rect>"
        for i, n in enumerate(counts)
        if n
    )
    at = wide * seen.max_length / edges[-1]
    cut = f"{percent(seen.cut, 1)} of rows are longer than {seen.max_length:,} tokens" if seen.cut else "none is cut"
    said = f"Rows by length, from 0 to {edges[-1]:,.0f} tokens: the median is {int(np.median(seen.lengths)):,}, and {cut}."
    return (
        f'<figure class="wb-lengths"><svg viewBox="0 0 {wide} 1" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f'{bars}<line x1="{at:.2f}" x2="{at:.2f}" y1="0" y2="1"/></svg><figcaption class="wb-note">{said}</figcaption></figure>'
    )


def rows_html(seen: Preview) -> str:
    """The rows, each token in its place and apart from the next."""
    items = "".join(f"<li><div class=wb-note>{_headed(row)}</div><p>{_row(row)}</p></li>" for row in seen.rows)
    return f'<ol class="wb-rows" aria-label="Rows as the model sees them">{items}</ol>'


def _headed(row: Tokens) -> str:
    learnt = sum(bears for _, bears in row)
    return f"{counted(len(row), 'token')}, {learnt:,} with loss"


def _row(row: Tokens) -> str:
    if len(row) <= FIRST_TOKENS + LAST_TOKENS:
        return _tokens(row)
    between = len(row) - FIRST_TOKENS - LAST_TOKENS
    return f"{_tokens(row[:FIRST_TOKENS])} <em>… {between:,} more tokens …</em> {_tokens(row[-LAST_TOKENS:])}"


def _tokens(row: Tokens) -> str:
    parts = []
    for bears, run in groupby(row, key=lambda token: token[1]):
        spans = "".join(f"<span>{html.escape(text).translate(_ENDS)}</span>" for text, _ in run)
        parts.append(
            f'<mark><b class="wb-unseen">With loss: </b>{spans}</mark>'
            if bears
            else f'<b class="wb-unseen">No loss: </b>{spans}'
        )
    return "".join(parts)
