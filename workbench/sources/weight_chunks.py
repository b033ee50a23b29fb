"""A tensor's weights as bitsandbytes sees them, a chunk at a time: dequantized, transposed, or as they are stored.

Covers what ``packed.weights`` gives whole, in memory that does not grow with the tensor. Does not cover measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError
from workbench.progress import Cancelled
from workbench.quant.quantize import as_weights
from workbench.sources.base import Source
from workbench.sources.header import DTYPES
from workbench.sources.packed import packed
from workbench.sources.packed_names import Packing, find_packings
from workbench.sources.rule import TRANSPOSED
from workbench.sources.tensor_info import TensorInfo

_WIDENED = 4  # bytes of a weight as it is measured where it is stored in fewer than two: 8-bit floats become float32

Buffers = Iterator[NDArray[np.uint8]]
Chunks = Callable[[], Iterator[NDArray[Any]]]


def packings_of(source: Source) -> dict[str, Packing]:
    """The weights that the source holds packed, by the name of the tensor with their codes."""
    return find_packings({name: entry for name, (_, entry) in source.entries().items()}, source.config)


def as_seen(info: TensorInfo) -> tuple[int, ...]:
    """The shape of a weight as ``weight_chunks`` gives it: its last dimension is the input side of a linear layer."""
    return info.shape[::-1] if info.layout == TRANSPOSED and len(info.shape) == 2 else info.shape


def weight_chunks(
    source: Source,
    info: TensorInfo,
    packings: Mapping[str, Packing],
    step: int,
    size: int,
    buffers: Buffers,
    cancelled: Cancelled,
) -> tuple[TensorInfo, int, Chunks]:
    """The weight that ``info`` is of, how many weights a chunk has, and what gives its chunks, from the start at every call.

    A chunk has a multiple of ``step`` weights in at most ``size`` bytes, but not fewer than ``step``; the last has the rest. A
    buffer is taken from ``buffers`` before each, and the chunk is in it or, dequantized, in about as much memory.
    ``packings``: ``packings_of`` the source. ModelError or FormatError on what holds no weights.
    """
    if info.name in packings:
        return _dequantized(source, info, step, buffers, cancelled)
    dtype = DTYPES[info.dtype].numpy
    if dtype is None:
        raise ModelError(f"It is stored as {info.dtype}, packed below a byte: listed and not measured.", where=info.name)
    as_weights(np.zeros(min(info.numel, 1), dtype))  # what it refuses need not be read
    count = step * max(1, size // (step * (dtype.itemsize if dtype.itemsize > 1 else _WIDENED)))
    if info.layout == TRANSPOSED and len(info.shape) == 2:
        return info, count, lambda: _transposed(source, info, dtype, count, buffers, cancelled)
    return info, count, lambda: source.chunks(info.name, count, buffers, cancelled=cancelled)


def _dequantized(
    source: Source, info: TensorInfo, step: int, buffers: Buffers, cancelled: Cancelled
) -> tuple[TensorInfo, int, Chunks]:
    weight = packed(source, info.name)
    assert weight is not None  # it is among the packings

    def chunks() -> Iterator[NDArray[Any]]:
        for chunk, _ in zip(weight.chunks(step, cancelled=cancelled), buffers, strict=False):
            yield chunk

    return weight.info, step, chunks


def _transposed(
    source: Source, info: TensorInfo, dtype: np.dtype[Any], count: int, buffers: Buffers, cancelled: Cancelled
) -> Iterator[NDArray[Any]]:
    """The tensor (rows, columns) in the order of its columns. Each chunk reads all of it and keeps its own columns.

    Models that store a linear layer so are small: their tensors take a few chunks.
    """
    rows, columns = info.shape
    lines = max(1, count // columns)
    held = np.empty(min(lines, rows) * columns * dtype.itemsize, np.uint8)
    for start in range(0, info.numel, count):
        stop = min(start + count, info.numel)
        first, last = start // rows, -(-stop // rows)
        panel = _room((last - first) * rows, dtype, next(buffers)).reshape(last - first, rows)
        at = 0
        for part in source.chunks(info.name, lines * columns, held, cancelled=cancelled):
            block = part.reshape(-1, columns)[:, first:last]
            panel[:, at : at + len(block)] = block.T
            at += len(block)
        yield panel.reshape(-1)[start - first * rows : stop - first * rows]


def _room(count: int, dtype: np.dtype[Any], buffer: NDArray[np.uint8]) -> NDArray[Any]:
    """Room for ``count`` weights: in the buffer, or in a new array where a very long column needs more."""
    nbytes = count * dtype.itemsize
    return (buffer if nbytes <= buffer.nbytes else np.empty(nbytes, np.uint8))[:nbytes].view(dtype)
