"""The model and the held-out rows that a cost is measured on: checked before any process is started.

Covers which modules there are to quantize, what they take in 16 bits and in a format, and whether the model fits this machine.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from workbench.cost.assignments import Assignment
from workbench.cost.quantized import tensors_exactly
from workbench.errors import DataError, ModelError
from workbench.given import is_a
from workbench.memory.footprint import loaded
from workbench.progress import Cancelled, Progress
from workbench.quant.spec import QuantSpec
from workbench.sources import Source, TensorInfo, open_model
from workbench.sources.finite import not_finite
from workbench.sources.tensor_info import Role
from workbench.text import memory_size, short
from workbench.training import data as rows_of
from workbench.training import model_files
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import BUILTIN, on_hub
from workbench.training.model_checks import causal_fault
from workbench.training.paths import absolute
from workbench.training.settings import settings_of

BATCH = 4
"""Rows in a forward pass."""
TEXTS = {
    "builtin": "The Devil's Dictionary", "bible": "the King James Bible", "wordnet": "WordNet's glosses",
}  # fmt: skip
"""Held-out text that comes with the workbench, and its name.

The embedded model was trained on most chapters of the Bible and most glosses, and on no row of these files; of The Devil's
Dictionary it has seen nothing. Texts are measured apart: a number is of one of them, or of rows of your own.
"""
OF_DATA = tuple(name for name, declared in settings_of(TrainConfig).items() if declared.of_rows)
"""The fields of a ``TrainConfig`` that say which rows are measured."""
_LOOKED_AT = 4_096
_LIBRARIES = 500 * 2**20


@dataclass(frozen=True)
class Job:
    """A model in a folder, and the held-out rows to measure it on."""

    source: Source
    config: TrainConfig
    """Its model is the folder; of the rest, the fields about data count."""

    @cached_property
    def weights(self) -> dict[str, TensorInfo]:
        """Every weight that a QLoRA load quantizes, by its module: the weight's name in the checkpoint without ``.weight``.

        Transformers' own class is asked; ModelError where it has none.
        """
        found = tensors_exactly(self.source, self.config.model, self.identity["fingerprint"])
        return {t.name.removesuffix(".weight"): t for t in found if t.quantizable}

    @property
    def nbytes_16bit(self) -> int:
        """Bytes of all weights in 16 bits."""
        return 2 * sum(t.numel for t in loaded(self.source.tensors()))

    @property
    def largest(self) -> int:
        """Elements of the largest weight."""
        return max(t.numel for t in self.source.tensors())

    def nbytes(self, assignment: Assignment) -> int:
        """Bytes of all weights with these modules quantized, codes and scales counted, and the rest in 16 bits."""
        numels = ((self.weights[module].numel, spec) for module, spec in self.assigned(assignment).items())
        return self.nbytes_16bit - sum(2 * numel - spec.nbytes(numel) for numel, spec in numels)

    def assigned(self, assignment: Assignment) -> dict[str, QuantSpec]:
        """The modules that are quantized, each with its specification."""
        return assignment.assigned(self.weights)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What identifies this job: the data's fields, and a fingerprint of the weights, wherever they lie."""
        fields = self.config.to_dict()
        return {"fingerprint": _fingerprint(self.source), "batch": BATCH} | {name: fields[name] for name in OF_DATA}

    @property
    def text(self) -> str:
        """What is measured on, in words: a name of ``TEXTS``, or the dataset's."""
        name = self.config.eval_dataset or self.config.dataset
        return f"held-out rows of {TEXTS.get(text_of(self.config) or name, short(name))}"

    @property
    def memory_needed(self) -> int:
        """Bytes that the measuring process takes, forecast: the model in 16 bits, a layer's quantization, its libraries."""
        return self.nbytes_16bit + 16 * self.largest + _LIBRARIES

    def check_memory(self) -> None:
        """Raises ModelError where the model does not fit into this machine's memory."""
        if (needed := self.memory_needed) > (there := int(psutil.virtual_memory().available)):
            what = f"Measuring it takes about {memory_size(needed)} of memory (its weights in 16 bits, and a layer's), and "
            remedy = "End other programs, choose a smaller model, or a machine with more memory."
            raise ModelError(f"{what}{memory_size(there)} are free.", where=self.source.name, remedy=remedy)


def job_of(
    src: Source | str | os.PathLike[str],
    data: TrainConfig | str | os.PathLike[str] | None,
    max_length: int | None,
    max_rows: int | None,
    progress: bool | Progress = False,
    cancelled: Cancelled | None = None,
) -> Job:
    """The job, with everything checked that can be known now; a dataset on the Hub is fetched, and then its model.

    ``data``: None for the builtin dataset's held-out rows, or a name of ``TEXTS``; a ``TrainConfig`` for the held-out rows that
    it names; or a file, a folder or ``owner/name`` on the Hub, all of whose rows are taken, by their column ``text``.
    ``progress`` counts the model's bytes. ModelError, DataError or ConfigError where something is missing, InterruptedError
    once cancelled.
    """
    source = open_model(src)
    model_files.check(source)
    if fault := causal_fault(source.config):
        remedy = "Choose a causal language model that transformers knows without code of its own."
        raise ModelError(f"transformers cannot load it as a causal language model: {fault}.", where=source.name, remedy=remedy)
    if not any(t.quantizable for t in source.tensors()):
        packed = next((t.reason for t in source.tensors() if t.role is Role.PACKED), "")
        what = f"Its weights are {packed}: there are none in 16 bits to compare with." if packed else "It has no linear layer."
        raise ModelError(what, where=source.name, remedy="Open a checkpoint in 16 or 32 bits.")
    if not isinstance(data, TrainConfig):
        data = rows_named(data)
    given = {"max_length": max_length, "max_eval_rows": max_rows}
    config = dataclasses.replace(data, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    if rows_of.held_out_files(config) is None or config.max_eval_rows == 0:
        remedy = "Name an eval_dataset or an eval_split in TrainConfig, or give data a file of rows that were not trained on."
        raise DataError("the configuration has no held-out rows.", where="data", remedy=remedy)
    files = rows_of.check(config)
    source = model_files.whole(source, progress, cancelled)
    assert source.path is not None
    config = dataclasses.replace(config, model=str(source.path.absolute()))
    return Job(source, dataclasses.replace(absolute(config), dataset_revision=files.revision))


def rows_named(data: str | os.PathLike[str] | None) -> TrainConfig:
    """The configuration whose held-out rows are those of a text, file, folder or dataset on the Hub; None: the builtin ones."""
    name = os.fspath(data) if isinstance(data, os.PathLike) else "builtin" if data is None else data
    if name == "builtin":
        return TrainConfig()
    if is_a(name, str) and name in TEXTS:
        name = str(text_file(name))
    return TrainConfig(dataset=name, eval_dataset=name)


def text_of(data: TrainConfig) -> str | None:
    """The name of the text with a file of its own that a configuration's held-out rows are; None where they are others."""
    named = data.eval_dataset or data.dataset
    return next((name for name in TEXTS if named == str(text_file(name))), None)


def text_file(name: str) -> Path:
    """The file of a text that comes with the workbench."""
    return BUILTIN / "data" / f"heldout-{name}.jsonl"


def _fingerprint(source: Source) -> str:
    """A digest of names, shapes and the first weights of every tensor."""
    digest = hashlib.sha256()
    for t in source.tensors():
        digest.update(json.dumps([t.name, t.dtype, t.shape]).encode())
        _, entry = source.find(t.name)
        head = np.empty(min(t.numel, _LOOKED_AT), entry.dtype.numpy)
        source.read_into(t.name, head)
        digest.update(head.tobytes())
    return digest.hexdigest()


def check_finite(job: Job) -> None:
    """Raises ModelError that names the tensor, where a weight is NaN or infinite, which makes every measurement meaningless."""
    if found := next(not_finite(job.source), None):
        what = f"Its held-out loss is no number in 16 bits, before anything is quantized: {found}."
        raise ModelError(what, where=job.source.name, remedy="Fetch the checkpoint again, or choose another.")


def opened(root: Path) -> Job:
    """The job that a folder of measurements was made for, in the process that measures."""
    fields: Mapping[str, Any] = json.loads((root / "job.json").read_text("utf-8"))
    config = TrainConfig.from_dict(fields["config"])
    return Job(open_model(config.model, config.model_revision), config)


_START = 10.0
"""Seconds in which the process imports its libraries and loads a small model."""
_CHARACTERS = 4
"""In a token, about."""
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

    The length of rows follows from their size on disk, where a file has one row a line; elsewhere they are taken to have
    ``max_length`` tokens.
    """
    job = Job(src, data)
    weights = sum(t.numel for t in src.tensors() if t.quantizable)
    tokens = _tokens(data)
    return Effort(_START + losses * 2 * weights * tokens / _speed(), job.memory_needed, tokens)


def _tokens(data: TrainConfig) -> int:
    most = data.max_eval_rows * data.max_length
    if on_hub(data.eval_dataset or data.dataset) or (files := rows_of.held_out_files(data)) is None:
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
