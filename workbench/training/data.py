"""Rows of text to rows of tokens, with the loss on completions only where that is asked.

Covers what a dataset's rows are as text, by their shape, and their tokens (``load``); which files they come from, and whether
they can be read at all (``check``); opening a model's tokenizer. Where the rows lie is ``dataset_files``' part; what this is
made of is in ``rows``. Does not batch or pad: the trainer does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from workbench.errors import DataError, ModelError
from workbench.sources import open_model
from workbench.sources.base import Watch
from workbench.training import model_files
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files, check_columns, locate, read_rows
from workbench.training.row_kinds import COLUMNS
from workbench.training.rows import store
from workbench.training.rows.chats import Refused, Template, as_chat
from workbench.training.rows.forms import alpaca, chosen_chat, chosen_text, with_system
from workbench.training.rows.shapes import Shape, shape_of
from workbench.training.rows.tokens import Rows, Sink, Text, Texts, tokenize

_HELD_OUT_PROMPTS = ("happiness, n.", "lawyer, n.", "patriotism, n.")


def check(config: TrainConfig) -> Files:
    """The files that are learnt from, fetched where they are on the Hub.

    Raises ``DataError`` if a dataset is missing, unreadable, or lacks a column that the configuration names, or if the shape of
    its rows is neither named nor recognised.
    """
    training, held_out = training_files(config), held_out_files(config)
    shape = shape_of(config, training)
    fields = dict.fromkeys(shape.columns, "prompt_template") if shape.kind == "template" else {}
    fields |= {column: name for name in COLUMNS["auto"] if isinstance(column := getattr(config, name), str)}
    for files in (training, *([held_out] if held_out else [])):
        check_columns(files, shape.columns, fields)
    return training


def training_files(config: TrainConfig) -> Files:
    """The files that are learnt from."""
    split, inside, revision = config.dataset_split, config.dataset_config, config.dataset_revision
    return locate(config.dataset, split, inside, revision, config.max_train_rows)


def held_out_files(config: TrainConfig) -> Files | None:
    """The files of the held-out rows; None where the configuration has none."""
    if config.dataset == "builtin" and config.eval_dataset in (None, "builtin"):
        return locate("builtin", "heldout")
    if config.eval_dataset is None and config.eval_split is None:
        return None
    rows = config.max_eval_rows if config.max_train_rows else 0  # of a dataset that is too large to be fetched whole
    try:
        if config.eval_dataset is not None:
            return locate(config.eval_dataset, config.eval_split or "train", rows=rows)
        return locate(config.dataset, config.eval_split or "", config.dataset_config, config.dataset_revision, rows)
    except DataError as error:
        error.field = "eval_split" if error.field == "dataset_split" else "eval_dataset"
        raise


def load(
    config: TrainConfig,
    tokenizer: Any,
    files: Files | None = None,
    limit: int | None = None,
    watch: Watch | None = None,
    *,
    keep: Path | None = None,
) -> Rows:
    """The dataset (or ``files``; or the first ``limit`` rows), tokenized. Raises ``DataError`` if nothing is left to learn.

    ``keep``: the tokenizer's folder, where the tokens of large files are to be kept for later runs, and read from disk.
    """
    files = files or training_files(config)
    shape = shape_of(config, files)

    def made(sink: Sink | None) -> Rows:
        found = texts(config, files, tokenizer, limit)
        return tokenize(_watched(found, watch) if watch else found, tokenizer, config.max_length, sink)

    if keep is not None and store.is_large(files):
        rows = store.kept(store.key(config, shape, files, keep, limit, watch), made)
    else:
        rows = made(None)
    if not rows.rows:
        if rows.refusal is not None:
            raise rows.refusal
        raise DataError(
            f"no row has a token to learn from: of {rows.total} rows {rows.empty} are empty and {rows.without_loss} have no "
            f"token that bears a loss within {config.max_length} tokens.",
            where=files.where,
            remedy="Choose other columns, or raise max_length so that completions fit.",
            field="max_length" if rows.without_loss else "row_shape",
        )
    return rows


def _watched(rows: Iterable[Texts | Refused], watch: Watch) -> Iterator[Texts | Refused]:
    for row in rows:
        watch.check()
        yield row
        watch.moved(1)


def texts(config: TrainConfig, files: Files, tokenizer: Any, limit: int | None = None) -> Iterator[Texts | Refused]:
    """Each row's texts; () for one that has none, and the error for a chat that the template does not take."""
    shape = shape_of(config, files)
    template = Template(tokenizer, config.thoughts == "keep")
    read = read_rows(files, shape.columns, shape.besides, limit, nested=shape.chats)
    for n, row in enumerate(read, 1):
        where = f"{files.where}, row {n}"
        if shape.chats:
            try:
                messages, first = chat_of(shape, row, where)
                found = template.rows(messages, config.completion_only_loss, where, first, row.get("tools"))
            except Refused as refusal:
                yield refusal
                continue
            made: Texts = tuple(Text(text, tuple(learnt), chat=True) for text, learnt in found)
        else:
            made = tuple(filter(None, [passage(parts_of(config, shape, row), config.completion_only_loss)]))
        yield _encodable(made, where)


def parts_of(config: TrainConfig, shape: Shape, row: dict[str, Any]) -> list[str]:
    """The text of a row that is no chat, alone or as its prompt and its completion."""
    row = {name: value or "" for name, value in row.items()}
    match shape.kind:
        case "alpaca":
            return [alpaca(row["instruction"], row["input"]), row["output"]]
        case "preference":
            return list(chosen_text(row["prompt"], row["chosen"], row["rejected"]))
        case "template":
            return [(config.prompt_template or "").format_map(row), row[shape.columns[-1]]]
    return [row[name] for name in shape.columns]


def chat_of(shape: Shape, row: dict[str, Any], where: str) -> tuple[Any, int]:
    """The messages of a row that is a chat, and from which of them on it is learnt. ``DataError`` for what is none."""
    first = row[shape.columns[0]] or []
    if shape.kind == "preference-chats":
        asked = row["prompt"] or []
        asked = asked if isinstance(asked, str) else as_chat(asked, where)
        return chosen_chat(asked, as_chat(first, where), as_chat(row["rejected"] or [], where))
    if shape.kind == "prompt-chats":
        answer = row[shape.columns[1]] or []
        return as_chat(first, where) + as_chat(answer, where), len(first)
    return with_system(as_chat(first, where), row.get("system")), 0


def _encodable(made: Texts, where: str) -> Texts:
    try:
        for text in made:
            text.text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a character, as "\\ud83d"
        remedy = "Write the file again with whole characters."
        raise DataError(f"it is no text that can be encoded ({error}).", where=where, remedy=remedy) from error
    return made


def passage(parts: list[str], completion_only: bool) -> Text | None:
    """The text of one column or of a prompt and its completion; an empty completion leaves nothing to learn."""
    prompt, completion = parts if len(parts) == 2 else ("", parts[0])
    text = prompt + completion
    if not text.strip():
        return None
    if not completion_only:
        return Text(text, ((0, len(text)),))
    return Text(text, ((len(prompt), len(text)),) if completion.strip() else ())


def sample_prompts(config: TrainConfig) -> tuple[str, ...]:
    """Prompts to complete before and after: those asked for, or a few held-out ones of the builtin dataset."""
    if config.sample_prompts is not None:
        return config.sample_prompts
    files = held_out_files(config)
    if files is None or config.max_eval_rows == 0 or (shape := shape_of(config, files)).chats or shape.kind == "text":
        return ()
    read = read_rows(files, shape.columns, shape.besides, None if config.dataset == "builtin" else 3)
    prompts = [prompt for row in read if (prompt := parts_of(config, shape, row)[0])]
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
