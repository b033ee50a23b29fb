"""Texts to rows of tokens with a loss mask, end to end in arrays that may lie on disk, and what became of each row.

Covers tokenizing and counting. Which texts a row gives is ``data``'s part, keeping tokens for a later run ``store``'s. Does not
batch or pad: the trainer does.
"""

from __future__ import annotations

import io
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from workbench.training.config import TrainConfig
from workbench.training.lengths import Padding, padding
from workbench.training.rows.chats import Refused
from workbench.training.rows.turns import Span

_TOGETHER = 256
"""Rows that are tokenized at a time."""
_LONGEST_TOKEN = 64
"""Characters a token has at most, for the purpose of not tokenizing what ``max_length`` cuts off anyway."""


@dataclass(frozen=True)
class TokenRow:
    """One row, as tokens."""

    input_ids: NDArray[np.int32]
    """(tokens,)"""
    loss: NDArray[np.bool_]
    """(tokens,): whether the token is learnt. The first never is: it is predicted from nothing."""
    positions: NDArray[np.int32] | None = None
    """(tokens,): the position of each in its own row, where several lie end to end; None: it is one row."""


class MadeRows(Sequence[TokenRow]):
    """Rows of known ``lengths``, (rows,), each of which ``row`` makes when it is asked for."""

    lengths: NDArray[np.int64]

    def row(self, at: int) -> TokenRow:
        """The row at this place."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> TokenRow: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[TokenRow]: ...
    def __getitem__(self, at: int | slice) -> TokenRow | Sequence[TokenRow]:
        if isinstance(at, slice):
            return tuple(self.row(i) for i in range(*at.indices(len(self))))
        return self.row(range(len(self))[at])


class TokenRows(MadeRows):
    """Rows end to end in two flat arrays, of which the memory holds what is looked at where they are mapped from disk."""

    def __init__(self, ids: NDArray[np.int32], loss: NDArray[np.bool_], ends: NDArray[np.int64]) -> None:
        """``ids`` and ``loss``: (tokens of all rows,); ``ends``: (rows,), where each row ends in them."""
        self.ids, self.loss, self.ends = np.asarray(ids), np.asarray(loss), ends
        self.lengths = np.diff(ends, prepend=0)

    def row(self, at: int) -> TokenRow:
        """A view of its part of the arrays."""
        begin, end = int(self.ends[at - 1]) if at else 0, int(self.ends[at])
        return TokenRow(self.ids[begin:end], self.loss[begin:end])


def lengths_of(rows: Sequence[TokenRow]) -> NDArray[np.int64]:
    """(rows,): tokens of each."""
    if isinstance(rows, MadeRows):
        return rows.lengths
    return np.fromiter((len(row.input_ids) for row in rows), np.int64, len(rows))


@dataclass(frozen=True)
class Rows:
    """A tokenized dataset and what became of its rows; ``rows`` holds those that are learnt from."""

    rows: Sequence[TokenRow]
    total: int
    """Rows that were read."""
    empty: int
    """Rows without text, left out."""
    truncated: int
    """Rows cut at ``max_length`` tokens."""
    without_loss: int
    """Rows in which no token bears a loss (often: the prompt alone fills ``max_length``), left out."""
    refused: int = 0
    """Chats that the template does not take, left out."""
    refusal: Refused | None = None
    """The error for the first of them."""
    single_turns: int = 0
    """Rows that are there because the template writes a turn otherwise once others follow: such a turn is a row of its own."""
    lengths: Sequence[int] = ()
    """Tokens of each row before it was cut, in those that were tokenized just now; of one that is cut for sure, at least."""

    def padding(self, config: TrainConfig) -> Padding:
        """How much of a pass over them would be padding, by way of batching."""
        return padding(lengths_of(self.rows).tolist(), config.per_device_train_batch_size, config.max_length)

    def counts(self) -> dict[str, int]:
        """The counts, with tokens, tokens that bear a loss, and the longest row."""
        lengths = lengths_of(self.rows)
        loss = np.count_nonzero(self.rows.loss) if isinstance(self.rows, TokenRows) else sum(r.loss.sum() for r in self.rows)
        return {
            "total": self.total, "kept": len(self.rows), "empty": self.empty, "truncated": self.truncated,
            "without_loss": self.without_loss, "refused": self.refused, "single_turns": self.single_turns,
            "tokens": int(lengths.sum()), "loss_tokens": int(loss), "longest": int(lengths.max(initial=0)),
        }  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A row before it is tokenized."""

    text: str
    learnt: tuple[Span, ...]
    """Where the loss is taken: from the first to before the second of each pair of characters."""
    chat: bool = False
    """Whether a template wrote it, which has put in all special tokens."""


Texts = tuple[Text, ...]
"""What a row of the dataset gives: none for one without text, several where turns of a chat are rows of their own."""


@dataclass
class Sink:
    """Where tokens are written while they are made: files, or memory."""

    ids: IO[bytes] = field(default_factory=io.BytesIO)
    loss: IO[bytes] = field(default_factory=io.BytesIO)
    ends: array[int] = field(default_factory=lambda: array("q"))

    def add(self, ids: Sequence[int], loss: NDArray[np.bool_]) -> None:
        """Add a row."""
        self.ids.write(np.asarray(ids, np.int32).tobytes())
        self.loss.write(loss.tobytes())
        self.ends.append((self.ends[-1] if self.ends else 0) + len(loss))

    def rows(self) -> TokenRows:
        """Those that were added, where they are in memory."""
        assert isinstance(self.ids, io.BytesIO)
        assert isinstance(self.loss, io.BytesIO)
        ids, loss = np.frombuffer(self.ids.getbuffer(), np.int32), np.frombuffer(self.loss.getbuffer(), np.bool_)
        return TokenRows(ids, loss, np.array(self.ends, np.int64))


def tokenize(rows: Iterable[Texts | Refused], tokenizer: Any, max_length: int, sink: Sink | None = None) -> Rows:
    """Each text with what the tokenizer puts in front and, but for chats, its end token.

    A token is learnt if any of its characters is. What ``max_length`` surely cuts off is not tokenized. With a ``sink`` the
    result's ``rows`` are empty: what is in its files is the caller's to open.
    """
    into = sink or Sink()
    refusal: Refused | None = None
    total = empty = truncated = without_loss = refused = single = 0
    lengths = array("i")
    most = max_length * _LONGEST_TOKEN
    end = tokenizer.eos_token_id
    rows = iter(rows)
    while batch := list(itertools.islice(rows, _TOGETHER)):
        total += len(batch)
        for row in batch:
            if isinstance(row, Refused):
                refused, refusal = refused + 1, refusal or row
            else:
                empty, single = empty + (not row), single + max(len(row) - 1, 0)
        texts = [text for row in batch if not isinstance(row, Refused) for text in row]
        for one, (ids, offsets) in zip(texts, _encoded(texts, tokenizer, most), strict=True):
            begin, stop = np.asarray(offsets, np.int64).reshape(-1, 2).T  # (tokens,) each
            loss = np.zeros(len(ids) + 1, np.bool_)  # one more, for the end token
            for first, last in one.learnt:
                loss[:-1] |= (begin < last) & (stop > first) & (stop > begin)
            if not one.chat and end is not None and len(one.text) <= most:
                if not ids or ids[-1] != end:
                    ids = [*ids, end]
                loss[len(ids) - 1] = bool(one.learnt)
            lengths.append(len(ids))
            truncated += len(ids) > max_length or len(one.text) > most
            loss = loss[: min(len(ids), max_length)]
            loss[:1] = False
            if loss.any():
                into.add(ids[:max_length], loss)
            else:
                without_loss += 1
    kept = into.rows() if sink is None else ()
    return Rows(kept, total, empty, truncated, without_loss, refused, refusal, single, lengths)


def _encoded(rows: list[Text], tokenizer: Any, most: int) -> Iterator[tuple[list[int], list[Span]]]:
    """Token ids and the characters that each stands for; special tokens stand for none."""
    for chat_rows, together in itertools.groupby(rows, key=lambda row: row.chat):
        batch = [row.text[:most] for row in together]
        encoded = tokenizer(batch, add_special_tokens=not chat_rows, return_offsets_mapping=True, verbose=False)
        yield from zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
