"""Writing a checkpoint as safetensors, a piece of a tensor at a time: one file, or shards with their index.

Covers the format's header (https://github.com/huggingface/safetensors, "Format") and the names that transformers gives to
shards. Holds no more than the piece that it is handed. Does not decide what is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.sources.files import INDEX, SINGLE
from workbench.sources.grouping import by_bytes


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it."""
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * self.itemsize


Pieces = Callable[[Planned], Iterable[NDArray[Any]]]


def write_shards(folder: Path, tensors: Sequence[Planned], pieces: Pieces, max_shard_size: int) -> list[Path]:
    """Writes ``tensors`` in their order into ``folder``; ``pieces(tensor)`` yields its data, in order and in its dtype.

    A file holds ``max_shard_size`` bytes of data at most, or one larger tensor. Returns the files.
    """
    shards = list(by_bytes(tensors, max_shard_size))
    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, pieces)
    if len(shards) > 1:
        held = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": held}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return [folder / name for name in names]


def _write(path: Path, tensors: Sequence[Planned], pieces: Pieces) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes],
        }  # fmt: skip
        at += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for piece in pieces(tensor):
                written += file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name} has {written} bytes instead of {tensor.nbytes}")
