"""Rows of text to rows of tokens, with the loss on completions only where that is asked.

Covers what a row's text is (a text, a prompt and its completion, or a chat, which ``chats`` writes), tokenizing it with a loss
mask and counting what could not be learnt (``load``), and looking at rows before anything starts (``preview``). Where the rows
lie is ``dataset_files``' part. Does not batch or pad: the trainer does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError, ModelError
from workbench.given import described, is_whole
from workbench.progress import Cancelled, Progress
from workbench.show import Shown, View
from workbench.sources import open_model
from workbench.sources.base import Watch
from workbench.training import model_files
from workbench.training.chats import Refused, Span, Template
from workbench.training.config import TrainConfig, as_config
from workbench.training.dataset_files import Files, check_columns, locate, read_chats, read_texts
from workbench.training.lengths import Padding, padding

_HELD_OUT_PROMPTS = ("happiness, n.", "lawyer, n.", "patriotism, n.")
_TOGETHER = 256
"""Rows that are tokenized at a time."""
_LONGEST_TOKEN = 64
"""Characters a token has at most, for the purpose of not tokenizing what ``max_length`` cuts off anyway."""


_NONE = Padding(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class TokenRow:
    """One row, as tokens."""

    input_ids: NDArray[np.int32]
    """(tokens,)"""
    loss: NDArray[np.bool_]
    """(tokens,): whether the token is learnt. The first never is: it is predicted from nothing."""
    positions: NDArray[np.int32] | None = None
    """(tokens,): the position of each in its own row, where several lie end to end; None: it is one row."""


@dataclass(frozen=True)
class Rows:
    """A tokenized dataset and what became of its rows; ``rows`` holds those that are learnt from."""

    rows: tuple[TokenRow, ...]
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

    def padding(self, config: TrainConfig) -> Padding:
        """How much of a pass over them would be padding, by way of batching."""
        lengths = [len(row.input_ids) for row in self.rows]
        return padding(lengths, config.per_device_train_batch_size, config.max_length)

    def counts(self) -> dict[str, int]:
        """The counts, with tokens, tokens that bear a loss, and the longest row."""
        lengths = [len(r.input_ids) for r in self.rows]
        return {
            "total": self.total, "kept": len(self.rows), "empty": self.empty, "truncated": self.truncated,
            "without_loss": self.without_loss, "refused": self.refused, "tokens": sum(lengths),
            "loss_tokens": sum(int(r.loss.sum()) for r in self.rows), "longest": max(lengths, default=0),
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Preview(Shown):
    """Rows as the model will see them. All of it is text of the dataset: a view must escape it."""

    rows: tuple[tuple[tuple[str, bool], ...], ...]
    """For each row its tokens as text, each with whether it bears a loss."""
    counts: dict[str, int]
    """Counts of the rows looked at (``Rows.counts``)."""
    whole: bool
    """Whether those are all rows of the dataset, or only its first."""
    refusal: str = ""
    """Why the chat template refuses the first chat that it refuses; "" where it takes all."""
    padding: Padding = _NONE
    """Shares of padding in batches of the rows looked at, estimated."""

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
        counts = {name.replace("_", " "): f"{value:,}" for name, value in self.counts.items()}
        counts |= {f"padding, {how}": share for how, share in self.padding._line_().items()}
        return View(f"Rows as the model will see them; counted over {extent}", counts, lines, self.refusal)


@dataclass(frozen=True)
class Text:
    """A row before it is tokenized."""

    text: str
    learnt: tuple[Span, ...]
    """Where the loss is taken: from the first to before the second of each pair of characters."""
    chat: bool = False
    """Whether a template wrote it, which has put in all special tokens."""


def check(config: TrainConfig) -> Files:
    """The files that are learnt from, fetched where they are on the Hub.

    Raises ``DataError`` if a dataset is missing, unreadable, or lacks a column that the configuration names.
    """
    training, held_out = training_files(config), held_out_files(config)
    for files in (training, *([held_out] if held_out else [])):
        check_columns(files, config.columns)
    return training


def training_files(config: TrainConfig) -> Files:
    """The files that are learnt from."""
    return locate(config.dataset, config.dataset_split, config.dataset_config, config.dataset_revision)


def held_out_files(config: TrainConfig) -> Files | None:
    """The files of the held-out rows; None where the configuration has none."""
    if config.dataset == "builtin" and config.eval_dataset in (None, "builtin"):
        return locate("builtin", "heldout")
    if config.eval_dataset is not None:
        return locate(config.eval_dataset, config.eval_split or "train")
    if config.eval_split is not None:
        return locate(config.dataset, config.eval_split, config.dataset_config, config.dataset_revision)
    return None


def load(
    config: TrainConfig, tokenizer: Any, files: Files | None = None, limit: int | None = None, watch: Watch | None = None
) -> Rows:
    """The dataset (or ``files``; or the first ``limit`` rows), tokenized. Raises ``DataError`` if nothing is left to learn."""
    files = files or training_files(config)
    found = texts(config, files, tokenizer, limit)
    rows = tokenize(_watched(found, watch) if watch else found, tokenizer, config.max_length)
    if not rows.rows:
        if rows.refusal is not None:
            raise rows.refusal
        raise DataError(
            f"no row has a token to learn from: of {rows.total} rows {rows.empty} are empty and {rows.without_loss} have no "
            f"token that bears a loss within {config.max_length} tokens.",
            where=files.where,
            remedy="Choose other columns, or raise max_length so that completions fit.",
        )
    return rows


def _watched(rows: Iterable[Text | Refused | None], watch: Watch) -> Iterator[Text | Refused | None]:
    for row in rows:
        watch.check()
        yield row
        watch.moved(1)


def texts(config: TrainConfig, files: Files, tokenizer: Any, limit: int | None = None) -> Iterator[Text | Refused | None]:
    """The rows' texts; None for a row that has none, and the error for a chat that the template does not take."""
    if config.messages_column is not None:
        yield from _chats(config, files, Template(tokenizer), limit)
        return
    for n, values in enumerate(read_texts(files, config.columns, limit), 1):
        yield _encodable(passage([value or "" for value in values], config.completion_only_loss), f"{files.where}, row {n}")


def _chats(config: TrainConfig, files: Files, template: Template, limit: int | None) -> Iterator[Text | Refused | None]:
    for n, messages in enumerate(read_chats(files, config.columns[0], limit), 1):
        where = f"{files.where}, row {n}"
        try:
            found = template.text(messages, config.completion_only_loss, where)
        except Refused as refusal:
            yield refusal
        else:
            yield _encodable(Text(*found, chat=True) if found else None, where)


def _encodable(row: Text | None, where: str) -> Text | None:
    try:
        if row is not None:
            row.text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a character, as "\\ud83d"
        remedy = "Write the file again with whole characters."
        raise DataError(f"it is no text that can be encoded ({error}).", where=where, remedy=remedy) from error
    return row


def passage(parts: list[str], completion_only: bool) -> Text | None:
    """The text of one column or of a prompt and its completion; an empty completion leaves nothing to learn."""
    prompt, completion = parts if len(parts) == 2 else ("", parts[0])
    text = prompt + completion
    if not text.strip():
        return None
    if not completion_only:
        return Text(text, ((0, len(text)),))
    return Text(text, ((len(prompt), len(text)),) if completion.strip() else ())


def tokenize(rows: Iterable[Text | Refused | None], tokenizer: Any, max_length: int) -> Rows:
    """``Text``s → ``Rows``: each with what the tokenizer puts in front and, but for chats, its end token.

    A token is learnt if any of its characters is. What ``max_length`` surely cuts off is not tokenized.
    """
    kept: list[TokenRow] = []
    refused: list[Refused] = []
    total = empty = truncated = without_loss = 0
    most = max_length * _LONGEST_TOKEN
    end = tokenizer.eos_token_id
    rows = iter(rows)
    while batch := list(itertools.islice(rows, _TOGETHER)):
        total += len(batch)
        there = [row for row in batch if isinstance(row, Text)]
        refused += [row for row in batch if isinstance(row, Refused)]
        empty += batch.count(None)
        for row, (ids, offsets) in zip(there, _encoded(there, tokenizer, most), strict=True):
            begin, stop = np.asarray(offsets, np.int64).reshape(-1, 2).T  # (tokens,) each
            loss = np.zeros(len(ids) + 1, np.bool_)  # one more, for the end token
            for first, last in row.learnt:
                loss[:-1] |= (begin < last) & (stop > first) & (stop > begin)
            if not row.chat and end is not None and len(row.text) <= most:
                if not ids or ids[-1] != end:
                    ids = [*ids, end]
                loss[len(ids) - 1] = bool(row.learnt)
            truncated += len(ids) > max_length or len(row.text) > most
            loss = loss[: min(len(ids), max_length)]
            loss[:1] = False
            if loss.any():
                kept.append(TokenRow(np.asarray(ids[:max_length], np.int32), loss))
            else:
                without_loss += 1
    return Rows(tuple(kept), total, empty, truncated, without_loss, len(refused), refused[0] if refused else None)


def _encoded(rows: list[Text], tokenizer: Any, most: int) -> Iterator[tuple[list[int], list[Span]]]:
    """Token ids and the characters that each stands for; special tokens stand for none."""
    for chat_rows, together in itertools.groupby(rows, key=lambda row: row.chat):
        batch = [row.text[:most] for row in together]
        encoded = tokenizer(batch, add_special_tokens=not chat_rows, return_offsets_mapping=True, verbose=False)
        yield from zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def preview(
    config: TrainConfig,
    rows: int = 5,
    scan: int = 2_000,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Preview:
    """The first ``rows`` rows with their loss mask, and counts of the first ``scan``; nothing beyond those is read.

    ``progress`` counts rows; InterruptedError once ``cancelled`` says yes.

    >>> seen = wb.preview(wb.TrainConfig(), rows=1, scan=10)
    >>> seen.counts["kept"], seen.whole, seen.rows[0][:3]
    (10, False, (('<s>', False), ('ab', False), ('as', False)))
    """
    watch = Watch(scan, progress, cancelled)
    check(as_config(config, "preview"))
    for name, value in (("rows", rows), ("scan", scan)):
        if not is_whole(value, 0):
            raise DataError(f"{described(value)} is no number of rows.", where=name, remedy="Give a whole number from 0 on.")
    watch.check()
    tokenizer = open_tokenizer(model_files.tokenizer_folder(config.model, config.model_revision, watch.check))
    seen = load(config, tokenizer, limit=scan, watch=watch)
    refusal = f"{seen.refusal.where}: {seen.refusal.what}" if seen.refusal else ""
    first, whole = tuple(_shown(row, tokenizer) for row in seen.rows[:rows]), seen.total < scan
    return Preview(first, seen.counts(), whole, refusal, seen.padding(config))


def _shown(row: TokenRow, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    return tuple((tokenizer.decode([int(t)]), bool(bears)) for t, bears in zip(row.input_ids, row.loss, strict=True))


def sample_prompts(config: TrainConfig) -> tuple[str, ...]:
    """Prompts to complete before and after: those asked for, or a few held-out ones of the builtin dataset."""
    if config.sample_prompts is not None:
        return config.sample_prompts
    files = held_out_files(config)
    if files is None or len(config.columns) != 2 or config.max_eval_rows == 0:
        return ()
    found = read_texts(files, config.columns, None if config.dataset == "builtin" else 3)
    prompts = [prompt for prompt, _ in found if prompt]
    wanted = [p for p in _HELD_OUT_PROMPTS if p in prompts] if config.dataset == "builtin" else []
    return tuple((wanted or prompts)[:3])


def model_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a model; raises ``ModelError`` if a file that training needs is missing or damaged.

    ``revision``: the commit of one on the Hub; None: what is there now. ``launch`` fetches what is not on this machine.
    """
    source = open_model(name, revision)
    if source.path is None:
        remedy = f"Download it first ('hf download {name}'), then try again."
        raise ModelError("the whole model is needed on this machine, and it is on the Hub.", where=name, remedy=remedy)
    model_files.check(source)
    return source.path.absolute()


def open_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, from the folder alone."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"the tokenizer cannot be loaded ({error}).", where=str(folder), remedy="Check the tokenizer's files."
        ) from error
    if not tokenizer.is_fast:
        what = "the tokenizer does not tell which characters a token stands for, which the loss mask needs."
        raise ModelError(what, where=str(folder), remedy="Save its tokenizer.json there.")
    return tokenizer
