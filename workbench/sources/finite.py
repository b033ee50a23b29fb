"""Weights of a checkpoint that are NaN or infinite: which tensors hold them, found in the files.

Covers every stored floating-point tensor, scales of packed weights among them, a chunk at a time. Reads the whole checkpoint
where all is well, so it is called only once something has gone wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workbench.sources.base import Source
from workbench.sources.header import DTYPES, shown

_CHUNK = 1 << 22


@dataclass(frozen=True)
class NotFinite:
    """A tensor with weights that are NaN or infinite."""

    name: str
    nans: int
    infinities: int

    def __str__(self) -> str:
        return f"{shown(self.name, 200)} holds {self.nans:,} weights that are NaN and {self.infinities:,} that are infinite"


def not_finite(source: Source) -> Iterator[NotFinite]:
    """The tensors of ``source`` that hold a NaN or an infinity, in the order of the checkpoint."""
    for tensor in source.tensors():
        dtype = DTYPES[tensor.dtype]
        if not dtype.floating or dtype.numpy is None or not tensor.numel:
            continue
        nans = bad = 0
        for chunk in source.chunks(tensor.name, _CHUNK):
            nans += int(np.isnan(chunk).sum())
            bad += int((~np.isfinite(chunk)).sum())
        if bad:
            yield NotFinite(tensor.name, nans, bad - nans)
