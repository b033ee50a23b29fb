"""The histogram of normalised weights: how a tensor's weights lie between −absmax and absmax of their blocks.

Covers an array in memory. How full a format's bins are is ``measure``'s occupancy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import described, is_whole
from workbench.progress import Cancelled
from workbench.quant.quantize import as_weights
from workbench.quant.spec import QuantSpec


def histogram(array: Any, block_size: int = 64, bins: int = 256, cancelled: Cancelled | None = None) -> NDArray[np.int64]:
    """Counts of x / absmax of its block in equal parts of [−1, 1].

    Args:
        array: What ``quantize`` takes.
        block_size: Weights of a block.
        bins: Parts of [−1, 1].
        cancelled: Asked meanwhile; a yes ends the call.

    Returns:
        Counts, int64 (bins,). NaNs are in no bin.

    Raises:
        FormatError: As ``quantize`` does, and for less than one bin.
        InterruptedError: Once cancelled.

    >>> wb.histogram(np.linspace(-1, 1, 64, dtype=np.float32), bins=4)
    array([16, 16, 16, 16])
    """
    from workbench.kernels import blocks as block_kernels
    from workbench.kernels import pool
    from workbench.kernels.bits import as_bits

    block_size = QuantSpec("nf4", block_size).block_size  # the same check, the same message
    if not is_whole(bins, 1):
        raise FormatError(f"{described(bins)} is no number of bins.", where="bins", remedy="Give a whole number from 1 on.")
    bits = as_bits(as_weights(array))
    tail = bits.size % block_size
    parts: list[NDArray[np.int64]] = []

    def count(span: slice) -> None:
        part = np.zeros(bins, np.int64)
        block_kernels.histogram_span(bits[span], block_size, tail if span.stop == bits.size else 0, part)
        parts.append(part)

    pool.run(count, bits.size, cancelled)
    return np.asarray(np.sum(parts, axis=0), np.int64)
