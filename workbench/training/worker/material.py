"""The rows and prompts of a run, made before the model is loaded, and held against it afterwards. Worker only.

Covers the events of datasets and of their progress. How rows become tokens is ``training.data``'s part.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ConfigError
from workbench.sources.base import Watch
from workbench.training import data
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files, row_count
from workbench.training.loaded_checks import check_ids, check_length
from workbench.training.model_checks import float16_faults, float16_warning, in_float16
from workbench.training.rows.tokens import TokenRow
from workbench.training.worker.batches import Collator
from workbench.training.worker.evaluator import Material
from workbench.training.worker.packing import Packs

Emit = Callable[..., object]
_EVERY = 0.5
"""Seconds between two reports of progress, at least."""


def prepare(config: TrainConfig, source: Path, emit: Emit) -> tuple[TrainConfig, Material]:
    """What is learnt and measured, and the configuration with its steps, which the rows of epochs decide."""
    tokenizer = data.open_tokenizer(source)
    files = data.training_files(config)
    most = config.max_train_rows or None
    rows = data.load(config, tokenizer, files, most, _reporting(files, most, emit), keep=source)
    learnt = Packs(rows.rows, config.max_length) if config.packing else rows.rows
    config = config.for_rows(len(learnt))
    padding = dataclasses.asdict(rows.padding(config))
    emit("dataset", split="train", steps=config.max_steps, padding=padding, **rows.counts())
    held_out: Sequence[TokenRow] = ()
    others = data.held_out_files(config) if config.max_eval_rows else None
    if others:
        found = data.load(config, tokenizer, others, config.max_eval_rows)
        emit("dataset", split="heldout", **found.counts())
        held_out = found.rows
    prompts = data.sample_prompts(config)
    return config, Material(
        tokenizer=tokenizer, collator=Collator.of(tokenizer), rows=learnt, held_out=held_out, prompts=prompts
    )


def _reporting(files: Files, most: int | None, emit: Emit) -> Watch:
    """Reports now and then how many rows are tokenized, of about how many (0: not known)."""
    return Watch(min(row_count(files) or most or 0, most or sys.maxsize), reporting("rows tokenized", emit))


def reporting(what: str, emit: Emit) -> Callable[..., None]:
    """A function of how many are done, and of how many (0: not known), that reports it now and then."""
    said = time.monotonic()

    def progress(done: int, total: int = 0) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= _EVERY:
            said = now
            emit("progress", what=what, done=done, total=total)

    return progress


def check(material: Material, config: TrainConfig, net: Any, dtype: torch.dtype, emit: Emit, begins: bool) -> None:
    """Raises what only the loaded model shows of rows and configuration; ``begins``: whether there is no checkpoint yet."""
    if dtype is torch.float16:
        of_model = net.config.to_dict()
        if faults := float16_faults(config, of_model):
            raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and launch again.")
        if (said := float16_warning(of_model)) and not in_float16(config):  # else the launch has said so
            emit("log", level="warning", text=said)
    check_length(net, config, begins)
    rows = itertools.chain(material.rows, material.held_out)
    check_ids(net, material.tokenizer, rows, material.collator.pad, config.model)
