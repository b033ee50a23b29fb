"""Rows of text to rows of tokens, with the loss on completions only where that is asked.

Covers finding a dataset and its columns without loading it (``check``), tokenizing it with a loss mask and counting what could
not be learnt (``load``), and looking at the first rows (``preview``). Does not batch or pad: the trainer does.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import DataError, ModelError
from workbench.sources import open_model
from workbench.training.config import TrainConfig

BUILTIN = Path(__file__).parent.parent / "builtin"
_LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
_HELD_OUT_PROMPTS = ("happiness, n.", "lawyer, n.", "patriotism, n.")


@dataclass(frozen=True)
class Row:
    """One row: ``input_ids`` (tokens,) int32; the loss is taken on ``input_ids[loss_from:]``."""

    input_ids: np.ndarray[Any, np.dtype[np.int32]]
    loss_from: int


@dataclass(frozen=True)
class Rows:
    """A tokenized dataset and what became of its rows; ``rows`` holds those that are learnt from."""

    rows: tuple[Row, ...]
    total: int
    """Rows in the file."""
    empty: int
    """Rows without text, left out."""
    truncated: int
    """Rows cut at ``max_length`` tokens."""
    without_loss: int
    """Rows in which no token bears a loss (often: the prompt alone fills ``max_length``), left out."""

    def counts(self) -> dict[str, int]:
        """The counts, with tokens, tokens that bear a loss, and the longest row."""
        lengths = [len(r.input_ids) for r in self.rows]
        loss = sum(n - max(r.loss_from, 1) for n, r in zip(lengths, self.rows, strict=True))
        return {
            "total": self.total, "kept": len(self.rows), "empty": self.empty, "truncated": self.truncated,
            "without_loss": self.without_loss, "tokens": sum(lengths), "loss_tokens": loss, "longest": max(lengths, default=0),
        }  # fmt: skip


@dataclass(frozen=True)
class Preview:
    """The first rows as the model will see them."""

    rows: tuple[tuple[tuple[str, bool], ...], ...]
    """For each row its tokens as text, each with whether it bears a loss."""
    counts: dict[str, int]
    """Counts of the rows looked at (``Rows.counts``)."""


def dataset_file(name: str, split: str = "train") -> Path:
    """The file behind a dataset's name; raises ``DataError`` where there is none that can be read."""
    path = BUILTIN / "data" / f"{split}.jsonl" if name == "builtin" else Path(name).expanduser().absolute()
    if path.suffix.lower() not in _LOADERS:
        raise DataError(
            f"files of the kind {path.suffix or '(no ending)'!r} are not read.",
            where=name,
            remedy="Use .jsonl, .json, .csv, .parquet or .txt.",
        )
    if not path.is_file():
        raise DataError("there is no such file.", where=str(path), remedy="Check the path of the dataset.")
    return path


def columns_of(path: Path) -> tuple[str, ...]:
    """The columns of a dataset file, read from its first row or header only."""
    kind = _LOADERS[path.suffix.lower()]
    try:
        if kind == "text":
            return ("text",)
        if kind == "parquet":
            import pyarrow.parquet  # type: ignore[import-untyped]

            return tuple(pyarrow.parquet.read_schema(path).names)
        with path.open(encoding="utf-8", newline="") as handle:
            if kind == "csv":
                return tuple(next(csv.reader(handle), ()))
            return tuple(_first_object(handle.read(1 << 20)))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the first row cannot be read ({error}).",
            where=str(path),
            remedy=f"Check that it is a {path.suffix} file in UTF-8 and that every row has the same columns.",
        ) from error


def _first_object(text: str) -> dict[str, Any]:
    text = text.lstrip("\ufeff \t\r\n").removeprefix("[").lstrip()
    if not text:
        return {}
    first, _ = json.JSONDecoder().raw_decode(text)
    if not isinstance(first, dict):
        raise ValueError("a row is no JSON object")
    return first


def check(config: TrainConfig) -> None:
    """Raises ``DataError`` if a dataset file is missing, unreadable, or lacks a column that the configuration names."""
    for name, split in _sources(config):
        path = dataset_file(name, split)
        have = columns_of(path)
        if not have:
            raise DataError("the dataset has no rows.", where=str(path), remedy="Choose a file with at least one row.")
        if missing := [c for c in config.columns if c not in have]:
            raise DataError(
                f"the dataset has no column {' or '.join(map(repr, missing))}; it has {', '.join(map(repr, have))}.",
                where=str(path),
                remedy="Set text_column, or prompt_column and completion_column, to columns that it has.",
            )


def _sources(config: TrainConfig) -> list[tuple[str, str]]:
    held_out = held_out_source(config)
    return [(config.dataset, "train"), *([held_out] if held_out else [])]


def held_out_source(config: TrainConfig) -> tuple[str, str] | None:
    """Name and split of the held-out rows; None where the configuration has none."""
    if config.eval_dataset is not None and config.eval_dataset != "builtin":
        return config.eval_dataset, "heldout"
    return ("builtin", "heldout") if config.dataset == "builtin" else None


def load(config: TrainConfig, tokenizer: Any, split: str = "train", limit: int | None = None) -> Rows:
    """The whole dataset (or its first ``limit`` rows), tokenized. Raises ``DataError`` if nothing is left to learn from."""
    name = config.dataset if split == "train" else (held_out_source(config) or (config.dataset, split))[0]
    path = dataset_file(name, split)
    rows = tokenize(_texts(path, config.columns, limit), tokenizer, config.max_length)
    if not rows.rows:
        raise DataError(
            f"no row has a token to learn from: of {rows.total} rows {rows.empty} are empty and {rows.without_loss} have no "
            f"token that bears a loss within {config.max_length} tokens.",
            where=str(path),
            remedy="Choose other columns, or raise max_length so that completions fit.",
        )
    return rows


def _texts(path: Path, columns: tuple[str, ...], limit: int | None) -> Iterable[tuple[str, str]]:
    """(prompt, completion) of every row; a prompt of "" where the text is learnt whole."""
    import datasets

    datasets.disable_progress_bars()
    split = "train" if limit is None else f"train[:{limit}]"
    with tempfile.TemporaryDirectory(prefix="workbench-data-") as cache:
        try:
            table = datasets.load_dataset(
                _LOADERS[path.suffix.lower()], data_files=str(path), split=split, cache_dir=cache, keep_in_memory=True
            ).select_columns(list(columns))
        except Exception as error:
            raise DataError(
                f"the dataset cannot be read ({error.__cause__ or error}).",
                where=str(path),
                remedy=f"Check that every row is valid {path.suffix} with the columns {', '.join(map(repr, columns))}.",
            ) from error
        for row in table:
            values = ["" if row[c] is None else str(row[c]) for c in columns]
            yield ("", values[0]) if len(values) == 1 else (values[0], values[1])


def tokenize(texts: Iterable[tuple[str, str]], tokenizer: Any, max_length: int) -> Rows:
    """(prompt, completion) pairs → ``Rows``.

    Prompt and completion are encoded together, with whatever the tokenizer itself puts in front, and end with its end token.
    The loss starts at the first token that differs from the prompt's own encoding; only where prompt and completion share a
    token at their seam is a piece of the prompt learnt.
    """
    rows: list[Row] = []
    total = empty = truncated = without_loss = 0
    end = tokenizer.eos_token_id
    for prompt, completion in texts:
        total += 1
        if not (prompt + completion).strip():
            empty += 1
            continue
        ids = list(tokenizer(prompt + completion)["input_ids"])
        if end is not None and ids[-1] != end:
            ids.append(end)
        loss_from = _shared(tokenizer(prompt)["input_ids"], ids) if prompt else 0
        if prompt and not completion.strip():
            loss_from = len(ids)
        if len(ids) > max_length:
            truncated += 1
            ids = ids[:max_length]
        if len(ids) - max(loss_from, 1) < 1:  # the first token is predicted from nothing and bears no loss
            without_loss += 1
            continue
        rows.append(Row(np.asarray(ids, np.int32), loss_from))
    return Rows(tuple(rows), total, empty, truncated, without_loss)


def _shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def preview(config: TrainConfig, rows: int = 5) -> Preview:
    """The first rows with their loss mask, and how many of those looked at are empty, truncated or without a loss token."""
    check(config)
    tokenizer = open_tokenizer(model_folder(config.model))
    seen = load(config, tokenizer, limit=rows)
    return Preview(tuple(_shown(row, tokenizer) for row in seen.rows), seen.counts())


def _shown(row: Row, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    return tuple((tokenizer.decode([int(t)]), i >= max(row.loss_from, 1)) for i, t in enumerate(row.input_ids))


def sample_prompts(config: TrainConfig) -> tuple[str, ...]:
    """Prompts to complete before and after: those asked for, or a few held-out ones of the builtin dataset."""
    if config.sample_prompts is not None:
        return config.sample_prompts
    source = held_out_source(config)
    if source is None or len(config.columns) != 2 or config.max_eval_rows == 0:
        return ()
    path = dataset_file(*source)
    prompts = [p for p, _ in _texts(path, config.columns, None) if p.strip()]
    wanted = [p for p in _HELD_OUT_PROMPTS if p in prompts] if config.dataset == "builtin" else []
    return tuple((wanted or prompts)[:3])


def model_folder(name: str) -> Path:
    """The folder of a model; raises ``ModelError`` if a file that training needs is missing or damaged."""
    source = open_model(name)
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
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"the tokenizer cannot be loaded ({error}).", where=str(folder), remedy="Check the tokenizer's files."
        ) from error
