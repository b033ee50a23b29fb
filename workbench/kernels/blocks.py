"""What is found of blocks without quantizing them: extremes, histogram of normalised weights, totals, non-finite weights.

Covers numba kernels of the same kind as ``kernels/rounding.py``, with the same arguments. Does not cover rounding to a format's
levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.kernels.bits import decode, jit
from workbench.kernels.rounding import TINY, absmax_of, count_places
from workbench.kernels.simd import larger, largest, load, smaller, splat

_F32, _I32 = np.float32, np.int32


@jit()
def block_absmax(bits: Any, block_size: Any, absmax: Any) -> None:
    """The absmax of each block of ``bits`` into ``absmax`` (blocks,), without the tail block's floor."""
    for b in range(absmax.size):
        absmax[b] = absmax_of(bits[b * block_size : (b + 1) * block_size])


@jit()
def block_extremes(bits: Any, block_size: Any, low: Any, high: Any) -> None:
    """The smallest and the largest weight of each block into ``low`` and ``high`` (blocks,); NaNs are passed over."""
    for b in range(low.size):
        start, stop = b * block_size, min(bits.size, (b + 1) * block_size)
        least, most = splat(_F32(np.inf)), splat(_F32(-np.inf))
        whole = start + (stop - start) // 8 * 8
        for j in range(start, whole, 8):
            x = load(bits, j)
            least, most = smaller(x, least), larger(x, most)
        low[b], high[b] = -largest(splat(_F32(0)) - least), largest(most)
        for j in range(whole, stop):
            x = decode(bits[j])
            low[b] = x if x < low[b] else low[b]
            high[b] = x if x > high[b] else high[b]


@jit()
def histogram_span(bits: Any, block_size: Any, tail: Any, bins: Any) -> None:
    """Adds the counts of x / absmax in equal parts of [−1, 1] to ``bins``; NaNs are counted nowhere.

    The places of a whole block are computed before they are counted, into four tables, so that neither waits for the other.
    """
    last = _I32(bins.size - 1)
    half = _F32(bins.size) / _F32(2)
    places = np.empty(block_size, _I32)
    counts = np.zeros((4, bins.size + 1), _I32)
    blocks = (bits.size + block_size - 1) // block_size
    for b in range(blocks):
        block = bits[b * block_size : min(bits.size, (b + 1) * block_size)]
        found = absmax_of(block)
        floored = TINY if found < TINY else found
        is_tail = tail > 0 and b == blocks - 1
        factor = _F32(1) / floored
        for j in range(block.size):
            x = decode(block[j]) / floored if is_tail else decode(block[j]) * factor
            place = min(max(_I32((x + _F32(1)) * half), _I32(0)), last)
            places[j] = place if x == x else last + _I32(1)
        count_places(places[: block.size], counts)
    for k in range(bins.size):
        bins[k] += counts[0, k] + counts[1, k] + counts[2, k] + counts[3, k]


@jit()
def finish_span(
    block_size: Any, tail: Any, absmax: Any, squares: Any, error_squares: Any, error_sums: Any, error_max: Any, totals: Any
) -> None:
    """From the sums of a span's blocks, in units of absmax, to values and the span's totals, in place.

    ``error_squares`` becomes the root mean square error and ``error_sums`` the mean absolute error of each block (F, blocks);
    both and ``error_max`` become NaN where a block is not finite, and such blocks are left out of ``totals`` (F, 5), float64:
    weights, Σx², Σe², Σ|e|, max|e|.
    """
    for f in range(error_squares.shape[0]):
        weights, power, noise, sums, most = 0.0, 0.0, 0.0, 0.0, 0.0
        for b in range(absmax.size):
            scale = np.float64(absmax[b])
            count = _F32(tail if tail and b == absmax.size - 1 else block_size)
            error = error_squares[f, b]
            if scale - scale != 0.0 or error - error != _F32(0):  # it is not finite, or what its scale depends on is not
                error_squares[f, b] = error_sums[f, b] = error_max[f, b] = np.nan
                continue
            weights += float(count)
            power += squares[b] * scale * scale
            noise += error_squares[f, b] * scale * scale
            sums += error_sums[f, b] * scale
            most = max(most, np.float64(error_max[f, b]))
            error_squares[f, b] = absmax[b] * np.sqrt(error_squares[f, b] / count)
            error_sums[f, b] = absmax[b] * (error_sums[f, b] / count)
        totals[f, 0], totals[f, 1], totals[f, 2], totals[f, 3], totals[f, 4] = weights, power, noise, sums, most


@jit()
def nonfinite_span(bits: Any) -> Any:
    """How many of the weights are NaN and how many infinite."""
    nans, infinities = 0, 0
    for j in range(bits.size):
        x = decode(bits[j])
        if x != x:
            nans += 1
        elif x - x != _F32(0):
            infinities += 1
    return nans, infinities
