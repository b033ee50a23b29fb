"""One pass over a span of weights: block absmax, codes, error sums and bin occupancy, for any number of formats at once.

Covers the numba kernels: serial, nogil, on raw bits, a chunk of 4,096 weights at a time so that everything between the read
and the sums stays in the first-level cache. Does not cover threads (``pool.py``) nor the numbers' meaning (``measurement.py``).

Weights come as their bits (``bits.py``). Codes are ranks: the number of thresholds below x / absmax. Comparisons are written
``not (x <= edge)`` so that a NaN passes every threshold and gets the last rank, as in bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.bits import decode, from_magnitude, jit, magnitude

CHUNK = 4096
"""Weights held in the first-level cache at once; every block size divides it."""
TINY = np.float32(1e-38)
"""bitsandbytes' floor for an absmax that is divided by."""

_F32, _I32, _U32 = np.float32, np.int32, np.uint32


@jit()
def _absmax(block: Any) -> Any:
    largest = _I32(0)
    for j in range(block.size):
        largest = max(largest, magnitude(block[j]))
    return from_magnitude(largest, block[0])


@jit()
def _multiply(block: Any, normalised: Any, factor: Any) -> None:
    for j in range(block.size):
        normalised[j] = decode(block[j]) * factor


@jit()
def _divide(block: Any, normalised: Any, divisor: Any) -> None:
    for j in range(block.size):
        normalised[j] = decode(block[j]) / divisor


@jit()
def _normalise(span: Any, block_size: Any, is_tail: Any, absmax: Any, normalised: Any) -> None:
    """Each block of ``span`` divided by its absmax, exactly as bitsandbytes' CPU kernel rounds it.

    Whole blocks are multiplied by 1 / max(absmax, 1e-38); only the tail block of a tensor is divided, and only there is the
    stored absmax raised to 1e-38.
    """
    for b in range(absmax.size):
        block, out = span[b * block_size : (b + 1) * block_size], normalised[b * block_size : (b + 1) * block_size]
        largest = _absmax(block)
        floored = TINY if largest < TINY else largest
        if is_tail and b == absmax.size - 1:
            absmax[b] = floored
            _divide(block, out[: block.size], floored)
        else:
            absmax[b] = largest
            _multiply(block, out, _F32(1) / floored)


@jit()
def _round(normalised: Any, edges: Any, levels: Any, ranks: Any, rounded: Any) -> None:
    """The rank of each normalised weight and the bits of its level.

    Levels come and go as the int32 bits of a float32: adding the differences of neighbours where an edge is passed ends at
    exactly the right bits, and takes an "and" and an "add" where choosing between floats takes a slower blend.
    """
    e0, e1, e2, e3, e4, e5, e6, e7 = edges[0], edges[1], edges[2], edges[3], edges[4], edges[5], edges[6], edges[7]
    e8, e9, e10, e11, e12, e13, e14 = edges[8], edges[9], edges[10], edges[11], edges[12], edges[13], edges[14]
    lowest = levels[0]
    d0 = levels[1] - levels[0]
    d1 = levels[2] - levels[1]
    d2 = levels[3] - levels[2]
    d3 = levels[4] - levels[3]
    d4 = levels[5] - levels[4]
    d5 = levels[6] - levels[5]
    d6 = levels[7] - levels[6]
    d7 = levels[8] - levels[7]
    d8 = levels[9] - levels[8]
    d9 = levels[10] - levels[9]
    d10 = levels[11] - levels[10]
    d11 = levels[12] - levels[11]
    d12 = levels[13] - levels[12]
    d13 = levels[14] - levels[13]
    d14 = levels[15] - levels[14]
    for j in range(normalised.size):
        x = normalised[j]
        rank, level = _I32(0), lowest
        if not (x <= e0):
            rank += _I32(1)
            level += d0
        if not (x <= e1):
            rank += _I32(1)
            level += d1
        if not (x <= e2):
            rank += _I32(1)
            level += d2
        if not (x <= e3):
            rank += _I32(1)
            level += d3
        if not (x <= e4):
            rank += _I32(1)
            level += d4
        if not (x <= e5):
            rank += _I32(1)
            level += d5
        if not (x <= e6):
            rank += _I32(1)
            level += d6
        if not (x <= e7):
            rank += _I32(1)
            level += d7
        if not (x <= e8):
            rank += _I32(1)
            level += d8
        if not (x <= e9):
            rank += _I32(1)
            level += d9
        if not (x <= e10):
            rank += _I32(1)
            level += d10
        if not (x <= e11):
            rank += _I32(1)
            level += d11
        if not (x <= e12):
            rank += _I32(1)
            level += d12
        if not (x <= e13):
            rank += _I32(1)
            level += d13
        if not (x <= e14):
            rank += _I32(1)
            level += d14
        ranks[j] = np.uint8(rank)
        rounded[j] = level


@jit(reassociate=True)
def _sum_squares(normalised: Any) -> Any:
    total = _F32(0)
    for j in range(normalised.size):
        total += normalised[j] * normalised[j]
    return total


@jit(reassociate=True)
def _errors(block: Any, rounded: Any, scale: Any, per_absmax: Any) -> Any:
    """Σ(e/absmax)², Σ|e|/absmax and max|e| with e = x − level · scale. Sums in units of absmax never overflow."""
    squares, magnitudes, largest = _F32(0), _F32(0), _I32(0)
    for j in range(block.size):
        error = decode(block[j]) - decode(rounded[j]) * scale
        largest = max(largest, magnitude(error))
        error *= per_absmax
        squares += error * error
        magnitudes += abs(error)
    return squares, magnitudes, from_magnitude(largest, _U32(0))


@jit()
def _count_pairs(ranks: Any, pairs: Any, counts: Any) -> None:
    """Counts pairs of ranks into four tables of 256: equal neighbours then wait for one another four times less."""
    half = ranks.size // 2
    for j in range(half):
        pairs[j] = ranks[2 * j] | (ranks[2 * j + 1] << 4)
    whole = half // 4 * 4
    for j in range(0, whole, 4):
        counts[0, pairs[j]] += 1
        counts[1, pairs[j + 1]] += 1
        counts[2, pairs[j + 2]] += 1
        counts[3, pairs[j + 3]] += 1
    for j in range(whole, half):
        counts[0, pairs[j]] += 1


@jit()
def block_absmax(bits: Any, block_size: Any, absmax: Any) -> None:
    """The absmax of each block of ``bits`` into ``absmax`` (blocks,), without the tail block's floor."""
    for b in range(absmax.size):
        absmax[b] = _absmax(bits[b * block_size : (b + 1) * block_size])


@jit()
def rank_span(bits: Any, block_size: Any, has_tail: Any, edges: Any, absmax: Any, ranks: Any) -> None:
    """Ranks (n,) and absmax (blocks,) of a span of n weights for one format's ``edges`` (15,)."""
    normalised, rounded = np.empty(CHUNK, _F32), np.empty(CHUNK, _I32)
    levels = np.zeros(16, _I32)
    for start in range(0, bits.size, CHUNK):
        span = bits[start : start + CHUNK]
        first, blocks = start // block_size, (span.size + block_size - 1) // block_size
        is_tail = has_tail and start + span.size == bits.size
        _normalise(span, block_size, is_tail, absmax[first : first + blocks], normalised)
        _round(normalised[: span.size], edges, levels, ranks[start : start + span.size], rounded)


@jit()
def measure_span(
    bits: Any, block_size: Any, has_tail: Any, edges: Any, levels: Any, scales: Any,
    absmax: Any, squares: Any, error_squares: Any, error_sums: Any, error_max: Any, occupancy: Any, bins: Any,
) -> None:  # fmt: skip
    """Every statistic of a span of n weights in F formats, one pass.

    Reads ``bits`` (n,), ``edges`` (F, 15), ``levels`` (F, 16) as int32 bits, and ``scales`` (F, blocks): what each block is
    dequantized with, or (F, 0) for its own absmax. Writes ``absmax`` and ``squares`` = Σ(x/absmax)² (blocks,),
    ``error_squares``, ``error_sums`` (units of absmax) and ``error_max`` (F, blocks); adds to ``occupancy`` (F, 16) and,
    unless it is empty, to ``bins``, a histogram of x / absmax over [−1, 1].
    """
    formats = edges.shape[0]
    own_scale = scales.shape[1] == 0
    normalised, rounded = np.empty(CHUNK, _F32), np.empty(CHUNK, _I32)
    ranks, pairs = np.empty(CHUNK, np.uint8), np.empty(CHUNK, np.uint8)
    counts = np.zeros((formats, 4, 256), _I32)
    bin_counts = np.zeros((4, bins.size + 1), _I32)
    for start in range(0, bits.size, CHUNK):
        span = bits[start : start + CHUNK]
        n = span.size
        first, blocks = start // block_size, (n + block_size - 1) // block_size
        _normalise(span, block_size, has_tail and start + n == bits.size, absmax[first : first + blocks], normalised)
        for b in range(blocks):
            squares[first + b] = _sum_squares(normalised[b * block_size : min(n, (b + 1) * block_size)])
        if bins.size:
            _count_bins(normalised[:n], rounded, bin_counts)
        for f in range(formats):
            _round(normalised[:n], edges[f], levels[f], ranks[:n], rounded)
            for b in range(blocks):
                low, high, at = b * block_size, min(n, (b + 1) * block_size), first + b
                largest = absmax[at]
                scale = largest if own_scale else scales[f, at]
                per_absmax = _F32(1) / (TINY if largest < TINY else largest)
                error_squares[f, at], error_sums[f, at], error_max[f, at] = _errors(
                    span[low:high], rounded[low:high], scale, per_absmax
                )
            _count_pairs(ranks[:n], pairs, counts[f])
            if n % 2:
                occupancy[f, ranks[n - 1]] += 1
    for f in range(formats):
        for pair in range(256):
            total = counts[f, 0, pair] + counts[f, 1, pair] + counts[f, 2, pair] + counts[f, 3, pair]
            occupancy[f, pair & 15] += total
            occupancy[f, pair >> 4] += total
    for k in range(bins.size):
        bins[k] += bin_counts[0, k] + bin_counts[1, k] + bin_counts[2, k] + bin_counts[3, k]


@jit()
def _count_bins(normalised: Any, places: Any, counts: Any) -> None:
    """Counts x over [−1, 1] into ``counts`` (4, bins + 1), four tables as in ``_count_pairs``; NaNs go to the last column."""
    bins = _I32(counts.shape[1] - 1)
    half = _F32(counts.shape[1] - 1) / _F32(2)
    for j in range(normalised.size):
        x = normalised[j]
        place = min(max(_I32((x + _F32(1)) * half), _I32(0)), bins - _I32(1))
        places[j] = place if x == x else bins
    whole = normalised.size // 4 * 4
    for j in range(0, whole, 4):
        counts[0, places[j]] += 1
        counts[1, places[j + 1]] += 1
        counts[2, places[j + 2]] += 1
        counts[3, places[j + 3]] += 1
    for j in range(whole, normalised.size):
        counts[0, places[j]] += 1


@jit()
def finish_span(
    block_size: Any, tail: Any, absmax: Any, squares: Any, error_squares: Any, error_sums: Any, error_max: Any, totals: Any
) -> None:
    """From the sums of a span's blocks, in units of absmax, to values and the span's totals, in place.

    ``error_squares`` becomes the root mean square error and ``error_sums`` the mean absolute error of each block (F, blocks);
    both and ``error_max`` become NaN where a block is not finite, and such blocks are left out of ``totals`` (F, 5), float64:
    weights, Σx², Σe², Σ|e|, max|e|. ``tail`` is the size of the last block, 0 where that is whole.
    """
    for f in range(error_squares.shape[0]):
        weights, power, noise, sums, largest = 0.0, 0.0, 0.0, 0.0, 0.0
        for b in range(absmax.size):
            scale = np.float64(absmax[b])
            count = tail if tail and b == absmax.size - 1 else block_size
            if scale - scale != 0.0:
                error_squares[f, b] = error_sums[f, b] = error_max[f, b] = np.nan
                continue
            weights += count
            power += squares[b] * scale * scale
            noise += error_squares[f, b] * scale * scale
            sums += error_sums[f, b] * scale
            largest = max(largest, np.float64(error_max[f, b]))
            error_squares[f, b] = scale * np.sqrt(error_squares[f, b] / count)
            error_sums[f, b] = scale * error_sums[f, b] / count
        totals[f, 0], totals[f, 1], totals[f, 2], totals[f, 3], totals[f, 4] = weights, power, noise, sums, largest


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
