"""What measuring will take, forecast before anything is begun: memory and time. Starts no process and loads no torch.

Time is that of the matrix products, 2 operations a weight and token, at the speed at which this machine multiplies two
matrices now, and of the process's start. It is a forecast, and no better than to within a few times: it says whether to wait
or to come back later.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import cache

import numpy as np

from workbench.cost.jobs import Job
from workbench.sources import Source
from workbench.training.config import TrainConfig
from workbench.training.data import held_out_files
from workbench.training.dataset_files import on_hub

_START = 10.0
"""Seconds in which the process imports its libraries and loads a small model."""
_CHARACTERS = 4
"""Of a token, about."""
_BY_LINE = {".jsonl", ".txt", ".csv"}
_SIZE = 768


@dataclass(frozen=True)
class Effort:
    """What some measurements will take."""

    seconds: float
    nbytes: int
    """Memory of the measuring process."""
    tokens: int
    """In each pass over the held-out rows, about."""


def effort(src: Source, data: TrainConfig, losses: int) -> Effort:
    """What measuring so many held-out losses of a model takes, on the rows that ``data`` names.

    How long rows are is told by their size on disk, where a file has a row a line; elsewhere they are taken to be of
    ``max_length`` tokens.
    """
    job = Job(src, data)
    weights = sum(t.numel for t in src.tensors() if t.quantizable)
    tokens = _tokens(data)
    return Effort(_START + losses * 2 * weights * tokens / _speed(), job.memory_needed, tokens)


def _tokens(data: TrainConfig) -> int:
    most = data.max_eval_rows * data.max_length
    if on_hub(data.eval_dataset or data.dataset) or (files := held_out_files(data)) is None:
        return most
    if any(path.suffix not in _BY_LINE for path in files.paths):
        return most
    lengths: list[int] = []
    for path in files.paths:
        with path.open("rb") as file:
            lengths += map(len, itertools.islice(file, data.max_eval_rows - len(lengths)))
    return sum(min(data.max_length, 1 + length // _CHARACTERS) for length in lengths)


@cache
def _speed() -> float:
    """Operations a second, in a product of two float32 matrices."""
    a = np.ones((_SIZE, _SIZE), np.float32)
    took = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - began)
    return 2 * _SIZE**3 / min(took)
