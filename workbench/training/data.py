"""Rows of text to rows of tokens, with the loss on completions only where that is asked.

Covers what a row's text is (a text, a prompt and its completion, or a chat put through the tokenizer's template), tokenizing it
with a loss mask and counting what could not be learnt (``load``), and looking at rows before anything starts (``preview``).
Where the rows lie is ``dataset_files``' part. Does not batch or pad: the trainer does.
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
from workbench.sources import open_model
from workbench.sources.base import Cancelled, Progress, Watch
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files, columns_of, locate, read

_HELD_OUT_PROMPTS = ("happiness, n.", "lawyer, n.", "patriotism, n.")
_TOGETHER = 256
"""Rows that are tokenized at a time."""
_LONGEST_TOKEN = 64
"""Characters a token has at most, for the purpose of not tokenizing what ``max_length`` cuts off anyway."""
Span = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """One row, as tokens."""

    input_ids: NDArray[np.int32]
    """(tokens,)"""
    loss: NDArray[np.bool_]
    """(tokens,): whether the token is learnt. The first never is: it is predicted from nothing."""


@dataclass(frozen=True)
class Rows:
    """A tokenized dataset and what became of its rows; ``rows`` holds those that are learnt from."""

    rows: tuple[Row, ...]
    total: int
    """Rows that were read."""
    empty: int
    """Rows without text, left out."""
    truncated: int
    """Rows cut at ``max_length`` tokens."""
    without_loss: int
    """Rows in which no token bears a loss (often: the prompt alone fills ``max_length``), left out."""

    def counts(self) -> dict[str, int]:
        """The counts, with tokens, tokens that bear a loss, and the longest row."""
        lengths = [len(r.input_ids) for r in self.rows]
        return {
            "total": self.total, "kept": len(self.rows), "empty": self.empty, "truncated": self.truncated,
            "without_loss": self.without_loss, "tokens": sum(lengths), "loss_tokens": sum(int(r.loss.sum()) for r in self.rows),
            "longest": max(lengths, default=0),
        }  # fmt: skip


@dataclass(frozen=True)
class Preview:
    """Rows as the model will see them. All of it is text of the dataset: a view must escape it."""

    rows: tuple[tuple[tuple[str, bool], ...], ...]
    """For each row its tokens as text, each with whether it bears a loss."""
    counts: dict[str, int]
    """Counts of the rows looked at (``Rows.counts``)."""
    whole: bool
    """Whether those are all rows of the dataset, or only its first."""


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
        have = columns_of(files)
        if not have:
            raise DataError("the dataset has no rows.", where=files.where, remedy="Choose a file with at least one row.")
        if missing := [c for c in config.columns if c not in have]:
            raise DataError(
                f"the dataset has no column {' or '.join(map(repr, missing))}; it has {', '.join(map(repr, have))}.",
                where=files.where,
                remedy="Set text_column, prompt_column and completion_column, or messages_column, to columns that it has.",
            )
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
        raise DataError(
            f"no row has a token to learn from: of {rows.total} rows {rows.empty} are empty and {rows.without_loss} have no "
            f"token that bears a loss within {config.max_length} tokens.",
            where=files.where,
            remedy="Choose other columns, or raise max_length so that completions fit.",
        )
    return rows


def _watched(rows: Iterable[Text | None], watch: Watch) -> Iterator[Text | None]:
    for row in rows:
        watch.check()
        yield row
        watch.moved(1)


def texts(config: TrainConfig, files: Files, tokenizer: Any, limit: int | None = None) -> Iterator[Text | None]:
    """The rows' texts; None for a row that has none."""
    for n, values in enumerate(read(files, config.columns, limit), 1):
        if config.messages_column is not None:
            yield chat(values[0], tokenizer, config.completion_only_loss, f"{files.where}, row {n}")
            continue
        for column, value in zip(config.columns, values, strict=True):
            if isinstance(value, list | dict):
                raise DataError(
                    f"column {column!r} holds no text but {type(value).__name__}s.",
                    where=f"{files.where}, row {n}",
                    remedy="Choose a column of text; a list of messages is a messages_column.",
                )
        yield passage(["" if value is None else str(value) for value in values], config.completion_only_loss)


def passage(parts: list[str], completion_only: bool) -> Text | None:
    """The text of one column or of a prompt and its completion; an empty completion leaves nothing to learn."""
    prompt, completion = parts if len(parts) == 2 else ("", parts[0])
    text = prompt + completion
    if not text.strip():
        return None
    if not completion_only:
        return Text(text, ((0, len(text)),))
    return Text(text, ((len(prompt), len(text)),) if completion.strip() else ())


def chat(messages: Any, tokenizer: Any, completion_only: bool, where: str) -> Text | None:
    """A chat through the tokenizer's template (which transformers runs in a sandbox), learnt where the assistant speaks.

    An answer is what the template adds to the turns before it and the opening of a reply.
    """
    if not messages:
        return None
    if not isinstance(messages, list) or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        remedy = "A chat is a list of {'role', 'content'}; choose such a messages_column."
        raise DataError("it is no chat.", where=where, remedy=remedy)
    if not tokenizer.chat_template:
        remedy = "Choose a model that was tuned for chats, or a text column."
        raise DataError("the model's tokenizer has no chat template.", where=where, remedy=remedy)

    def written(turns: list[Any], opening: bool = False) -> str:
        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opening))
        except Exception as error:  # whatever a template raises about a chat it does not take
            what = f"the model's chat template does not take this chat ({error})."
            raise DataError(what, where=where, remedy="Check its roles and their order.") from error

    text = written(messages)
    if not completion_only:
        return Text(text, ((0, len(text)),), chat=True)
    learnt = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, upto = written(messages[:i], opening=True), written(messages[: i + 1])
        if not upto.startswith(before) or not text.startswith(upto):
            raise DataError(
                "the model's chat template writes a turn otherwise once others follow, so what is an answer cannot be told.",
                where=where,
                remedy="Set completion_only_loss to False, or give chats with one answer each.",
            )
        learnt.append((len(before), len(upto)))
    return Text(text, tuple(learnt), chat=True)


def tokenize(rows: Iterable[Text | None], tokenizer: Any, max_length: int) -> Rows:
    """``Text``s → ``Rows``: each with what the tokenizer puts in front and, but for chats, its end token.

    A token is learnt if any of its characters is. What ``max_length`` surely cuts off is not tokenized.
    """
    kept: list[Row] = []
    total = empty = truncated = without_loss = 0
    most = max_length * _LONGEST_TOKEN
    end = tokenizer.eos_token_id
    rows = iter(rows)
    while batch := list(itertools.islice(rows, _TOGETHER)):
        total += len(batch)
        there = [row for row in batch if row is not None]
        empty += len(batch) - len(there)
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
                kept.append(Row(np.asarray(ids[:max_length], np.int32), loss))
            else:
                without_loss += 1
    return Rows(tuple(kept), total, empty, truncated, without_loss)


def _encoded(rows: list[Text], tokenizer: Any, most: int) -> Iterator[tuple[list[int], list[Span]]]:
    """Token ids and the characters that each stands for; special tokens stand for none."""
    for chat_rows, together in itertools.groupby(rows, key=lambda row: row.chat):
        batch = [row.text[:most] for row in together]
        told = tokenizer(batch, add_special_tokens=not chat_rows, return_offsets_mapping=True, verbose=False)
        yield from zip(told["input_ids"], told["offset_mapping"], strict=True)


def preview(
    config: TrainConfig,
    rows: int = 5,
    scan: int = 2_000,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Preview:
    """The first ``rows`` rows with their loss mask, and counts of the first ``scan``; nothing beyond those is read.

    ``progress`` is told rows; InterruptedError once ``cancelled`` says yes.
    """
    watch = Watch(scan, progress, cancelled)
    check(config)
    watch.check()
    tokenizer = open_tokenizer(model_folder(config.model))
    seen = load(config, tokenizer, limit=scan, watch=watch)
    return Preview(tuple(_shown(row, tokenizer) for row in seen.rows[:rows]), seen.counts(), seen.total < scan)


def _shown(row: Row, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    return tuple((tokenizer.decode([int(t)]), bool(bears)) for t, bears in zip(row.input_ids, row.loss, strict=True))


def sample_prompts(config: TrainConfig) -> tuple[str, ...]:
    """Prompts to complete before and after: those asked for, or a few held-out ones of the builtin dataset."""
    if config.sample_prompts is not None:
        return config.sample_prompts
    files = held_out_files(config)
    if files is None or len(config.columns) != 2 or config.max_eval_rows == 0:
        return ()
    prompts = [str(prompt) for prompt, _ in read(files, config.columns, None if config.dataset == "builtin" else 3) if prompt]
    wanted = [p for p in _HELD_OUT_PROMPTS if p in prompts] if config.dataset == "builtin" else []
    return tuple((wanted or prompts)[:3])


def model_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a model; raises ``ModelError`` if a file that training needs is missing or damaged.

    ``revision``: the commit of one on the Hub; None: what is there now.
    """
    source = open_model(name, revision)
    if source.path is None:
        remedy = f"Download it first ('hf download {name}'), then launch again."
        raise ModelError("training needs the whole model on this machine, and it is on the Hub.", where=name, remedy=remedy)
    if not source.config:
        raise ModelError(
            "the model has no config.json.", where=str(source.path), remedy="Training needs one to build the model."
        )
    path = source.path.absolute()
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError("the model folder has no tokenizer.", where=str(path), remedy="Save its tokenizer there.")
    return path


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
